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
from dataclasses import dataclass
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeAlias

from array_api_losses._arrays import agree, check_number, check_reduction

Array: TypeAlias = Any
P = ParamSpec("P")


@dataclass(frozen=True)
class Loss:
    """A loss as data: its formula, its slopes and the roles of the arguments.

    `value(xp, *operands)` is the loss of each element. `slopes(xp, wanted, *operands)` is a tuple
    with the partial derivative in each operand that is wanted, and None for the others. Operands
    are the inputs, the label (1 or -1, in the dtype of the inputs; NaN gives NaN), then the
    parameters.
    """

    name: str
    value: Callable[..., Array]
    slopes: Callable[..., tuple[Array | None, ...]]
    inputs: tuple[str, ...]
    label: str
    parameters: tuple[str, ...]

    @property
    def operands(self) -> tuple[str, ...]:
        """The names of the operands, in the order of the formula."""
        return (*self.inputs, self.label, *self.parameters)


class Call(NamedTuple):
    """One call of a loss: what is to be computed, on which arrays."""

    loss: Loss
    operands: tuple[Any, ...]
    weight: Array | None
    reduction: str
    name: str | None
    trusted: bool = False
    """Whether every label is known to be 1 or -1."""

    @property
    def arguments(self) -> tuple[Any, ...]:
        """All that a gradient can be asked for: the operands, then the weight."""
        return (*self.operands, self.weight)

    def with_arguments(self, arguments: tuple[Any, ...]) -> "Call":
        """Return the same call of other arrays."""
        return self._replace(operands=tuple(arguments[:-1]), weight=arguments[-1])

    @property
    def position_of_label(self) -> int:
        """Where the label stands among the operands."""
        return len(self.loss.inputs)


def loss_function(bind: Callable[P, Call]) -> Callable[P, Array]:
    """Turn a function that binds its arguments to a `Call` into one that evaluates that call.

    The transforms use the inner function, `loss.bind`, to see the call without running it.
    """

    @wraps(bind)
    def loss(*args: P.args, **kwargs: P.kwargs) -> Array:
        engine, call = agree(bind(*args, **kwargs))
        return engine.value(call)

    loss.__annotations__["return"] = Array
    loss.__dict__["bind"] = bind
    return loss


@dataclass(frozen=True)
class LossInstance:
    """Base of the classes: checks the parameters once, and lends its name to the calls."""

    def __post_init__(self) -> None:
        name = self.__dict__["name"] or type(self).__name__
        check_reduction(name, self.__dict__["reduction"])
        for field, value in self.__dict__.items():
            if field not in {"name", "reduction"}:
                check_number(name, field, value)

    def call(self, loss: Loss, operands: tuple[Any, ...], weight: Array | None) -> Call:
        """Bind a call with the reduction and name of this instance."""
        own = self.__dict__
        return Call(loss, operands, weight, own["reduction"], own["name"] or type(self).__name__)

    def bind(self, *args: Any, **kwargs: Any) -> Call:
        """Bind the arguments of a call of this instance, without running it."""
        call: Call = type(self).__call__.__dict__["bind"](self, *args, **kwargs)
        return call


def accumulator(xp: Any, dtype: Any) -> Any:
    """Return the dtype in which elements of `dtype` are summed: at least float32."""
    return xp.float32 if getattr(dtype, "itemsize", None) in {1, 2} else dtype


def cast(xp: Any, array: Array, dtype: Any) -> Array:
    """Return the array in `dtype`, itself if it has it."""
    return array if array.dtype == dtype else xp.astype(array, dtype)


def prepared(xp: Any, call: Call) -> Call:
    """Bring label and weight to the dtype of the inputs; mark what has no loss by a NaN label.

    That is a label other than 1 and -1, and every label beside a margin that is not finite.
    """
    at = call.position_of_label
    operands = list(call.operands)
    dtype, label = operands[0].dtype, operands[at]
    y = cast(xp, label, dtype)
    if not call.trusted:
        y = xp.where((label == 1) | (label == -1), y, math.nan)
    for parameter in operands[at + 1 :]:
        if hasattr(parameter, "dtype"):
            y = y + xp.where(xp.isfinite(parameter), xp.zeros_like(parameter), math.nan)
    operands[at] = y
    weight = None if call.weight is None else cast(xp, call.weight, dtype)
    return call._replace(operands=tuple(operands), weight=weight, trusted=True)


def _forgiven(xp: Any, weight: Array, losses: Array, values: Array) -> Array:
    """`values`, but 0 where the weight is zero and the loss is not finite."""
    return xp.where((weight == 0) & ~xp.isfinite(losses), xp.zeros_like(values), values)


def weighed(xp: Any, weight: Array | None, values: Array) -> Array:
    """weight * values, where zero times anything is zero."""
    return values if weight is None else weight * _forgiven(xp, weight, values, values)


def weight_sum(xp: Any, call: Call, dtype: Any) -> Any:
    """W: the number of elements, or the sum of the weights as broadcast."""
    size = math.prod(call.operands[0].shape)
    if call.weight is None:
        return size
    return xp.sum(call.weight, dtype=dtype) * (size // max(1, math.prod(call.weight.shape)))


def _divided(xp: Any, total: Any, weights: Any) -> Any:
    """total / W; NaN, and no warning, where W is 0."""
    if isinstance(weights, int):
        return total / (weights or math.nan)
    return total / xp.where(weights == 0, math.nan, weights)


def folded(xp: Any, call: Call, terms: Array) -> tuple[Array, Any]:
    """Return the sum of the weighted losses and W, in at least float32."""
    dtype = accumulator(xp, terms.dtype)
    weights = weight_sum(xp, call, dtype) if call.reduction == "mean" else None
    return xp.sum(terms, dtype=dtype), weights


def finished(xp: Any, reduction: str, total: Array, weights: Any, dtype: Any) -> Array:
    """Return the result for a sum of weighted losses and W."""
    total = _divided(xp, total, weights) if reduction == "mean" else total
    return cast(xp, total, dtype)


def reduced(xp: Any, call: Call, terms: Array) -> Array:
    """Reduce the weighted losses of a prepared call."""
    if call.reduction == "none":
        return terms
    return finished(xp, call.reduction, *folded(xp, call, terms), terms.dtype)


def terms_of(xp: Any, call: Call) -> Array:
    """Return the weighted losses of a prepared call."""
    return weighed(xp, call.weight, call.loss.value(xp, *call.operands))


def value(xp: Any, call: Call) -> Array:
    """Return the result of the call."""
    call = prepared(xp, call)
    return reduced(xp, call, terms_of(xp, call))


def seed_of(xp: Any, call: Call, cotangent: Array | None, weights: Any) -> Any:
    """Return what each weighted loss contributes to <cotangent, result>."""
    if call.reduction != "mean":
        return 1 if cotangent is None else cotangent
    dtype = call.operands[0].dtype
    wide = accumulator(xp, dtype)
    seed = 1 if cotangent is None else cast(xp, cotangent, wide)
    seed = _divided(xp, seed, weights)
    return cast(xp, seed, dtype) if hasattr(seed, "dtype") else seed


def gradients(
    xp: Any,
    call: Call,
    wanted: tuple[bool, ...],
    seed: Any,
    slope_in_weight: Array | None,
) -> list[Array | None]:
    """Return seed * (partial derivative) for each wanted argument, element by element."""
    slopes = call.loss.slopes(xp, wanted, *call.operands)
    found = [None if s is None else weighed(xp, call.weight, seed * s) for s in slopes]
    return [*found, None if slope_in_weight is None else seed * slope_in_weight]


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
    call = prepared(xp, call)
    weights = weight_sum(xp, call, accumulator(xp, call.operands[0].dtype))
    found = gradients(xp, call, wanted, seed_of(xp, call, cotangent, weights), in_weight)
    return tuple(
        None if g is None else summed_to(xp, g, argument.shape)
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
    weight = call.weight
    wanted = tuple(t is not None for t in tangents)
    slopes = call.loss.slopes(xp, wanted, *call.operands)
    terms = []
    for slope, tangent in zip(slopes, tangents, strict=False):
        if slope is not None:
            flow = tangent
            if weight is not None and call.reduction == "mean":
                # Transposed, this keeps the NaN of W = 0 out of elements that are left out.
                empty = (weight == 0) & (xp.sum(weight) == 0)
                flow = xp.where(empty, xp.zeros_like(tangent), tangent)
            terms.append(weighed(xp, weight, slope) * flow)
    if wanted[-1]:
        terms.append(_slope_in_weight(xp, original, value) * tangents[-1])
    terms = terms or [xp.zeros_like(call.operands[0])]
    return reduced(xp, call, sum(terms[1:], terms[0]))


def _slope_in_weight(xp: Any, call: Call, value: Callable[[Call], Array]) -> Array:
    losses = value(call._replace(weight=None, reduction="none"))
    mean = value(call) if call.reduction == "mean" else None
    return slope_in_weight(xp, call.weight, losses, mean)


def slope_in_weight(xp: Any, weight: Array, losses: Array, mean: Array | None) -> Array:
    """l for "none" and "sum", l - mean for "mean" (still to be divided by W); 0 if left out."""
    return _forgiven(xp, weight, losses, losses if mean is None else losses - mean)


def summed_to(xp: Any, gradient: Array, shape: tuple[int, ...]) -> Array:
    """Sum over the axes along which an argument of `shape` was broadcast."""
    if gradient.shape == shape:
        return gradient
    dtype = gradient.dtype
    extra = gradient.ndim - len(shape)
    axes = tuple(i for i in range(gradient.ndim) if i < extra or shape[i - extra] == 1)
    total = xp.sum(gradient, axis=axes, dtype=accumulator(xp, dtype))
    return xp.reshape(cast(xp, total, dtype), shape)
