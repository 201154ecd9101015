"""A case's image, whatever its format, under the volume contract.

.nii(.gz), .mha and .mhd carry geometry and HU. A folder of JPG or PNG slices carries neither: the
window is burned in and there is no spacing, so the stack is resized to the contract's shape and
its 0..255 are stretched over the contract's window; millimetres and HU mean nothing there.
"""

import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mg3d.data.ct.refused import Refused
from mg3d.data.hounsfield import problem
from mg3d.data.nifti import load_nifti
from mg3d.data.resample import resample_to_contract
from mg3d.data.slices import find_slices, read_slices
from mg3d.data.volumes import apply_window
from mg3d.finetuning import store
from mg3d.finetuning.task import Case
from mg3d.fingerprint import file_sha256
from mg3d.ledger import Ledger, Reason
from mg3d.params import VolumeContract

if TYPE_CHECKING:
    from torch import Tensor


def load_image(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The image with its geometry: HU (X, Y, Z) float32, and affine 4x4 to RAS mm.

    Raises ValueError for another format, OSError or RuntimeError for a broken file.
    """
    name = case.image.name
    affine: np.ndarray | None
    if case.read is not None:
        volume, affine = case.read()
        assert affine is not None
    elif name.endswith((".nii", ".nii.gz")):
        volume, affine = load_nifti(case.image)
    elif name.endswith((".mha", ".mhd")):
        volume, affine = _load_metaimage(case.image)
    else:
        raise ValueError(
            f"image format {case.image.suffix!r}: .nii, .nii.gz, .mha or .mhd are read"
        )
    return np.asarray(volume, dtype=np.float32), affine


def load_slices(folder: Path, contract: VolumeContract) -> np.ndarray:
    """A folder of JPG or PNG slices as int16 "HU" (D, H, W) of the contract's shape.

    Order and directions as `read_slices` has them. Raises Refused.
    """
    from scipy.ndimage import zoom

    stack = read_slices(find_slices(folder)).transpose(2, 1, 0).astype(np.float32)
    factors = [new / old for new, old in zip(contract.shape_voxels, stack.shape, strict=True)]
    resized = zoom(stack, factors, order=1, mode="nearest", grid_mode=True)
    low, high = contract.window_hu
    return np.round(low + resized / 255 * (high - low)).astype(np.int16)


class PackedCases:
    """Volumes of cases under one contract, read from disk one at a time."""

    def __init__(
        self,
        folder: Path,
        contract: VolumeContract,
        names: dict[str, str] | None = None,
        turned: "Callable[[Tensor], Tensor] | None" = None,
    ) -> None:
        """``names`` of what `batch` gives of a case, by case id, for `mg3d.finetuning.store`;
        ``turned`` is applied to every batch."""
        self.folder, self.contract = folder, contract
        self.names, self.turned = names or {}, turned

    def through(self, name: str, turned: "Callable[[Tensor], Tensor]") -> "PackedCases":
        """The same volumes with ``turned`` applied to every batch [B, 1, D, H, W]."""
        names = {case_id: f"{name}/{of_case}" for case_id, of_case in self.names.items()}
        return PackedCases(self.folder, self.contract, names, turned)

    def volume_hu(self, case: Case) -> np.ndarray:
        """int16 (D, H, W)."""
        return np.load(self.folder / f"{case.case_id}.npy", allow_pickle=False)

    def batch(self, cases: Sequence[Case]) -> "Tensor":
        """Windowed volumes, float32 [B, 1, D, H, W] in [0, 1]."""
        import torch

        window = self.contract.window_hu
        volumes = [apply_window(self.volume_hu(case), window) for case in cases]
        batch = torch.from_numpy(np.stack(volumes)[:, None])
        return self.turned(batch) if self.turned else batch

    def middle_slice(self, case: Case) -> np.ndarray:
        """Axial uint8 (H, W) at half height, turned as radiologists look at it."""
        return self.slices(case, 1)[0]

    def slices(self, case: Case, count: int) -> np.ndarray:
        """``count`` axial slices evenly over the height, uint8 [count, H, W], front row first."""
        volume = apply_window(self.volume_hu(case), self.contract.window_hu)
        depth = [round((index + 1) * len(volume) / (count + 1)) for index in range(count)]
        return np.round(volume[depth][:, ::-1, ::-1] * 255).astype(np.uint8)

    def middle_planes(self, case: Case) -> dict[str, np.ndarray]:
        """``axial`` (H, W), ``coronal`` (D, W) and ``sagittal`` (D, H) uint8 through the middle:
        front row, or head row, first; the patient's right, or front, at the left."""
        volume = apply_window(self.volume_hu(case), self.contract.window_hu)
        volume = np.round(volume[::-1, ::-1, ::-1] * 255).astype(np.uint8)
        depth, height, width = ((size - 1) // 2 for size in volume.shape)  # turned
        return {
            "axial": volume[depth],
            "coronal": volume[:, height],
            "sagittal": volume[:, :, width],
        }


@contextmanager
def packed_cases(
    split: dict[str, list[Case]], contract: VolumeContract, ledger: Ledger
) -> Iterator[PackedCases]:
    """Read each case once into a temporary folder; unreadable ones go to the ledger and leave
    ``split`` (in place), so they never stop their neighbours."""
    from mg3d.training.loop import Progress

    by_id = {case.case_id: case for cases in split.values() for case in cases}
    names: dict[str, str] = {}

    def name_of(case_id: str) -> str | None:
        source = source_sha256(by_id[case_id])
        if source is None:
            return None
        names[case_id] = store.name_of(volume=source, contract=contract.digest())
        return names[case_id]

    def make(ids: Sequence[str]) -> list[np.ndarray | None]:
        return [read_case(by_id[case_id], contract, ledger) for case_id in ids]

    with tempfile.TemporaryDirectory(prefix="mg3d-cases-") as folder:
        progress = Progress(f"{ledger.stage}/read", len(by_id), 0)
        usable = set()
        for case_id, volume in store.shared(list(by_id), name_of, make):
            np.save(Path(folder) / f"{case_id}.npy", volume)
            usable.add(case_id)
            progress.update(len(usable), 1, {})
        for part, cases in split.items():
            split[part] = [case for case in cases if case.case_id in usable]
        yield PackedCases(Path(folder), contract, names)


def source_sha256(case: Case) -> str | None:
    """Digest of all that decides a case's voxels, beside settings and code: its files' bytes and
    ``facts``. None if that cannot be said, and for a file that is not there."""
    if case.read is not None and not case.facts:
        return None
    files = [case.image]
    try:
        if case.image.is_dir():
            files = sorted(path for path in case.image.iterdir() if path.is_file())
        elif case.image.suffix == ".mhd":
            files.append(case.image.with_name(_data_file(case.image)))
        digest = hashlib.sha256(case.facts.encode())
        for file in files:
            # of a folder's files the names give the order, of others only the suffix says anything
            name = file.name if case.image.is_dir() else "".join(file.suffixes[-2:])
            digest.update(f"{name} {file_sha256(file)}\n".encode())
    except (OSError, ValueError):
        return None
    return digest.hexdigest()


def _data_file(header: Path) -> str:
    """Name of the one file that holds the voxels of a .mhd. Raises ValueError if it names none."""
    found = re.search(rb"^ElementDataFile\s*=\s*(\S+)\s*$", header.read_bytes(), re.MULTILINE)
    if found is None or found[1] in (b"LIST", b"LOCAL") or b"%" in found[1]:
        raise ValueError(f"{header.name} does not name one file of voxels")
    return found[1].decode()


def read_case(case: Case, contract: VolumeContract, ledger: Ledger) -> np.ndarray | None:
    """int16 HU (D, H, W) under the contract, or None after saying why in the ledger."""
    try:
        if case.image.is_dir():
            volume = load_slices(case.image, contract)
            if volume.min() == volume.max():
                ledger.quarantine(case.case_id, Reason.CONSTANT)
                return None
            return volume
        image, affine = load_image(case)
    except Refused as refused:
        ledger.quarantine(case.case_id, refused.reason, refused.detail)
        return None
    except Exception as error:  # any other reader's error means: this file cannot be read
        ledger.quarantine(case.case_id, Reason.UNREADABLE, type(error).__name__)
        return None
    found = problem(image) if image.ndim == 3 else (Reason.WRONG_SHAPE, f"{image.ndim} axes")
    if found is not None:
        ledger.quarantine(case.case_id, *found)
        return None
    return resample_to_contract(image, affine, contract)


def _load_metaimage(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """MetaImage by SimpleITK: (X, Y, Z) and the affine, turned from its LPS to RAS."""
    import SimpleITK

    image = SimpleITK.ReadImage(str(path))
    volume = SimpleITK.GetArrayFromImage(image).transpose()
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    affine[:3, :3] = direction * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return volume, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
