"""What converting a series may hold beside its int16 volume, in a process of its own."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

CONVERT = """
import sys
from pathlib import Path
from mg3d.data.ct.geometry import arrange
from mg3d.data.ct.header import read_header
from mg3d.data.ct.nifti import write_nifti
from mg3d.data.ct.pixels import read_volume
from mg3d.params import DicomVolumes

def peak_kib():  # getrusage would count what the parent had before exec
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1])

folder, target = map(Path, sys.argv[1:])
before = peak_kib()
grid = arrange([read_header(path) for path in folder.iterdir()], DicomVolumes())
write_nifti(*read_volume(grid, DicomVolumes()), target)
print(before, peak_kib())
"""


@pytest.mark.parametrize("slope", [1.0, 0.3], ids=["whole", "fractional"])
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_long_series_takes_its_volume_and_little_more(
    slope: float, tmp_path: Path, write_series: Callable[..., list[Path]]
) -> None:
    hu = np.broadcast_to(np.arange(192.0), (300, 192, 192))
    write_series(tmp_path / "dicom", hu=hu, slope=slope, PixelPaddingValue=7)
    command = [sys.executable, "-c", CONVERT, tmp_path / "dicom", tmp_path / "ct.nii.gz"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    before, after = map(int, printed.split())
    volume_kib = 300 * 192 * 192 * 2 // 1024
    assert volume_kib <= after - before <= volume_kib + 16 * 1024
