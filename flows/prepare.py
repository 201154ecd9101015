"""`dvc repro`: the only door to prepared/. One dvc at a time; parallelism lives in the stages."""

from operator import attrgetter

from prefect import flow

from flows import child
from flows.command_line import main
from flows.form import Overrides, Profile
from mg3d import paths
from mg3d.params import load_params, resolve

SECTIONS_OF_STAGES = (
    "contract",
    "sources",
    "convert_volumes",
    "clean_reports",
    "segment_sentences",
    "embed_sentences",
    "model.text",
    "pack_volumes",
    "build_manifest",
    "inspect",
)


@flow
def prepare(params: Profile = paths.PARAMS, overrides: Overrides = {}) -> None:  # noqa: B006
    """Bring prepared/ up to date: DICOM and reports to packed volumes, sentences, means and splits.

    Args:
        params: A complete params file; its data sections must be those of params.yaml.
        overrides: `section.key`: value, instead of the file's.
    """
    params = resolve(params, overrides)
    asked, read_by_dvc = load_params(params), load_params()
    for section in SECTIONS_OF_STAGES:
        value = attrgetter(section)
        if value(asked) != value(read_by_dvc):
            raise ValueError(
                f"{section} of {params} differs from {paths.PARAMS}, which the DVC stages read: "
                f"copy {params} to {paths.PARAMS}"
            )
    child.dvc("repro")


if __name__ == "__main__":
    main(prepare)
