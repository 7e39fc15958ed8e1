"""What holds for all inputs: order, parts, weights, scales, shapes, chunks, copies.

Inputs are multiples of 1/32, so that sums are exact and sides can be compared for equality.
"""

import copy
import pickle
from typing import Any

from backends import Backend
from hypothesis import given
from hypothesis import strategies as st

import array_api_losses as xpl

loss = xpl.hinge_embedding_loss
N = 8  # a power of two, so that a mean is exact too

number = st.integers(-256, 256).map(lambda v: v / 32)
distances = st.lists(number, min_size=N, max_size=N)
labels = st.lists(st.sampled_from([-1, 1]), min_size=N, max_size=N)


def _of(backend: Backend, x: list[float], y: list[int], margin: float, *rest: Any) -> list[float]:
    arrays = backend.asarray(x), backend.asarray(y, "int8")
    return backend.tolist(backend.call(loss, *arrays, margin, *rest))


@given(x=distances, y=labels, margin=number, order=st.permutations(range(N)))
def test_order(
    backend: Backend, x: list[float], y: list[int], margin: float, order: list[int]
) -> None:
    other = [x[i] for i in order], [y[i] for i in order], margin
    each = _of(backend, x, y, margin, "none")
    assert _of(backend, *other, "none") == [each[i] for i in order]
    assert _of(backend, *other, "sum") == _of(backend, x, y, margin, "sum")


@given(x=distances, y=labels, margin=number)
def test_parts_and_reductions(
    backend: Backend, x: list[float], y: list[int], margin: float
) -> None:
    each = _of(backend, x, y, margin, "none")
    (total,) = _of(backend, x, y, margin, "sum")
    assert total == sum(each)
    assert _of(backend, x, y, margin) == [total / N]
    halves = [_of(backend, x[s], y[s], margin, "sum")[0] for s in (slice(3), slice(3, N))]
    assert sum(halves) == total


@given(x=distances, y=labels, margin=number, times=st.permutations([0, 1, 1, 2, 3, 1, 4, 4]))
def test_whole_weights_repeat(
    backend: Backend, x: list[float], y: list[int], margin: float, times: list[int]
) -> None:
    weight = backend.asarray([float(k) for k in times])
    arrays = backend.asarray(x), backend.asarray(y, "int8")
    repeated = [[v for v, k in zip(values, times, strict=True) for _ in range(k)]
                for values in (x, y)]  # fmt: skip
    for reduction in ("sum", "mean"):
        actual = backend.tolist(backend.call(loss, *arrays, margin, reduction, weight=weight))
        assert actual == _of(backend, *repeated, margin, reduction)


@given(x=distances, y=labels, margin=number, step=st.integers(1, 64).map(lambda v: v / 32))
def test_monotony(
    backend: Backend, x: list[float], y: list[int], margin: float, step: float
) -> None:
    """Further apart costs similar pairs more, by as much; dissimilar ones never more."""
    near = _of(backend, x, y, margin, "none")
    far = _of(backend, [v + step for v in x], y, margin, "none")
    wide = _of(backend, x, y, margin + step, "none")
    for a, b, c, label in zip(near, far, wide, y, strict=True):
        assert b == a + step if label == 1 else a - step <= b <= a
        assert c == a if label == 1 else a <= c <= a + step


@given(x=distances, y=labels, margin=number, scale=st.sampled_from([0.25, 0.5, 2.0, 8.0]))
def test_scale(backend: Backend, x: list[float], y: list[int], margin: float, scale: float) -> None:
    scaled = _of(backend, [scale * v for v in x], y, scale * margin, "none")
    assert scaled == [scale * v for v in _of(backend, x, y, margin, "none")]


@given(x=distances, y=labels, margin=number)
def test_shapes_and_chunks(backend: Backend, x: list[float], y: list[int], margin: float) -> None:
    flat = _of(backend, x, y, margin, "none")
    for shape in [(2, 4), (N, 1), (1, 2, 4)]:
        arrays = (backend.np.reshape(values, shape) for values in (x, y))
        a, b = (backend.asarray(v, d) for v, d in zip(arrays, ("float64", "int8"), strict=True))
        assert backend.tolist(backend.call(loss, a, b, margin, "none")) == flat
        assert backend.tolist(backend.call(loss, a, b, margin, "sum")) == [sum(flat)]


@given(x=distances, y=labels, margin=number)
def test_copies(backend: Backend, x: list[float], y: list[int], margin: float) -> None:
    instance = xpl.HingeEmbeddingLoss(margin, "sum")
    arrays = backend.asarray(x), backend.asarray(y, "int8")
    for other in (copy.copy(instance), pickle.loads(pickle.dumps(instance))):
        assert other == instance
        assert backend.tolist(other(*arrays)) == _of(backend, x, y, margin, "sum")
