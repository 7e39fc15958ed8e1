"""The one pipeline that all losses run through: prepare, evaluate, weigh, reduce.

With elementwise losses l, weights w and W = sum(w), the result is one of

    none: w l        sum: sum(w l)        mean: sum(w l) / W

and a zero weight leaves the element out: there, 0 times anything is 0, also NaN and infinity. All
is in functions of the standard, for any loss.
"""

import math
from typing import Any

from array_api_losses._arguments import unknown
from array_api_losses._loss import Array, Call, Loss
from array_api_losses._primitives import except_where, total


def _narrow(dtype: Any) -> bool:
    """Whether a dtype has at most 16 bits, so that float32 holds all its numbers."""
    return getattr(dtype, "itemsize", None) in {1, 2}


def accumulator(xp: Any, dtype: Any) -> Any:
    """Return the dtype in which elements of `dtype` are summed: at least float32.

    It has the byte order of the machine, in which alone NumPy sums.
    """
    if _narrow(dtype):
        return xp.float32
    return dtype if getattr(dtype, "isnative", True) else dtype.newbyteorder()


def cast(xp: Any, array: Array, dtype: Any) -> Array:
    """Return the array in `dtype`, itself if it has it."""
    return array if array.dtype == dtype else xp.astype(array, dtype)


def prepared(xp: Any, call: Call) -> Call:
    """Bring all operands and the weight to the dtype that is computed in, at least float32.

    What has no loss becomes NaN, the label or, without one, the parameter: a label other than 1 and
    -1, and whatever stands beside a parameter that is not finite or out of bounds.
    """
    loss, operands, weight, reduction, name, trusted = call
    at, after, dtype = len(loss.inputs), loss.first_parameter, accumulator(xp, operands[0].dtype)
    operands = tuple([cast(xp, o, dtype) if hasattr(o, "dtype") else o for o in operands])
    labels, parameters = operands[at:after], operands[after:]
    arrays = [] if loss.sure else [p for p in parameters if hasattr(p, "dtype")]
    if weight is not None:
        weight = cast(xp, weight, dtype)
    if labels:
        y = labels[0]
        if not trusted:
            label = call.label()
            read = y if _narrow(label.dtype) else label  # of 8 bits, CUDA has no `abs` in PyTorch
            y = except_where(xp, ~(xp.abs(read) == 1), math.nan, y)
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


def forgiven(xp: Any, weight: Array, losses: Array, values: Array) -> Array:
    """`values`, but 0 where the weight is zero and the loss is not finite."""
    return except_where(xp, (weight == 0) & ~xp.isfinite(losses), 0.0, values)


def weighed(xp: Any, weight: Array | None, values: Array) -> Array:
    """weight * values, where zero times anything is zero."""
    if weight is None:
        return values
    return weight * forgiven(xp, weight, values, values)


def weight_sum(xp: Any, call: Call, dtype: Any) -> Any:
    """W: the number of elements, or the sum of the weights as broadcast."""
    weight, first = call.weight, call.operands[0]
    if unknown(first.shape):
        nil = xp.zeros_like(first)
        ones = (xp.sum(nil, axis=-1) if call.loss.rowwise else nil) + 1
        return total(xp, ones if weight is None else weight * ones, dtype)
    shape = call.shape()
    if weight is None:
        return math.prod(shape)
    weights = total(xp, weight, dtype)
    if len(weight.shape) == len(shape) and weight.shape == shape:
        return weights
    extra = len(shape) - len(weight.shape)  # and no quotients: sizes may be symbolic
    repeats = [n for i, n in enumerate(shape) if i < extra or weight.shape[i - extra] == 1]
    return weights * _number(math.prod(repeats))


def divided(xp: Any, values: Any, weights: Any) -> Any:
    """values / W; NaN, and no warning, where W is 0."""
    if isinstance(weights, int):  # as `torch.compile` says of a size that it does not know
        return values / _number(weights or math.nan)
    if not hasattr(weights, "dtype"):  # it stands for a size, and cannot be asked whether it is 0
        return values / _number(weights)
    return values / except_where(xp, weights == 0, math.nan, weights)


def _number(size: Any) -> Any:
    """Return a size as JAX takes one of 2**31 or more; what stands for a size, as PyTorch does."""
    if isinstance(size, int):
        return float(size)
    # Within `vmap`, PyTorch before 2.15 multiplies no tensor by the symbol of a whole number.
    return size.__sym_float__() if hasattr(size, "__sym_float__") else size


def folded(xp: Any, call: Call, terms: Array) -> tuple[Array, Any]:
    """Return the sum of the weighted losses and W, in at least float32."""
    weights = weight_sum(xp, call, terms.dtype) if call.reduction == "mean" else None
    return total(xp, terms, terms.dtype), weights


def finished(xp: Any, sum_: Array, weights: Any, dtype: Any) -> Array:
    """Return the sum, or the mean if there is a W, in the dtype of the inputs."""
    return cast(xp, sum_ if weights is None else divided(xp, sum_, weights), dtype)


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
