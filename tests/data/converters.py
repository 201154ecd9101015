"""Series as two independent converters read them, and what convert_volumes makes of an export."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK

from mg3d.data.conversion import convert_volumes
from mg3d.data.identity import pseudonym
from mg3d.ledger import Ledger
from mg3d.params import ConvertVolumes, DicomVolumes

ONE_WORKER = ConvertVolumes(num_workers=1)


def reasons(out: Path) -> dict[str, int]:
    """Files per reason (used: "used"), from the ledger on disk."""
    files: Counter[str] = Counter()
    for line in (out / "ledger.jsonl").read_text().splitlines():
        entry = json.loads(line)
        files[entry["reason"] or "used"] += entry["count"]
    return dict(files)


def convert_dicom(
    folder: Path, out: Path, params: DicomVolumes, stage: ConvertVolumes = ONE_WORKER
) -> Ledger:
    """convert_volumes of the DICOM files below ``folder``."""
    return convert_volumes(params.model_copy(update={"path": folder}), out, stage)


def load(out: Path, study: str = "1.2.3") -> nibabel.Nifti1Image:
    (path,) = (out / "nifti").glob(f"{pseudonym('study', study)}-*.nii.gz")
    return nibabel.load(path)


def as_ras(image: nibabel.Nifti1Image) -> tuple[np.ndarray, np.ndarray]:
    image = nibabel.as_closest_canonical(image)
    return np.asanyarray(image.dataobj), image.affine


def simpleitk(files: list[Path]) -> nibabel.Nifti1Image:
    """The series as SimpleITK reads it, files given in slice order; LPS -> RAS."""
    names = [str(path) for path in files]
    image = SimpleITK.ReadImage(names if len(names) > 1 else names[0])
    direction = np.array(image.GetDirection()).reshape(3, 3)
    affine = np.eye(4)
    affine[:3, :3] = direction * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    array = SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)
    return nibabel.Nifti1Image(array, np.diag([-1.0, -1, 1, 1]) @ affine, dtype=array.dtype)


def dcm2niix(folder: Path, out: Path) -> nibabel.Nifti1Image:
    out.mkdir()
    command = Path(sys.executable).parent / "dcm2niix"
    subprocess.run([command, "-o", out, "-f", "it", folder], check=True, capture_output=True)
    return nibabel.load(out / "it.nii")
