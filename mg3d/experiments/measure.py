"""What is measured of every cell, also of those without a dual encoder, and of no training at all.

- ``probe``: the linear probe of `mg3d.metrics.probe` on the frozen image encoder. It is fitted on
  the whole training split, however many of its studies the cell was trained on.
- ``loss``: every term of the cell's objective on the validation split with validation's masks, mean
  over batches of ``pretrain.batch_size`` weighted by their studies (a contrastive term depends on
  the size of its batch, which is the same for all cells). ``paper_total`` leaves ITC out.
- ``validation``: the last validation of the run; ``falls``: what its training losses did.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Subset

from mg3d.metrics.probe import probe_ranks
from mg3d.models.text import FrozenTextEncoder, load_tokenizer
from mg3d.objectives.objective import objective
from mg3d.params import Model, Objective, Pretrain, TextEncoder, VolumeContract
from mg3d.training.account import account
from mg3d.training.checkpoint import load_model
from mg3d.training.feed import Feed
from mg3d.training.pretrain import METRICS, PREFIX, SPLITS, volumes
from mg3d.training.record import loss_history, read_metrics

if TYPE_CHECKING:
    from mg3d.data.pairs import Pair
    from mg3d.models.vision import VolumeEncoder

BATCH = 8
#: Share of a run's reports that make its first and its last window.
WINDOW = 0.1


@dataclass(frozen=True)
class Studies:
    """The studies that cells are measured on and their reports' features, the same for all cells.

    ``reports[split]`` [n, E] are means over a report's sentences of the frozen text encoder's means
    over a sentence's tokens. ``patient_ids`` are those of the validation split, in its order.
    """

    pairs: dict[str, "Subset[Pair]"]
    reports: dict[str, np.ndarray]
    patient_ids: list[str]


def read_studies(prepared: Path, out: Path, contract: VolumeContract, text: TextEncoder) -> Studies:
    """Both splits, damaged volumes left out (``out`` gets the ledger), and their reports."""
    from mg3d.data.embeddings import SentenceMeans
    from mg3d.data.pairs import Pairs

    tokenizer = load_tokenizer(text.name_or_folder)
    means = SentenceMeans(prepared, FrozenTextEncoder(text), tokenizer, text.max_tokens)
    whole = account(volumes(prepared), out, _device())
    splits = {split: Pairs(prepared, split, contract, means) for split in SPLITS}
    kept = {
        split: [i for i, study_id in enumerate(pairs.study_ids) if study_id in whole]
        for split, pairs in splits.items()
    }
    subsets = {split: Subset(pairs, kept[split]) for split, pairs in splits.items()}
    reports = {
        split: np.stack([_report_features(subset[i]) for i in range(len(subset))])
        for split, subset in subsets.items()
    }
    patients = splits["validation"].patient_ids
    return Studies(subsets, reports, [patients[i] for i in kept["validation"]])


def measure(
    checkpoint: Path,
    studies: Studies,
    model: Model,
    weights: Objective,
    params: Pretrain,
) -> dict[str, Any]:
    """The measurements of one finished cell, as JSON."""
    run = checkpoint.parent.parent
    network = load_model(checkpoint).model.to(_device())
    lines = read_metrics(run / METRICS)
    return {
        "run": run.name,
        "probe": probe(network.vision_encoder, studies),
        "loss": validation_losses(network, studies, model, weights, params),
        "validation": last_validation(lines),
        "falls": falls(lines),
    }


def probe(encoder: "VolumeEncoder", studies: Studies) -> dict[str, list[int]]:
    """Ranks of the validation studies by way."""
    images = {split: image_features(studies.pairs[split], encoder) for split in SPLITS}
    ranks = probe_ranks(
        images["train"],
        studies.reports["train"],
        images["validation"],
        studies.reports["validation"],
    )
    return {way: found.tolist() for way, found in ranks.items()}


def untrained_probe(model: Model, seed: int, studies: Studies) -> dict[str, list[int]]:
    """:func:`probe` of the same architecture with random weights: the null of pre-training."""
    from mg3d.models.vision import vision_encoder

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = vision_encoder(model.vision).eval()
    return probe(encoder.to(_device()), studies)


@torch.no_grad()
def image_features(pairs: "Subset[Pair]", encoder: "VolumeEncoder") -> np.ndarray:
    """Pooled features of the encoder in eval mode, [n, C] float32."""
    device = next(encoder.parameters()).device
    rows = [
        encoder.features(torch.stack([pairs[i].volume for i in places]).to(device)).float().cpu()
        for places in _batches(len(pairs), BATCH)
    ]
    return torch.cat(rows).numpy()


@torch.no_grad()
def validation_losses(
    network: Any, studies: Studies, model: Model, weights: Objective, params: Pretrain
) -> dict[str, float]:
    """Each term of the objective on the validation split; ``total``; ``paper_total``."""
    from mg3d.data.pairs import Collate

    tokenizer = load_tokenizer(model.text.name_or_folder)
    feed = Feed(
        Collate(tokenizer, model.text.max_tokens),
        weights,
        params,
        tokenizer.mask_token_id,
        network.text_encoder.vocab_size,
        _device(),
    )
    pairs = studies.pairs["validation"]
    sums: dict[str, float] = {}
    for places in _batches(len(pairs), params.batch_size):
        inputs = feed.fixed(pairs, places)
        for term, loss in objective(network(inputs), inputs, weights).items():
            sums[term] = sums.get(term, 0.0) + float(loss) * len(places)
    losses = {term: value / len(pairs) for term, value in sums.items()}
    return losses | {"paper_total": losses["total"] - weights.itc_weight * losses.get("itc", 0.0)}


def last_validation(lines: Sequence[dict[str, float]]) -> dict[str, float]:
    """The scores of the newest validation in a run's metrics."""
    start = f"{PREFIX}/validation/"
    found = [line for line in lines if any(key.startswith(start) for key in line)]
    newest = found[-1] if found else {}
    return {k.removeprefix(start): v for k, v in newest.items() if k.startswith(start)}


def falls(lines: Sequence[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """Mean training loss over the first and the last tenth of the reports, by term."""
    found = {}
    for term, curves in loss_history(lines, PREFIX).items():
        values = curves["train"][:, 1]
        num = max(1, round(WINDOW * len(values)))
        found[term] = (float(values[:num].mean()), float(values[-num:].mean()))
    return found


def _report_features(pair: "Pair") -> np.ndarray:
    assert pair.sentence_means is not None
    return pair.sentence_means.mean(dim=0).numpy()


def _batches(num: int, size: int) -> list[list[int]]:
    return [list(range(start, min(start + size, num))) for start in range(0, num, size)]


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
