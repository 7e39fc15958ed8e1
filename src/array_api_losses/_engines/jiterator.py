"""PyTorch on CUDA: the pipeline as few kernels, by PyTorch's jiterator.

Nothing waits for the device: labels are not read, so the loss of a wrong one is NaN.
"""

import math
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import array_api_compat.torch as xp
import torch
from torch.cuda.jiterator import _create_multi_output_jit_fn as compiled

from array_api_losses import _pipeline
from array_api_losses._engines.fused import Fused
from array_api_losses._engines.program import Code, Kernel, Program
from array_api_losses._engines.programs import ARRAY, InBlocks
from array_api_losses._loss import Array, Call

_HALVES = frozenset({torch.float16, torch.bfloat16})
_INTEGERS = frozenset({torch.bool, torch.int8, torch.int16, torch.int32, torch.int64})
WITHIN = {
    torch.float32: _HALVES | _INTEGERS | {torch.float32},
    torch.float64: _HALVES | _INTEGERS | {torch.float32, torch.float64},
}
"""What the jiterator knows and promotes to a dtype."""


class _Kernels:
    """Functions of the jiterator; sums and maxima along rows are PyTorch's own."""

    most = 8

    def function(self, code: Code) -> Kernel:
        parameters = [f"T {name}" for name in (*code.arrays, *code.numbers)]
        parameters += [f"T& out{i}" for i in range(len(code.results))]
        ends = [f"out{i} = {result};" for i, result in enumerate(code.results)]
        head = f"template <typename T> void {code.name}({', '.join(parameters)})"
        text = f"{head} {{ {code.lines} {' '.join(ends)} }}"
        kernel = compiled(text, len(ends), **dict.fromkeys(code.numbers, 0.0))

        def launch(tensors: Sequence[Any], numbers: Sequence[float]) -> Sequence[Any]:
            found = kernel(*tensors, **dict(zip(code.numbers, numbers, strict=True)))
            return (found,) if isinstance(found, torch.Tensor) else found

        return launch

    def reduction(self, kind: str) -> Kernel:
        return lambda tensors, _: [_REDUCTIONS[kind](*tensors, dim=-1)]


_REDUCTIONS = {
    "sum": torch.sum,
    "largest": torch.amax,
    "absolute": partial(torch.linalg.vector_norm, ord=math.inf),
}

PROGRAMS = InBlocks(xp, torch.Tensor, partial(Program, _Kernels()))


class Jiterator(Fused):
    """One kernel for the losses of elements, and one for all gradients; a few for those of rows."""

    devices = frozenset({"cuda"})
    """The types of devices that the jiterator knows; ROCm goes by this name too."""

    def run(self, call: Call) -> Array:
        terms, dtype = PROGRAMS.terms(call), call.operands[0].dtype
        if call.reduction == "mean" and call.weight is None:
            # One kernel, where a sum and a quotient are two.
            return _pipeline.cast(xp, torch.mean(terms), dtype)
        return _pipeline.reduced(xp, call, terms, dtype)

    def folded(self, call: Call) -> tuple[Array, Any]:
        return _pipeline.folded(xp, call, PROGRAMS.terms(call))

    by_element = PROGRAMS.by_element

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
        probe = PROGRAMS.program("probe", lambda number: [number + 1], (ARRAY,))
        probe([torch.ones(1, device=device)])
    except (AssertionError, RuntimeError) as error:
        if "out of memory" in str(error):  # of PyTorch or of the driver: it may work another time
            raise
        return False
    return True


ENGINE = Jiterator(xp)
