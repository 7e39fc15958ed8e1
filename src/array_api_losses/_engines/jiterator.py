"""PyTorch on CUDA: the pipeline as few kernels, by PyTorch's jiterator.

Nothing waits for the device: labels are not read, so the loss of a wrong one is NaN.
"""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any

import array_api_compat.torch as xp
import torch

from array_api_losses import _derivatives, _pipeline
from array_api_losses._engines.fused import Fused
from array_api_losses._engines.program import TRACED, Node, Program
from array_api_losses._loss import Array, Call, Loss

MOST_PROGRAMS = 256
"""So many are kept of each kind: norms and the like are constants in them."""

_HALVES = frozenset({torch.float16, torch.bfloat16})
_INTEGERS = frozenset({torch.bool, torch.int8, torch.int16, torch.int32, torch.int64})
WITHIN = {
    torch.float32: _HALVES | _INTEGERS | {torch.float32},
    torch.float64: _HALVES | _INTEGERS | {torch.float32, torch.float64},
}
"""What the jiterator knows and promotes to a dtype."""

TENSOR, NUMBER = "tensor", "number"
"""What an argument is; if neither, it is known when the program is made."""


def _program(
    name: str,
    pipeline: Callable[..., Sequence[Node | None]],
    given: tuple[Any, ...],
    entries: range = range(0),
) -> Program:
    """Note what a pipeline does; some of its arguments are of entries."""
    arguments = [
        Node(entries=i in entries, number=kind == NUMBER) if kind in {TENSOR, NUMBER} else kind
        for i, kind in enumerate(given)
    ]
    results = [result for result in pipeline(*arguments) if result is not None]
    return Program(name, arguments, results)


def _entries(loss: Loss, first: int = 0) -> range:
    return range(first, first + len(loss.inputs) * loss.rowwise)


def _call(loss: Loss, arguments: tuple[Any, ...]) -> Call:
    return Call(loss, arguments[:-1], arguments[-1], "none", None)


@lru_cache(MOST_PROGRAMS)
def _losses(loss: Loss, given: tuple[Any, ...]) -> Program:
    def losses(*arguments: Any) -> list[Node]:
        return [_pipeline.terms_of(TRACED, _pipeline.prepared(TRACED, _call(loss, arguments)))]

    return _program(loss.name, losses, given, _entries(loss))


@lru_cache(MOST_PROGRAMS)
def _gradients(loss: Loss, wanted: tuple[bool, ...], given: tuple[Any, ...]) -> Program:
    def gradients(factor: Any, divisor: Any, mean: Any, *arguments: Any) -> list[Node | None]:
        call = _call(loss, arguments)
        return _derivatives.gradients_by_element(TRACED, call, wanted, (factor, divisor), mean)

    return _program(f"{loss.name}_gradients", gradients, given, _entries(loss, 3))


def _run(made: Callable[..., Program], kind: tuple[Any, ...], *arguments: Any) -> list[Array]:
    """Run the program of this kind on arguments that may be tensors, numbers or None."""
    given = [
        TENSOR if isinstance(a, torch.Tensor) else NUMBER if isinstance(a, float) else a
        for a in arguments
    ]
    return made(*kind, tuple(given))(arguments)


def _arguments(call: Call) -> list[Any]:
    """Return the arguments of a call, of which enough are in float32 that all the rest is."""
    first, *others = call.arguments
    wide = _pipeline.accumulator(xp, first.dtype)
    if call.loss.rowwise:
        others = [_pipeline.cast(xp, o, wide) if isinstance(o, torch.Tensor) else o for o in others]
    return [_pipeline.cast(xp, first, wide), *others]


class Jiterator(Fused):
    """One kernel for the losses of elements, and one for all gradients; a few for those of rows."""

    devices = frozenset({"cuda"})
    """The types of devices that the jiterator knows; ROCm goes by this name too."""

    def run(self, call: Call) -> Array:
        terms, dtype = self._terms(call), call.operands[0].dtype
        if call.reduction == "mean" and call.weight is None:
            # One kernel, where a sum and a quotient are two.
            return _pipeline.cast(xp, torch.mean(terms), dtype)
        return _pipeline.reduced(xp, call, terms, dtype)

    def folded(self, call: Call) -> tuple[Array, Any]:
        return _pipeline.folded(xp, call, self._terms(call))

    def _terms(self, call: Call) -> Array:
        (terms,) = _run(_losses, (call.loss,), *_arguments(call))
        return terms

    def by_element(
        self,
        call: Call,
        wanted: tuple[bool, ...],
        seed: tuple[Any, Array | None],
        mean: Array | None,
    ) -> Sequence[Array]:
        return _run(_gradients, (call.loss, wanted), *seed, mean, *_arguments(call))

    def takes(self, call: Call, tensors: list[Array]) -> bool:
        """Whether a kernel can run the call: the jiterator reads memory as it lies there."""
        first = call.operands[0]
        within = WITHIN[_pipeline.accumulator(xp, first.dtype)]
        for tensor in tensors:  # and not `all`, which takes longer on a small call
            if (
                not torch._C._has_storage(tensor)  # within `vmap`
                or tensor.layout is not torch.strided
                or tensor.is_neg()
                or tensor._is_zerotensor()
                or tensor.dtype not in within
            ):
                return False
        return not (call.loss.rowwise and first.shape[-1] == 0) and _works(first.device)


@cache
def _works(device: torch.device) -> bool:
    """Whether PyTorch can compile there, which takes a library that some installations lack."""
    try:
        _program("probe", lambda number: [number + 1], (TENSOR,))([torch.ones(1, device=device)])
    except torch.OutOfMemoryError:
        raise  # it may work another time
    except (AssertionError, RuntimeError):
        return False
    return True


ENGINE = Jiterator(xp)
