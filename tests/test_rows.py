"""Losses of rows, where others go wrong: coincident, zero, huge and tiny vectors, odd sizes."""

import importlib
import math
import tracemalloc
from fractions import Fraction
from typing import Any

import pytest
from backends import Backend
from compare import Route, check_like
from reference import LOSSES

import array_api_losses as xpl
from array_api_losses._primitives import dot

cosine, triplet = xpl.cosine_embedding_loss, xpl.triplet_margin_loss
INF, NAN = math.inf, math.nan
HUGE, TINY = 1e30, 1e-30
DTYPES = ["float32", "float64"]


def _gradients(backend: Backend, loss: Any, argnums: tuple[int, ...], *args: Any, **kw: Any) -> Any:
    _, gradients = xpl.value_and_grad(loss, argnums)(*args, **kw)
    return [backend.tolist(gradient) for gradient in gradients]


def _labels(backend: Backend, labels: list[int]) -> Any:
    return backend.asarray(labels, "int8")


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_of_any_length_have_a_cosine(backend: Backend, dtype: str) -> None:
    """Also where their squares are beyond the dtype, above or below."""
    scales = [1.0, HUGE, TINY, 2.0**-125]
    a = backend.asarray([[3 * s, 4 * s] for s in scales], dtype)
    b = backend.asarray([[4 * s, 3 * s] for s in reversed(scales)], dtype)
    y = _labels(backend, [1, -1, 1, -1])
    losses = backend.tolist(backend.call(cosine, a, b, y, 0.5, "none"))
    for loss, exact in zip(losses, [0.04, 0.46, 0.04, 0.46], strict=True):
        assert abs(loss - exact) <= 4 * 2.0 ** (-24 if dtype == "float32" else -53)


@pytest.mark.parametrize("scale", [HUGE, TINY])
def test_one_row_without_a_batch_of_any_length(backend: Backend, scale: float) -> None:
    a, b = (backend.asarray(v, "float32") for v in ([3 * scale, 4 * scale], [4.0, 3.0]))
    y = backend.asarray(1, "int8")
    assert math.isclose(backend.tolist(backend.call(cosine, a, b, y))[0], 0.04, rel_tol=1e-5)
    zero = backend.asarray([0.0, 0.0], "float32")
    near = backend.tolist(backend.call(triplet, a, zero, a, 0.0, epsilon=0.0))[0]
    assert math.isclose(near, 5 * scale, rel_tol=1e-5)


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_one_long_row_without_a_batch(backend: Backend, reduction: str) -> None:
    backend.require("large")
    a, b = (backend.asarray(v, "float32") for v in ([1.0] * 70_000, [1.0, 0.0] * 35_000))
    loss = backend.call(cosine, a, b, backend.asarray(1, "int8"), reduction=reduction)
    assert loss.shape == ()
    assert math.isclose(backend.tolist(loss)[0], 1 - math.sqrt(0.5), rel_tol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 1e8, 1e-8])
def test_gradients_of_huge_and_tiny_vectors(backend: Backend, scale: float) -> None:
    """The gradient of the cosine is as much longer as the vector is shorter; the other is any."""
    scales = [1.0, HUGE, TINY, 1e34, 1e-34]
    a = backend.asarray([[3 * s, 4 * s] for s in scales], "float32")
    b = backend.asarray([[4 * scale, 3 * scale]] * 5, "float32")
    y = _labels(backend, [1] * 5)
    _, gradient = xpl.value_and_grad(cosine)(a, b, y, reduction="sum")
    for (first, second), s in zip(backend.tonumpy(gradient).tolist(), scales, strict=True):
        assert math.isclose(first * s, -0.0448, rel_tol=1e-5)
        assert math.isclose(second * s, 0.0336, rel_tol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_of_the_largest_numbers(backend: Backend, dtype: str) -> None:
    """Their reciprocals are subnormal."""
    most = 1.5 * 2.0 ** (126 if dtype == "float32" else 1022)
    a = backend.asarray([[0.75 * most, most]], dtype)
    b, nil = backend.asarray([[4.0, 3.0]], dtype), backend.asarray([[0.0, 0.0]], dtype)
    y = _labels(backend, [1])
    value, gradient = xpl.value_and_grad(cosine, 1)(a, b, y)
    assert math.isclose(float(value), 0.04, rel_tol=1e-5)
    for found, expected in zip(backend.tolist(gradient), (0.0336, -0.0448), strict=True):
        assert math.isclose(found, expected, rel_tol=1e-5)
    for p, distance in ((2.0, 1.25), (3.0, 91 ** (1 / 3) / 4)):
        found = float(triplet(nil, a, nil, 0.0, p, 0.0))
        assert math.isclose(found, distance * most, rel_tol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_too_short_for_a_gradient(backend: Backend, dtype: str) -> None:
    """The value is as for others; the gradient, which would be infinite, is 0."""
    backend.require("silent")
    tiny = 2.0 ** (-1070 if dtype == "float64" else -145)
    a = backend.asarray([[tiny, tiny], [tiny, 0.0], [3.0, 4.0]], dtype)
    b = backend.asarray([[tiny, tiny], [0.0, 1.0], [4.0, 3.0]], dtype)
    y = _labels(backend, [1, 1, 1])
    if backend.has("subnormals"):
        losses = backend.tolist(backend.call(cosine, a, b, y, reduction="none"))
        assert losses[:2] == [0, 1]
    first, second = _gradients(backend, cosine, (0, 1), a, b, y, reduction="sum")
    assert first[:4] == [0] * 4
    assert second[:2] == [0, 0]
    assert all(map(math.isfinite, [*first, *second]))


def test_a_zero_vector_has_cosine_0(backend: Backend) -> None:
    a = backend.asarray([[0.0, 0.0], [0.0, 0.0], [1.0, 2.0], [0.0, 0.0]])
    b = backend.asarray([[1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [1.0, 2.0]])
    y = _labels(backend, [1, 1, -1, -1])
    losses = backend.call(cosine, a, b, y, -0.5, "none")
    assert backend.tolist(losses) == [1, 1, 0.5, 0.5]
    assert _gradients(backend, cosine, (0, 1), a, b, y, -0.5, "sum") == [[0] * 8, [0] * 8]


def test_a_zero_vector_by_every_route(backend: Backend, route: Route) -> None:
    from compare import Case

    a, b = backend.asarray([[0.0, 0.0], [3.0, 4.0]]), backend.asarray([[1.0, 2.0], [3.0, 4.0]])
    arrays = {"input1": a, "input2": b, "label": _labels(backend, [1, 1]), "margin": 0.0}
    case = Case((2,), {}, loss="cosine_embedding_loss", reduction="sum")
    for argument in ("input1", "input2"):
        gradient = route(backend, case, arrays, argument, backend.asarray(2.0))
        slopes = backend.tolist(gradient)
        assert slopes[:2] == [0, 0]
        assert all(abs(slope) <= 2.0**-50 for slope in slopes[2:])  # of equal vectors


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_equal_vectors_cost_nothing(backend: Backend, dtype: str) -> None:
    if dtype in {"float16", "bfloat16"}:
        backend.require(dtype)
    rng = backend.np.random.default_rng(3)
    a = backend.asarray(rng.integers(-255, 255, (50, 7)) / 64, dtype)
    y = _labels(backend, [1] * 50)
    losses = backend.tolist(backend.call(cosine, a, a, y, 0.0, "none"))
    (slopes,) = _gradients(backend, cosine, (0,), a, a, y, 0.0, "sum")
    if backend.has("exact quotients"):
        assert {*losses, *slopes} == {0}
    unit = 2.0 ** (-53 if dtype == "float64" else -24)
    assert all(0 <= loss <= 4 * unit for loss in losses)
    assert all(abs(slope) <= 16 * unit for slope in slopes)


def test_the_cosine_at_its_margin(backend: Backend) -> None:
    """At rest where it is exactly the margin, which vectors at right angles are by default."""
    a, b = backend.asarray([[3.0, 0.0], [1.0, 0.0]]), backend.asarray([[0.0, 2.0], [-1.0, 0.0]])
    y = _labels(backend, [-1, -1])
    assert _gradients(backend, cosine, (0, 1), a, b, y, reduction="sum") == [[0] * 4, [0] * 4]
    assert backend.tolist(backend.call(cosine, a, b, y, -1.0, "none")) == [1, 0]
    gradient = _gradients(backend, cosine, (0,), a[:1, :], b[:1, :], y[:1], -0.5)[0]
    assert gradient == [0, 1 / 3]


def test_margins_out_of_bounds_in_an_array_give_nan(backend: Backend) -> None:
    a, y = backend.asarray([[1.0, 0.0]] * 4), _labels(backend, [1, -1, -1, 1])
    margin = backend.asarray([1.0, -1.0, 1.5, -INF])
    losses = backend.tonumpy(backend.call(cosine, a, a, y, margin, "none"))
    backend.np.testing.assert_array_equal(losses, [0, 2, NAN, NAN])
    margin = backend.asarray([1.0, -2.0, INF, NAN])
    losses = backend.tonumpy(backend.call(triplet, a, a, a, margin, reduction="none"))
    backend.np.testing.assert_array_equal(losses, [1, 0, NAN, NAN])


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, INF])
def test_coincident_points(backend: Backend, p: float, swap: bool) -> None:
    """Where a distance is 0 its gradient is 0, the least of all."""
    x = backend.asarray([[1.0, 2.0], [0.0, 0.0]])
    how = {"p": p, "epsilon": 0.0, "swap": swap, "reduction": "sum"}
    assert _gradients(backend, triplet, (0, 1, 2), x, x, x, **how) == [[0] * 4] * 3
    assert backend.tolist(backend.call(triplet, x, x, x, **how)) == [2]


def test_least_slopes_of_norms(backend: Backend) -> None:
    """Of p = 1 where an entry is 0; of p = inf where several are the largest."""
    a = backend.asarray([[3.0, 0.0, -3.0]])
    o, far = backend.asarray([[0.0, 0.0, 0.0]]), backend.asarray([[9.0, 9.0, 9.0]])
    how = {"epsilon": 0.0, "margin": 50.0}
    assert _gradients(backend, triplet, (1,), a, o, far, p=1.0, **how) == [[-1, 0, 1]]
    assert _gradients(backend, triplet, (1,), a, o, far, p=INF, **how) == [[-0.5, 0, 0.5]]


def test_the_swap_shares_the_slope_of_equal_distances(backend: Backend) -> None:
    a, b, c = (backend.asarray([[v, 0.0]]) for v in (1.0, -1.0, 0.0))
    how = {"epsilon": 0.0, "swap": True}
    assert backend.tolist(backend.call(triplet, a, b, c, **how)) == [2]
    gradients = _gradients(backend, triplet, (0, 1, 2), a, b, c, **how)
    assert gradients == [[0.5, 0], [-0.5, 0], [0, 0]]


@pytest.mark.parametrize("scale", [HUGE, TINY])
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, INF])
def test_huge_and_tiny_distances(backend: Backend, p: float, scale: float) -> None:
    a, b = ([[v * scale for v in row]] for row in ((3.0, 4.0), (0.0, 0.0)))
    arrays = [backend.asarray(v, "float32") for v in (a, b, b)]
    margin = float(backend.np.float32(scale))
    result = backend.tolist(backend.call(triplet, *arrays, margin, p, 0.0, reduction="sum"))[0]
    assert math.isclose(result, margin, rel_tol=1e-6)  # both distances are the same
    far = backend.asarray([[0.0, 0.0]], "float32")
    norm = {1.0: 7, 2.0: 5, 3.0: 91 ** (1 / 3), INF: 4}[p]
    near = backend.tolist(backend.call(triplet, arrays[0], far, arrays[0], 0.0, p, 0.0))[0]
    assert math.isclose(near, norm * scale, rel_tol=1e-5)


@pytest.mark.library("numpy", "torch")
def test_a_power_whose_reciprocal_is_nothing(backend: Backend) -> None:
    """In float32; other libraries warn of it."""
    a, o = backend.asarray([[3.0, 4.0]], "float32"), backend.asarray([[0.0, 0.0]], "float32")
    assert backend.tolist(backend.call(triplet, a, o, a, 0.0, 1e300, 0.0)) == [4]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(backend: Backend, dtype: str) -> None:
    """Epsilon is not lost, nor do long rows overflow or lose digits."""
    backend.require(dtype)
    a = backend.asarray([[1.0] * 4], dtype)
    b = backend.asarray([[2.0] * 4], dtype)
    near = backend.tolist(backend.call(triplet, a, a, b, 2.0, epsilon=2.0**-20))[0]
    assert near == 2.0**-18
    distance = backend.tolist(backend.call(triplet, a, a, a, 0.0, epsilon=2.0**-10, swap=True))
    assert distance == [0]
    _, gradient = xpl.value_and_grad(triplet, 1)(a, a, b, 4.0, epsilon=1e-6)
    assert backend.tolist(gradient) == [-0.5] * 4
    x, z = backend.asarray([[304.0] * 400], dtype), backend.asarray([[0.0] * 400], dtype)
    long = backend.tolist(backend.call(triplet, x, z, x, 0.0, epsilon=0.0))[0]
    assert long == 6080
    assert backend.tolist(backend.call(cosine, x, x, _labels(backend, [-1]))) == [1]


@pytest.mark.parametrize("width", [0, 1])
@pytest.mark.parametrize("shape", [(3,), (0,), (), (2, 0)])
def test_odd_sizes(backend: Backend, shape: tuple[int, ...], width: int) -> None:
    """Vectors of no entry are zero vectors; of one entry they have cosines of 1, -1 and 0."""
    np = backend.np
    x = backend.asarray(np.full((*shape, width), 2.0), "float32")
    z = backend.asarray(np.full((*shape, width), -1.0), "float32")
    y = backend.asarray(np.full(shape, 1.0), "float32")
    for loss, arrays, options, each in [
        (cosine, (x, z, y), {}, 2.0 if width else 1.0),
        *((triplet, (x, x, z), {"p": p}, 0.0 if width else 1.0) for p in (1.0, 2.0, 3.0, INF)),
    ]:
        result = backend.call(loss, *arrays, reduction="none", **options)
        check_like(backend, result, x, shape)
        assert set(backend.tolist(result)) <= {each}
        total = backend.call(loss, *arrays, reduction="sum", **options)
        check_like(backend, total, x, ())
        count = math.prod(shape)
        assert backend.tolist(total) == [each * count]
        mean = backend.tolist(backend.call(loss, *arrays, **options))[0]
        assert mean == each if count else math.isnan(mean)
        _, gradients = xpl.value_and_grad(loss, (0, 1))(*arrays, **options)
        for gradient in gradients:
            check_like(backend, gradient, x, (*shape, width))


def test_special_values_in_rows(backend: Backend) -> None:
    """A NaN spoils its own row alone; infinities follow the formula; zero weights leave out."""
    backend.require("silent")
    a = backend.asarray([[1.0, NAN], [1.0, 0.0], [INF, 0.0], [0.0, 0.0]])
    b = backend.asarray([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0], [NAN, INF]])
    y, w = _labels(backend, [1, 1, 1, 0]), backend.asarray([0.0, 1.0, 0.0, 0.0])
    assert backend.tolist(backend.call(cosine, a, b, y, weight=w, reduction="none")) == [0] * 4
    (one,) = _gradients(backend, cosine, (0,), a, b, y, weight=w)
    assert one == [0] * 8
    losses = backend.tonumpy(backend.call(cosine, a[:3], b[:3], y[:3], reduction="none"))
    backend.np.testing.assert_array_equal(losses, [NAN, 0, NAN])
    (one,) = _gradients(backend, cosine, (1,), a[:3], b[:3], y[:3], reduction="sum")
    assert all(map(math.isnan, one[:2]))
    assert one[2:4] == [0, 0]
    far = backend.call(triplet, b[1:2], a[1:2], a[2:3], reduction="none")
    near = backend.call(triplet, b[1:2], a[2:3], a[1:2], reduction="none")
    assert backend.tolist(far) + backend.tolist(near) == [0, INF]


def test_weights_of_rows(backend: Backend) -> None:
    a, b = backend.asarray([[[1.0, 0.0]] * 3] * 2), backend.asarray([[[0.0, 1.0]] * 3] * 2)
    y = _labels(backend, [[1, -1, 1], [1, 1, -1]])
    assert math.isclose(
        backend.tolist(backend.call(cosine, a, b, y, -0.5))[0], 5 / 6, rel_tol=1e-15
    )
    for weight, mean in [
        ([1.0, 1.0, 2.0], 13 / 16), ([[2.0], [1.0]], 5 / 6), ([[1.0, 0, 0], [0, 0, 0]], 1)
    ]:  # fmt: skip
        w = backend.asarray(weight)
        result = backend.tolist(backend.call(cosine, a, b, y, -0.5, weight=w))[0]
        assert math.isclose(result, mean, rel_tol=1e-15)
    mask = backend.asarray([[True, False, False], [False, False, True]], "bool")
    assert backend.tolist(backend.call(cosine, a, b, y, -0.5, weight=mask)) == [0.75]


@pytest.mark.parametrize("name", LOSSES)
def test_second_derivatives(backend: Backend, name: str) -> None:
    """Away from kinks they are the slopes of the gradient, also beside a zero vector."""
    backend.require("own autodiff")
    np, spec, loss = backend.np, LOSSES[name], getattr(xpl, name)
    shape = (3, 4) if spec.rowwise else (12,)
    rng = np.random.default_rng(5)
    vectors, h = rng.normal(size=(len(spec.inputs), *shape)), 2.0**-17
    direction = rng.normal(size=vectors.shape)
    if spec.rowwise:
        vectors[0, 1] = direction[:, 1] = 0
    labels = [backend.asarray(rng.choice([-1.0, 1.0], shape[:1]))] if spec.label else []

    def value(x: Any) -> Any:
        return loss(*[x[i] for i in range(len(spec.inputs))], *labels, reduction="sum")

    def gradient(x: Any) -> Any:
        inputs = [backend.asarray(v) for v in x]
        both = xpl.value_and_grad(loss, tuple(range(len(inputs))))
        return np.stack([*map(backend.tonumpy, both(*inputs, *labels, reduction="sum")[1])])

    func = backend.module.func if backend.library == "torch" else importlib.import_module("jax")
    hessian = backend.tonumpy(func.jacrev(func.grad(value))(backend.asarray(vectors)))
    slopes = hessian.reshape(vectors.size, -1) @ direction.reshape(-1)
    expected = gradient(vectors + h * direction) - gradient(vectors - h * direction)
    assert np.isfinite(slopes).all()
    slopes, expected = slopes.reshape(vectors.shape), expected / (2 * h)
    if spec.rowwise:
        slopes[:, 1] = expected[:, 1] = 0
    np.testing.assert_allclose(slopes, expected, rtol=1e-6, atol=1e-8)


def test_second_derivatives_at_a_zero_vector(backend: Backend) -> None:
    """As its slopes, they are 0 in either order."""
    backend.require("own autodiff")
    func = backend.module.func if backend.library == "torch" else importlib.import_module("jax")
    y, vectors = backend.asarray(1, "int8"), backend.asarray([[0.0, 0.0], [3.0, 4.0]])
    twice = func.jacrev(func.jacrev(lambda v: cosine(v[0], v[1], y)))(vectors)
    assert set(backend.tolist(twice)) == {0}


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_second_derivatives_of_huge_and_tiny_vectors(backend: Backend, scale: float) -> None:
    backend.require("own autodiff")
    np = backend.np
    vectors = np.random.default_rng(5).normal(size=(3, 2, 4))
    func = backend.module.func if backend.library == "torch" else importlib.import_module("jax")

    def hessian(loss: Any, scale: float) -> Any:
        a, b, c = (backend.asarray(v * scale, "float32") for v in vectors)
        rest = (b, _labels(backend, [1, 1])) if loss is cosine else (b, c, 9 * scale, 2, 0)
        return backend.tonumpy(func.jacrev(func.jacrev(lambda x: loss(x, *rest)))(a))

    for loss, size, power in [(cosine, scale, 2), (triplet, scale**2, 1)]:
        expected = hessian(loss, 1)
        found, least = hessian(loss, size) * size**power, 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=least)


@pytest.mark.library("numpy")
def test_layouts_of_rows(backend: Backend) -> None:
    """Rows with gaps, backwards, in the order of Fortran, of three axes, and of other bytes."""
    np = backend.np
    rng = np.random.default_rng(6)
    a, b = rng.normal(size=(2, 300, 130)), rng.normal(size=(2, 300, 130))
    y = rng.choice([-1, 1], (2, 300))
    value, gradient = xpl.value_and_grad(cosine)(a, b, y, 0.1, "none")
    for lay in (
        np.asfortranarray,
        lambda v: v.repeat(2, axis=-1)[..., ::2],
        lambda v: v[:, ::-1].copy()[:, ::-1],
        lambda v: np.swapaxes(np.swapaxes(v, 0, 1).copy(), 0, 1),
        lambda v: v.astype(v.dtype.newbyteorder()),
    ):
        again, slope = xpl.value_and_grad(cosine)(lay(a), lay(b), y, 0.1, "none")
        np.testing.assert_allclose(again, value, rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(slope, gradient, rtol=1e-12, atol=1e-16)


@pytest.mark.library("numpy")
@pytest.mark.parametrize(
    ("shape", "weighted"), [((2, 2**13), True), ((2, 2**16), False), ((64, 2**13 - 1), False)]
)
def test_long_rows_in_any_layout(backend: Backend, shape: tuple[int, int], weighted: bool) -> None:
    """They are added up in pieces, also where their entries do not lie side by side."""
    backend.require("large")
    np = backend.np
    a, b = np.random.default_rng(6).uniform(0.5, 1, (2, *shape)).astype("float32")
    y, zero = np.ones(len(a), "int8"), np.zeros_like(a)
    how = {"reduction": "none", "weight": np.ones(len(a), "float32") if weighted else None}
    norms = a.sum(axis=-1, dtype="float64")
    losses = cosine(a.astype("float64"), b.astype("float64"), y, reduction="none")
    for lay in (np.asfortranarray, lambda v: v[:, ::-1].copy()[:, ::-1]):
        found = triplet(lay(a), lay(zero), lay(a), 0.0, 1.0, 0.0, **how)
        np.testing.assert_allclose(found, norms, rtol=24 * 2.0**-24)
        found = cosine(lay(a), lay(b), y, **how)
        np.testing.assert_allclose(found, losses, rtol=0, atol=24 * 2.0**-24)


@pytest.mark.library("numpy")
@pytest.mark.parametrize("length", [2**11, 2**12, 2**13 - 2, 20_001, 2**22 + 5])
def test_products_of_long_rows(backend: Backend, length: int) -> None:
    """BLAS adds them up one after another, in each of a few columns."""
    backend.require("large")
    a, b = 0.67, 0.76  # of which it rounds every sum in the same direction
    rows = [backend.np.full((1, length), value) for value in (a, b)]
    (found,) = dot(backend.xp, *rows).tolist()
    exact = length * Fraction(a) * Fraction(b)
    assert abs(Fraction(found) - exact) <= 32 * Fraction(2) ** -53 * exact


@pytest.mark.library("numpy")
@pytest.mark.parametrize("shape", [(40_000, 9), (1, 200_000), (3, 2, 20_000)])
def test_large_rows(backend: Backend, shape: tuple[int, ...]) -> None:
    """Blocks and threads, few rows that are long, and zero, huge and tiny ones among them."""
    backend.require("large")
    np = backend.np
    rng = np.random.default_rng(7)
    a, b = rng.normal(size=shape), rng.normal(size=shape)
    rows = a.reshape(-1, shape[-1])
    rows[0] *= 1e200
    rows[-1] *= 1e-200
    if len(rows) > 9:
        rows[4] = 0
    y = rng.choice([-1, 1], shape[:-1])
    with np.errstate(all="ignore"):
        u = a / np.abs(a).max(axis=-1, keepdims=True)
        cos = (u * b).sum(-1) / np.sqrt((u * u).sum(-1) * (b * b).sum(-1))
    cos = np.nan_to_num(cos)
    exact = np.where(y == 1, 1 - cos, np.maximum(0, cos - 0.01))
    np.testing.assert_allclose(cosine(a, b, y, 0.01, "none"), exact, rtol=1e-12, atol=1e-13)
    value, gradient = xpl.value_and_grad(cosine)(a, b, y, 0.01, "sum")
    np.testing.assert_allclose(value, exact.sum(), rtol=1e-12)
    assert np.isfinite(gradient).all()


@pytest.mark.library("numpy")
def test_rows_compared_all_with_all_are_not_laid_out(backend: Backend) -> None:
    backend.require("large")
    np = backend.np
    rows = np.random.default_rng(9).normal(size=(2, 600, 64)).astype("float32")
    a, b = np.broadcast_arrays(rows[0][:, None], rows[1])
    y = np.broadcast_to(np.int8(1), a.shape[:-1])
    tracemalloc.start()
    value = cosine(a, b, y)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < a.nbytes / 4  # nbytes is what it would take in one piece
    np.testing.assert_allclose(value, cosine(a.copy(), b.copy(), y), rtol=1e-6)


@pytest.mark.library("dask")
def test_rows_cut_into_chunks(backend: Backend) -> None:
    """Chunks along the last axis are joined; unknown numbers of rows stay unknown."""
    np, da = backend.np, backend.module
    rng = np.random.default_rng(8)
    a, b, c = (rng.normal(size=(9, 6)) for _ in range(3))
    expected, slopes = xpl.value_and_grad(triplet, (0, 2))(a, b, c)
    chunks = ((4, 2), (3, 6), (9, 5))
    lazy = [da.from_array(v, chunks=k) for v, k in zip((a, b, c), chunks, strict=True)]
    value, gradients = xpl.value_and_grad(triplet, (0, 2))(*lazy)
    np.testing.assert_allclose(value.compute(), expected, rtol=1e-14)
    for ours, theirs in zip(gradients, slopes, strict=True):
        np.testing.assert_allclose(ours.compute(), theirs, rtol=1e-13)
    keep = da.from_array(np.arange(9) % 2 == 0, chunks=4)
    unknown = [v.rechunk((4, 6))[keep] for v in lazy]
    each = triplet(*unknown, reduction="none")
    np.testing.assert_allclose(each.compute(), triplet(a, b, c, reduction="none")[::2], rtol=1e-14)


@pytest.mark.library("jax")
def test_of_rows_under_vmap(backend: Backend) -> None:
    import jax

    rng = backend.np.random.default_rng(9)
    a, b = (backend.asarray(rng.normal(size=(3, 4, 5))) for _ in range(2))
    y = backend.asarray(rng.choice([-1, 1], (3, 4)), "int32")
    mapped = jax.vmap(cosine)(a, b, y)
    rows = [cosine(a[i], b[i], y[i]) for i in range(3)]
    backend.np.testing.assert_allclose(mapped, rows, rtol=1e-14)
