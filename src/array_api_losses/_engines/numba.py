"""Numba: one compiled loop over the elements, for `jit` on arrays of NumPy.

The loop calls the formula itself, unchanged, on one element after another; threads share it out.
What it is not made for (weights, an array of margins, float16, gaps in memory) runs as without it.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import array_api_compat.numpy as xp
import numba
import numpy as np
from numba.extending import overload, register_jitable

from array_api_losses import _loss, _primitives
from array_api_losses._arrays import check_labels
from array_api_losses._engines.numpy import NumPy
from array_api_losses._engines.threads import allowed, shared
from array_api_losses._loss import Array, Call, Loss

BLOCK = 2**12
"""Elements that are added up in the dtype of the losses, before they go to float64."""

FOR_THREADS = 2**20
"""So many elements keep more than one thread busy."""

LAYOUT = ("input", "label", "parameter")

DTYPES = frozenset({np.dtype(np.float32), np.dtype(np.float64)})


# Numba wants the same annotations on both functions.
@overload(_primitives.select)
def _select(xp: Any, y: Any, a: Any, b: Any) -> Callable[..., Any]:
    def compiled_select(xp: Any, y: Any, a: Any, b: Any) -> Any:
        return a if y > 0 else b  # if y is NaN, the whole result is refused

    return compiled_select


@overload(_primitives.zero)
def _zero(xp: Any, y: Any) -> Callable[..., Any]:
    nil = np.float32(0) if y == numba.float32 else np.float64(0)

    def compiled_zero(xp: Any, y: Any) -> Any:
        return nil

    return compiled_zero


@overload(_primitives.steep)
def _steep(xp: Any, d: Any) -> Callable[..., Any]:
    one = np.float32(1) if d == numba.float32 else np.float64(1)

    def compiled_steep(xp: Any, d: Any) -> Any:
        return one if d > 0 else (-one if d < 0 else d)

    return compiled_steep


@cache
def _loop(loss: Loss, wanted: tuple[bool, ...], losses: str) -> Callable[..., Any]:
    """Compile the loop for the gradients that are wanted; `losses` is "fill", "add" or ""."""
    value, slopes = register_jitable(loss.value), register_jitable(loss.slopes)
    gradient, add, fill = any(wanted), losses == "add", losses == "fill"

    # Of all liberties, only that of adding in another order, without which nothing is vectorised.
    @numba.njit(nogil=True, fastmath={"reassoc"}, error_model="numpy")
    def compiled_loop(
        x: Any, label: Any, margin: Any, seed: Any, terms: Any, slope: Any
    ) -> tuple[float, float]:
        total = wrong = 0.0
        zero, one = x.dtype.type(0), x.dtype.type(1)
        for start in range(0, x.size, BLOCK):
            part = bad = zero
            # Views of the block, since indices that start at 0 are what LLVM vectorises.
            xs, labels = x[start : start + BLOCK], label[start : start + BLOCK]
            losses, gradients = terms[start : start + BLOCK], slope[start : start + BLOCK]
            for i in range(xs.size):
                y = x.dtype.type(labels[i])
                bad += zero if abs(labels[i]) == 1 else one
                if add:
                    part += value(np, xs[i], y, margin)
                if fill:
                    losses[i] = value(np, xs[i], y, margin)
                if gradient:
                    gradients[i] = slopes(np, wanted, xs[i], y, margin)[0] * seed
            total += part
            wrong += bad
        return total, wrong

    return compiled_loop


class Numba(NumPy):
    """As NumPy, where the loop fits."""

    def value(self, call: Call) -> Array:
        if not _fits(call):
            return super().value(call)
        return self._run(call, (False,) * len(call.operands), None)[0]

    def gradient(
        self, call: Call, wanted: tuple[bool, ...], cotangent: Array | None
    ) -> tuple[Array | None, tuple[Array | None, ...]]:
        if not _fits(call) or (cotangent is not None and cotangent.ndim):
            return super().gradient(call, wanted, cotangent)
        return self._run(call, wanted[:-1], cotangent)

    def _run(
        self, call: Call, wanted: tuple[bool, ...], cotangent: Array | None
    ) -> tuple[Array | None, tuple[Array | None, ...]]:
        x, label, margin = call.operands
        dtype, empty = x.dtype.type, np.empty(0, x.dtype)
        losses = "fill" if call.reduction == "none" else "add"
        loop = _loop(call.loss, wanted, losses if cotangent is None else "")
        weights = x.size if call.reduction == "mean" else None
        with self.quiet():
            seed = dtype(_loss.seed_of(np, call, cotangent, weights)[0])
        terms = np.empty_like(x) if losses == "fill" and cotangent is None else empty
        slope = np.empty_like(x) if any(wanted) else empty

        def part(start: int, stop: int) -> tuple[float, float]:
            cut = [a.reshape(-1)[start:stop] for a in (x, label, terms, slope)]
            result: tuple[float, float] = loop(*cut[:2], dtype(margin), seed, *cut[2:])
            return result

        threads = allowed() if x.size >= FOR_THREADS else 1
        sums = shared(part, [x.size * k // threads for k in range(threads + 1)])
        total, wrong = (sum(column) for column in zip(*sums, strict=True))
        if wrong:
            check_labels(self.xp, call)
        value = None
        if cotangent is None:
            value = (
                terms
                if losses == "fill"
                else _loss.finished(xp, np.float64(total), weights, x.dtype)
            )
        return value, (slope if any(wanted) else None, *[None] * len(wanted))


def _fits(call: Call) -> bool:
    operands = call.operands
    label = operands[call.position_of_label].dtype
    return (
        call.weight is None
        and (label.kind == "i" or label in DTYPES)
        and len(operands) == len(LAYOUT)
        and not isinstance(operands[-1], np.ndarray)
        and operands[0].dtype in DTYPES
        and all(a.flags.c_contiguous and a.dtype.isnative for a in operands[:-1])
    )


ENGINE = Numba(xp)
