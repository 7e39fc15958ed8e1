"""NumPy: few elements at once, many in blocks; what a formula does is noted once and replayed."""

import math
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import Context
from typing import Any, TypeVar

import array_api_compat.numpy as np

from array_api_losses import _derivatives, _pipeline
from array_api_losses._engines.blocks import at_once, fits_at_once, in_blocks
from array_api_losses._engines.faster import PRIMITIVES
from array_api_losses._engines.plain import Plain
from array_api_losses._engines.threads import MOST
from array_api_losses._loss import Array, Call, Loss
from array_api_losses._primitives import FASTER

T = TypeVar("T")

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
    """Few elements are computed at once, more in blocks, shared by at most `most()` threads."""

    def __init__(self, most: Callable[[], int] = lambda: MOST) -> None:
        super().__init__(np)
        self._most = most

    def _in_blocks(self, *arguments: Any, **options: Any) -> Any:
        return in_blocks(*arguments, most=self._most(), **options)

    def value(self, call: Call) -> Array:
        if fits_at_once(call):
            return _quietly(self._value, at_once, call)
        with self.quiet():
            return self._value(self._in_blocks, call)

    def _value(self, over: Any, call: Call) -> Array:
        return finished(call, over(call)[0], weights_of(call))

    def folded(self, call: Call) -> tuple[Any, Any]:
        over = at_once if fits_at_once(call) else self._in_blocks
        return over(call, check=False)[0], weights_of(call)

    def gradient(
        self, call: Call, wanted: tuple[bool, ...], cotangent: Array | None
    ) -> tuple[Array | None, tuple[Array | None, ...]]:
        if fits_at_once(call):
            return _quietly(self._gradient, at_once, call, wanted, cotangent)
        with self.quiet():
            return self._gradient(self._in_blocks, call, wanted, cotangent)

    def _gradient(
        self, over: Any, call: Call, wanted: tuple[bool, ...], cotangent: Array | None
    ) -> tuple[Array | None, tuple[Array | None, ...]]:
        dtype, weights = call.operands[0].dtype, weights_of(call)
        wide = _pipeline.accumulator(np, dtype)
        factor, divisor = _derivatives.seed_of(np, call, cotangent, weights)
        if divisor is not None:
            divisor = np.asarray(divisor, dtype=wide)  # else it would widen what it divides
        value = mean = None
        if call.reduction == "mean" and wanted[-1]:
            # It has to be known beforehand, and is not rounded yet where it meets the losses.
            mean = _pipeline.finished(np, over(call)[0], weights, wide)[()]
            value = _pipeline.cast(np, mean, dtype)
        losses = cotangent is None and mean is None
        found, gradients = over(call, wanted, (factor, divisor), mean, losses=losses)
        if losses:
            value = finished(call, found, weights)
        return (value if cotangent is None else None), gradients

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

    def kind(self, dtype: Any) -> str:
        try:
            return super().kind(dtype)
        except TypeError:  # of a dtype that NumPy does not know, such as bfloat16
            return "other"

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


def weights_of(call: Call) -> Any:
    """W, where it is needed."""
    if call.reduction != "mean":
        return None
    if call.weight is None:
        return math.prod(call.shape()) if call.loss.rowwise else call.operands[0].size
    return _pipeline.weight_sum(np, call, np.float64)


def finished(call: Call, found: Any, weights: Any) -> Array:
    """Make the result of weighted losses, or of their sum."""
    if call.reduction != "none":
        return _pipeline.finished(np, found, weights, call.operands[0].dtype)[()]
    return found if found.ndim else found[()]  # as NumPy's own functions


def _is_elementwise(loss: Loss) -> bool:
    """Whether it is a loss of elements that have labels, which is what is fused."""
    return loss.label is not None and not loss.rowwise


ENGINE = NumPy()
