"""STAGE inspect: pictures of what the data stages made, before anyone trains on it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mg3d import paths
from mg3d.data.manifest import COLUMNS, read_table
from mg3d.data.volumes import apply_window
from mg3d.figures import inspection as figures
from mg3d.ledger import read_summaries
from mg3d.params import Inspect, Sources, VolumeContract

if TYPE_CHECKING:
    import pandas as pd

HU_EDGES = np.arange(-1100, 3101, 50)


def inspect(
    prepared: Path, out: Path, params: Inspect, contract: VolumeContract, sources: Sources
) -> list[Path]:
    """Draw the stages under ``prepared`` into ``out``; returns the pictures' paths.

    Slices and HU are of ``num_studies`` studies, evenly picked by id; distributions are of all.
    Raises ValueError if a stage has not run.
    """
    import pandas as pd

    manifest = read_table(
        paths.stage_folder("build_manifest", prepared) / paths.MANIFEST, COLUMNS, "study_id"
    )
    spacing = [f"spacing_{axis}_mm" for axis in "zyx"]
    folder = paths.stage_folder("convert_volumes", prepared)
    converted = pd.concat(
        pd.read_parquet(folder / name / paths.MANIFEST) for name in sources.names
    ).set_index("study_id")
    table = paths.stage_folder("segment_sentences", prepared) / paths.SENTENCE_TABLE
    lengths = pd.read_parquet(table, columns=["text"])["text"].str.split().str.len()

    picked = (
        np.linspace(0, len(manifest) - 1, min(params.num_studies, len(manifest)))
        .round()
        .astype(int)
    )
    studies, counts = [], np.zeros(len(HU_EDGES) - 1)
    for row in manifest.iloc[picked].itertuples():
        hu = np.load(prepared / row.volume, mmap_mode="r", allow_pickle=False)
        counts += np.histogram(hu, HU_EDGES)[0]
        planes = figures.mid_planes(hu)
        windowed = {name: apply_window(p, contract.window_hu) for name, p in planes.items()}
        native_mm = converted.loc[row.study_id, spacing]
        native = " x ".join(f"{size:g}" for size in native_mm) + " mm (z, y, x)"
        known = native if native_mm.notna().all() else "no millimetres known"
        title = f"{row.study_id} {row.source} {row.split}, {known}"
        studies.append(figures.Study(title, windowed, contract.spacing_mm))
    drawn: dict[str, Any] = {
        "contact_sheet": figures.contact_sheet(studies),
        "hu": figures.hu_histogram(counts, HU_EDGES, contract.window_hu),
        "distributions": figures.distributions(_distributions(converted, manifest, lengths)),
        "quarantine": figures.reasons_of_quarantine(
            {str(s["stage"]): dict(s["reasons"]) for s in read_summaries(prepared)}  # type: ignore
        ),
    }
    written = []
    for name, figure in drawn.items():
        with paths.atomic_write(out / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=150, format="png")
        written.append(out / f"{name}.png")
    return written


def _distributions(
    converted: "pd.DataFrame", manifest: "pd.DataFrame", lengths: "pd.Series"
) -> dict[str, np.ndarray]:
    found = {f"spacing {a} / mm": converted[f"spacing_{a}_mm"] for a in "zyx"}
    found["extent z / mm"] = converted["spacing_z_mm"] * converted["num_slices"]
    found["sentences per report"] = manifest["num_sentences"]
    found["words per sentence"] = lengths
    return {name: values.dropna().to_numpy(float) for name, values in found.items()}
