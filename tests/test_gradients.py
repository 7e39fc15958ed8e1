"""Gradients by every route: the oracle, central differences, the traced formula, the kink."""

import importlib
import itertools
import math
from fractions import Fraction
from typing import Any

import pytest
import routes
from backends import Backend
from compare import (
    DIGITS,
    Case,
    Route,
    cases,
    check_close,
    check_gradient,
    check_like,
    check_value,
    cotangents,
    fixed_cases,
    some_cases,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import LOSSES

import array_api_losses as xpl
from array_api_losses.losses.hinge_embedding import HINGE_EMBEDDING

loss = xpl.hinge_embedding_loss
INF, NAN = math.inf, math.nan
NAMES = ("input", "margin", "weight")


@pytest.mark.parametrize("name", LOSSES)
def test_oracle(backend: Backend, route: Route, name: str) -> None:
    for case in fixed_cases(loss=name)[:: 7 if name == "hinge_embedding_loss" else 17]:
        for argument in case.differentiable:
            check_gradient(backend, case, route, argument, cotangents(case))


@pytest.mark.parametrize("name", LOSSES)
def test_oracle_on_many_fixed_cases(backend: Backend, name: str) -> None:
    for case in fixed_cases(loss=name)[:: 1 if name == "hinge_embedding_loss" else 5]:
        for argument in case.differentiable:
            check_gradient(backend, case, routes.ROUTES["vjp"], argument, cotangents(case))
            check_gradient(backend, case, routes.ROUTES["value_and_grad"], argument, None)


@pytest.mark.parametrize("name", LOSSES)
@given(data=st.data())
@settings(max_examples=8)
def test_oracle_on_generic_cases(backend: Backend, name: str, data: st.DataObject) -> None:
    case = data.draw(cases(name))
    for argument in case.differentiable:
        check_gradient(backend, case, routes.ROUTES["value_and_grad"], argument, None)
        check_gradient(backend, case, routes.ROUTES["vjp"], argument, cotangents(case))


@pytest.mark.library("numpy")
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_other_byte_order(backend: Backend, dtype: str) -> None:
    """Of vectors, margins and weights too."""
    np = backend.np
    for case in some_cases(dtype):
        arrays = case.arrays(backend)
        swapped = {
            name: a.astype(a.dtype.newbyteorder()) if isinstance(a, np.ndarray) else a
            for name, a in arrays.items()
        }
        function = xpl.value_and_grad(case.function, case.differentiable)
        value, gradients = function(**arrays, **case.keywords)
        again, slopes = function(**swapped, **case.keywords)
        for result, expected in zip((again, *slopes), (value, *gradients), strict=True):
            assert result.dtype.type is expected.dtype.type
            np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(backend: Backend, dtype: str) -> None:
    backend.require(dtype)
    for case in some_cases(dtype, 9):
        for argument in case.differentiable:
            route = routes.ROUTES["vjp"]
            check_gradient(backend, case, route, argument, cotangents(case))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_in_forward_mode(backend: Backend, dtype: str) -> None:
    """Slopes, weights and tangents are multiplied in float32, as they are in reverse mode."""
    backend.require(dtype)
    backend.require("own autodiff")
    forward = [
        name
        for name in routes.FORWARD_ROUTES
        if name.startswith(backend.library) and "compile" not in name  # which takes a minute
    ]
    of_the_cotangent = 4 << (DIGITS["float32"] - DIGITS[dtype])  # which meets the tangents in half
    for case, name in itertools.product(some_cases(dtype, 12), forward):
        route = routes.ROUTES[name]
        for argument in case.differentiable:
            check_gradient(backend, case, route, argument, cotangents(case), of_the_cotangent)


def test_products_in_forward_mode_may_pass_the_largest_half(backend: Backend) -> None:
    backend.require("float16")
    backend.require("own autodiff")
    x, w = backend.asarray([320.0, -320.0], "float16"), backend.asarray([1.0, 1.0], "float16")
    tangent = backend.asarray([320.0, 0.0], "float16")
    y = backend.asarray([1, 1], "int8")
    jvp = (importlib.import_module("jax") if backend.library == "jax" else backend.module.func).jvp
    _, slope = jvp(lambda w: loss(x, y, weight=w), (w,), (tangent,))
    assert backend.tolist(slope) == [51_200]


def test_a_half_precision_mean_keeps_the_digits_of_a_scaled_cotangent(backend: Backend) -> None:
    backend.require("float16")
    backend.require("large")
    x = backend.asarray([0.5] * 100_000, "float16")
    _, pullback = xpl.vjp(loss, x, backend.asarray([1] * 100_000, "int8"))
    gradient = backend.tonumpy(pullback(backend.asarray(32768.0, "float16")))
    assert abs(float(gradient[0]) - 0.32768) < 2**-13


def test_the_kink(backend: Backend, route: Route) -> None:
    """At x == margin with label -1 the slope is 0; one float below it is -1, one above 0."""
    m = 0.7500001192092896
    near = [m, float(backend.np.nextafter(backend.np.float32(m), 0)), m + 2**-24 * 2]
    case = Case(
        (5,),
        {"input": [*near, m, m]},
        [-1.0, -1.0, -1.0, 1.0, -1.0],
        [m],
        (),
        reduction="none",
        label_dtype="int8",
    )
    arrays = case.arrays(backend)
    arrays["margin"] = backend.asarray(m, "float32")
    cotangent = backend.asarray([1.0, 2.0, 4.0, 8.0, 16.0], "float32")
    for argument, expected in [("input", [0, -2, 0, 8, 0]), ("margin", [2])]:
        gradient = route(backend, case, arrays, argument, cotangent)
        assert backend.tolist(gradient) == expected


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_a_zero_weight_has_no_gradient(backend: Backend, route: Route, reduction: str) -> None:
    """Whatever stands there; and the gradient in its weight is 0 where its loss is not finite."""
    case = Case((6,), {}, reduction=reduction, dtype="float64")
    arrays = {
        "input": backend.asarray([2.0, NAN, INF, -INF, 5.0, -1.0]),
        "label": backend.asarray([1, -1, 1, -1, 0, -1], "int8"),
        "margin": backend.asarray([1.0, 1.0, 1.0, 1.0, NAN, 1.0]),
        "weight": backend.asarray([3.0, 0.0, 0.0, 0.0, 0.0, 1.0]),
    }
    divisor = 4 if reduction == "mean" else 1
    mean = 2.0 if reduction == "mean" else 0.0
    cotangent = backend.asarray([1.0] * 6 if reduction == "none" else 1.0)
    expected = {
        "input": [3, 0, 0, 0, 0, -1],
        "margin": [0, 0, 0, 0, 0, 1],
        "weight": [2 - mean, 0, 0, 0, 0, 2 - mean],
    }
    for argument, numbers in expected.items():
        gradient = route(backend, case, arrays, argument, cotangent)
        assert backend.tolist(gradient) == [number / divisor for number in numbers]


@pytest.mark.reverse_mode
def test_all_weights_zero(backend: Backend, route: Route) -> None:
    """The mean is NaN; the inputs are left out all the same."""
    arrays = {
        "input": backend.asarray([2.0, NAN]),
        "label": backend.asarray([1, -1], "int8"),
        "margin": 1.0,
        "weight": backend.asarray([0.0, 0.0]),
    }
    gradient = route(backend, Case((2,), {}), arrays, "input", backend.asarray(1.0))
    assert backend.tolist(gradient) == [0, 0]


@pytest.mark.reverse_mode
def test_weights_that_cancel(backend: Backend, route: Route) -> None:
    """There is no mean of what counts, and so no gradient; what is left out stays out."""
    arrays = {
        "input": backend.asarray([2.0, 0.5, NAN]),
        "label": backend.asarray([1, -1, 1], "int8"),
        "margin": 1.0,
        "weight": backend.asarray([1.0, -1.0, 0.0]),
    }
    gradient = route(backend, Case((3,), {}), arrays, "input", backend.asarray(1.0))
    backend.np.testing.assert_array_equal(backend.tonumpy(gradient), [NAN, NAN, 0])


def _slopes_in_the_weight(backend: Backend, route: Route, count: int) -> set[float]:
    """Of losses whose mean, 2049, is no half."""
    arrays = {
        "input": backend.asarray([2048.0, 2050.0] * (count // 2), "float16"),
        "label": backend.asarray([1, 1] * (count // 2), "int8"),
        "weight": backend.asarray([1.0] * count, "float16"),
    }
    return set(backend.tolist(route(backend, Case((count,), {}), arrays, "weight", None)))


def test_half_precision_losses_meet_their_mean_unrounded(backend: Backend, route: Route) -> None:
    backend.require("float16")
    assert _slopes_in_the_weight(backend, route, 2) == {-1 / 2, 1 / 2}


def test_many_half_precision_losses_meet_their_mean_unrounded(backend: Backend) -> None:
    backend.require("float16")
    backend.require("large")
    n = 2**17
    assert _slopes_in_the_weight(backend, routes.ROUTES["vjp"], n) == {-1 / n, 1 / n}


@pytest.mark.parametrize(("dtype", "columns"), [("float32", 4), ("float64", 8)])
def test_inputs_that_lie_unlike(backend: Backend, dtype: str, columns: int) -> None:
    """NumPy before 2.5 negates wrongly what it reads, and writes, so many elements apart."""
    backend.require("large")
    np, n = backend.np, 70_000
    rng = np.random.default_rng(7)
    a, b = rng.integers(-8, 9, (n, columns)) / 8, rng.integers(-8, 9, (columns, n)) / 8
    y = rng.choice([-1, 1], (columns, n))
    x = backend.xp.permute_dims(backend.asarray(a, dtype), (1, 0))
    arguments = x, backend.asarray(b, dtype), backend.asarray(y, "int8"), 0.5, "sum"
    _, gradient = xpl.value_and_grad(xpl.margin_ranking_loss)(*arguments)
    np.testing.assert_array_equal(backend.tonumpy(gradient), np.where(y * (a.T - b) < 0.5, -y, 0))


@pytest.mark.reverse_mode
def test_a_nan_stays_where_it_is(backend: Backend, route: Route) -> None:
    case = Case((4,), {"input": [NAN, NAN, 0.5, 0.5]}, [1.0, -1.0, 1.0, -1.0], reduction="sum")
    gradient = route(backend, case, case.arrays(backend), "input", backend.asarray(2.0, "float32"))
    backend.np.testing.assert_array_equal(backend.tonumpy(gradient), [NAN, NAN, 2, -2])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_sums_along_any_axis_are_as_exact(backend: Backend, dtype: str) -> None:
    """Of a margin for each column NumPy would add row after row."""
    backend.require("large")
    if dtype == "float16":
        backend.require(dtype)
    n, slope, bound = 2**18, 0.0999755859375, 2**-16
    if dtype == "float64":
        n, slope, bound = n + 3, 0.1, 2**-45  # and some that are over in equal parts
    for shape, margin_shape in (((n, 2), (2,)), ((2, n, 2), (2, 1, 2))):
        x, y = backend.np.zeros(shape), -backend.np.ones(shape)
        arrays = [backend.asarray(x, dtype), backend.asarray(y, "int8")]
        margin = backend.asarray(backend.np.ones(margin_shape), dtype)
        _, pullback = xpl.vjp(loss, *arrays, margin, "sum", argnums="margin")
        found = backend.tolist(pullback(backend.asarray(slope, dtype)))
        assert all(abs(f - n * slope) <= bound * n * slope for f in found), found


def test_half_precision_of_a_margin_beside_weights(backend: Backend, route: Route) -> None:
    """What the elements add to the margin's slope is added up in float32, by every route."""
    backend.require("float16")
    n = 1000
    arrays = {
        "input": backend.asarray([0.0] * n, "float16"),
        "label": backend.asarray([-1] * n, "int8"),
        "margin": backend.asarray(1.0, "float16"),
        "weight": backend.asarray([1.0] * n, "float16"),
    }
    gradient = route(backend, Case((n,), {}), arrays, "margin", None)
    assert backend.tolist(gradient) == [1]


def test_value_comes_with_the_gradient(backend: Backend) -> None:
    for case in some_cases():
        both = xpl.value_and_grad(case.function)
        check_value(backend, case, lambda both=both, **arguments: both(**arguments)[0])
        check_value(backend, case, lambda f=case.function, **a: xpl.vjp(f, **a)[0])


def test_central_differences(backend: Backend) -> None:
    """Away from kinks the gradient is the slope of the value, in every argument at once."""
    rng = backend.np.random.default_rng(4)
    x, w = rng.normal(size=12), rng.uniform(0.5, 2, size=12)
    y, margin = rng.choice([-1.0, 1.0], 12), rng.uniform(0.5, 1.5, size=12)
    assert abs(x - margin).min() > 1e-3
    point = dict(zip(NAMES, (x, margin, w), strict=True))

    def at(values: dict[str, Any]) -> float:
        a = {name: backend.asarray(value) for name, value in values.items()}
        result = loss(a["input"], backend.asarray(y), a["margin"], weight=a["weight"])
        return backend.tolist(result)[0]

    arrays = [backend.asarray(v) for v in (x, y, margin)]
    _, gradients = xpl.value_and_grad(loss, NAMES)(*arrays, weight=backend.asarray(w))
    for name, gradient in zip(NAMES, gradients, strict=True):
        direction, h = rng.normal(size=12), 2.0**-20
        high = at({**point, name: point[name] + h * direction})
        low = at({**point, name: point[name] - h * direction})
        assert math.isclose(
            (high - low) / (2 * h),
            backend.tonumpy(gradient) @ direction,
            rel_tol=1e-6,
            abs_tol=1e-9,
        )


def test_traced_formula(backend: Backend) -> None:
    """Away from kinks, what the library's own autodiff makes of the bare formula is the same."""
    backend.require("own autodiff")
    rng = backend.np.random.default_rng(12)
    x, margin, w = (backend.asarray(rng.normal(size=12)) for _ in NAMES)
    y = backend.asarray(rng.choice([-1.0, 1.0], 12))
    xp = backend.xp

    def traced(x: Any, margin: Any, w: Any) -> Any:
        return xp.sum(w * HINGE_EMBEDDING.value(xp, x, y, margin)) / xp.sum(w)

    if backend.library == "torch":
        leaves = [a.requires_grad_() for a in (x, margin, w)]
        expected = backend.module.autograd.grad(traced(*leaves), leaves)
    else:
        expected = importlib.import_module("jax").grad(traced, (0, 1, 2))(x, margin, w)
    _, gradients = xpl.value_and_grad(loss, NAMES)(x, y, margin, weight=w)
    for ours, theirs in zip(gradients, expected, strict=True):
        backend.np.testing.assert_allclose(
            backend.tonumpy(ours), backend.tonumpy(theirs), rtol=1e-12, atol=1e-15
        )


def test_argnums(backend: Backend) -> None:
    """A position, a name or a tuple; the gradients have the shape of `argnums`."""
    case = fixed_cases()[-1]
    arrays = case.arrays(backend)
    weight = arrays.pop("weight")
    positional = tuple(arrays.values())
    _, expected = xpl.value_and_grad(loss, NAMES)(*positional, weight=weight)
    for argnums, chosen in [
        (0, 0), ("input", 0), (2, 1), ("margin", 1), (-1, 2), ("weight", 2),
        ((0,), (0,)), (("weight", 0), (2, 0)), ((2, "input", "weight"), (1, 0, 2)),
    ]:  # fmt: skip
        for gradient in (
            xpl.value_and_grad(loss, argnums)(*positional, weight=weight)[1],
            xpl.vjp(loss, *positional, weight=weight, argnums=argnums)[1](
                backend.asarray(1.0, "float32")
            ),
        ):
            assert isinstance(gradient, tuple) == isinstance(argnums, tuple)
            pairs = zip(
                gradient if isinstance(gradient, tuple) else (gradient,),
                chosen if isinstance(chosen, tuple) else (chosen,),
                strict=True,
            )
            for one, which in pairs:
                check_like(backend, one, positional[0], tuple(expected[which].shape))
                assert backend.tolist(one) == backend.tolist(expected[which])


def test_instances(backend: Backend) -> None:
    x, y = backend.asarray([1.5, 0.25]), backend.asarray([1, -1], "int8")
    w = backend.asarray([1.0, 3.0])
    instance = xpl.HingeEmbeddingLoss(margin=2.0, reduction="sum")
    value, gradients = xpl.value_and_grad(instance, ("input", "weight"))(x, y, weight=w)
    assert backend.tolist(value) == [6.75]
    assert [backend.tolist(g) for g in gradients] == [[1, -3], [1.5, 1.75]]
    value, pullback = xpl.vjp(instance, x, label=y)
    assert backend.tolist(pullback(backend.asarray(2.0))) == [2, -2]


def test_a_learnable_margin(backend: Backend) -> None:
    """A 0-d array is learnt by descent, also where the library turns it into a scalar."""
    backend.require("scalars")
    x, y = backend.asarray([0.5, 0.5]), backend.asarray([1, -1], "int8")
    margin = backend.asarray(2.0)
    for _ in range(3):
        _, slope = xpl.value_and_grad(loss, "margin")(x, y, margin)
        margin = margin - slope
    assert backend.tolist(margin) == [0.5]


def test_size_zero(backend: Backend) -> None:
    x = backend.asarray(backend.np.zeros((0, 3)))
    margin = backend.asarray([1.0, 2.0, 3.0])
    value, (in_input, in_margin) = xpl.value_and_grad(loss, (0, 2))(x, x, margin)
    assert math.isnan(backend.tolist(value)[0])
    check_like(backend, in_input, x, (0, 3))
    check_like(backend, in_margin, x, (3,))
    check_close(backend.tolist(in_margin), [(0, 0)] * 3, "float64", 0)


def test_extreme_weights_of_half_precision(backend: Backend) -> None:
    """Sums and quotients of weights that float16 cannot hold do not spoil the gradient."""
    backend.require("float16")
    y = backend.asarray([1, -1, -1, -1], "int8")
    for w in (2.0**-24, 65504.0):
        x = backend.asarray([0.5, 0.25, 2.0, 0.75], "float16")
        weight = backend.asarray([w] * 4, "float16")
        value, gradients = xpl.value_and_grad(loss, ("input", "weight"))(x, y, weight=weight)
        assert backend.tolist(value) == [0.375]
        assert backend.tolist(gradients[0]) == [0.25, -0.25, 0, -0.25]
        scale = Fraction(1, 4) / Fraction(w)
        exact = [loss_ * scale for loss_ in (Fraction(1, 8), Fraction(3, 8), -Fraction(3, 8))]
        if w > 1:  # 1 / W is beyond float16 for the others
            expected = [(number, abs(number)) for number in exact]
            check_close(backend.tolist(gradients[1])[:3], expected, "float16", 4)


def test_the_margin_of_many_half_precision_elements(backend: Backend) -> None:
    backend.require("float16")
    backend.require("large")
    n = 100_000
    x, margin = backend.asarray([0.5] * n, "float16"), backend.asarray(1.0, "float16")
    label = backend.asarray([-1] * n, "int8")
    assert backend.tolist(xpl.value_and_grad(loss, "margin")(x, label, margin)[1]) == [1]


def test_subnormal_weights(backend: Backend) -> None:
    """1 / W overflows; w / W does not."""
    backend.require("subnormals")
    w = backend.asarray([2.0**-1074, 3 * 2.0**-1074])
    x, y = backend.asarray([0.5, 0.25]), backend.asarray([1, -1], "int8")
    assert backend.tolist(xpl.value_and_grad(loss)(x, y, weight=w)[1]) == [0.25, -0.75]


def test_what_is_left_out_stays_out_of_second_derivatives(backend: Backend) -> None:
    """The Hessian of the squared loss is 2 g g^T, also beside a NaN of zero weight."""
    backend.require("own autodiff")
    x, y = backend.asarray([0.5, NAN, 0.25]), backend.asarray([1, -1, -1], "int8")
    w = backend.asarray([1.0, 0.0, 3.0])
    func = backend.module.func if backend.library == "torch" else importlib.import_module("jax")
    modes = (func.jacrev, func.jacfwd)
    g = [0.25, 0, -0.75]
    for outer, inner in itertools.product(modes, modes):
        hessian = outer(inner(lambda x: loss(x, y, weight=w) ** 2))(x)
        assert backend.tolist(hessian) == [2 * a * b for a in g for b in g]
