"""Dask on two worker processes, from files that are larger than what one of them may hold."""

import os
import runpy
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster

import array_api_losses as xpl

EXAMPLE = Path(__file__).parents[2] / "examples" / "out_of_core.py"
LIMIT = 300 * 2**20
PAIRS, CHUNK = 40_000_000, 500_000


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit=LIMIT, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def on_disk() -> Any:
    return runpy.run_path(str(EXAMPLE))["OnDisk"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, on_disk: Any) -> Iterator[dict[str, Any]]:
    """Numbers whose sums are exact, so that no order of adding gives another result."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(5)
    made = {
        "input": on_disk(folder / "input.npy", (PAIRS,), "float64"),
        "label": on_disk(folder / "label.npy", (PAIRS,), "int8"),
        "weight": on_disk(folder / "weight.npy", (PAIRS,), "float64"),
    }
    for start in range(0, PAIRS, CHUNK):
        part = slice(start, start + CHUNK)
        made["input"][part] = rng.integers(0, 128, CHUNK) / 64
        made["label"][part] = rng.choice([-1, 1], CHUNK)
        made["weight"][part] = rng.integers(0, 4, CHUNK)
    assert Path(made["input"].path).stat().st_size > LIMIT
    yield made
    shutil.rmtree(folder)


class Slow:
    """A file read so slowly that a worker can be killed meanwhile; who reads leaves a mark."""

    def __init__(self, file: Any, marks: Path) -> None:
        self.file, self.marks, self.parent = file, marks, os.getpid()
        self.shape, self.dtype, self.ndim = file.shape, file.dtype, file.ndim

    def __getitem__(self, index: Any) -> Any:
        if os.getpid() != self.parent:  # where Dask asks for the type of its slices
            with self.marks.open("a", encoding="utf-8") as marks:
                marks.write(f"{os.getpid()}\n")
            time.sleep(0.2)
        return self.file[index]


def _lazy(files: dict[str, Any], chunk: int = CHUNK) -> dict[str, Any]:
    return {name: da.from_array(file, chunks=chunk) for name, file in files.items()}


def _mapped(files: dict[str, Any]) -> dict[str, Any]:
    return {name: np.load(file.path, mmap_mode="r") for name, file in files.items()}


def _without_weight(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: array for name, array in arrays.items() if name != "weight"}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_values_and_gradients(
    client: Client,
    files: dict[str, Any],
    on_disk: Any,
    tmp_path: Path,
    reduction: str,
    weighted: bool,
) -> None:
    """Equal those of one process, bit for bit where the sums of weights are exact."""
    choose = (lambda arrays: arrays) if weighted else _without_weight
    both = xpl.value_and_grad(xpl.hinge_embedding_loss)
    value, gradient = both(**choose(_lazy(files)), reduction=reduction)
    slopes = on_disk(tmp_path / "slopes.npy", (PAIRS,), "float64")
    written = da.store(gradient, slopes, lock=False, compute=False)
    value, _ = client.gather(client.compute([value, written]))
    expected, slope = both(**choose(_mapped(files)), reduction=reduction)
    assert value == expected
    np.testing.assert_array_equal(np.load(slopes.path, mmap_mode="r"), slope)


def test_a_worker_is_killed(client: Client, files: dict[str, Any], tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    slow = {**_lazy(files), "input": da.from_array(Slow(files["input"], marks), chunks=CHUNK)}
    before = set(client.run(os.getpid).values())
    future = client.compute(xpl.hinge_embedding_loss(**slow))
    while not marks.exists() or len(marks.read_text().split()) < 8:
        assert not future.done(), future
        time.sleep(0.02)
    os.kill(int(marks.read_text().split()[0]), signal.SIGKILL)
    value = future.result(timeout=120)
    assert set(client.run(os.getpid).values()) != before
    assert len(marks.read_text().split()) > PAIRS // CHUNK  # what the dead one held was read again
    assert value == xpl.hinge_embedding_loss(**_mapped(files))


def test_the_graph_grows_linearly(files: dict[str, Any]) -> None:
    both = xpl.value_and_grad(xpl.hinge_embedding_loss)

    def tasks(chunks: int) -> int:
        value, gradient = both(**_lazy(files, PAIRS // chunks))
        return len(dict(value.__dask_graph__()) | dict(gradient.__dask_graph__()))

    few, some, many = tasks(25), tasks(50), tasks(100)
    assert many - some <= 2.2 * (some - few)
    assert many < 25 * 100


def test_the_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--pairs", "5000000", "--chunk", "1000000"]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *arguments])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    printed = capsys.readouterr().out
    assert "MiB a second" in printed
    assert printed.count("that it may hold") == 2
