"""How the cost of a loss on a Dask cluster of two processes grows with the number of chunks."""

import runpy
import tempfile
import time
from pathlib import Path

import dask.array as da
from distributed import Client, LocalCluster

import array_api_losses as xpl

EXAMPLE = Path(__file__).parents[1] / "examples" / "out_of_core.py"
PAIRS = 64 * 2**20


def main() -> None:
    """Print a row for each number of chunks."""
    generate = runpy.run_path(str(EXAMPLE))["generate"]
    both = xpl.value_and_grad(xpl.hinge_embedding_loss)
    with (
        tempfile.TemporaryDirectory() as name,
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        files = generate(Path(name), PAIRS, 2**22)
        print("| chunks | tasks | seconds to build the graph | seconds to compute |")
        print("| ---: | ---: | ---: | ---: |")
        for chunks in (16, 16, 64, 256, 1024, 4096):  # the first warms up
            start = time.perf_counter()
            lazy = [da.from_array(file, chunks=PAIRS // chunks) for file in files]
            value, gradient = both(*lazy)
            results = [value, gradient.max()]  # so that every element of it is computed
            built = time.perf_counter()
            client.gather(client.compute(results))
            done = time.perf_counter()
            tasks = len(set().union(*(dict(r.__dask_graph__()) for r in results)))
            print(f"| {chunks:,} | {tasks:,} | {built - start:.2f} | {done - built:.2f} |")


if __name__ == "__main__":
    main()
