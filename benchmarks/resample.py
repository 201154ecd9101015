"""How fast does a NIfTI file become a volume of the contract, against MONAI's transforms?

MONAI: LoadImage, Spacing, ScaleIntensityRange, ResizeWithPadOrCrop. Ours: `load_nifti`,
`resample_to_contract`, `apply_window`. The same files, each arm in a process of its own, in turns.
The voxels are compared on MONAI's grid and without our averaging, which MONAI's Spacing has not.

    python benchmarks/resample.py [--shape 512 512 300] [--workers 2] [--repeats 3]
"""

import argparse
import gzip
import multiprocessing
import resource
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from mg3d.data.nifti import load_nifti
from mg3d.data.resample import resample, resample_to_contract
from mg3d.data.volumes import apply_window
from mg3d.params import VolumeContract

CONTRACT = VolumeContract(spacing_mm=(2.5, 3.5, 2.75), shape_voxels=(128, 96, 128))


def write_ct(shape: tuple[int, int, int], folder: Path) -> list[Path]:
    """A thorax-like cylinder with the noise of a scanner, as .nii.gz and .nii."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape[:2]), indexing="ij")
    slice_hu = np.where((x / 0.9) ** 2 + (y / 0.65) ** 2 < 1, 40.0, -1000.0)
    slice_hu[((np.abs(x) - 0.4) / 0.25) ** 2 + (y / 0.45) ** 2 < 1] = -850.0
    outside = x**2 + y**2 > 1
    volume = np.empty(shape, np.int16, order="F")
    for index in range(shape[2]):
        noisy = np.clip(np.rint(slice_hu + rng.normal(0, 18, x.shape)), -1000, 1000)
        volume[:, :, index] = np.where(outside, -1000, noisy)
    step_mm = 360 / np.array(shape)  # a field of view of 36 cm
    image = nibabel.Nifti1Image(volume, np.diag([-step_mm[0], -step_mm[1], step_mm[2], 1]))
    image.header.set_xyzt_units("mm")
    content = image.to_bytes()
    (folder / "ct.nii").write_bytes(content)
    (folder / "ct.nii.gz").write_bytes(gzip.compress(content, 6))
    return [folder / "ct.nii.gz", folder / "ct.nii"]


def monai_transforms() -> tuple[Any, Any]:
    from monai.transforms import (
        Compose,
        LoadImage,
        ResizeWithPadOrCrop,
        ScaleIntensityRange,
        Spacing,
    )

    spacing = Spacing(pixdim=CONTRACT.spacing_mm[::-1], mode="bilinear")
    low, high = CONTRACT.window_hu
    rest = [
        LoadImage(image_only=True, ensure_channel_first=True),
        spacing,
        ScaleIntensityRange(low, high, 0.0, 1.0, clip=True),
        ResizeWithPadOrCrop(CONTRACT.shape_voxels[::-1]),
    ]
    return Compose(rest[:2]), Compose(rest)


def ours(path: Path) -> np.ndarray:
    volume, affine = load_nifti(path)
    return apply_window(resample_to_contract(volume, affine, CONTRACT), CONTRACT.window_hu)


def timed(arm: str, path: Path, repeats: int) -> tuple[float, float, float]:
    """Best wall and CPU seconds of a volume, and peak memory of the process in MiB."""
    warnings.simplefilter("ignore")
    work = ours if arm == "ours" else monai_transforms()[1]
    wall, cpu = [], []
    for _ in range(repeats):
        start, used = time.perf_counter(), time.process_time()
        work(path)
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    return min(wall), min(cpu), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def throughput(path: Path, workers: int, per_worker: int) -> float:
    """Wall seconds per volume of ours, over ``workers`` processes that run already."""
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(timed, ["ours"] * workers, [path] * workers, [1] * workers))
        start = time.perf_counter()
        list(pool.map(timed, ["ours"] * workers, [path] * workers, [per_worker] * workers))
        return (time.perf_counter() - start) / (workers * per_worker)


def difference_hu(path: Path) -> tuple[float, float]:
    """Largest difference to MONAI inside the volume, and the share of voxels compared."""
    warnings.simplefilter("ignore")
    theirs = monai_transforms()[0](path)
    grid = np.asarray(theirs.affine)
    volume, affine = load_nifti(path)
    shape = tuple(theirs.shape[:0:-1])
    hu = resample(volume, affine, grid, shape, CONTRACT.window_hu[0], [1, 1, 1])
    # Half a voxel at the border: MONAI repeats it, ours fades to the window's minimum.
    inside = np.s_[1:-1, 1:-1, 1:-1]
    apart = np.abs(hu.astype(float) - theirs[0].numpy().transpose(2, 1, 0))[inside]
    return float(apart.max()), apart.size / hu.size


def in_process(function: Any, *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 300))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(
            "| file | arm | s | MONAI / this | CPU s | MONAI / this | peak MiB |"
            + "\n"
            + "|---" * 7
            + "|"
        )
        for path in write_ct(tuple(args.shape), Path(folder)):
            rows: dict[str, tuple[float, ...]] = {}
            for _ in range(2):  # in turns, the better of two
                for arm in ("MONAI", "ours"):
                    now = in_process(timed, arm, path, args.repeats)
                    rows[arm] = tuple(map(min, now, rows.get(arm, now)))
            wall, cpu, _ = rows["MONAI"]
            for arm, best in rows.items():
                print(
                    f"| {path.suffix} | {arm} | {best[0]:.3f} | {wall / best[0]:.1f} | "
                    f"{best[1]:.3f} | {cpu / best[1]:.1f} | {best[2]:.0f} |",
                    flush=True,
                )
            parallel = throughput(path, args.workers, args.repeats)
            print(
                f"| {path.suffix} | ours, {args.workers} workers | {parallel:.3f} | "
                f"{wall / parallel:.1f} | | | |"
            )
        apart, share = in_process(difference_hu, path)
        print(f"\nlargest difference {apart:.2f} HU on {share:.0%} of the voxels of MONAI's grid")


if __name__ == "__main__":
    main()
