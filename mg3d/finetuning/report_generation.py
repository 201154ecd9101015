"""Kind: write the findings of a chest CT; a small causal decoder reads the Swin's tokens.

GPT-2's architecture with cross-attention (transformers), trained from scratch; the encoder stays
``frozen`` or learns too (``finetune``, ``scratch``). Tokens are byte-level BPE trained on the
training reports, so no word is unknown, and raw text is scored against raw text. Nulls, because the
language is templated: ``most_frequent_report``, ``nearest_training_report`` by image embedding, and
``shuffled_images``, every case with the text written for another's image.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mg3d import paths
from mg3d.figures import report_generation as figures
from mg3d.finetuning.encoders import starting_encoder
from mg3d.finetuning.fitting import fit_head
from mg3d.finetuning.images import PackedCases, packed_cases
from mg3d.finetuning.task import Case, OnMetrics, Scores, Split
from mg3d.ledger import Ledger
from mg3d.metrics.bootstrap import Estimate, estimate, mean_estimate, unavailable
from mg3d.metrics.findings import finding_matrix, findings, macro_f1, micro_f1
from mg3d.metrics.text import NORMALISER, bleu, bleu_statistics, cider, rouge_l
from mg3d.params import CtrgReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from tokenizers import Tokenizer

NAME = "report_generation"
MODEL = "model"
NULLS = ("most_frequent_report", "nearest_training_report", "shuffled_images")
SLICES, TOKENIZER, FACTS = "slices.npz", "tokenizer.json", "facts.json"
PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
EMBED_BATCH = 4
NUM_SHOWN = 4


class Reporter(nn.Module):
    """Volume or its tokens -> a report. Without ``encoder`` the inputs are tokens [B, N, C].

    Tokens are standardised by the training set [M, N, C], place by place: what all chests share
    would drown what differs.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        train_tokens: Tensor,
        vocabulary_size: int,
        params: CtrgReport,
        encoder: Any,
    ) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        super().__init__()
        self.encoder = encoder
        self.register_buffer("mean", train_tokens.mean(0))
        self.register_buffer("deviation", train_tokens.std(0, correction=0).clamp_min(1e-6))
        num_tokens, channels = train_tokens.shape[1:]
        self.project = nn.Linear(channels, params.width)
        self.place = nn.Parameter(torch.zeros(num_tokens, params.width))
        self.decoder: Any = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocabulary_size,
                n_positions=params.max_new_tokens + 2,
                n_embd=params.width,
                n_layer=params.num_layers,
                n_head=params.num_heads,
                add_cross_attention=True,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
            )
        )

    def memory(self, inputs: Tensor) -> Tensor:
        """What the decoder attends to: [B, N, C] or [B, 1, D, H, W] -> [B, N, width]."""
        tokens = inputs if self.encoder is None else self.encoder.tokens(inputs)
        return self.project((tokens - self.mean) / self.deviation) + self.place

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """(inputs, ids [B, L] with 0 = padding) -> next-token cross-entropy."""
        inputs, ids = batch
        logits = self.decoder(
            input_ids=ids,
            attention_mask=(ids != 0).long(),
            encoder_hidden_states=self.memory(inputs),
            use_cache=False,
        ).logits
        return {
            "total": F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], ignore_index=0)
        }

    @torch.no_grad()
    def generate(self, inputs: Tensor, num_beams: int, max_new_tokens: int) -> Tensor:
        """Beam search from <bos>: ids [B, L]."""
        memory = self.memory(inputs)
        start = torch.ones(len(memory), 1, dtype=torch.long, device=memory.device)
        return self.decoder.generate(
            input_ids=start,
            attention_mask=torch.ones_like(start),
            encoder_hidden_states=memory,
            num_beams=num_beams,
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )


def train_tokenizer(texts: Sequence[str], vocabulary_size: int) -> "Tokenizer":
    """Byte-level BPE over ``texts``: every string can be written, none is unknown.

    Ids 0, 1, 2 are <pad>, <bos>, <eos>; 256 bytes follow, then merges by frequency.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            special_tokens=[PAD, BOS, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


def predict(
    split: Split,
    checkpoint: Path,
    predictions: Path,
    params: CtrgReport,
    ledger: Ledger,
    on_metrics: OnMetrics,
    prefix: str,
) -> dict[str, Any]:
    """Write ``<system>.jsonl`` (case_id, patient_id, reference, hypothesis), the tokenizer and the
    slices that the sheet shows (see `Kind.predict`).

    Raises ValueError for the mode ``zero_shot``.
    """
    if params.mode == "zero_shot":
        raise ValueError("report generation has no zero_shot mode: use frozen, finetune or scratch")
    encoder, contract, provenance = starting_encoder(checkpoint, params)
    frozen = params.mode == "frozen"
    with packed_cases(split, contract, ledger) as volumes:
        train = split["train"]
        tokenizer = train_tokenizer([case.text for case in train], params.vocabulary_size)
        tokens = _tokens(encoder, [c for cases in split.values() for c in cases], volumes)

        def inputs(cases: Sequence[Case]) -> Tensor:
            if frozen:
                return torch.stack([tokens[case.case_id] for case in cases])
            return volumes.batch(cases)

        def make_batch(cases: Sequence[Case]) -> tuple[Tensor, Tensor]:
            return inputs(cases), encode(tokenizer, [c.text for c in cases], params.max_new_tokens)

        torch.manual_seed(params.seed)
        reporter = Reporter(
            torch.stack([tokens[case.case_id] for case in train]),
            tokenizer.get_vocab_size(),
            params,
            None if frozen else encoder,
        )
        fit_head(reporter, train, split["validation"], make_batch, params, on_metrics, prefix)
        test = split["test"]
        nearest = _nearest(tokens, train, test)  # by the encoder as it was before fine-tuning
        written: list[str] = []
        for start in range(0, len(test), params.batch_size):
            ids = reporter.generate(
                inputs(test[start : start + params.batch_size]),
                params.num_beams,
                params.max_new_tokens,
            )
            written += [text.strip() for text in tokenizer.decode_batch(ids.tolist())]
        frequent, times = min(
            Counter(case.text for case in train).items(), key=lambda item: (-item[1], item[0])
        )
        order = np.random.default_rng(params.seed).permutation(len(test))
        shuffled = _derange(order)
        for system, hypotheses in (
            (MODEL, written),
            ("most_frequent_report", [frequent] * len(test)),
            ("nearest_training_report", nearest),
            ("shuffled_images", [written[index] for index in shuffled]),
        ):
            _write(predictions / f"{system}.jsonl", test, hypotheses)
        slices: Any = {case.case_id: volumes.slices(case, 3) for case in test[:NUM_SHOWN]}
    np.savez_compressed(predictions / SLICES, **slices)
    tokenizer.save(str(predictions / TOKENIZER))
    seen = {case.text for case in train}
    facts = {
        "train_reports": len(train),
        "train_reports_cut": sum(
            len(tokenizer.encode(case.text).ids) + 1 > params.max_new_tokens for case in train
        ),
        "most_frequent_report_times": times,
        "test_reports_also_in_train": sum(case.text in seen for case in test),
        "vocabulary_size": tokenizer.get_vocab_size(),
    }
    (predictions / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
    return provenance


def encode(tokenizer: "Tokenizer", texts: Sequence[str], max_tokens: int) -> Tensor:
    """<bos> text <eos>, padded with 0: long [B, L]. Longer texts lose their end, never <eos>."""
    rows = [[1, *tokenizer.encode(text).ids[: max_tokens - 1], 2] for text in texts]
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def score(predictions: Path, params: CtrgReport) -> Scores:
    """BLEU-1..4, ROUGE-L, CIDEr-D and keyword findings F1 of whole raw texts."""
    tables = {system: _read(predictions / f"{system}.jsonl") for system in (MODEL, *NULLS)}
    rows = tables[MODEL]
    counts: dict[str, float] = json.loads((predictions / FACTS).read_text())
    counts["test_cases"] = len(rows)
    counts["distinct_hypotheses"] = len({row["hypothesis"] for row in rows})
    counts["empty_hypotheses"] = sum(not row["hypothesis"] for row in rows)
    return Scores(
        metrics=_metrics(rows, params),
        nulls={null: _metrics(tables[null], params) for null in NULLS},
        counts=counts,
        notes=(
            f"raw text against raw text, normaliser {NORMALISER}; references are never cut",
            "keyword_* come from a rule-based keyword labeller: not a trained labeller, not "
            "clinical efficacy",
            "CIDEr-D takes document frequencies from these references: of little meaning on a "
            "small test set",
            "BLEU and ROUGE-L carry no claim on templated reports: read them beside the nulls",
        ),
    )


def draw(predictions: Path, params: CtrgReport) -> "dict[str, Figure]":
    """``reports``: slices, both texts, findings in agreement."""
    shown = []
    with np.load(predictions / SLICES, allow_pickle=False) as slices:
        for row in _read(predictions / f"{MODEL}.jsonl"):
            if row["case_id"] in slices.files:
                shown.append(
                    figures.Generated(
                        slices=list(slices[row["case_id"]]),
                        reference=row["reference"],
                        hypothesis=row["hypothesis"],
                        reference_findings=frozenset(findings(row["reference"])),
                        hypothesis_findings=frozenset(findings(row["hypothesis"])),
                    )
                )
    return {"reports": figures.report_sheet(shown)}


@torch.no_grad()
def _tokens(encoder: Any, cases: Sequence[Case], volumes: PackedCases) -> dict[str, Tensor]:
    """Visual tokens [N, C] by case id, each volume once."""
    encoder.eval()
    tokens: dict[str, Tensor] = {}
    for start in range(0, len(cases), EMBED_BATCH):
        chosen = cases[start : start + EMBED_BATCH]
        rows = encoder.tokens(volumes.batch(chosen))
        tokens |= {case.case_id: row for case, row in zip(chosen, rows, strict=True)}
    return tokens


def _nearest(tokens: dict[str, Tensor], train: Sequence[Case], test: Sequence[Case]) -> list[str]:
    """Report of the training case with the nearest image (cosine of centred mean tokens)."""
    of_train = torch.stack([tokens[case.case_id].mean(0) for case in train])
    of_test = torch.stack([tokens[case.case_id].mean(0) for case in test])
    centre = of_train.mean(0)
    similarity = nn.functional.normalize(of_test - centre, dim=-1) @ nn.functional.normalize(
        of_train - centre, dim=-1
    ).transpose(0, 1)
    return [train[int(index)].text for index in similarity.argmax(dim=1)]


def _derange(order: np.ndarray) -> np.ndarray:
    """A permutation without fixed points (for two or more): each takes the next in ``order``."""
    shuffled = np.empty_like(order)
    shuffled[order] = np.roll(order, 1)
    return shuffled


def _write(path: Path, cases: Sequence[Case], hypotheses: Sequence[str]) -> None:
    lines = [
        json.dumps(
            {
                "case_id": case.case_id,
                "patient_id": case.patient_id,
                "reference": case.text,
                "hypothesis": hypothesis,
            }
        )
        for case, hypothesis in zip(cases, hypotheses, strict=True)
    ]
    with paths.atomic_write(path) as temporary:
        temporary.write_text("".join(line + "\n" for line in lines))


def _read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _metrics(rows: Sequence[dict[str, str]], params: CtrgReport) -> dict[str, Estimate]:
    hypotheses = [row["hypothesis"] for row in rows]
    references = [row["reference"] for row in rows]
    patients = [row["patient_id"] for row in rows]
    common: Any = {"num_resamples": params.num_bootstrap, "seed": params.seed}
    statistics = bleu_statistics(hypotheses, references)
    predicted, true = finding_matrix(hypotheses), finding_matrix(references)
    nothing = "no finding is asserted"
    return {
        **{
            f"bleu_{n}": estimate(
                lambda chosen, n=n: float(bleu(statistics[chosen])[n - 1]),  # type: ignore[misc]
                patients,
                **common,
            )
            for n in range(1, 5)
        },
        "rouge_l": mean_estimate(rouge_l(hypotheses, references), patients, **common),
        "cider": mean_estimate(cider(hypotheses, references), patients, **common),
        "keyword_micro_f1": estimate(
            lambda chosen: micro_f1(predicted[chosen], true[chosen]),
            patients,
            undefined=nothing,
            **common,
        ),
        "keyword_macro_f1": estimate(
            lambda chosen: macro_f1(predicted[chosen], true[chosen]),
            patients,
            undefined=nothing,
            **common,
        ),
        "meteor": unavailable("METEOR needs Java or WordNet, neither of which is a dependency"),
        "clinical_f1": unavailable("needs the weights of a trained CT labeller (RadBERT, RadEval)"),
    }
