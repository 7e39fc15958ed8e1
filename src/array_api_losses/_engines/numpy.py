"""NumPy: few elements at once, many in blocks; what a formula does is noted once and replayed."""

import math
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import Context
from typing import Any, TypeVar

import array_api_compat.numpy as np

from array_api_losses import _derivatives, _pipeline
from array_api_losses._arrays import check_labels
from array_api_losses._engines.blocks import (
    FEW,
    SIGNS,
    TAPES,
    at_once,
    empty,
    in_blocks,
    noted,
    side_by_side,
)
from array_api_losses._engines.faster import PRIMITIVES
from array_api_losses._engines.plain import Plain
from array_api_losses._engines.replay import Replay
from array_api_losses._loss import Array, Call, Loss
from array_api_losses._primitives import FASTER

T = TypeVar("T")

SMALL = 2**12
"""Up to so many elements it costs nothing to put results in new memory."""

SMALL_ROWS = 2**13
"""Likewise up to so many entries of rows."""

AT_ONCE = 2**15
"""Up to so many elements are not cut into blocks where the call is not simple."""

WHOLE = 2**18
"""The same where it is."""

for primitive, function in PRIMITIVES.items():
    FASTER[primitive][np.__name__] = function


class _Silence(threading.local):
    context: Context | None = None


_SILENCE = _Silence()


def _quietly(function: Callable[..., T], *arguments: Any) -> T:
    """As within `numpy.errstate`, which takes a tenth of a small call: keep a context instead."""
    context, _SILENCE.context = _SILENCE.context, None  # a call within this one has its own
    if context is None:
        context = Context()
        context.run(np.seterr, all="ignore")
    try:
        return context.run(function, *arguments)
    finally:
        _SILENCE.context = context


class NumPy(Plain):
    """Few elements are computed at once; more come in blocks."""

    def value(self, call: Call) -> Array:
        size = call.operands[0].size
        if size <= WHOLE and _is_simple(call):
            return _quietly(self._whole, call, (), None)[0]
        if size <= AT_ONCE:
            return _quietly(self._value, at_once, call)
        with self.quiet():
            return self._value(in_blocks, call)

    def _value(self, over: Any, call: Call) -> Array:
        if call.reduction == "none":
            result = empty(call)
            over(call, losses=result)
            return result if result.ndim else result[()]  # as NumPy's own functions
        total, weights = over(call, losses=True)[0], self._weights(call)
        return _pipeline.finished(np, total, weights, call.operands[0].dtype)[()]

    def _whole(
        self, call: Call, wanted: tuple[bool, ...], cotangent: Array | None
    ) -> tuple[Array | None, tuple[Array | None, ...]]:
        """Replay what the plain path does with a simple call: the formula and a sum."""
        loss, operands, _, reduction, _, trusted, _ = call
        first, label = operands[0], operands[loss.first_parameter - 1]  # or the last input
        shape, count, width, with_value = first.shape, first.size, None, cotangent is None
        if loss.rowwise:
            *shape, width = shape
            count, operands = math.prod(shape), (*side_by_side(loss, operands),)
            first = operands[0]
        check = not (trusted or (count <= FEW and SIGNS.issuperset(label.ravel().tolist())))
        key = loss, wanted, with_value, check, first.dtype, label.dtype, width
        tape = TAPES.get(key) or _noted_of_whole(*key)
        if wanted:
            operands = (*operands, _derivatives.seed_of(np, call, cotangent, count)[0])
        few = SMALL_ROWS if width else SMALL
        if first.size > few and first.flags.c_contiguous and label.flags.c_contiguous:
            kept = 1 if reduction == "none" else 2
            good, value, *found = tape.in_scratch(operands, shape, kept)
        else:
            good, value, *found = tape.anew(operands)
        if check and not good.all():
            check_labels(np, call)
        if with_value:
            if reduction != "none":
                value = np.add.reduce(value, None, _pipeline.accumulator(np, value.dtype))
            weights = count if reduction == "mean" else None
            value = _pipeline.finished(np, value, weights, first.dtype)
        if not wanted:
            return value, ()
        return value, tuple(
            [None if slope is None else _pipeline.cast(np, slope, first.dtype) for slope in found]
        )

    def folded(self, call: Call) -> tuple[Any, Any]:
        over = at_once if call.operands[0].size <= AT_ONCE else in_blocks
        return over(call, losses=True, check=False)[0], self._weights(call)

    def gradient(
        self, call: Call, wanted: tuple[bool, ...], cotangent: Array | None
    ) -> tuple[Array | None, tuple[Array | None, ...]]:
        size = call.operands[0].size
        if size <= WHOLE and _is_simple(call):
            return _quietly(self._whole, call, wanted, cotangent)
        if size <= AT_ONCE:
            return _quietly(self._gradient, at_once, call, wanted, cotangent)
        with self.quiet():
            return self._gradient(in_blocks, call, wanted, cotangent)

    def _gradient(
        self, over: Any, call: Call, wanted: tuple[bool, ...], cotangent: Array | None
    ) -> tuple[Array | None, tuple[Array | None, ...]]:
        dtype, weights = call.operands[0].dtype, self._weights(call)
        seed = _derivatives.seed_of(np, call, cotangent, weights)
        value = mean = None
        losses: Any = False
        if call.reduction == "mean" and wanted[-1]:
            # It has to be known beforehand, and is not rounded yet where it meets the losses.
            total = over(call, losses=True)[0]
            mean = _pipeline.finished(np, total, weights, _pipeline.accumulator(np, dtype))[()]
            value = _pipeline.cast(np, mean, dtype)
        elif cotangent is None:
            losses = call.reduction != "none" or empty(call)
        total, gradients = over(call, wanted, seed, mean, losses=losses)
        if losses is True:
            value = _pipeline.finished(np, total, weights, dtype)[()]
        elif losses is not False:
            value = losses if losses.ndim else losses[()]
        return (value if cotangent is None else None), gradients

    def checked(self, call: Call) -> Call:
        if call.trusted:
            return call
        label = call.label
        if call.weight is None and (
            SIGNS.issuperset(label.ravel().tolist())
            if label.size <= FEW
            else (np.abs(label) == 1).all()
        ):
            return call.as_trusted()
        return super().checked(call)

    def readable(self, call: Call) -> bool:
        return True

    def quiet(self) -> AbstractContextManager[Any]:
        return np.errstate(all="ignore")

    def number(self, name: str, argument: str, value: Any, like: Array) -> Any:
        # A NumPy scalar is a number and an array at once; one of the right dtype stays what it is.
        if isinstance(value, np.generic) and value.dtype == like.dtype:
            return value
        return super().number(name, argument, value, like)

    def traits(self, arrays: tuple[Array, ...]) -> tuple[Any, ...] | None:
        found = []
        for array in arrays:
            if type(array) is not np.ndarray:
                return None
            found.append(array.dtype)
        return tuple(found)

    def device(self, array: Array) -> Any:
        return "cpu"

    def compiled(self, loss: Loss) -> Plain:
        if not _is_elementwise(loss):
            return self
        try:
            from array_api_losses._engines import numba
        except ImportError as error:
            msg = (
                "jit: compiling for NumPy needs Numba, which is not installed. Install it, e.g."
                " `pip install numba`."
            )
            raise ImportError(msg) from error
        return numba.ENGINE

    def _weights(self, call: Call) -> Any:
        """W, where it is needed."""
        if call.reduction != "mean":
            return None
        return _pipeline.weight_sum(np, call, np.float64)


def _is_elementwise(loss: Loss) -> bool:
    """Whether it is a loss of elements that have labels, which is what is fused."""
    return loss.label is not None and not loss.rowwise


def _is_simple(call: Call) -> bool:
    """Whether it has no weights, and numbers for parameters."""
    loss = call.loss
    if call.weight is not None:
        return False
    for parameter in call.operands[loss.first_parameter :]:
        if type(parameter) is not float:
            return False
    return True


def _noted_of_whole(
    loss: Loss,
    wanted: tuple[bool, ...],
    with_value: Any,
    check: Any,
    dtype: Any,
    label_dtype: Any,
    width: Any,
) -> Replay:
    """Note whether labels are good, the losses, and the gradients for a last argument, the seed."""
    at, after, count = len(loss.inputs), loss.first_parameter, len(loss.operands)
    wide = _pipeline.accumulator(np, dtype)

    def formula(*arguments: Any) -> tuple[Any, ...]:
        arrays, good = arguments[:after], None
        if check:
            label = _pipeline.cast(np, arguments[at], wide)
            good = np.abs(label if label_dtype.kind == "i" else arguments[at]) == 1
            arrays = (*arguments[:at], label)
        call = _pipeline.prepared(np, Call(loss, arrays, None, "sum", None, trusted=True))
        operands = (*call.operands, *arguments[after:count])  # numbers need no preparing
        losses = loss.value(np, *operands) if with_value else None
        if not wanted:
            return good, losses
        call = call.with_arguments((*operands, None))
        return good, losses, *_derivatives.gradients(np, call, wanted, (arguments[-1], None), None)

    kinds = [dtype] * count + [wide] * bool(wanted)
    kinds[after - 1] = label_dtype
    rows = (1,) if width is None else (1, width)
    samples = [np.ones(rows if i < at else 1, dtype=kind) for i, kind in enumerate(kinds)]
    return noted((loss, wanted, with_value, check, dtype, label_dtype, width), formula, samples)


ENGINE = NumPy(np)
