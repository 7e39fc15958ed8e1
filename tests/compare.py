"""Generic cases, and the comparison with the oracle that tests and planted mistakes share."""

import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache, partial
from typing import Any

import array_api_compat as compat
import reference
from backends import Backend
from hypothesis import strategies as st

import array_api_losses as xpl

SHAPES = [(7,), (3, 4), (), (2, 1, 5)]
REDUCTIONS = ["none", "sum", "mean"]
DIGITS = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}
SMALLEST = {"float16": -14, "bfloat16": -126, "float32": -126, "float64": -1022}


@dataclass(frozen=True)
class Case:
    """One call of a loss, in plain numbers. Arrays are flat; their shapes stand beside them."""

    shape: tuple[int, ...]
    inputs: dict[str, list[float]]
    label: list[float] | None = None
    margin: float | list[float] | None = 1.0
    margin_shape: tuple[int, ...] = ()
    weight: list[float] | None = None
    weight_shape: tuple[int, ...] = ()
    reduction: str = "mean"
    dtype: str = "float32"
    label_dtype: str = "float32"
    loss: str = "hinge_embedding_loss"
    width: int | None = None
    """How many entries a vector has, of a loss of rows."""
    options: dict[str, Any] = field(default_factory=dict)
    _answers: dict[tuple[float, ...], reference.Answer] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def function(self) -> Callable[..., Any]:
        """The loss."""
        function: Callable[..., Any] = getattr(xpl, self.loss)
        return function

    @property
    def spec(self) -> reference.Spec:
        """What the suite knows of the loss."""
        return reference.LOSSES[self.loss]

    @property
    def keywords(self) -> dict[str, Any]:
        """The arguments that are no arrays, but for a margin."""
        return {"reduction": self.reduction, **self.options}

    @property
    def full(self) -> tuple[int, ...]:
        """The shape of the inputs."""
        return self.shape if self.width is None else (*self.shape, self.width)

    def arrays(self, backend: Backend) -> dict[str, Any]:
        """Return the arguments as arrays of a backend (the margin may stay a number)."""

        def make(values: list[float], shape: tuple[int, ...], dtype: str) -> Any:
            return backend.asarray(backend.np.reshape(values, shape), dtype)

        arrays = {name: make(v, self.full, self.dtype) for name, v in self.inputs.items()}
        if self.label is not None:
            arrays["label"] = make(self.label, self.shape, self.label_dtype)
        if isinstance(self.margin, list):
            arrays["margin"] = make(self.margin, self.margin_shape, self.dtype)
        elif self.margin is not None:
            arrays["margin"] = self.margin
        if self.weight is not None:
            arrays["weight"] = make(self.weight, self.weight_shape, self.dtype)
        return arrays

    @property
    def differentiable(self) -> tuple[str, ...]:
        """The names of the arguments that have a gradient."""
        margin = ("margin",) if isinstance(self.margin, list) else ()
        return (*self.inputs, *margin, *(() if self.weight is None else ("weight",)))

    def answer(self, cotangent: list[float] | None = None) -> reference.Answer:
        """Return the exact result, computed once for each cotangent."""
        key = tuple(cotangent or [1.0] * (math.prod(self.shape) if self.reduction == "none" else 1))
        if key not in self._answers:
            self._answers[key] = self._answer(key)
        return self._answers[key]

    def _answer(self, cotangent: tuple[float, ...]) -> reference.Answer:
        n = math.prod(self.shape)
        margin = (
            [self.margin[i] for i in sources(self.shape, self.margin_shape)]
            if isinstance(self.margin, list)
            else [self.margin] * n
        )
        weight = (
            [1.0] * n
            if self.weight is None
            else [self.weight[i] for i in sources(self.shape, self.weight_shape)]
        )
        columns: list[Any] = [
            v if self.width is None else [v[i * self.width :][: self.width] for i in range(n)]
            for v in self.inputs.values()
        ]
        columns += [] if self.label is None else [self.label]
        columns += [] if self.margin is None else [margin]
        return reference.answer(
            partial(self.spec.oracle, **self.options),
            list(zip(*columns, strict=True)),
            weight,
            self.reduction,
            cotangent,
        )


def sources(shape: tuple[int, ...], small: tuple[int, ...]) -> Iterator[int]:
    """For each element of `shape`: the flat index of what it sees in an array of shape `small`."""
    padded = (1,) * (len(shape) - len(small)) + small
    for index in itertools.product(*map(range, shape)):
        flat = 0
        for i, size in zip(index, padded, strict=True):
            flat = flat * size + (i if size > 1 else 0)
        yield flat


def summed_to(
    parts: list[tuple[Fraction, Fraction]], shape: tuple[int, ...], small: tuple[int, ...]
) -> list[tuple[Fraction, Fraction]]:
    """Sum what each element contributes to the element of a broadcast array that it saw."""
    sums = [(Fraction(0), Fraction(0))] * math.prod(small)
    for (part, size), i in zip(parts, sources(shape, small), strict=True):
        sums[i] = sums[i][0] + part, sums[i][1] + size
    return sums


def partners(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shapes that broadcast to `shape`: its own, a scalar, its last axis, its first, all others."""
    column = (*shape[:1], *(1 for _ in shape[1:]))
    others = (*(1 for _ in shape[:1]), *shape[1:])
    return list(dict.fromkeys([shape, (), shape[-1:], column, others]))


@st.composite
def cases(
    draw: Any, loss: str = "hinge_embedding_loss", dtypes: tuple[str, ...] = ("float32", "float64")
) -> Case:
    """Draw a generic case, in which one element lies exactly at the margin."""
    spec = reference.LOSSES[loss]
    shape, width = draw(st.sampled_from(SHAPES)), draw(st.integers(1, 4)) if spec.rowwise else None
    n = math.prod(shape)
    dtype = draw(st.sampled_from(dtypes))
    number = st.floats(-8, 8, width=32).filter(lambda v: v == 0 or abs(v) > 2.0**-10)
    if len(spec.inputs) > 1:  # differences are exact, so that no rounding decides on a side
        number = st.integers(-255, 255).map(lambda v: v / 64)
    margins = number
    if spec.margins:
        margins = st.integers(-spec.margins, spec.margins).map(lambda v: v / 64)

    def numbers(size: int, elements: Any = number) -> list[float]:
        return draw(st.lists(elements, min_size=size, max_size=size))

    margin_shape = draw(st.sampled_from(partners(shape)))
    weight_shape = draw(st.sampled_from(partners(shape)))
    count = math.prod(weight_shape)
    weights = numbers(count, st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, 3.0]))
    weights[draw(st.integers(0, count - 1))] = 1.5
    case = Case(
        shape,
        inputs={name: numbers(n * (width or 1)) for name in spec.inputs},
        label=numbers(n, st.sampled_from([-1.0, 1.0])) if spec.label else None,
        margin=None
        if spec.margin is None
        else draw(margins)
        if draw(st.booleans())
        else numbers(math.prod(margin_shape), margins),
        margin_shape=margin_shape,
        weight=weights if draw(st.booleans()) else None,
        weight_shape=weight_shape,
        reduction=draw(st.sampled_from(REDUCTIONS)),
        dtype=dtype,
        label_dtype=draw(st.sampled_from([dtype, "int8", "int64"])),
        loss=loss,
        width=width,
        options=draw(st.sampled_from(spec.options)),
    )
    return with_tie(case)


def with_tie(case: Case) -> Case:
    """Put the first element at its margin, where that can be done exactly: there the slope is 0."""
    inputs, label, margin = {k: list(v) for k, v in case.inputs.items()}, case.label, case.margin
    if label is not None:
        label = [-1.0, *label[1:]]
    if isinstance(margin, list) and case.spec.tied_margin is not None:
        margin = [case.spec.tied_margin, *margin[1:]]
    m = margin[0] if isinstance(margin, list) else margin
    rows = case.spec.tie(m, *(v[: case.width or 1] for v in inputs.values()), **case.options)
    for column, row in zip(inputs.values(), rows or (), strict=False):
        column[: len(row)] = row
    return replace(case, inputs=inputs, label=label, margin=margin)


@cache  # so that the oracle answers each case once, whatever is compared with it
def fixed_cases(dtype: str = "float32", loss: str = "hinge_embedding_loss") -> list[Case]:
    """Cases that are the same on every run, over all reductions and kinds of margin and weight."""
    rng, spec = random.Random(20), reference.LOSSES[loss]
    other = random.Random(21)  # so that no regular choice of cases leaves out a width or an option
    found = []
    for i, (shape, reduction) in enumerate(itertools.product([(7,), (3, 4)], REDUCTIONS)):
        n = math.prod(shape)
        for margin_shape, weight_shape in itertools.product(
            [None, partners(shape)[i % 2], shape], [None, partners(shape)[-1 - i % 2]]
        ):
            width = other.choice([1, 2, 3, 4, 5]) if spec.rowwise else None

            def numbers(size: int, most: int = 255) -> list[float]:
                return [rng.randint(-most, most) / 64 for _ in range(size)]

            most = spec.margins or 255
            case = Case(
                shape,
                {name: numbers(n * (width or 1)) for name in spec.inputs},
                [rng.choice([-1.0, 1.0]) for _ in range(n)] if spec.label else None,
                margin=spec.margin
                if margin_shape is None or spec.margin is None
                else numbers(math.prod(margin_shape), most),
                margin_shape=margin_shape or (),
                weight=None
                if weight_shape is None
                else [rng.choice([0.5, 2.0, 3.0]) for _ in range(math.prod(weight_shape))],
                weight_shape=weight_shape or (),
                reduction=reduction,
                dtype=dtype,
                label_dtype=dtype,
                loss=loss,
                width=width,
                options=other.choice(spec.options),
            )
            found.append(with_tie(case))
    return found


def some_cases(dtype: str = "float32", step: int = 5) -> list[Case]:
    """Some of the fixed cases, of all losses."""
    return [case for loss in reference.LOSSES for case in fixed_cases(dtype, loss)[::step]]


def check_like(backend: Backend, array: Any, like: Any, shape: tuple[int, ...]) -> None:
    """Assert library, device, dtype and shape."""
    xp = backend.xp
    assert compat.array_namespace(array) is xp, (type(array), xp)
    assert compat.device(array) == compat.device(like)
    assert array.dtype == like.dtype, (array.dtype, like.dtype)
    assert tuple(array.shape) == shape, (array.shape, shape)


def ulp(number: Fraction, dtype: str) -> Fraction:
    """Return the distance between neighbouring numbers of a dtype, around a number."""
    exponent = max(math.frexp(float(number))[1] - 1, SMALLEST[dtype])
    return Fraction(2) ** (exponent - DIGITS[dtype] + 1)


def check_close(
    actual: list[float], expected: list[tuple[Fraction, Fraction]], dtype: str, roundings: int
) -> None:
    """Assert |error| <= 1 ulp + `roundings` * u * (sum of absolute terms); each is derived.

    An element of the loss is rounded once (`roundings=0` leaves the ulp), or as often as its spec
    says; a product of k factors k times; a sum of any length stays within 256 roundings. They are
    those of the dtype that is computed in, at least float32.
    """
    assert len(actual) == len(expected)
    unit = Fraction(1, 2 ** max(DIGITS[dtype], DIGITS["float32"]))
    for number, (exact, size) in zip(actual, expected, strict=True):
        assert math.isfinite(number), (number, float(exact))
        error = abs(Fraction(number) - exact)
        assert error <= ulp(exact, dtype) + roundings * unit * size, (number, float(exact))


SUM_ROUNDINGS = 256


def check_value(backend: Backend, case: Case, loss: Callable[..., Any] | None = None) -> None:
    """Compare a call with the oracle; `loss` stands in for the one of the case."""
    arrays = case.arrays(backend)
    result = backend.call(loss or case.function, **arrays, **case.keywords)
    whole = case.reduction == "none"
    check_like(backend, result, arrays[case.spec.inputs[0]], case.shape if whole else ())
    roundings = case.spec.roundings + (0 if case.weight is None else 2)
    roundings = roundings if whole else SUM_ROUNDINGS
    check_close(backend.tolist(result), case.answer().value, case.dtype, roundings)


Route = Callable[[Backend, Case, dict[str, Any], str, Any], Any]


def check_gradient(
    backend: Backend,
    case: Case,
    route: Route,
    argument: str,
    cotangent: list[float] | None,
    more: int = 0,
) -> None:
    """Compare the gradient in one argument, by one route, with the oracle.

    `more` are the roundings of the route itself.
    """
    arrays = case.arrays(backend)
    shape = case.shape if case.reduction == "none" else ()
    given = (
        None
        if cotangent is None
        else backend.asarray(backend.np.reshape(cotangent, shape), case.dtype)
    )
    gradient = route(backend, case, arrays, argument, given)
    small = tuple(arrays[argument].shape)
    check_like(backend, gradient, arrays[argument], small)
    shape = case.full if argument in case.inputs else case.shape
    exact = summed_to(case.answer(cotangent).gradients[argument], shape, small)
    summed = argument == "weight" or small != shape or case.reduction == "mean"
    roundings = more + (SUM_ROUNDINGS if summed else 4 + case.spec.roundings)
    check_close(backend.tolist(gradient), exact, case.dtype, roundings)


def cotangents(case: Case, seed: int = 3) -> list[float]:
    """Random cotangents: a unit one would hide bugs."""
    rng = random.Random(seed)
    n = math.prod(case.shape) if case.reduction == "none" else 1
    return [rng.choice([-1, 1]) * rng.randint(8, 63) / 16 for _ in range(n)]
