"""CuPy: losses, sums and gradients by kernels of `cupy_kernels`.

Nothing waits for the device: labels are not read, so the loss of a wrong one is NaN.
"""

from typing import Any

import array_api_compat.cupy as xp
import cupy

from array_api_losses import _pipeline
from array_api_losses._engines.cupy_kernels import PROGRAMS
from array_api_losses._engines.fused import Fused
from array_api_losses._engines.plain import Plain
from array_api_losses._loss import Array, Call
from array_api_losses._primitives import FASTER

PART = 2**8
"""So many numbers at most are added up one after another, in a sum along an axis but the last."""


# For rows without entries, and for the chunks of Dask:


def _zero(y: Any) -> Any:
    return y.dtype.type(0)  # a scalar of NumPy travels as an argument of the kernel


def _sign(d: Any) -> Any:
    return cupy.where(cupy.isnan(d), d, cupy.sign(d))


def _select(y: Any, a: Any, b: Any) -> Any:
    return cupy.where(y > 0, a, b + (y - y))


def _over(values: Any, axes: tuple[int, ...]) -> Any:
    if len(axes) == values.ndim:
        return cupy.sum(values, keepdims=True)
    for axis in reversed(axes):
        values = _along(values, axis)
    return values


def _along(values: Any, axis: int) -> Any:
    """Return the sum along an axis, which stays with length 1.

    Along any but the last, CuPy lets few threads add up what may be millions, which rounds as
    often, and in no more blocks of threads than there are sums, which takes long.
    """
    *before, n = values.shape[: axis + 1]
    if n <= PART or axis == values.ndim - 1:
        return cupy.sum(values, axis, keepdims=True)
    even = n - n % PART
    head, tail = cupy.split(values, [even], axis)
    head = head.reshape(*before, PART, even // PART, *values.shape[axis + 1 :])
    found = _along(cupy.sum(head, axis), axis)
    return found + _along(tail, axis) if even < n else found


FASTER["steep"][xp.__name__] = FASTER["sign"][xp.__name__] = _sign
FASTER["over"][xp.__name__] = _over
FASTER["zero"][xp.__name__] = _zero
FASTER["select"][xp.__name__] = _select


class CuPy(Fused):
    """One kernel for the losses or their sum, and one for all gradients.

    CuPy computes on the current device, which need not be that of the arrays.
    """

    def value(self, call: Call) -> Array:
        with call.operands[0].device:
            return super().value(call)

    def run(self, call: Call) -> Array:
        if call.reduction == "none":
            return PROGRAMS.terms(call, narrow=True) if _has_kernel(call) else super().run(call)
        total, weights = self.folded(call)
        mean = total if weights is None else PROGRAMS.mean(total, weights)
        return _pipeline.cast(xp, mean, call.operands[0].dtype)

    def folded(self, call: Call) -> tuple[Array, Any]:
        if not _has_kernel(call):
            return super().folded(call)
        return PROGRAMS.total(call), self.weights(call)

    def gradient(
        self, call: Call, wanted: tuple[bool, ...], cotangent: Array | None
    ) -> tuple[Array | None, tuple[Array | None, ...]]:
        kind = Fused if _has_kernel(call) else Plain
        with call.operands[0].device:
            return kind.gradient(self, call, wanted, cotangent)

    by_element = PROGRAMS.by_element

    def traits(self, arrays: tuple[Array, ...]) -> tuple[Any, ...] | None:
        found: list[Any] = []
        for array in arrays:
            if type(array) is not cupy.ndarray:
                return None
            found += array.dtype, array.data.device_id
        return tuple(found)


def _has_kernel(call: Call) -> bool:
    """Whether there are kernels for a call: of no entries there is no largest."""
    return not call.loss.rowwise or call.operands[0].shape[-1] > 0


ENGINE = CuPy(xp)
