"""In which format should packed volumes lie: time and bytes of a crop and of a whole volume.

int16 HU (D, H, W) with the noise of a CT, one file or folder per volume. Cold: the pages of the
file are dropped before each read (posix_fadvise), so bytes read are those of the disk, with its
read-ahead; warm: bytes read are not asked for. blosc2, zarr and tensorstore are optional here:
`pip install blosc2 zarr tensorstore`; a format whose package is missing is left out.

    python benchmarks/packed.py [--shape 128 96 128] [--crop 64 64 64] [--volumes 24]
"""

import argparse
import importlib.util
import mmap
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mg3d.data.volumes import apply_window

CHUNK = (32, 32, 32)
PACKAGE = {
    "npy map": None,
    "npy map, no read-ahead": None,
    "npy read": None,
    "blosc2 lz4": "blosc2",
    "blosc2 zstd": "blosc2",
    "zarr 3 zstd": "zarr",
    "tensorstore zstd": "tensorstore",
    "tensorstore shard": "tensorstore",
}


def volume_hu(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """A body with lungs and noise of 18 HU, air beyond."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    hu = np.where((x / 0.9) ** 2 + (y / 0.8) ** 2 < 1, 40.0, -1000.0)
    hu[((np.abs(x) - 0.4) / 0.25) ** 2 + (y / 0.45) ** 2 + (z / 0.8) ** 2 < 1] = -850.0
    hu += np.where(x**2 + y**2 < 1, rng.normal(0, 18, shape), 0)
    return np.rint(np.maximum(hu, -1000)).astype(np.int16)


def tensorstore_spec(path: Path) -> dict[str, Any]:
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(path)},
        "context": {"cache_pool": {"total_bytes_limit": 0}, "data_copy_concurrency": {"limit": 1}},
    }


def write(name: str, path: Path, hu: np.ndarray) -> None:
    if name.startswith("npy"):
        np.save(path, hu)
    elif name.startswith("blosc2"):
        import blosc2

        codec = blosc2.Codec.LZ4 if name.endswith("lz4") else blosc2.Codec.ZSTD
        blosc2.asarray(hu, urlpath=str(path), chunks=hu.shape, blocks=CHUNK, cparams={
            "codec": codec, "clevel": 5, "nthreads": 1})  # fmt: skip
    elif name.startswith("zarr"):
        import zarr

        zarr.create_array(str(path), data=hu, chunks=CHUNK)
    else:
        import tensorstore

        zstd = [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 3}}]
        outer, codecs = CHUNK, zstd
        if name.endswith("shard"):
            outer = hu.shape
            codecs = [{"name": "sharding_indexed",
                       "configuration": {"chunk_shape": CHUNK, "codecs": zstd}}]  # fmt: skip
        spec = tensorstore_spec(path) | {
            "metadata": {
                "shape": hu.shape,
                "data_type": "int16",
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": outer}},
                "codecs": codecs,
            }
        }
        tensorstore.open(spec, create=True).result().write(hu).result()


def reader(name: str) -> Callable[[Path, tuple[slice, ...]], np.ndarray]:
    """A function that opens a volume and returns a crop of it in memory of its own."""
    if name == "npy map":
        return lambda path, crop: np.array(np.load(path, mmap_mode="r")[crop])
    if name == "npy map, no read-ahead":

        def random_pages(path: Path, crop: tuple[slice, ...]) -> np.ndarray:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as m:
                m.madvise(mmap.MADV_RANDOM)
                header = np.load(path, mmap_mode="r")
                mapped = np.ndarray(header.shape, header.dtype, m, header.offset)
                copied = np.array(mapped[crop])
                del mapped
                return copied

        return random_pages
    if name == "npy read":
        return lambda path, crop: np.load(path)[crop]
    if name.startswith("blosc2"):
        import blosc2

        blosc2.set_nthreads(1)
        return lambda path, crop: blosc2.open(str(path), mode="r")[crop]
    if name.startswith("zarr"):
        import zarr

        return lambda path, crop: zarr.open_array(str(path), mode="r")[crop]
    import tensorstore

    return lambda path, crop: (
        tensorstore.open(tensorstore_spec(path), read=True).result()[crop].read().result()
    )


def files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def drop_pages(path: Path) -> None:
    for file in files(path):
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def read_from_disk() -> int:
    """Bytes that this process made the disk read."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


def work(
    name: str, paths: list[Path], crop: tuple[int, ...], seed: int, gate: Any, out: Any
) -> None:
    """Time crops and whole volumes, cold and warm; each round starts when all workers are there."""
    read, rng = reader(name), np.random.default_rng(seed)
    whole = tuple(slice(None) for _ in crop)
    shape = read(paths[0], whole).shape
    for what in ("crop", "whole"):
        for temperature in ("cold", "warm"):
            gate.wait()
            seconds, before = 0.0, read_from_disk()
            for path in paths:
                starts = [
                    int(rng.integers(n - size + 1)) for n, size in zip(shape, crop, strict=True)
                ]
                part = tuple(slice(a, a + size) for a, size in zip(starts, crop, strict=True))
                if temperature == "cold":
                    drop_pages(path)
                start = time.perf_counter()
                array = read(path, whole if what == "whole" else part)
                seconds += time.perf_counter() - start
                assert array.shape == (shape if what == "whole" else crop)
            out.put((what, temperature, seconds / len(paths),
                     (read_from_disk() - before) / len(paths)))  # fmt: skip


def measure(name: str, paths: list[Path], crop: tuple[int, ...], workers: int) -> dict[Any, Any]:
    context = multiprocessing.get_context("spawn")
    gate, out = context.Barrier(workers), context.SimpleQueue()
    processes = [
        context.Process(target=work, args=(name, paths[n::workers], crop, n, gate, out))
        for n in range(workers)
    ]
    for process in processes:
        process.start()
    found: dict[Any, Any] = {}
    for _ in range(4 * workers):
        what, temperature, seconds, num_bytes = out.get()
        found.setdefault((what, temperature), []).append((seconds, num_bytes))
    for process in processes:
        process.join()
    return {key: np.mean(values, axis=0) for key, values in found.items()}


def write_all(name: str, folder: Path, shape: tuple[int, int, int], count: int) -> list[Path]:
    paths = [folder / f"{number}.npy" for number in range(count)]
    for number, path in enumerate(paths):
        write(name, path, volume_hu(shape, number))
    return paths


def windowing(shape: tuple[int, int, int], folder: Path) -> None:
    """Reading and windowing a volume, warm, against a memcpy of the float32 that comes out."""
    path = folder / "window.npy"
    np.save(path, volume_hu(shape, 0))
    hu, window = np.load(path), (-1000, 1000)
    result = apply_window(hu, window)

    def median_ms(function: Callable[[], Any]) -> float:
        times = []
        for _ in range(200):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        return float(np.median(times)) * 1e3

    into = np.empty_like(result)
    rows = {
        "memcpy of the float32, into memory in use": lambda: np.copyto(into, result),
        "memcpy of the float32, into new memory": result.copy,
        "window of an array": lambda: apply_window(hu, window),
        "memory map and window": lambda: apply_window(np.load(path, mmap_mode="r"), window),
        "read and window": lambda: apply_window(np.load(path), window),
    }
    times = {name: median_ms(function) for name, function in rows.items()}
    base = times["memcpy of the float32, into new memory"]
    print(f"\n| warm, {result.nbytes / 2**20:.1f} MiB of float32 | ms | / memcpy |\n|---|---|---|")
    for name, ms in times.items():
        print(f"| {name} | {ms:.3f} | {ms / base:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(128, 96, 128))
    parser.add_argument("--crop", type=int, nargs=3, default=(64, 64, 64))
    parser.add_argument("--volumes", type=int, default=24)
    args = parser.parse_args()
    shape, crop = tuple(args.shape), tuple(args.crop)
    columns = [(what, heat) for what in ("crop", "whole") for heat in ("cold", "warm")]
    needed = np.prod(crop) * 2
    print(f"one crop needs {needed / 2**10:.0f} KiB, a volume {np.prod(shape) * 2 / 2**10:.0f} KiB")
    heads = " | ".join(f"{what} {heat} ms" for what, heat in columns)
    print(f"| format | workers | KiB stored | {heads} | KiB read per cold crop | / needed |")
    print("|---" * 9 + "|")
    with tempfile.TemporaryDirectory(dir=os.environ.get("MG3D_BENCHMARK_FOLDER")) as folder:
        for name, package in PACKAGE.items():
            if package is not None and importlib.util.find_spec(package) is None:
                print(f"| {name} | left out: {package} is not installed |" + " |" * 7)
                continue
            place = Path(folder) / name.replace(" ", "-")
            place.mkdir()
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                paths = pool.apply(write_all, (name, place, shape, args.volumes))
            stored = sum(file.stat().st_size for path in paths for file in files(path)) / len(paths)
            for workers in (1, 2):
                found = measure(name, paths, crop, workers)
                times = " | ".join(f"{found[column][0] * 1e3:.2f}" for column in columns)
                num_bytes = found["crop", "cold"][1]
                row = [name, workers, f"{stored / 2**10:.0f}", times]
                row += [f"{num_bytes / 2**10:.0f}", f"{num_bytes / needed:.1f}"]
                print("|", *" | ".join(map(str, row)).split(), "|", flush=True)
        windowing(shape, Path(folder))


if __name__ == "__main__":
    main()
