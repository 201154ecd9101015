"""Pre-training of MG-3D: the model of spec/model on the studies of a manifest.

Start it under torchrun, or alone. Start it again and it goes on where it was, or returns at once.
The run's folder holds ``checkpoints/``, ``metrics.jsonl``, ``figures/``, ``fingerprint.json`` and
the ledger of the studies.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from mg3d import paths
from mg3d.fingerprint import Fingerprint, pretrain_fingerprint
from mg3d.params import Model, Objective, Pretrain, VolumeContract
from mg3d.training import checkpoint as checkpoints
from mg3d.training import distributed, parallel
from mg3d.training.account import account
from mg3d.training.accumulate import in_parts
from mg3d.training.distributed import gather, gather_own_gradient, is_main, rank, world_size
from mg3d.training.feed import Feed
from mg3d.training.loop import OnMetrics, Stopped, fit
from mg3d.training.order import nested_subset, random_state, set_random_state
from mg3d.training.pictures import LAST_FIGURE, draw
from mg3d.training.record import Record
from mg3d.training.schedule import parameter_groups, warmup_then_decay
from mg3d.training.validation import evaluate

if TYPE_CHECKING:
    from mg3d.models.mg3d import MG3D, Inputs

METRICS = "metrics.jsonl"
PREFIX = "pretrain"
SPLITS = ("train", "validation")
FORCED = "forced.jsonl"
RESUME_BY_FORCE = "mg3d pretrain --resume {} --force"


def pretrain(
    prepared: Path,
    out: Path,
    contract: VolumeContract,
    model: Model,
    objective: Objective,
    params: Pretrain,
    on_metrics: OnMetrics,
    force: bool = False,
) -> Path:
    """Train to ``params.num_steps`` and return the final checkpoint's folder.

    ``prepared`` is what the DVC stages wrote. A run that was interrupted continues bit by bit from
    its last intact checkpoint; one that is finished returns without work. Raises ValueError if
    ``out`` holds a run of other params, data or code (naming them; with ``force`` they are printed
    and written to ``forced.jsonl`` instead), or if the batch does not suit
    the ranks or the data; FloatingPointError if a loss is not finite; Stopped, on all ranks and
    with the step saved, after SIGTERM to any.
    """
    torch.set_num_threads(params.num_threads_per_rank)
    with (
        distributed.sigterm_noted() as told_to_stop,
        distributed.process_group() as device,
        _written_gradients(device, params.precision),
    ):
        if params.batch_size % world_size():
            raise ValueError(
                f"pretrain.batch_size {params.batch_size} cannot be shared by {world_size()} ranks"
                f": make it a multiple of {world_size()}"
            )
        fingerprint = pretrain_fingerprint(prepared, contract, model, objective, params)
        if done := finished(out, fingerprint, params.num_steps, force):
            return done
        last = _last_checkpoint(out, fingerprint, force)
        state = checkpoints.training_state(last) if last else None
        start_step = state.step if state else 0
        if is_main():
            _write_json(out / paths.FINGERPRINT, fingerprint.parts)

        from mg3d.data.embeddings import SentenceMeans
        from mg3d.data.pairs import Collate, Pairs
        from mg3d.models.build import build
        from mg3d.models.text import load_tokenizer

        torch.manual_seed(params.seed)
        network = build(model, objective).to(device)
        tokenizer = load_tokenizer(model.text.name_or_folder)
        means = SentenceMeans(prepared, network.text_encoder, tokenizer, model.text.max_tokens)
        splits = [Pairs(prepared, split, contract, means) for split in SPLITS]
        candidates = splits[0].study_ids
        chosen = nested_subset(params.seed, candidates, params.train_fraction)
        whole = account(volumes(prepared), out, device, set(candidates) - chosen)
        training, validation = (
            Subset(pairs, [i for i, study_id in enumerate(pairs.study_ids) if study_id in whole])
            for pairs in splits
        )
        samples = hashlib.sha256("".join(sorted(whole)).encode()).hexdigest()
        changes = state.fingerprint.changes(fingerprint) if state else []
        if state and state.position["samples_sha256"] != samples:
            if not force:
                raise ValueError(
                    f"the readable volumes are not those of step {start_step} (see "
                    f"{out / paths.LEDGER_ENTRIES}): restore the files, train in another folder, "
                    f"or use {RESUME_BY_FORCE.format(out)}"
                )
            changes.append(f"samples: {state.position['samples_sha256'][:16]} -> {samples[:16]}")
        if changes and is_main():
            print(f"forced to go on from step {start_step} with:", *changes, sep="\n  ")
            with (out / FORCED).open("a") as file:
                file.write(json.dumps({"step": start_step, "changes": changes}) + "\n")

        if params.compile:
            for block in network.blocks:
                block.compile(dynamic=False)  # in place: the names of the parameters stay
        if params.sharding == "full":
            parallel.shard(network, network.blocks, device)
        optimizer = torch.optim.AdamW(
            parameter_groups(
                network,
                learning_rate=params.learning_rate,
                weight_decay=params.weight_decay,
                heads=network.heads,
                head_learning_rate_factor=params.head_learning_rate_factor,
            ),
            fused=True,  # on a CPU a quarter of the default's time, the same up to rounding
        )
        if last and state:
            checkpoints.restore(last, network, optimizer)
            set_random_state(state.rng[rank() % len(state.rng)], device)
        scheduler = warmup_then_decay(
            optimizer, params.num_steps, params.warmup_fraction, start_step
        )

        feed = Feed(
            Collate(tokenizer, model.text.max_tokens),
            objective,
            params,
            tokenizer.mask_token_id,
            network.text_encoder.vocab_size,
            device,
        )
        record = Record(out / METRICS, start_step, on_metrics)
        writer = checkpoints.Writer(out / paths.CHECKPOINTS, params.num_kept_checkpoints)
        similarity = np.zeros((0, 0))

        def validate(step: int) -> dict[str, float]:
            nonlocal similarity
            with (
                parallel.for_evaluation(network),
                torch.autocast(device.type, torch.bfloat16, enabled=params.precision == "bfloat16"),
            ):
                scores, similarity = evaluate(network, feed.validation(validation))
            return scores

        def save(step: int) -> None:
            rng = gather(random_state(device)[None])
            moment = checkpoints.snapshot(
                step=step,
                model=network,
                optimizer=optimizer,
                contract=contract,
                model_params=model,
                objective_params=objective,
                fingerprint=fingerprint,
                rng=rng,
                position={
                    "samples_seen": step * params.batch_size,
                    "epoch": step * params.batch_size // len(training),
                    "samples_sha256": samples,
                },
            )
            if is_main():
                writer.submit(moment)

        def batches() -> Iterator[tuple[Sequence[str], "Inputs"]]:
            for batch in feed.training(training, start_step):
                writer.check()  # what could not be written ends the training at the next step
                yield batch

        step_module: nn.Module = PretrainStep(network, accumulate_steps=params.accumulate_steps)
        if params.sharding == "none":
            step_module = parallel.replicated(step_module, device)
        with _all_ranks_leave_together(), writer:
            fit(
                step_module,
                batches(),
                optimizer=optimizer,
                scheduler=scheduler,
                num_steps=params.num_steps,
                clip_norm=params.clip_norm,
                on_metrics=record,
                prefix=PREFIX,
                validate=validate,
                validate_every_steps=params.validate_every_steps,
                save=save,
                save_every_steps=params.checkpoint_every_steps,
                stop=told_to_stop,
                start_step=start_step,
                report_every_steps=params.report_every_steps,
                precision=params.precision,
            )
        if start_step == params.num_steps:  # killed between the last checkpoint and the figures
            validate(params.num_steps)
        with parallel.for_evaluation(network):
            if is_main():
                example = feed.fixed(validation, [0]) if len(validation) else None
                draw(out, network, example, similarity, out / METRICS, PREFIX)
        distributed.barrier()
        final = checkpoints.latest(out / paths.CHECKPOINTS)
        assert final is not None, f"no checkpoint under {out} after training"
        return final


def finished(
    out: Path, fingerprint: Fingerprint, num_steps: int, force: bool = False
) -> Path | None:
    """The final checkpoint of a run that is complete, its figures drawn; None if work is left.

    Raises ValueError if ``out`` holds a run of another fingerprint, unless forced.
    """
    last = _last_checkpoint(out, fingerprint, force)
    if last is None or checkpoints.training_state(last).step != num_steps:
        return None
    return last if (out / paths.FIGURES / LAST_FIGURE).exists() else None


class PretrainStep(nn.Module):
    """Model and objective as one module, so that DDP sees one forward: inputs -> named losses."""

    def __init__(
        self,
        model: "MG3D",
        gather: Callable[[Tensor], Tensor] = gather,
        accumulate_steps: int = 1,
    ) -> None:
        super().__init__()
        self.model = model
        self.gather = gather
        self.accumulate_steps = accumulate_steps

    def forward(self, inputs: "Inputs") -> dict[str, Tensor]:
        from mg3d.objectives.objective import objective

        outputs = in_parts(self.model, inputs, self.accumulate_steps)
        return objective(outputs, inputs, self.model.objective, self.gather, gather_own_gradient)


@contextmanager
def _all_ranks_leave_together() -> Iterator[None]:
    """A rank that is stopped waits for rank 0's checkpoint: whoever exits first ends the others."""
    try:
        yield
    except Stopped:
        distributed.barrier()
        raise


@contextmanager
def _written_gradients(device: torch.device, precision: str) -> Iterator[None]:
    """Without oneDNN where its gradients are wrong.

    In bfloat16 on a CPU (torch 2.13) it leaves parts of the weight gradient of a 3x3x3 convolution
    over one or two voxels, the first of our decoder, unwritten: whatever was in memory.
    """
    mkldnn: Any = torch.backends.mkldnn
    before = mkldnn.enabled
    mkldnn.enabled = before and not (device.type == "cpu" and precision == "bfloat16")
    try:
        yield
    finally:
        mkldnn.enabled = before


def _last_checkpoint(out: Path, fingerprint: Fingerprint, force: bool) -> Path | None:
    """Where to go on from; raises ValueError if it belongs to another run, unless forced."""
    last = checkpoints.latest(out / paths.CHECKPOINTS)
    if last is not None and not force:
        changes = checkpoints.training_state(last).fingerprint.changes(fingerprint)
        if changes:
            raise ValueError(
                f"{out} holds a run of something else:\n  "
                + "\n  ".join(changes)
                + "\nUndo the change to resume it, train in another folder (--out), or use "
                + RESUME_BY_FORCE.format(out)
            )
    return last


def volumes(prepared: Path) -> dict[str, tuple[Path, str]]:
    """Volume file and its SHA-256 of each study of the splits, by study id."""
    manifest = pd.read_parquet(paths.stage_folder("build_manifest", prepared) / paths.MANIFEST)
    rows = manifest[manifest["split"].isin(SPLITS)]
    return {
        row.study_id: (prepared / row.volume, row.volume_sha256)
        for row in rows.itertuples(index=False)
    }


def _write_json(path: Path, tree: Any) -> None:
    with paths.atomic_write(path) as temporary:
        temporary.write_text(json.dumps(tree, indent=1) + "\n")
