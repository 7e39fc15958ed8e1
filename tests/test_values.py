"""Values: the seed example, the oracle, and every row of the contract that is about numbers."""

import math

import array_api_compat as compat
import pytest
from backends import Backend
from compare import cases, check_like, check_value, fixed_cases
from hypothesis import given
from hypothesis import strategies as st
from reference import LOSSES

import array_api_losses as xpl

loss = xpl.hinge_embedding_loss
INPUT = [[1, -2, 3], [0, -1, 2], [1, 0, 1]]
LABEL = [[-1, 1, -1], [1, 1, 1], [1, -1, 1]]
INF, NAN = math.inf, math.nan


def test_the_seed_example(backend: Backend) -> None:
    x, y = backend.asarray(INPUT, "float32"), backend.asarray(LABEL, "float32")
    each = backend.call(loss, x, y, reduction="none")
    check_like(backend, each, x, (3, 3))
    assert backend.tolist(each) == [0, -2, 0, 0, -1, 2, 1, 1, 1]
    mean = backend.tolist(backend.call(loss, x, y))  # a GPU may not round a quotient correctly
    assert mean == [pytest.approx(2 / 9, rel=2**-23)]


@pytest.mark.parametrize("name", LOSSES)
@given(data=st.data())
def test_oracle(backend: Backend, name: str, data: st.DataObject) -> None:
    check_value(backend, data.draw(cases(name)))


@pytest.mark.parametrize("name", LOSSES)
def test_oracle_on_fixed_cases(backend: Backend, name: str) -> None:
    for case in fixed_cases(loss=name):
        check_value(backend, case)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_oracle_in_half_precision(backend: Backend, name: str, dtype: str) -> None:
    backend.require(dtype)
    for case in fixed_cases(dtype, name)[::2]:
        check_value(backend, case)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_summed_in_float32(backend: Backend, dtype: str) -> None:
    backend.require(dtype)
    backend.require("large")
    x = backend.asarray([1.0] * 100_000, dtype)
    assert backend.tolist(backend.call(loss, x, x)) == [1.0]
    assert backend.tolist(backend.call(loss, x[: 2**13], x[: 2**13], reduction="sum")) == [2.0**13]
    total = backend.tolist(backend.call(loss, x, x, reduction="sum"))
    assert total == ([INF] if dtype == "float16" else [99840.0])
    assert backend.tolist(backend.call(loss, 60_000 * x, x)) == (
        [60_000.0] if dtype == "float16" else [59904.0]
    )


def test_many_ones(backend: Backend) -> None:
    backend.require("large")
    xp = backend.xp
    device = compat.device(backend.asarray([1.0])) if backend.has("eager") else None
    x = xp.ones((2**25,), dtype=xp.float32, device=device)
    assert backend.tolist(backend.call(loss, x, x, reduction="sum")) == [2.0**25]
    assert backend.tolist(backend.call(loss, x, x)) == [1.0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0)])
def test_size_zero(backend: Backend, shape: tuple[int, ...], dtype: str) -> None:
    x = backend.asarray(backend.np.zeros(shape), dtype)
    weight = backend.asarray(backend.np.ones(shape[-1:]), dtype)
    for given_weight in (None, x, weight):
        check_like(
            backend, backend.call(loss, x, x, reduction="none", weight=given_weight), x, shape
        )
        total = backend.call(loss, x, x, reduction="sum", weight=given_weight)
        check_like(backend, total, x, ())
        assert backend.tolist(total) == [0.0]
        mean = backend.call(loss, x, x, weight=given_weight)
        check_like(backend, mean, x, ())
        assert math.isnan(backend.tolist(mean)[0])


BIG = (2 - 2**-23) * 2.0**127
"""The largest float32."""
SPECIAL = [
    # input, label, margin, loss
    (INF, 1, 1, INF),
    (-INF, 1, 1, -INF),
    (INF, -1, 1, 0),
    (-INF, -1, 1, INF),
    (INF, -1, -1, 0),
    (-INF, -1, -1, INF),
    (NAN, 1, 1, NAN),
    (NAN, -1, 1, NAN),
    (NAN, -1, -1, NAN),
    (-0.0, 1, 1, 0),
    (0.0, -1, 1, 1),
    (-0.0, -1, 0, 0),
    (1.0, -1, 1, 0),
    (1 + 2**-23, -1, 1, 0),
    (1 - 2**-24, -1, 1, 2**-24),
    (-3.0, -1, -2, 1),
    (-2.0, -1, -2, 0),
    (-2.0, 1, -2, -2),
    (0.0, -1, -2, 0),
    (-2 - 2**-22, -1, -2, 2**-22),
    (-2 + 2**-23, -1, -2, 0),
    (BIG, 1, 1, BIG),
    (-BIG, 1, 1, -BIG),
    (BIG, -1, 1, 0),
    (-BIG, -1, 1, BIG),
    (BIG, -1, BIG, 0),
    (0.0, -1, BIG, BIG),
    (-BIG, -1, -BIG, 0),
    (-INF, -1, -BIG, INF),
]
OVERFLOW = [(-BIG, -1, BIG, INF), (BIG, -1, -BIG, 0)]


LABEL_DTYPES = ["int8", "int16", "int32", "int64", "float16", "float32", "float64"]


@pytest.mark.parametrize("dtype", LABEL_DTYPES)
def test_special_values(backend: Backend, dtype: str) -> None:
    if dtype == "float16":
        backend.require("float16")
    np = backend.np
    rows = [*SPECIAL, *OVERFLOW] if backend.has("silent") else SPECIAL
    columns = np.asarray(rows, "float64").T
    x, margin = (backend.asarray(columns[i], "float32") for i in (0, 2))
    y, expected = backend.asarray(columns[1], dtype), columns[3].astype("float32")
    actual = backend.call(loss, x, y, margin, "none")
    np.testing.assert_array_equal(backend.tonumpy(actual), expected)
    for number in {row[2] for row in rows}:
        x, y, _, expected = zip(*(row for row in rows if row[2] == number), strict=True)
        x, y = backend.asarray(x, "float32"), backend.asarray(y, dtype)
        actual = backend.tonumpy(backend.call(loss, x, y, float(number), "none"))
        np.testing.assert_array_equal(actual, np.asarray(expected, "float32"))


def test_subnormals(backend: Backend) -> None:
    tiny = 2.0**-140
    x, y = backend.asarray([tiny, tiny], "float32"), backend.asarray([1, -1], "int8")
    actual = backend.tolist(backend.call(loss, x, y, 2 * tiny, reduction="none"))
    if backend.has("subnormals"):
        assert actual == [tiny, tiny]
    else:
        assert all(0 <= value <= 2.0**-126 for value in actual)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "float32", "float64"])
def test_label_dtypes(backend: Backend, dtype: str) -> None:
    x = backend.asarray([0.25, 0.25, 3.0], "float32")
    y = backend.asarray([1, -1, -1], dtype)
    result = backend.call(loss, x, y, reduction="none")
    check_like(backend, result, x, (3,))
    assert backend.tolist(result) == [0.25, 0.75, 0]


def test_the_margin_is_rounded_to_the_dtype(backend: Backend) -> None:
    x, y = backend.asarray([0.0], "float32"), backend.asarray([-1], "int8")
    third = float(backend.np.float32(1 / 3))
    for margin in (1 / 3, 1 / 3, backend.np.float64(1 / 3), backend.np.float32(1 / 3)):
        assert backend.tolist(backend.call(loss, x, y, margin)) == [third]
    at_margin = backend.asarray([third], "float32")
    assert backend.tolist(backend.call(loss, at_margin, y, 1 / 3)) == [0]
    assert backend.tolist(backend.call(loss, x, y, -2)) == [0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_margin_is_rounded_in_half_precision(backend: Backend, dtype: str) -> None:
    backend.require(dtype)
    x, y = backend.asarray([0.0, 1.0], dtype), backend.asarray([-1, -1], "int8")
    halfway = 1 + 2.0 ** (-11 if dtype == "float16" else -8)
    for margin, kept in [
        (halfway, 1.0),
        (1 / 3, {"float16": 0.333251953125}.get(dtype, 0.333984375)),
    ]:
        assert backend.tolist(backend.call(loss, x, y, margin, reduction="none")) == [kept, 0]
    tiny = 2.0**-24 if dtype == "float16" else 2.0**-133
    if backend.has("subnormals"):
        margin = 0.625 * tiny
        assert backend.tolist(backend.call(loss, x, y, margin, reduction="none")) == [tiny, 0]


@pytest.mark.parametrize("bad", [INF, -INF, NAN])
def test_a_margin_array_that_is_not_finite_gives_nan(backend: Backend, bad: float) -> None:
    x, y = backend.asarray([1.0, 1.0, 1.0, 1.0]), backend.asarray([1, -1, 1, -1], "int8")
    margin = backend.asarray([bad, bad, 2.0, 2.0])
    actual = backend.tonumpy(backend.call(loss, x, y, margin, reduction="none"))
    backend.np.testing.assert_array_equal(actual, [NAN, NAN, 1, 1])
    whole = backend.call(loss, x, y, backend.asarray(bad), reduction="none")
    assert all(math.isnan(v) for v in backend.tolist(whole))


def test_wrong_labels_that_cannot_be_read_give_nan(backend: Backend) -> None:
    x = backend.asarray([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    y = backend.asarray([1.0, 0.0, 2.0, NAN, -1.0, 1 + 2.0**-52])
    if backend.has("reads labels"):
        with pytest.raises(ValueError, match="4 elements that are neither 1 nor -1"):
            backend.call(loss, x, y)
        return
    actual = backend.tonumpy(backend.call(loss, x, y, reduction="none"))
    backend.np.testing.assert_array_equal(actual, [1, NAN, NAN, NAN, 0, NAN])


def test_weights(backend: Backend) -> None:
    x, y = backend.asarray([2.0, -0.5, 7.0]), backend.asarray([1, -1, 1], "int8")
    w = backend.asarray([2.0, 1.0, 1.0])
    repeated = backend.call(
        loss, backend.asarray([2.0, 2.0, -0.5, 7.0]), backend.asarray([1, 1, -1, 1], "int8")
    )
    assert backend.tolist(backend.call(loss, x, y, weight=w)) == backend.tolist(repeated) == [3.125]
    assert backend.tolist(backend.call(loss, x, y, weight=w, reduction="none")) == [4, 1.5, 7]
    assert backend.tolist(backend.call(loss, x, y, weight=w, reduction="sum")) == [12.5]
    mask = backend.asarray([True, True, False], "bool")
    assert backend.tolist(backend.call(loss, x, y, weight=mask)) == [1.75]
    assert backend.tolist(backend.call(loss, x, y, weight=backend.asarray(2.0))) == [3.5]


@pytest.mark.parametrize("kind", ["float64", "bool"])
def test_a_zero_weight_leaves_the_element_out(backend: Backend, kind: str) -> None:
    x = backend.asarray([2.0, NAN, INF, -INF, 5.0, 1.0])
    y = backend.asarray([1, -1, 1, -1, 0, 1], "int8")
    margin = backend.asarray([1.0, 1.0, NAN, 1.0, INF, 1.0])
    w = backend.asarray([1, 0, 0, 0, 0, 1], kind)
    assert backend.tolist(backend.call(loss, x, y, margin, weight=w)) == [1.5]
    assert backend.tolist(backend.call(loss, x, y, margin, "sum", weight=w)) == [3]
    assert backend.tolist(backend.call(loss, x, y, margin, "none", weight=w)) == [2, 0, 0, 0, 0, 1]


def test_a_weight_forgives_nothing_that_counts(backend: Backend) -> None:
    """NaN and infinity stay what they are where the weight is not zero."""
    x = backend.asarray([NAN, INF, 2.0, -INF])
    y, w = backend.asarray([1, 1, 1, 1], "int8"), backend.asarray([2.0, 2.0, 2.0, 0.0])
    each = backend.tonumpy(backend.call(loss, x, y, weight=w, reduction="none"))
    backend.np.testing.assert_array_equal(each, [NAN, INF, 4, 0])
    assert math.isnan(backend.tolist(backend.call(loss, x, y, weight=w))[0])
    assert backend.tolist(backend.call(loss, x[1:], y[1:], weight=w[1:])) == [INF]


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0]])
def test_weights_that_sum_to_zero_have_no_mean(backend: Backend, weights: list[float]) -> None:
    x, y = backend.asarray([1.0, 2.0]), backend.asarray([1, 1], "int8")
    assert math.isnan(backend.tolist(backend.call(loss, x, y, weight=backend.asarray(weights)))[0])


def test_an_overflow_is_silent(backend: Backend) -> None:
    backend.require("silent")
    backend.require("float16")
    x = backend.asarray([-60_000.0, 60_000.0], "float16")
    y = backend.asarray([-1, 1], "int8")
    assert backend.tolist(backend.call(loss, x, y, 60_000, "none")) == [INF, 60_000]
    assert backend.tolist(backend.call(loss, x, y, 60_000, "sum")) == [INF]


def test_arguments_are_not_written_to(backend: Backend) -> None:
    case = fixed_cases()[-1]
    arrays = case.arrays(backend)
    before = {k: backend.tolist(v) for k, v in arrays.items()}
    xpl.value_and_grad(loss, ("input", "margin", "weight"))(**arrays)
    assert {k: backend.tolist(v) for k, v in arrays.items()} == before


@pytest.mark.parametrize("size", [10, 1_000, 100_000, 3_000_000])
def test_sums_stay_within_the_bound(backend: Backend, size: int) -> None:
    """|error| <= 256 u sum|l| + 1 ulp, at sizes of one block, of many, and of many threads."""
    if size > 1000:
        backend.require("large")
    np = backend.np
    rng = np.random.default_rng(8)
    x = rng.uniform(1, 2, size).astype("float32")
    y = rng.choice([-1.0, 1.0], size).astype("float32")
    exact = np.where(y == 1, x, np.maximum(0, np.float32(4) - x)).astype("float64").sum()
    arrays = backend.asarray(x, "float32"), backend.asarray(y, "float32")
    for call in (loss, lambda *a, **k: xpl.value_and_grad(loss)(*a, **k)[0]):
        error = abs(backend.tolist(call(*arrays, 4.0, reduction="sum"))[0] - exact)
        assert error <= 256 * 2**-24 * exact + np.spacing(np.float32(exact))
