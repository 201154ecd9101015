"""A small ``prepared/`` as the DVC stages write it: volumes and sentences, without the DICOM."""

import hashlib
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mg3d import paths
from mg3d.data.embeddings import embed_sentences
from mg3d.data.manifest import build_manifest
from mg3d.data.sentences import REPORT_COLUMNS
from mg3d.params import (
    BuildManifest,
    DicomExport,
    EmbedSentences,
    Model,
    Objective,
    Pretrain,
    Sources,
    TextEncoder,
    VisionEncoder,
    VolumeContract,
)

CONTRACT = VolumeContract(spacing_mm=(5.0, 8.0, 8.0), shape_voxels=(64, 32, 32))
OBJECTIVE = Objective(itc_weight=1.0, mim_block_voxels=16)
PRETRAIN = Pretrain(
    batch_size=4,
    num_steps=10,
    learning_rate=1e-3,
    report_every_steps=1,
    validate_every_steps=5,
    checkpoint_every_steps=5,
)
FINDINGS = ("Nodule in the right upper lobe.", "No pleural effusion.", "The heart is enlarged.")


def tiny_model(text_encoder: Path) -> Model:
    """A model of 60 thousand parameters, so that tests spend their time elsewhere."""
    if not text_encoder.exists():
        write_text_encoder(text_encoder)
    vision = VisionEncoder(
        embed_dim=4, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_voxels=2
    )
    text = TextEncoder(name_or_folder=str(text_encoder), max_tokens=64)
    return Model(vision=vision, text=text, num_fusion_layers=1)


def write_text_encoder(folder: Path) -> None:
    """A random one-layer BERT of width 32 whose words are those of the findings."""
    from transformers import BertConfig, BertModel, BertTokenizer

    words = sorted({*" ".join(FINDINGS).lower().replace(".", " . ").split()})
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    vocabulary = {name: index for index, name in enumerate(names)}
    BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)


def write_prepared(prepared: Path, num_studies: int = 14) -> None:
    """Studies of as many patients, with one to three sentences each."""
    generator = np.random.default_rng(0)
    folders = {
        "convert_volumes": paths.stage_folder("convert_volumes", prepared) / "dicom_export",
        "pack_volumes": paths.stage_folder("pack_volumes", prepared) / "dicom_export",
        "segment_sentences": paths.stage_folder("segment_sentences", prepared),
    }
    (folders["pack_volumes"] / paths.VOLUMES).mkdir(parents=True)
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    studies, volumes, reports, sentences = [], [], [], []
    for number in range(num_studies):
        study, accession, report = (f"{k}-{number:012x}" for k in ("study", "accession", "report"))
        hu = generator.integers(-1000, 1000, CONTRACT.shape_voxels).astype(np.int16)
        file = folders["pack_volumes"] / paths.VOLUMES / f"{study}.npy"
        np.save(file, hu, allow_pickle=False)
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        chosen = FINDINGS[: 1 + number % 3]
        studies.append((study, f"patient-{number:012x}", accession, 64))
        volumes.append((study, file.name, sha256, CONTRACT.digest()))
        reports.append((report, accession, f"text-{number}", 1 + number % 3, 0))
        start = 0
        for index, text in enumerate(chosen):
            place = (f"{report}:{index}", index, "findings", text, start, start + len(text), 0)
            sentences.append((report, accession, *place))
            start += len(text) + 1
    tables = {
        "convert_volumes": (
            paths.MANIFEST,
            studies,
            ["study_id", "patient_id", "accession_id", "num_slices"],
        ),
        "pack_volumes": (
            paths.MANIFEST,
            volumes,
            ["study_id", "volume", "volume_sha256", "contract_digest"],
        ),
        "segment_sentences": (
            paths.SENTENCE_TABLE,
            sentences,
            ["report_id", "accession_id", "sentence_id", "index", "section", "text", "start",
             "end", "num_dropped"],
        ),
    }  # fmt: skip
    for stage, (name, rows, columns) in tables.items():
        pd.DataFrame(rows, columns=columns).to_parquet(folders[stage] / name, index=False)
    pd.DataFrame(reports, columns=REPORT_COLUMNS).to_parquet(
        folders["segment_sentences"] / paths.REPORT_TABLE, index=False
    )
    build_manifest(
        prepared,
        paths.stage_folder("build_manifest", prepared),
        BuildManifest(validation_fraction=0.2, test_fraction=0.1),
        Sources(dicom_export=DicomExport()),
    )
    with tempfile.TemporaryDirectory() as folder:  # the weights are those of any other such folder
        text = tiny_model(Path(folder) / "encoder").text
        means = paths.stage_folder("embed_sentences", prepared)
        embed_sentences(prepared, means, EmbedSentences(), text)
