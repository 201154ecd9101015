"""The guard finds a patient, an image, a study's report on two sides, and lets the rest pass."""

import shutil
from pathlib import Path

import pytest

from mg3d.finetuning.cases import Case, Split
from mg3d.finetuning.leaks import refuse_leaks

STUDY = "A spiculated nodule of 14 mm lies in the right upper lobe, with two smaller ones below it."
NORMAL = "Both lungs are clear and expanded. The heart is normal in size. No effusion, no nodule."


def image(folder: Path, name: str, content: bytes = b"") -> Path:
    path = folder / f"{name}.nii.gz"
    path.write_bytes(content or f"image of {name:>20}".encode())
    return path


def split_of(folder: Path, texts: tuple[str, str, str] = ("", "", "")) -> Split:
    """Two cases in each part, whose first ones have these texts."""
    split: Split = {}
    for part, text in zip(("train", "validation", "test"), texts, strict=True):
        split[part] = [
            Case(f"case-{part}{n}", f"patient-{part}{n}", image(folder, f"{part}{n}"), text=said)
            for n, said in enumerate((text, ""))
        ]
    return split


def test_a_clean_split_passes(tmp_path: Path) -> None:
    assert refuse_leaks("t", split_of(tmp_path), texts=True) == {"images": 6, "shared_texts": 0}


@pytest.mark.parametrize(("one", "other"), [("train", "test"), ("train", "validation")])
def test_a_patient_on_two_sides(tmp_path: Path, one: str, other: str) -> None:
    split = split_of(tmp_path)
    again = Case("case-again", split[one][0].patient_id, image(tmp_path, "again"))
    split[other].append(again)
    with pytest.raises(ValueError, match=rf"case-{one}0 \({one}\) and case-again \({other}\) are"):
        refuse_leaks("t", split, texts=False)


@pytest.mark.parametrize("layout", ["nifti", "metaimage", "slices"])
def test_an_image_under_two_patients(tmp_path: Path, layout: str) -> None:
    """Whatever the file is called; the headers of MetaImages differ by the name of their data."""
    split = split_of(tmp_path)

    def write(name: str, content: bytes) -> Path:
        if layout == "nifti":
            return image(tmp_path, name, content)
        if layout == "metaimage":
            (tmp_path / f"{name}.raw").write_bytes(content)
            (tmp_path / f"{name}.mhd").write_text(f"NDims = 3\nElementDataFile = {name}.raw\n")
            return tmp_path / f"{name}.mhd"
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(b"same in all")
        (tmp_path / name / "2.jpg").write_bytes(content)
        return tmp_path / name

    long = b"x" * 100_000  # longer than what is compared first
    split["train"].append(Case("case-a", "patient-a", write("a", long + b"1")))
    split["test"].append(Case("case-b", "patient-b", write("b", long + b"2")))
    assert refuse_leaks("t", split, texts=False)["images"] == 8
    split["test"].append(Case("case-c", "patient-c", write("c", long + b"1")))
    with pytest.raises(ValueError, match=r"case-a \(train\) and case-c \(test\) have the same im"):
        refuse_leaks("t", split, texts=False)


def test_copies_within_a_part_and_empty_files_are_no_leak(tmp_path: Path) -> None:
    split = split_of(tmp_path)
    for part, name in (("train", "e"), ("test", "f")):
        (tmp_path / name).touch()
        split[part].append(Case(f"case-{name}", f"patient-{name}", tmp_path / name))
    shutil.copy(split["train"][0].image, tmp_path / "copy")
    split["train"].append(Case("case-copy", "patient-copy", tmp_path / "copy"))
    refuse_leaks("t", split, texts=True)


def test_the_report_of_a_study_on_two_sides(tmp_path: Path) -> None:
    """Letters, spaces and stops aside. Where the text is not the answer, it is counted only."""
    split = split_of(tmp_path, (STUDY, "", f"  {STUDY.upper().replace(',', ' ;')}"))
    with pytest.raises(
        ValueError, match=r"case-train0 \(train\) and case-test0 \(test\) have word for word the"
    ):
        refuse_leaks("t", split, texts=True)
    assert refuse_leaks("t", split, texts=False)["shared_texts"] == 1


def test_templates_are_no_leak(tmp_path: Path) -> None:
    """A short one; and a long one that three training studies share, but not one that two do."""
    split = split_of(tmp_path, ("The lungs are clear.", "The lungs are clear.", ""))
    split["test"][0] = Case("case-n", "patient-n", image(tmp_path, "n"), text=NORMAL)
    for number in range(2):
        name = f"normal{number}"
        split["train"].append(Case(name, name, image(tmp_path, name), text=NORMAL))
    with pytest.raises(ValueError, match=r"normal0 \(train\) and case-n \(test\)"):
        refuse_leaks("t", split, texts=True)
    split["train"].append(Case("normal2", "normal2", image(tmp_path, "normal2"), text=NORMAL))
    assert refuse_leaks("t", split, texts=True) == {"images": 9, "shared_texts": 2}


def test_the_message_names_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "DOE^JANE"
    folder.mkdir()
    split = split_of(folder, (STUDY, STUDY, ""))
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        refuse_leaks("t", split, texts=True)
    assert "DOE" not in str(caught.value)
    assert "nodule" not in str(caught.value)
