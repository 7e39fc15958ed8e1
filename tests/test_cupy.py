"""What CuPy alone has: the pipeline as one kernel. A compiler for the CPU stands in for CuPy's."""

import itertools
import re
from functools import partial
from typing import Any

import pytest
from backends import Backend
from compare import some_cases
from modes import cupy_kernels, noted
from reference import LOSSES

import array_api_losses as xpl

on_a_gpu = pytest.mark.library("cupy")
pytestmark = pytest.mark.library("cupy", "numpy:kernels")


@pytest.fixture
def launched(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What runs by kernels, and how many there are."""
    return noted(cupy_kernels().PROGRAMS, monkeypatch)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_one_kernel_for_the_losses_and_one_for_all_gradients(
    backend: Backend, launched: list[str], dtype: str
) -> None:
    cases = some_cases(dtype)
    assert {case.reduction for case in cases} == {"none", "sum", "mean"}
    for case in cases:
        arrays = case.arrays(backend)
        launched.clear()
        case.function(**arrays, **case.keywords)
        added_up = case.reduction != "none" and not LOSSES[case.loss].rowwise
        value = ["sums 1" if added_up else "losses 1"]
        assert launched == value + ["quotients 1"] * (case.reduction == "mean")
        launched.clear()
        xpl.value_and_grad(case.function, case.differentiable)(**arrays, **case.keywords)
        assert launched[0] == value[0]
        assert launched[-1] == "gradients 1"


@on_a_gpu
@pytest.mark.parametrize(("reduction", "launches"), [("none", 1), ("sum", 1), ("mean", 2)])
@pytest.mark.parametrize("name", [name for name, spec in LOSSES.items() if not spec.rowwise])
def test_few_launches(backend: Backend, name: str, reduction: str, launches: int) -> None:
    """Of few elements: one kernel computes and adds up, and the mean takes one more."""
    inputs = [backend.asarray([0.5, 2.0, -1.0], "float32") for _ in LOSSES[name].inputs]
    label = backend.asarray([1, -1, 1], "int8")
    cuda, call = backend.module.cuda, partial(getattr(xpl, name), *inputs, label)
    call(reduction=reduction)  # what is compiled at first may wait
    with cuda.Stream(non_blocking=True) as stream:
        call(reduction=reduction)
        stream.begin_capture()
        result = call(reduction=reduction)
        graph = stream.end_capture()
    assert result.dtype == inputs[0].dtype
    nodes = re.findall(r'^\s*"graph_\d+_node_\d+"\s*\[', graph.debug_dot_str(), re.MULTILINE)
    assert len(nodes) == launches


@pytest.mark.parametrize("width", [1, 3, 33, 1024, 1025, 5000])
def test_rows_of_any_length(backend: Backend, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """From one thread that has a row to itself, to many that share it."""
    monkeypatch.setattr(cupy_kernels(), "LONG", 2**10)
    np = backend.np
    a, b, c = np.random.default_rng(width).integers(-9, 9, (3, 5, width))
    arrays = [backend.asarray(v, "float64") for v in (a, b, c)]
    for p, sizes in ((1.0, np.abs), (float("inf"), np.abs), (2.0, np.square)):
        gather = np.max if p == float("inf") else np.sum
        near, far = (gather(sizes(a - v), axis=-1) ** (0.5 if p == 2 else 1) for v in (b, c))
        found = xpl.triplet_margin_loss(*arrays, 1.0, p, 0.0, reduction="none")
        expected = np.maximum(near - far + 1.0, 0)
        assert np.allclose(backend.tonumpy(found), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("most", [2, 2**9])
@pytest.mark.parametrize("count", [3, 64, 500, 513, 5000])
def test_sums_of_any_length(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, count: int, most: int
) -> None:
    """From a few, that a block adds up, to many, of which each thread adds up several."""
    for name, value in {"FEW": 32, "ADDING": 64, "MOST": most}.items():
        monkeypatch.setattr(cupy_kernels(), name, value)
    x = backend.np.random.default_rng(count).integers(0, 9, count)
    label = backend.asarray([1] * count, "int8")
    assert xpl.hinge_embedding_loss(backend.asarray(x), label, reduction="sum") == x.sum()


@on_a_gpu
def test_views_that_need_wider_indices_than_what_they_are_of(backend: Backend) -> None:
    cupy, rows = backend.module, 2**14
    x = backend.asarray([[0.25, 2.0, -1.0, 1.5] * 2**12 + [0.5]])
    y = backend.asarray([[1, -1, 1, -1] * 2**12 + [-1]], "int8")
    one = xpl.hinge_embedding_loss(x, y, reduction="sum")
    x, y = (cupy.broadcast_to(array, (rows, array.size)) for array in (x, y))
    assert x.nbytes > 2**31
    assert xpl.hinge_embedding_loss(x, y, reduction="sum") == one * rows  # all are exact


@on_a_gpu
def test_rows_of_float16_are_read_as_they_lie(backend: Backend) -> None:
    """And not copied to float32, of twice their size."""
    pool = backend.module.get_default_memory_pool()
    rows = backend.asarray([[1.0] * 128] * 1000, "float16")
    label = backend.asarray([1] * 1000, "int8")
    xpl.cosine_embedding_loss(rows, rows, label)
    pool.free_all_blocks()
    before = pool.total_bytes()
    xpl.cosine_embedding_loss(rows, rows, label)
    assert pool.total_bytes() - before < rows.nbytes


def test_the_largest_of_what_is_computed_on_the_way(backend: Backend) -> None:
    """Also where all are negative, and NaN where there is one."""
    from array_api_losses._engines.program import TRACED
    from array_api_losses._engines.programs import ARRAY

    def pipeline(v: Any) -> list[Any]:
        return [TRACED.max(v - 1, axis=-1), TRACED.max(TRACED.abs(v), axis=-1)]

    rows = backend.asarray([[-3.0, 0.5], [2.0, float("nan")], [float("nan"), 2.0]])
    results = cupy_kernels().PROGRAMS.program("largest", pipeline, (ARRAY,), range(1))([rows])
    for found, expected in zip(results, (-0.5, 3.0), strict=True):
        assert found[0] == expected
        assert backend.module.isnan(found).tolist() == [False, True, True]


def test_a_label_that_would_be_rounded_to_a_good_one(backend: Backend) -> None:
    rows = backend.asarray([[3.0, 4.0]] * 2, "float32")
    label = backend.asarray([1.0, 1.0 + 2.0**-40], "float64")
    both = xpl.value_and_grad(xpl.cosine_embedding_loss)
    value, gradient = both(rows, rows, label, reduction="none")
    for result in (value, gradient[:, 0]):
        assert backend.module.isnan(result).tolist() == [False, True]


def test_nothing_is_moved(backend: Backend) -> None:
    with pytest.raises(TypeError, match="`label` is an array of numpy"):
        xpl.hinge_embedding_loss(backend.asarray([0.5]), backend.np.ones(1))


@on_a_gpu
@pytest.mark.parametrize("name", LOSSES)
def test_results_lie_where_the_arrays_do(backend: Backend, name: str) -> None:
    """Whichever device is the current one; with a single one, there is not much to see."""
    cuda = backend.module.cuda
    devices = [cuda.Device(i) for i in range(cuda.runtime.getDeviceCount())]
    cases = [case for case in some_cases() if case.loss == name]
    for own, current, case in itertools.product(devices, devices, cases):
        with own:
            arrays = case.arrays(backend)
        with current:
            both = xpl.value_and_grad(case.function, case.differentiable)
            value = case.function(**arrays, **case.keywords)
            again, gradients = both(**arrays, **case.keywords)
        assert {array.device.id for array in (value, again, *gradients)} == {own.id}
