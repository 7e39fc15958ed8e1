"""Dask: each chunk through the engine of its own library, sums by a tree; nothing is computed here.

Chunks may be of any library and of unknown size, so labels are never read: a wrong one gives NaN.
"""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

import array_api_compat.dask.array as xp
import dask.array as da

from array_api_losses import _derivatives, _pipeline
from array_api_losses._arrays import agree
from array_api_losses._engines import engine_of
from array_api_losses._engines.faster import in_one_piece
from array_api_losses._engines.plain import Plain
from array_api_losses._loss import Array, Call, Loss
from array_api_losses._primitives import FASTER


class Dask(Plain):
    """Maps over chunks; the graph grows linearly with their number."""

    def __init__(self, *, compiles: bool = False) -> None:
        super().__init__(xp)
        self._compiles = compiles

    def compiled(self, loss: Loss) -> Plain:
        return _COMPILED

    def value(self, call: Call) -> Array:
        if call.reduction == "none":
            return _map(_losses, call, call.arguments(), compiled=self._compiles)
        return _finished(call, self._sums(call), call.operands[0].dtype)

    def gradient(
        self, call: Call, wanted: tuple[bool, ...], cotangent: Array | None
    ) -> tuple[Array | None, tuple[Array | None, ...]]:
        value = self.value(call) if cotangent is None else None
        mean = weights = None
        if call.reduction == "mean":
            wide = _pipeline.accumulator(da, call.operands[0].dtype)
            # Not from the sums of losses: all chunks would be read, and kept, before the gradient.
            weights = _pipeline.weight_sum(xp, call, wide)
            mean = _finished(call, self._sums(call), wide) if wanted[-1] else None
        seed = _derivatives.seed_of(xp, call, cotangent, weights)
        found: list[Array | None] = []
        for i, argument in enumerate(call.arguments()):
            if not wanted[i]:
                found.append(None)
                continue
            only = tuple(j == i for j in range(len(wanted)))
            options = {"rows": call.loss.has_rows(i), "compiled": self._compiles}
            arguments = (*call.arguments(), *seed, mean if only[-1] else None)
            gradient = _map(_gradient, call, arguments, wide=True, wanted=only, **options)
            found.append(_summed_to(gradient, argument))
        return value, tuple(found)

    def _sums(self, call: Call) -> Array:
        """Return the sum of the weighted losses and W, added up from those of the chunks."""
        sums = _map(_chunk_sums, call, call.arguments(), folded=True, compiled=self._compiles)
        axes = tuple(range(len(call.shape())))
        return da.reduction(sums, _added, _added, axis=axes, dtype=sums.dtype) if axes else sums


def _map(
    function: Any,
    call: Call,
    arguments: tuple[Any, ...],
    *,
    folded: bool = False,
    wide: bool = False,
    rows: bool = False,
    **options: Any,
) -> Array:
    """Apply a function to the chunks of all arguments, aligned as they broadcast to the losses.

    With `rows` it gives rows as the inputs have.
    """
    first = call.operands[0]
    full = tuple(range(first.ndim))
    index = full[: len(call.shape())]
    pairs: list[Any] = []
    for i, argument in enumerate(arguments):
        if hasattr(argument, "dask"):
            whole = call.loss.has_rows(i)
            own = full if whole else index
            pairs += [_merged(argument, rows=whole), own[len(own) - argument.ndim :]]
        else:
            pairs += [argument, None]
    dtype = _pipeline.accumulator(da, first.dtype) if folded or wide else first.dtype
    out = (*index, first.ndim) if folded else full if rows else index
    return da.blockwise(
        function,
        out,
        *pairs,
        call=call._replace(operands=(), weight=None),
        new_axes={first.ndim: 2} if folded else None,
        adjust_chunks=dict.fromkeys(index, 1) if folded else None,
        dtype=dtype,
        meta=da.empty((0,) * len(out), dtype=dtype)._meta,
        concatenate=True,  # of the chunks of a row, of which there is one
        **options,
    )


def _merged(argument: Array, *, rows: bool) -> Array:
    """Return the array with no row in several chunks, and no axis of length 1 either.

    Of such an axis with an empty chunk beside the other, Dask would broadcast the one to both.
    """
    last = argument.ndim - 1
    cut = [axis for axis, count in enumerate(argument.numblocks) if count > 1]
    whole = {axis: -1 for axis in cut if argument.shape[axis] == 1 or (rows and axis == last)}
    return argument.rechunk(whole) if whole else argument


def _added(sums: Array, axis: tuple[int, ...], to: Any = None, **keepdims: bool) -> Array:
    engine = _engine(sums)
    with engine.quiet():
        total = engine.xp.sum(sums, axis=axis, **keepdims)
        return total if to is None else _pipeline.cast(engine.xp, total, to)


def _summed_to(gradient: Array, argument: Array) -> Array:
    return _derivatives.summed_to(xp, gradient, argument.shape, argument.dtype)


def _finished(call: Call, sums: Array, dtype: Any) -> Array:
    call = call._replace(operands=(), weight=None)
    meta = sums._meta[:0].sum().astype(dtype)
    return sums.map_blocks(_finish, call, dtype, drop_axis=0, dtype=dtype, meta=meta)


def _finish(sums: Array, call: Call, dtype: Any) -> Array:
    engine = _engine(sums)
    with engine.quiet():
        weights = sums[1] if call.reduction == "mean" else None
        return _pipeline.finished(engine.xp, sums[0], weights, dtype)


def _losses(*arguments: Any, call: Call, compiled: bool) -> Array:
    engine, call = _chunk(call, arguments, compiled=compiled)
    if call.trusted:
        return engine.value(call)
    with engine.quiet():
        return _pipeline.value(engine.xp, call)


def _chunk_sums(*arguments: Any, call: Call, compiled: bool) -> Array:
    """Return the sum of a chunk and its W along a new last axis; the other axes shrink to one."""
    engine, call = _chunk(call, arguments, compiled=compiled)
    xp = engine.xp
    with engine.quiet():
        total, weights = engine.folded(call)
        total = xp.asarray(total, dtype=_pipeline.accumulator(xp, call.operands[0].dtype))
        weights = xp.ones_like(total) * (0 if weights is None else weights)
        sums = xp.stack([total, _pipeline.cast(xp, weights, total.dtype)])
    return xp.reshape(sums, (1,) * len(call.shape()) + (2,))


def _gradient(*arguments: Any, call: Call, compiled: bool, wanted: tuple[bool, ...]) -> Array:
    """Return the one gradient that is wanted, for each element of a chunk."""
    *own, factor, divisor, mean = arguments
    engine, call = _chunk(call, own, compiled=compiled)
    with engine.quiet():
        found = _derivatives.gradients_by_element(engine.xp, call, wanted, (factor, divisor), mean)
    return next(gradient for gradient in found if gradient is not None)


def _chunk(call: Call, arguments: Sequence[Any], *, compiled: bool) -> tuple[Plain, Call]:
    """Return the engine of a chunk, and the call on it; only here are all shapes known."""
    engine, call = agree(call.with_arguments(tuple(arguments)), compiled=compiled)
    with suppress(ValueError):  # a wrong label gives NaN
        call = engine.checked(call)
    return engine, call


def _engine(chunk: Array) -> Plain:
    return cast("Plain", engine_of(chunk))


# Chunks stay as they are, so that NumPy cannot add pairwise; it adds in float64.
def _total(values: Array, dtype: Any) -> Array:
    last = partial(_added, to=dtype)
    return da.reduction(values.astype(da.float64), _added, last, combine=_added, dtype=dtype)


def _over(values: Array, axes: tuple[int, ...]) -> Array:
    values = values.astype(da.float64)
    return da.reduction(
        values, _added_in_one_piece, _added, axes, keepdims=True, dtype=values.dtype
    )


def _added_in_one_piece(chunk: Array, axis: tuple[int, ...], **_: bool) -> Array:
    return in_one_piece(_engine(chunk).xp, chunk, axis)


FASTER["total"][xp.__name__] = _total
FASTER["over"][xp.__name__] = _over

ENGINE = Dask()
_COMPILED = Dask(compiles=True)
