"""What Dask alone has: chunks of unknown sizes, which only the computation can compare."""

from typing import Any

import pytest
from backends import Backend
from compare import check_value, fixed_cases, some_cases

import array_api_losses as xpl

loss = xpl.hinge_embedding_loss
pytestmark = pytest.mark.library("dask")


def _unknown(backend: Backend, values: list[float], keep: list[bool], chunks: int) -> Any:
    """Return an array of chunks whose sizes Dask does not know."""
    da = backend.module
    return da.from_array(values, chunks=chunks)[da.from_array(keep, chunks=chunks)]


def test_unknown_sizes(backend: Backend) -> None:
    x = _unknown(backend, [0.5, 2.0, 3.0, 0.25], [True, True, False, True], 2)
    y = _unknown(backend, [1.0, -1.0, 1.0, -1.0], [True, True, False, True], 2)
    w = _unknown(backend, [1.0, 1.0, 9.0, 2.0], [True, True, False, True], 2)
    value, gradients = xpl.value_and_grad(loss, ("input", "weight"))(x, y, weight=w)
    assert backend.tolist(value) == [0.5]
    assert backend.tolist(gradients[0]) == [0.25, 0, -0.5]
    assert backend.tolist(gradients[1]) == [0, -0.125, 0.0625]
    assert backend.tolist(loss(x, y, reduction="none")) == [0.5, 0, 0.75]


def test_unknown_sizes_do_not_broadcast(backend: Backend) -> None:
    long = _unknown(backend, [0.5, 2.0, 3.0], [True, True, True], 3)
    short = _unknown(backend, [1.0, 7.0, 7.0], [True, False, False], 3)
    for reduction in ("none", "mean"):
        for x, y in [(long, short), (short, long)]:
            lazy = loss(x, y, reduction=reduction)
            with pytest.raises(ValueError, match=r"has shape \(.*\) but `label` has shape"):
                lazy.compute()


@pytest.mark.parametrize("chunks", [(1, 0), (0, 1, 0)])
def test_one_element_beside_empty_chunks(backend: Backend, chunks: tuple[int, ...]) -> None:
    """As of a filter that one pair passes: Dask would broadcast it to the other chunks."""
    np, da = backend.np, backend.module
    one = np.asarray([[1.0, 2.0, 4.0]])
    pairs = np.asarray([0.5]), np.asarray([-1.0]), np.asarray([1.25]), np.asarray([3.0])
    triplets = one, one + 1, 2 - one, np.asarray([9.0]), np.asarray([3.0])
    for function, arrays in [(loss, pairs), (xpl.triplet_margin_loss, triplets)]:
        *arguments, weight = [da.from_array(a, chunks=(chunks, *a.shape[1:])) for a in arrays]
        wanted = (0, len(arguments) - 1, "weight")
        for reduction in ("none", "sum", "mean"):
            options = {"reduction": reduction}
            value, gradients = xpl.value_and_grad(function, wanted)(
                *arguments, weight=weight, **options
            )
            expected, slopes = xpl.value_and_grad(function, wanted)(
                *arrays[:-1], weight=arrays[-1], **options
            )
            for lazy, array in zip((value, *gradients), (expected, *slopes), strict=True):
                np.testing.assert_array_equal(lazy.compute(), array)


def test_no_warning_where_the_sums_of_chunks_overflow(backend: Backend) -> None:
    x = backend.module.full(8, 1.5e308, chunks=2)
    one = backend.module.ones(8, chunks=2)
    assert backend.tolist(loss(x, one, reduction="sum")) == [float("inf")]
    _, gradient = xpl.value_and_grad(loss)(one, one, weight=x)
    assert backend.tolist(gradient) == [0] * 8


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_a_chunk_of_the_gradient_reads_one_of_the_inputs(backend: Backend, reduction: str) -> None:
    """Had it to read the others, for the mean, Dask would keep all until the last is read."""
    read = {"input": 0, "label": 0, "weight": 0}

    def counted(name: str) -> Any:
        def count(chunk: Any) -> Any:
            read[name] += chunk.size > 0
            return chunk

        ones = backend.module.ones(8, chunks=2)
        return ones.map_blocks(count, dtype=ones.dtype, meta=ones._meta)

    arrays = {name: counted(name) for name in read}
    for weight in (None, arrays["weight"]):
        _, gradient = xpl.value_and_grad(loss)(
            arrays["input"], arrays["label"], reduction=reduction, weight=weight
        )
        read.update(dict.fromkeys(read, 0))
        gradient.blocks[0].compute(scheduler="sync")
        assert (read["input"], read["label"]) == (1, 1)
        whole = reduction == "mean"  # W is the sum of all weights
        assert read["weight"] == (0 if weight is None else 4 if whole else 1)


def test_a_sum_of_weights_in_chunks_with_gaps(backend: Backend) -> None:
    """NumPy adds up the rows of such a chunk one after another."""
    x = backend.np.ones((2**20, 4), "float32")
    arrays = [backend.module.from_array(v, chunks=(2**20, 2)) for v in (x, x, x * 0.1)]
    _, gradient = xpl.value_and_grad(loss)(*arrays[:2], weight=arrays[2])
    assert abs(float(gradient[0, 0].compute()) * 2**22 - 1) <= 4 * 2.0**-24


def test_a_forgotten_chunk_is_noticed(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    from array_api_losses._engines import dask as engine

    added = engine._added
    monkeypatch.setattr(engine, "_added", lambda sums, **axes: added(sums[:1], **axes))
    with pytest.raises(AssertionError):
        for case in fixed_cases():
            check_value(backend, case)


def test_a_wrong_label_in_a_large_chunk(backend: Backend) -> None:
    """Where an engine cuts the chunk into blocks: NaN, in the sum and in its own place alone."""
    da = backend.module
    x = da.ones(2**18 + 1, chunks=-1)
    y = backend.np.ones(2**18 + 1)
    y[-1] = 0
    y = da.from_array(y, chunks=-1)
    assert backend.np.isnan(backend.tolist(loss(x, y))[0])
    assert backend.np.isnan(backend.tonumpy(loss(x, y, reduction="none"))).sum() == 1
    _, gradient = xpl.value_and_grad(loss)(x, y, reduction="sum")
    assert backend.np.isnan(backend.tonumpy(gradient)).sum() == 1


def test_chunks_of_a_library_without_an_engine(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    import array_api_compat.numpy as xp

    from array_api_losses import _arrays, _engines
    from array_api_losses._engines.plain import Plain

    class Quiet(Plain):
        def quiet(self) -> Any:
            return xp.errstate(all="ignore")

    monkeypatch.setitem(_engines.BY_TYPE, xp.ndarray, Quiet(xp))
    monkeypatch.setattr(_arrays, "_AGREED", {})
    for case in some_cases():
        check_value(backend, case)
