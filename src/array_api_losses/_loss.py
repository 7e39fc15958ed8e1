"""What a loss is, and the one pipeline that all of them run through.

A call goes: bind the arguments (the public function) -> agree on arrays (`_arrays`) -> run on the
library's engine (`_engines`). What an engine runs is below: the weighted and reduced value, the
pullback and the pushforward, each written once, for any loss, in functions of the standard.

With elementwise losses l, weights w and W = sum(w), the result is one of

    none: w l        sum: sum(w l)        mean: sum(w l) / W

and a zero weight leaves the element out: there, 0 times anything is 0, also NaN and infinity.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeAlias, TypeVar, dataclass_transform

from array_api_losses._arguments import (
    check_name,
    check_no_array,
    check_number,
    check_reduction,
    unknown,
)
from array_api_losses._arrays import agree
from array_api_losses._messages import explainer
from array_api_losses._primitives import total

Array: TypeAlias = Any
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(eq=False)  # two are equal if they are the same, which is quick to see
class Loss:
    """A loss as data: its formula, its slopes and the roles of the arguments.

    `value(xp, *operands)` is the loss of each element. `slopes(xp, wanted, *operands)` is a tuple
    with the partial derivative in each operand that is wanted, and None for the others. Operands
    are the inputs, the label if there is one (1 or -1, in the dtype of the inputs; NaN gives NaN),
    then the parameters.

    Where `rowwise`, an element is a row: inputs have a last axis, of the entries of vectors, that
    labels, parameters and losses do not have, and come in at least float32. There `slopes(xp,
    wanted, factor, *operands)` multiplies all slopes by a number, or by one of each row, since that
    is cheaper where rows are still numbers.
    """

    name: str
    value: Callable[..., Array]
    slopes: Callable[..., tuple[Array | None, ...]]
    inputs: tuple[str, ...]
    label: str | None
    parameters: tuple[str, ...]
    rowwise: bool = False
    bounds: tuple[float, float] = (-math.inf, math.inf)
    """Between which the parameters lie; they are finite in any case."""
    first_parameter: int = field(init=False)
    """Where the parameters begin among the operands."""

    def __post_init__(self) -> None:
        self.first_parameter = len(self.inputs) + (self.label is not None)

    @property  # and not cached: on Python 3.11 that takes a lock, at which `torch.compile` stops
    def operands(self) -> tuple[str, ...]:
        """The names of the operands, in the order of the formula."""
        labels = () if self.label is None else (self.label,)
        return (*self.inputs, *labels, *self.parameters)

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the losses for inputs of a shape."""
        return shape[:-1] if self.rowwise else shape


class Call(NamedTuple):
    """One call of a loss: what is to be computed, on which arrays."""

    loss: Loss
    operands: tuple[Any, ...]
    weight: Array | None
    reduction: str
    name: str | None
    trusted: bool = False
    """Whether every label is known to be 1 or -1, or there are none."""
    compiled: bool = False
    """Whether it is to run compiled."""

    @property
    def title(self) -> str:
        """What stands at the head of error messages."""
        return self.name or self.loss.name

    @property
    def arguments(self) -> tuple[Any, ...]:
        """All that a gradient can be asked for: the operands, then the weight."""
        return (*self.operands, self.weight)

    def with_arguments(self, arguments: tuple[Any, ...]) -> "Call":
        """Return the same call of other arrays."""
        return self._replace(operands=arguments[:-1], weight=arguments[-1])

    def as_trusted(self) -> "Call":
        """Return the same call, its labels known to be 1 or -1."""
        loss, operands, weight, reduction, name, _, _ = self
        return Call(loss, operands, weight, reduction, name, trusted=True)

    @property
    def label(self) -> Array:
        """The label, of a loss that has one."""
        return self.operands[len(self.loss.inputs)]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the losses."""
        return self.loss.shape(self.operands[0].shape)


def evaluated_early(function: Callable[P, None]) -> Callable[P, None]:
    """Let TorchDynamo call a function while it compiles, and not look into it.

    This is what `torch.compiler.assume_constant_result` does, without importing PyTorch.
    """
    function.__dict__["_dynamo_marked_constant"] = True
    return function


def loss_function(bind: Callable[P, Call]) -> Callable[P, Array]:
    """Turn a function that binds its arguments to a `Call` into one that evaluates that call.

    The transforms use the inner function, `loss.bind`, to see the call without running it.
    """
    explained = explainer(bind)

    @wraps(bind)
    def loss(*args: P.args, **kwargs: P.kwargs) -> Array:
        try:
            call = bind(*args, **kwargs)
        except TypeError as error:
            raise explained(args, kwargs, error) from None
        engine, call = agree(call)
        return engine.value(call)

    @wraps(bind)
    def bound(*args: P.args, **kwargs: P.kwargs) -> Call:
        try:
            return bind(*args, **kwargs)
        except TypeError as error:
            raise explained(args, kwargs, error) from None

    loss.__annotations__["return"] = Array
    loss.__dict__["bind"] = bound
    return loss


@dataclass_transform(frozen_default=True)
def loss_class(cls: type[T]) -> type[T]:
    """Make a frozen dataclass that says more than Python does of arguments that there are not."""
    made: Any = dataclass(frozen=True, eq=False, repr=False)(cls)  # see `LossInstance`
    init, explained = made.__init__, explainer(made.__init__)

    @wraps(init)
    def explaining(*args: Any, **kwargs: Any) -> None:
        try:
            init(*args, **kwargs)
        except TypeError as error:
            for name, value in kwargs.items():
                check_no_array(cls.__name__, name, value)
            raise explained(args, kwargs, error) from None

    made.__init__ = explaining
    return cls


class LossInstance:
    """Base of the classes: checks the parameters once, and lends its name to the calls.

    It compares, hashes and prints for all of them: `dataclass` would compile that for each, at
    every import.
    """

    def __post_init__(self) -> None:
        own, kind = self.__dict__, type(self).__name__
        for field_, value in own.items():
            check_no_array(kind, field_, value)
        check_name(kind, own["name"])
        name = own["name"] or kind
        check_reduction(name, own["reduction"])
        loss = self.loss(name)
        for parameter in loss.parameters:
            check_number(name, parameter, own[parameter], loss.bounds)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__.values()))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.__dict__.items())
        return f"{type(self).__qualname__}({fields})"

    def loss(self, name: str) -> Loss:
        """Return the loss; errors in what chooses it begin with `name`."""
        raise NotImplementedError

    def call(self, *inputs: Array, weight: Array | None) -> Call:
        """Bind a call with the parameters, reduction and name of this instance."""
        own = self.__dict__
        name = own["name"] or type(self).__name__
        loss = self.loss(name)
        operands = (*inputs, *[own[parameter] for parameter in loss.parameters])
        trusted = loss.label is None
        return Call(loss, operands, weight, own["reduction"], name, trusted)


def accumulator(xp: Any, dtype: Any) -> Any:
    """Return the dtype in which elements of `dtype` are summed: at least float32.

    It has the byte order of the machine, in which alone NumPy sums.
    """
    if getattr(dtype, "itemsize", None) in {1, 2}:
        return xp.float32
    return dtype if getattr(dtype, "isnative", True) else dtype.newbyteorder()


def cast(xp: Any, array: Array, dtype: Any) -> Array:
    """Return the array in `dtype`, itself if it has it."""
    return array if array.dtype == dtype else xp.astype(array, dtype)


def prepared(xp: Any, call: Call) -> Call:
    """Bring all operands and the weight to the dtypes in which they are computed with.

    What has no loss becomes NaN, the label or, without one, the parameter: a label other than 1 and
    -1, and whatever stands beside a parameter that is not finite or out of bounds.
    """
    loss, operands, weight, reduction, name, trusted, _ = call
    at, after, dtype = len(loss.inputs), loss.first_parameter, operands[0].dtype
    if loss.rowwise:
        dtype = accumulator(xp, dtype)
        operands = tuple([cast(xp, o, dtype) if hasattr(o, "dtype") else o for o in operands])
    labels, parameters = operands[at:after], operands[after:]
    arrays = [parameter for parameter in parameters if hasattr(parameter, "dtype")]
    if weight is not None:
        weight = cast(xp, weight, accumulator(xp, dtype))
    if labels:
        y = cast(xp, labels[0], dtype)
        if not trusted:
            y = xp.where(xp.abs(call.label) == 1, y, math.nan)
        for parameter in arrays:
            y = y + xp.where(_admitted(xp, loss, parameter), xp.zeros_like(parameter), math.nan)
        labels = (y,)
    elif arrays:
        parameters = tuple(
            xp.where(_admitted(xp, loss, p), p, math.nan) if hasattr(p, "dtype") else p
            for p in parameters
        )
    operands = (*operands[:at], *labels, *parameters)
    return Call(loss, operands, weight, reduction, name, trusted=True)


def _admitted(xp: Any, loss: Loss, parameter: Array) -> Array:
    """Whether each element of a parameter is finite and within its bounds."""
    low, high = loss.bounds
    if math.isinf(low) and math.isinf(high):
        return xp.isfinite(parameter)
    return (parameter >= low) & (parameter <= high)


def _forgiven(xp: Any, weight: Array, losses: Array, values: Array) -> Array:
    """`values`, but 0 where the weight is zero and the loss is not finite."""
    return xp.where((weight == 0) & ~xp.isfinite(losses), xp.zeros_like(values), values)


def weighed(xp: Any, weight: Array | None, values: Array) -> Array:
    """weight * values in the dtype of the weight, where zero times anything is zero."""
    if weight is None:
        return values
    values = cast(xp, values, weight.dtype)
    return weight * _forgiven(xp, weight, values, values)


def weight_sum(xp: Any, call: Call, dtype: Any) -> Any:
    """W: the number of elements, or the sum of the weights as broadcast."""
    weight, first = call.weight, call.operands[0]
    if unknown(first.shape):
        nil = xp.zeros_like(first)
        ones = (xp.sum(nil, axis=-1) if call.loss.rowwise else nil) + 1
        return total(xp, ones if weight is None else weight * ones, dtype)
    size = math.prod(call.shape)
    if weight is None:
        return size
    repeats = size // max(1, math.prod(weight.shape))
    weights = total(xp, weight, dtype)
    return weights if repeats == 1 else weights * repeats


def _divided(xp: Any, values: Any, weights: Any) -> Any:
    """values / W; NaN, and no warning, where W is 0."""
    if type(weights) is int:
        return values / (weights or math.nan)
    return values / xp.where(weights == 0, math.nan, weights)


def folded(xp: Any, call: Call, terms: Array) -> tuple[Array, Any]:
    """Return the sum of the weighted losses and W, in at least float32."""
    dtype = accumulator(xp, terms.dtype)
    weights = weight_sum(xp, call, dtype) if call.reduction == "mean" else None
    return total(xp, terms, dtype), weights


def finished(xp: Any, sum_: Array, weights: Any, dtype: Any) -> Array:
    """Return the sum, or the mean if there is a W, in the dtype of the inputs."""
    return cast(xp, sum_ if weights is None else _divided(xp, sum_, weights), dtype)


def reduced(xp: Any, call: Call, terms: Array, dtype: Any) -> Array:
    """Reduce the weighted losses of a prepared call, to the dtype that its inputs had."""
    if call.reduction == "none":
        return cast(xp, terms, dtype)
    return finished(xp, *folded(xp, call, terms), dtype)


def terms_of(xp: Any, call: Call) -> Array:
    """Return the weighted losses of a prepared call."""
    losses = call.loss.value(xp, *call.operands)
    return losses if call.weight is None else weighed(xp, call.weight, losses)


def value(xp: Any, call: Call) -> Array:
    """Return the result of the call."""
    dtype, call = call.operands[0].dtype, prepared(xp, call)
    return reduced(xp, call, terms_of(xp, call), dtype)


def seed_of(xp: Any, call: Call, cotangent: Array | None, weights: Any) -> tuple[Any, Array | None]:
    """Return what slopes are multiplied and divided by (None: not), in at least float32."""
    seed = 1
    if cotangent is not None:
        seed = cast(xp, cotangent, accumulator(xp, cotangent.dtype))
    if call.reduction != "mean":
        return seed, None
    return (_divided(xp, seed, weights), None) if call.weight is None else (seed, weights)


def gradients(
    xp: Any,
    call: Call,
    wanted: tuple[bool, ...],
    seed: tuple[Any, Array | None],
    slope_in_weight: Array | None,
) -> list[Array | None]:
    """Return the gradient in each wanted argument, by element, in at least float32."""
    wide = accumulator(xp, call.operands[0].dtype)
    if call.loss.rowwise and call.weight is None:
        factor, divisor = seed
        factor = factor if divisor is None else _divided(xp, factor, divisor)
        slopes = call.loss.slopes(xp, wanted, factor, *call.operands)
        seed_of_slopes = 1, None
    else:
        slopes, seed_of_slopes = slopes_of(xp, call, wanted), seed
    found = []
    for i, slope in enumerate(slopes):
        gradient = slope
        if slope is not None:
            weight, own_seed = call.weight, seed_of_slopes
            if has_rows(call.loss, i):
                weight, own_seed = along_row(weight), (along_row(own_seed[0]), own_seed[1])
            # The weight comes first, since 1 / W may overflow; and so that no NaN meets the seed.
            gradient = weighed(xp, weight, cast(xp, slope, wide))
            gradient = scaled(xp, gradient, own_seed)
            if weight is not None:
                gradient = _forgiven(xp, weight, gradient, gradient)
        found.append(gradient)
    if slope_in_weight is not None:
        slope_in_weight = scaled(xp, cast(xp, slope_in_weight, wide), seed)
    return [*found, slope_in_weight]


def gradients_by_element(
    xp: Any,
    call: Call,
    wanted: tuple[bool, ...],
    seed: tuple[Any, Array | None],
    mean: Array | None,
) -> list[Array | None]:
    """As `gradients`, of a call that is not prepared; `mean` is that of a weighted mean."""
    call, in_weight = prepared(xp, call), None
    if wanted[-1]:
        losses = call.loss.value(xp, *call.operands)
        in_weight = slope_in_weight(xp, call.weight, losses, mean)
    return gradients(xp, call, wanted, seed, in_weight)


def slopes_of(xp: Any, call: Call, wanted: tuple[bool, ...]) -> tuple[Array | None, ...]:
    """Return the slopes of a prepared call."""
    factors = (1,) if call.loss.rowwise else ()
    return call.loss.slopes(xp, wanted, *factors, *call.operands)


def has_rows(loss: Loss, position: int) -> bool:
    """Whether an operand has the last axis that losses do not have."""
    return loss.rowwise and position < len(loss.inputs)


def along_row(values: Any) -> Any:
    """Give an array with a number for each row an axis along the rows."""
    return values[..., None] if getattr(values, "ndim", 0) else values


def scaled(xp: Any, values: Array, seed: tuple[Any, Array | None]) -> Array:
    """Return the values multiplied and divided by what `seed_of` says."""
    factor, divisor = seed
    values = values if isinstance(factor, int) else values * factor
    return values if divisor is None else _divided(xp, values, divisor)


def pullback(
    xp: Any,
    call: Call,
    wanted: tuple[bool, ...],
    cotangent: Array | None,
    value: Callable[[Call], Array],
) -> tuple[Array | None, ...]:
    """Return the gradient in each wanted argument, for a cotangent of the result (None: ones).

    `value` evaluates a call; where autodiff may go through this pullback a second time, it is the
    function that knows its own derivative.
    """
    in_weight = _slope_in_weight(xp, call, value) if wanted[-1] else None
    dtype, call = call.operands[0].dtype, prepared(xp, call)
    weights = weight_sum(xp, call, accumulator(xp, dtype))
    found = gradients(xp, call, wanted, seed_of(xp, call, cotangent, weights), in_weight)
    return tuple(
        None if g is None else summed_to(xp, g, argument.shape, dtype)
        for g, argument in zip(found, call.arguments, strict=True)
    )


def pushforward(
    xp: Any,
    call: Call,
    tangents: tuple[Array | None, ...],
    value: Callable[[Call], Array],
) -> Array:
    """Return the tangent of the result for tangents of the arguments; None, and a label, is 0."""
    original, call = call, prepared(xp, call)
    dtype = original.operands[0].dtype
    wide = accumulator(xp, dtype)
    wanted = tuple(t is not None for t in tangents)
    slopes = slopes_of(xp, call, wanted)
    terms = []
    for i, (slope, tangent) in enumerate(zip(slopes, tangents, strict=False)):
        if slope is not None:
            rows = has_rows(call.loss, i)
            flow, weight = tangent, along_row(call.weight) if rows else call.weight
            if weight is not None and call.reduction == "mean":
                # Transposed, this keeps the NaN of W = 0 out of elements that are left out.
                empty = (weight == 0) & (xp.sum(weight) == 0)
                flow = xp.where(empty, xp.zeros_like(tangent), tangent)
            term = weighed(xp, weight, cast(xp, slope, wide)) * cast(xp, flow, wide)
            terms.append(xp.sum(term, axis=-1) if rows else term)
    if wanted[-1]:
        slope = _slope_in_weight(xp, original, value)
        terms.append(cast(xp, slope, wide) * cast(xp, tangents[-1], wide))
    if not terms:
        nothing = xp.zeros_like(call.operands[0])
        terms = [xp.sum(nothing, axis=-1) if call.loss.rowwise else nothing]
    return reduced(xp, call, sum(terms[1:], terms[0]), dtype)


def _slope_in_weight(xp: Any, original: Call, value: Callable[[Call], Array]) -> Array:
    """As `slope_in_weight`, from losses that know their own derivative, in at least float32.

    What is left out is so in the derivative of these losses too.
    """
    dtype = original.operands[0].dtype
    wide = accumulator(xp, dtype)
    if dtype != wide:  # else the mean would be rounded before it meets the losses
        original = original.with_arguments(
            tuple(
                xp.astype(argument, wide) if getattr(argument, "dtype", None) == dtype else argument
                for argument in original.arguments
            )
        )
    call = prepared(xp, original)
    left_out = (call.weight == 0) & ~xp.isfinite(call.loss.value(xp, *call.operands))
    rest = xp.astype(~left_out, wide)
    losses = value(original._replace(weight=rest, reduction="none"))
    if call.reduction != "mean":
        return losses
    return xp.where(left_out, xp.zeros_like(losses), losses - value(original))


def slope_in_weight(xp: Any, weight: Array, losses: Array, mean: Array | None) -> Array:
    """l for "none" and "sum", l - mean for "mean" (still to be divided by W); 0 if left out."""
    return _forgiven(xp, weight, losses, losses if mean is None else losses - mean)


def summed_to(xp: Any, gradient: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Sum over the axes along which an argument was broadcast, and give it its dtype."""
    extra = gradient.ndim - len(shape)
    if extra:
        gradient = xp.sum(gradient, axis=tuple(range(extra)))
    ones = tuple(i for i, n in enumerate(shape) if n == 1 and gradient.shape[i] != 1)
    if ones:
        gradient = xp.sum(gradient, axis=ones, keepdims=True)
    return cast(xp, gradient, dtype)
