"""`mg3d ledger`: what every stage used and left out, as a table that explains its reasons."""

from collections.abc import Sequence
from typing import Any

# Stages in the order of the flow; others follow by name.
ORDER = [
    *("convert_volumes", "clean_reports", "segment_sentences", "embed_sentences"),
    *("pack_volumes", "build_manifest"),
]
# What a reason means, for who sees it the first time.
MEANINGS = {
    "not_dicom": "the file is no DICOM file",
    "truncated": "the file ends early",
    "undecodable": "no decoder reads its pixels",
    "not_ct": "another modality than CT",
    "localizer": "a scout view, not a volume",
    "secondary": "derived or captured, not acquired",
    "missing_tag": "a header field is absent that the geometry needs",
    "missing_slice": "a gap between slices",
    "duplicate_position": "two slices at one place",
    "duplicate_file": "the same object twice",
    "duplicate_slice": "the same place and pixels as another slice",
    "variable_spacing": "slices at changing distances",
    "gantry_tilt": "slices drift sideways, and gantry_tilt says to leave such out",
    "mixed_orientation": "slices of several planes",
    "reformat": "reconstructed from other slices (MPR)",
    "dose_report": "a page about the dose",
    "burned_in": "the header says that text is burned into the pixels",
    "no_chest": "less lung than convert_volumes.min_lung_mm, or listed as no chest",
    "oversized": "larger than max_series_bytes, or than its file can hold",
    "nested_too_deep": "sequences in sequences without end",
    "unsafe_path": "a link that leaves the folder",
    "multi_frame": "frames that cannot be told apart",
    "too_few_slices": "fewer than sources.dicom_export.volumes.min_slices",
    "mixed_geometry": "slices that do not form one grid",
    "mixed_patients": "two patients under one identifier",
    "mixed_studies": "two studies under one identifier",
    "not_chosen": "another of the same study or accession number was taken",
    "stray_file": "belongs to no volume",
    "known_bad": "on the list of volumes that others found broken",
    "unreadable": "cannot be read",
    "checksum_mismatch": "damaged, or changed since it was written",
    "wrong_shape": "not three-dimensional, or not the contract's shape",
    "too_large": "more voxels than any chest CT",
    "no_affine": "the header says nothing of the place in space",
    "bad_affine": "the header's place in space is no such thing",
    "affines_disagree": "qform and sform put the volume at two places",
    "implausible_spacing": "voxels of under 0.02 or over 50 mm",
    "not_finite": "voxels that are no numbers",
    "constant": "every voxel has one value",
    "not_hu": "voxels that cannot be Hounsfield units",
    "empty_report": "no text, or under clean_reports.min_characters",
    "report_not_given": "says that there is no report",
    "foreign_language": "nothing but sentences in another language",
    "no_key": "no accession number",
    "duplicate_report_key": "another row has this accession number",
    "no_sentences": "text without a word",
    "no_tokens": "the tokenizer finds no token in it",
    "study_without_report": "no report has its accession number",
    "report_without_study": "no usable study has its accession number",
    "orphan_mask": "a mask without its image",
    "orphan_image": "an image without its mask",
    "invalid_label": "a label that the task does not know",
    "not_in_split": "in no split of the task",
}
HEADER = ("stage", "unit", "in", "used", "left out", "% of in", "")


def render(summaries: Sequence[dict[str, Any]]) -> str:
    """A line per stage, under it a line per reason with its share of the inputs, then counts."""
    place = {stage: number for number, stage in enumerate(ORDER)}
    summaries = sorted(
        summaries, key=lambda s: (place.get(s["stage"].split("/")[0], len(place)), s["stage"])
    )
    rows = [HEADER]
    for summary in summaries:
        inputs = summary["inputs"]
        numbers = (inputs, summary["used"], summary["quarantined"])
        shown = (f"{number:,}" for number in numbers)
        rows.append((summary["stage"], summary["unit"], *shown, _percent(numbers[1], inputs), ""))
        reasons = sorted(summary["reasons"].items(), key=lambda item: (-item[1], item[0]))
        rows += [
            (
                "",
                f"  {reason}",
                "",
                "",
                f"{count:,}",
                _percent(count, inputs),
                MEANINGS.get(reason, ""),
            )
            for reason, count in reasons
        ]
        rows += [
            ("", f"  {name.replace('_', ' ')}", f"{count:,}", "", "", "", "")
            for name, count in summary.get("counts", {}).items()
        ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if 2 <= column <= 5 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _percent(number: int, of: int) -> str:
    return f"{100 * number / of:.1f}" if of else "-"
