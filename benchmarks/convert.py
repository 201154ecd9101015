"""How fast does a CT series in DICOM become a NIfTI, against dcm2niix and SimpleITK?

A synthetic chest of 300 slices with the noise of a CT, as plain, JPEG lossless and JPEG 2000 files;
uncompressed .nii out for all. Each arm is a process of its own that converts the same series again
and again; arms take turns, and the best round counts. Ours and SimpleITK run in a process that is
there already, as a worker of convert_volumes is; dcm2niix is a program and pays its start, some
10 ms. Ours also flushes the file to disk before it counts as written, the others do not: a row
without shows what that costs. Peak memory is the process's, with what it imported, in MiB.

    python benchmarks/convert.py [--slices 300] [--size 512] [--repeats 3]
"""

import argparse
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np

from mg3d.phantom.dicom_series import CT_IMAGE_STORAGE, write_file

SYNTAXES = {
    "plain": "",
    "JPEG lossless": "JPEGLosslessProcess14_1",
    "JPEG 2000": "JPEG2000Lossless",
}
ARMS = ("ours", "ours, not flushed", "dcm2niix", "SimpleITK")


def plane_hu(z: float, size: int, rng: np.random.Generator) -> np.ndarray:
    """A body with lungs and noise of 18 HU, air beyond; ``z`` from -1 to 1."""
    y, x = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size), indexing="ij")
    hu = np.where((x / 0.9) ** 2 + (y / 0.7) ** 2 < 1, 40.0, -1000.0)
    hu[((np.abs(x) - 0.4) / 0.25) ** 2 + (y / 0.45) ** 2 + (z / 0.8) ** 2 < 1] = -850.0
    hu += np.where(x**2 + y**2 < 1, rng.normal(0, 18, hu.shape), 0)
    return np.rint(np.maximum(hu, -1000)).astype(np.int16)


def write_series(folder: Path, slices: int, size: int) -> None:
    """A series with the elements of a scanner's header, some 60, two of them sequences."""
    from pydicom.dataset import Dataset, FileDataset

    rng = np.random.default_rng(0)
    folder.mkdir()
    for index in range(slices):
        data = FileDataset("", {}, preamble=bytes(128))
        data.SOPClassUID, data.SOPInstanceUID = CT_IMAGE_STORAGE, f"1.2.3.1.{index + 1}"
        data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.3", "1.2.3.1"
        data.PatientID, data.PatientName, data.AccessionNumber = "P1", "DOE^JANE", "A1"
        data.Modality, data.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.SpecificCharacterSet, data.Manufacturer = "ISO_IR 100", "Phantom"
        data.StudyDate = data.SeriesDate = data.AcquisitionDate = data.ContentDate = "20200101"
        data.StudyTime = data.SeriesTime = data.AcquisitionTime = data.ContentTime = "101112"
        for name in ("StudyDescription", "SeriesDescription", "ProtocolName", "StationName"):
            setattr(data, name, "CT Thorax")
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "T-D3000", "SRT", "Chest"
        data.AnatomicRegionSequence, data.ProcedureCodeSequence = [code], [code]
        data.AnatomicRegionSequence.is_undefined_length = True
        data.KVP, data.SliceThickness, data.PatientPosition = "120", "1.0", "HFS"
        for name in (
            "XRayTubeCurrent",
            "Exposure",
            "ExposureTime",
            "TableHeight",
            "GeneratorPower",
        ):
            setattr(data, name, "100")
        data.ConvolutionKernel, data.FrameOfReferenceUID = "B30f", "1.2.3.9"
        private = data.private_block(0x0029, "PHANTOM HEADER", create=True)
        private.add_new(0x10, "OB", bytes(10_000))
        data.SeriesNumber, data.AcquisitionNumber, data.InstanceNumber = 1, 1, index + 1
        data.ImagePositionPatient = ["-170.0", "-170.0", f"{index - 150.0:.3f}"]
        data.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
        data.PixelSpacing, data.SliceLocation = ["0.664", "0.664"], f"{index - 150.0:.3f}"
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.Rows = data.Columns = size
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
        data.RescaleIntercept, data.RescaleSlope, data.RescaleType = "-1024", "1", "HU"
        hu = plane_hu(2 * index / slices - 1, size, rng)
        data.PixelData = (hu + 1024).astype("<u2").tobytes()
        write_file(folder / f"{index:04d}.dcm", data)


def encode(source: Path, target: Path, syntax: str) -> None:
    """The same series in a transfer syntax, named as GDCM names it."""
    import gdcm

    target.mkdir()
    for path in sorted(source.iterdir()):
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), None
        reader.SetFileName(str(path))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
        change.SetInput(reader.GetImage())
        assert change.Change(), syntax
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(target / path.name))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()


def ours(folder: Path, target: Path) -> None:
    """What convert_volumes does with a series, but for the ledger."""
    from mg3d.data.ct.acquisitions import divide
    from mg3d.data.ct.admission import check_ct_series
    from mg3d.data.ct.geometry import arrange
    from mg3d.data.ct.header import read_header
    from mg3d.data.ct.nifti import write_nifti
    from mg3d.data.ct.pixels import read_volume
    from mg3d.params import DicomVolumes

    params = DicomVolumes()
    headers = [read_header(path, params) for path in sorted(folder.iterdir())]
    check_ct_series(headers)
    (series,), _ = divide(headers, params)
    write_nifti(*read_volume(arrange(series, params), params), target)


def ours_not_flushed(folder: Path, target: Path) -> None:
    with mock.patch("os.fsync"):
        ours(folder, target)


def dcm2niix(folder: Path, target: Path) -> None:
    command = [Path(sys.executable).parent / "dcm2niix", "-z", "n", "-b", "n", "-w", "1"]
    command += ["-o", target.parent, "-f", target.stem, folder]
    subprocess.run(command, check=True, capture_output=True)


def simpleitk(folder: Path, target: Path) -> None:
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(names)
    reader.SetOutputPixelType(SimpleITK.sitkInt16)  # int32 otherwise, twice the bytes
    SimpleITK.WriteImage(reader.Execute(), str(target), useCompression=False)


FUNCTIONS: dict[str, Callable[[Path, Path], None]] = dict(
    zip(ARMS, (ours, ours_not_flushed, dcm2niix, simpleitk), strict=True)
)


def timed(arm: str, folder: Path, target: Path, repeats: int) -> tuple[float, float, float]:
    """Best wall and CPU seconds of a series, and peak memory in MiB."""
    who = resource.RUSAGE_CHILDREN if arm == "dcm2niix" else resource.RUSAGE_SELF
    wall, cpu = [], []
    for _ in range(repeats):
        target.unlink(missing_ok=True)
        start, used = time.perf_counter(), resource.getrusage(who)
        FUNCTIONS[arm](folder, target)
        now = resource.getrusage(who)
        wall.append(time.perf_counter() - start)
        cpu.append(now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime)
    peak = resource.getrusage(who).ru_maxrss
    if who == resource.RUSAGE_SELF:  # which counts what the parent had when this process began
        lines = Path("/proc/self/status").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith("VmHWM"))
        peak = int(line.split()[1])
    return min(wall), min(cpu), peak / 1024


def in_process(*arguments: object) -> tuple[float, float, float]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(timed, *arguments).result()


def check(one: Path, other: Path) -> None:
    """The same voxels in the same place, whatever the order of the axes."""
    import nibabel

    images = [nibabel.as_closest_canonical(nibabel.load(path)) for path in (one, other)]
    np.testing.assert_array_equal(*(np.asanyarray(image.dataobj) for image in images))
    np.testing.assert_allclose(images[0].affine, images[1].affine, atol=1e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    print("| files | arm | s | this / ours | CPU s | this / ours | peak MiB |\n" + "|---" * 7 + "|")
    with tempfile.TemporaryDirectory(dir=os.environ.get("MG3D_BENCHMARK_FOLDER")) as name:
        root = Path(name)
        plain = root / "plain"
        write_series(plain, args.slices, args.size)
        for files, syntax in SYNTAXES.items():
            folder = root / (syntax or "plain")
            if syntax:
                encode(plain, folder, syntax)
            best: dict[str, tuple[float, ...]] = {}
            for _ in range(2):  # in turns
                for number, arm in enumerate(ARMS):
                    if syntax and arm == "ours, not flushed":
                        continue  # decoding is what takes the time
                    target = root / f"{number}.nii"
                    now = in_process(arm, folder, target, 1 if syntax else args.repeats)
                    best[arm] = tuple(map(min, now, best.get(arm, now)))
            for number in (2, 3):
                check(root / "0.nii", root / f"{number}.nii")
            wall, cpu, _ = best["ours"]
            for arm, (s, cpu_s, peak) in best.items():
                print(
                    f"| {files} | {arm} | {s:.2f} | {s / wall:.1f} | {cpu_s:.2f} | "
                    f"{cpu_s / cpu:.1f} | {peak:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
