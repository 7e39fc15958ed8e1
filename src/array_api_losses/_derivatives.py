"""The derivatives of the pipeline, for any loss: pullback and pushforward.

With elementwise losses l of arguments a, weights w and W = sum(w), for a cotangent s of the result
the pullback gives

    none: s w dl/da, s l        sum: s w dl/da, s l        mean: s w dl/da / W, s (l - mean) / W

in a and in w; 0 in what a zero weight leaves out.
"""

from collections.abc import Callable
from typing import Any

from array_api_losses._loss import Array, Call
from array_api_losses._pipeline import (
    accumulator,
    cast,
    divided,
    forgiven,
    prepared,
    reduced,
    weighed,
    weight_sum,
)
from array_api_losses._primitives import over


def seed_of(xp: Any, call: Call, cotangent: Array | None, weights: Any) -> tuple[Any, Array | None]:
    """Return what slopes are multiplied and divided by (None: not), in at least float32."""
    seed = 1
    if cotangent is not None:
        seed = cast(xp, cotangent, accumulator(xp, cotangent.dtype))
    if call.reduction != "mean":
        return seed, None
    return (divided(xp, seed, weights), None) if call.weight is None else (seed, weights)


def gradients(
    xp: Any,
    call: Call,
    wanted: tuple[bool, ...],
    seed: tuple[Any, Array | None],
    slope_in_weight: Array | None,
) -> list[Array | None]:
    """Return the gradient in each wanted argument of a prepared call, by element."""
    if call.loss.rowwise and call.weight is None:
        factor, divisor = seed
        factor = factor if divisor is None else divided(xp, factor, divisor)
        slopes = call.loss.slopes(xp, wanted, factor, *call.operands)
        seed_of_slopes = 1, None
    else:
        slopes, seed_of_slopes = slopes_of(xp, call, wanted), seed
    found = []
    for i, slope in enumerate(slopes):
        gradient = slope
        if slope is not None:
            weight, own_seed = call.weight, seed_of_slopes
            if call.loss.has_rows(i):
                weight, own_seed = along_row(weight), (along_row(own_seed[0]), own_seed[1])
            # The weight comes first, since 1 / W may overflow; and so that no NaN meets the seed.
            gradient = scaled(xp, weighed(xp, weight, slope), own_seed)
            if weight is not None:
                gradient = forgiven(xp, weight, gradient, gradient)
        found.append(gradient)
    if slope_in_weight is not None:
        slope_in_weight = scaled(xp, slope_in_weight, seed)
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


def along_row(values: Any) -> Any:
    """Give an array with a number for each row an axis along the rows."""
    return values[..., None] if getattr(values, "ndim", 0) else values


def scaled(xp: Any, values: Array, seed: tuple[Any, Array | None]) -> Array:
    """Return the values multiplied and divided by what `seed_of` says."""
    factor, divisor = seed
    values = values if isinstance(factor, int) else values * factor
    return values if divisor is None else divided(xp, values, divisor)


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
        for g, argument in zip(found, call.arguments(), strict=True)
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
            rows = call.loss.has_rows(i)
            # In the wide dtype first: transposed, what is broadcast is then added up in that too.
            flow, weight = cast(xp, tangent, wide), along_row(call.weight) if rows else call.weight
            if weight is not None and call.reduction == "mean":
                # Transposed, this keeps the NaN of W = 0 out of elements that are left out.
                empty = (weight == 0) & (xp.sum(weight) == 0)
                flow = xp.where(empty, 0.0, flow)
            term = weighed(xp, weight, slope) * flow
            terms.append(xp.sum(term, axis=-1) if rows else term)
    if wanted[-1]:
        slope = _slope_in_weight(xp, original, value)
        terms.append(slope * cast(xp, tangents[-1], wide))
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
                for argument in original.arguments()
            )
        )
    call = prepared(xp, original)
    left_out = (call.weight == 0) & ~xp.isfinite(call.loss.value(xp, *call.operands))
    rest = xp.astype(~left_out, wide)
    loss, operands, _, _, name, trusted = original
    losses = value(Call(loss, operands, rest, "none", name, trusted))
    if call.reduction != "mean":
        return losses
    return xp.where(left_out, 0.0, losses - value(original))


def slope_in_weight(xp: Any, weight: Array, losses: Array, mean: Array | None) -> Array:
    """l for "none" and "sum", l - mean for "mean" (still to be divided by W); 0 if left out."""
    return forgiven(xp, weight, losses, losses if mean is None else losses - mean)


def summed_to(xp: Any, gradient: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Sum over the axes along which an argument was broadcast, and give it its dtype."""
    extra = gradient.ndim - len(shape)
    if not extra and gradient.shape == shape:  # of sizes that cannot be asked whether they are 1
        return cast(xp, gradient, dtype)
    axes = tuple(
        i for i, n in enumerate(gradient.shape) if i < extra or (shape[i - extra] == 1 and n != 1)
    )
    if axes:
        gradient = over(xp, gradient, axes)
    if extra:
        gradient = xp.squeeze(gradient, axis=tuple(range(extra)))
    return cast(xp, gradient, dtype)
