"""NumPy: large arrays in blocks that stay in the cache, so that memory does not grow with them.

A block is checked, converted, computed and added up while it is near; value and gradient come from
one pass. `numpy.nditer` cuts the blocks, in the order of memory, from arrays of any layout.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import array_api_compat.numpy as np

from array_api_losses import _loss
from array_api_losses._arrays import check_labels, rounded
from array_api_losses._engines.plain import Plain
from array_api_losses._loss import Array, Call

BLOCK = 2**17
"""Elements of a block: with fewer, the calls cost more than what they compute."""

SMALL = 2**15
"""Below this a number is finite in every dtype, and NumPy itself may round it."""


class NumPy(Plain):
    """Arrays of one block or less take the plain path."""

    def value(self, call: Call) -> Array:
        if call.operands[0].size <= BLOCK:
            return super().value(call)
        with self.quiet():
            return self._value_in_blocks(call)

    def gradient(
        self, call: Call, wanted: tuple[bool, ...], cotangent: Array | None
    ) -> tuple[Array | None, tuple[Array | None, ...]]:
        if call.operands[0].size <= BLOCK:
            return super().gradient(call, wanted, cotangent)
        with self.quiet():
            return self._gradient_in_blocks(call, wanted, cotangent)

    def run(self, call: Call) -> Array:
        return super().run(call)[()]  # as NumPy's own `sum`: a scalar, not a 0-d array

    def checked(self, call: Call) -> Call:
        label = call.operands[call.position_of_label]
        if call.weight is None and np.all(np.abs(label) == 1):
            return call._replace(trusted=True)
        return super().checked(call)

    def readable(self, call: Call) -> bool:
        return True

    def quiet(self) -> AbstractContextManager[Any]:
        return np.errstate(all="ignore")

    def number(self, name: str, argument: str, value: Any, like: Array) -> Any:
        # A NumPy scalar is a number and an array at once; one of the right dtype stays what it is.
        if hasattr(value, "dtype") and value.dtype == like.dtype:
            return value
        if abs(value) < SMALL:
            return float(like.dtype.type(float(value)))
        return rounded(name, argument, value, like.dtype.newbyteorder("="))

    def device(self, array: Array) -> Any:
        return "cpu"

    def _value_in_blocks(self, call: Call) -> Array:
        if call.reduction == "none":
            result = np.empty_like(call.operands[0], subok=False)
            for block, (out,) in self._blocks(call, [result], []):
                out[...] = _loss.terms_of(np, block)
            return result
        blocks = (block for block, _ in self._blocks(call, [], []))
        return _finished(call, [_loss.folded(np, b, _loss.terms_of(np, b)) for b in blocks])

    def _gradient_in_blocks(
        self, call: Call, wanted: tuple[bool, ...], cotangent: Array | None
    ) -> tuple[Array | None, tuple[Array | None, ...]]:
        first = call.operands[0]
        wide = _loss.accumulator(np, first.dtype)
        value = weights = None
        if call.reduction == "mean":
            weights = _loss.weight_sum(np, call, wide)
        if call.reduction == "none" or wanted[-1]:
            value = self._value_in_blocks(call)
        mean = value if call.reduction == "mean" else None
        seed = _loss.seed_of(np, call, cotangent, weights)

        # The gradient in an argument of one element is a sum, in others an array that is filled.
        small = [np.size(argument) <= 1 for argument in call.arguments]
        results: list[Any] = [
            None if not want else 0.0 if one else np.empty_like(first, dtype=wide, subok=False)
            for want, one in zip(wanted, small, strict=True)
        ]
        filled = [r for r in results if isinstance(r, np.ndarray)]
        each = [] if np.ndim(seed[0]) == 0 else [seed[0]]
        sums = []
        for block, slots in self._blocks(call, filled, each):
            losses = block.loss.value(np, *block.operands)
            if value is None:
                sums.append(_loss.folded(np, block, _loss.weighed(np, block.weight, losses)))
            in_weight = (
                _loss.slope_in_weight(np, block.weight, losses, mean) if wanted[-1] else None
            )
            seed = (slots.pop(), None) if each else seed
            free = iter(slots)
            for i, gradient in enumerate(_loss.gradients(np, block, wanted, seed, in_weight)):
                if gradient is not None and small[i]:
                    results[i] += float(np.sum(gradient, dtype=np.float64))
                elif gradient is not None:
                    next(free)[...] = gradient
        gradients = tuple(
            None
            if result is None
            else np.full(argument.shape, result, dtype=first.dtype)[()]
            if one
            else _loss.summed_to(np, result, argument.shape, first.dtype)
            for result, one, argument in zip(results, small, call.arguments, strict=True)
        )
        value = _finished(call, sums) if value is None else value
        return (value if cotangent is None else None), gradients

    def _blocks(
        self, call: Call, outputs: list[Array], more: list[Array]
    ) -> Iterator[tuple[Call, list[Array]]]:
        """Yield the call on each block, prepared, with the blocks of `outputs` and `more`."""
        arguments = list(call.arguments)
        places = [i for i, argument in enumerate(arguments) if np.size(argument) > 1]
        for i, argument in enumerate(arguments):
            if isinstance(argument, np.ndarray) and argument.size == 1:
                arguments[i] = argument.reshape(())
        operands = [*(arguments[i] for i in places), *outputs, *more]
        ins, outs, mores = len(places), len(outputs), len(more)
        flags: Any = [["readonly"]] * ins + [["writeonly"]] * outs + [["readonly"]] * mores
        with np.nditer(
            operands, ["external_loop", "buffered"], flags, buffersize=BLOCK
        ) as iterator:
            for views in iterator:
                for i, view in zip(places, views, strict=False):
                    arguments[i] = view
                block = call.with_arguments(tuple(arguments))
                try:
                    block = self.checked(block)
                except ValueError:
                    check_labels(np, call)  # says where in the whole array
                    raise
                yield _loss.prepared(np, block), list(views[ins:])


def _finished(call: Call, sums: list[tuple[Any, Any]]) -> Array:
    """Add up the sums of the blocks, in float64."""
    total, weights = (
        np.sum(np.asarray(column, dtype=np.float64)) for column in zip(*sums, strict=True)
    )
    return _loss.finished(np, call.reduction, total, weights, call.operands[0].dtype)[()]


ENGINE = NumPy(np)
