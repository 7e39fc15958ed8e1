"""The loss and gradient of more pairs than fit into memory: from disk to disk, on a Dask cluster.

Two worker processes read distances and labels from files, chunk by chunk, and write the gradient to
another. Neither holds more than a few chunks at a time.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from distributed import Client, LocalCluster, progress

import array_api_losses as xpl


class OnDisk:
    """An array in a file, which each process opens for itself; only slices are ever in memory."""

    def __init__(self, path: Path, shape: tuple[int, ...] = (), dtype: str = "float32") -> None:
        """Open the array of a file, or make one if there is a shape."""
        self.path = str(path)
        if shape:
            np.lib.format.open_memmap(self.path, "w+", dtype, shape)
        array = np.load(self.path, mmap_mode="r")
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim

    def __getitem__(self, index: Any) -> Any:
        """Read a slice."""
        return np.array(np.load(self.path, mmap_mode="r")[index])

    def __setitem__(self, index: Any, values: Any) -> None:
        """Write a slice."""
        np.load(self.path, mmap_mode="r+")[index] = values


def generate(folder: Path, pairs: int, chunk: int) -> tuple[OnDisk, OnDisk]:
    """Write random distances and labels."""
    distance = OnDisk(folder / "distance.npy", (pairs,))
    label = OnDisk(folder / "label.npy", (pairs,), "int8")
    rng = np.random.default_rng(0)
    for start in range(0, pairs, chunk):
        part = slice(start, min(start + chunk, pairs))
        distance[part] = rng.random(part.stop - start, "float32") * 2
        label[part] = 2 * rng.integers(0, 2, part.stop - start, "int8") - 1
    return distance, label


def peak() -> float:
    """Return the most memory that this process has held, in MiB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if sys.platform == "darwin" else most / 2**10


def main() -> None:
    """Generate, compute and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=150_000_000)
    parser.add_argument("--chunk", type=int, default=2_000_000, help="pairs in a chunk")
    parser.add_argument("--memory", default="400MiB", help="limit of each worker")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as name,
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            memory_limit=options.memory,
            dashboard_address=":0",
            local_directory=name,
        ) as cluster,
        Client(cluster) as client,
    ):
        files = generate(Path(name), options.pairs, options.chunk)
        distance, label = (da.from_array(file, chunks=options.chunk) for file in files)
        slopes = OnDisk(Path(name) / "gradient.npy", (options.pairs,))

        start = time.perf_counter()
        loss, gradient = xpl.value_and_grad(xpl.hinge_embedding_loss)(distance, label)
        written = da.store(gradient, slopes, lock=False, compute=False)
        futures = client.compute([loss, written])
        progress(futures)
        value, _ = client.gather(futures)
        seconds = time.perf_counter() - start

        size = sum(array.nbytes for array in (distance, label, gradient)) / 2**20
        print(f"\nloss {float(value):.6f}")
        print(f"{size:.0f} MiB read and written, {size / seconds:.0f} MiB a second")
        for worker, most in client.run(peak).items():
            print(f"{worker}: at most {most:.0f} MiB, of {options.memory} that it may hold")


if __name__ == "__main__":
    main()
