"""A stand-in for PyTorch's jiterator: its functions, compiled for the CPU.

It takes the same text in C++, and does what the jiterator does around it: it brings all arguments
to a common dtype and shape, and calls the function for each element.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from compiler import FUNCTIONS, library
from torch._prims_common import ELEMENTWISE_TYPE_PROMOTION_KIND, elementwise_dtypes
from torch.cuda.jiterator import _CodeParser

MOST = 8
"""So many arguments and results can a function have at most."""


def compiled(code: str, num_outputs: int, **numbers: float) -> Callable[..., Any]:
    """Do what `_create_multi_output_jit_fn` does."""
    name = _CodeParser(code).function_name

    def call(*tensors: torch.Tensor, **given: float) -> Any:
        assert 1 <= len(tensors) <= MOST
        assert 1 <= num_outputs <= MOST
        _, dtype = elementwise_dtypes(
            *tensors, type_promotion_kind=ELEMENTWISE_TYPE_PROMOTION_KIND.DEFAULT
        )
        inputs = [
            t.contiguous()
            for t in torch.broadcast_tensors(*(t.detach().to(dtype) for t in tensors))
        ]
        outputs = [torch.empty_like(inputs[0]) for _ in range(num_outputs)]
        function = _loop(code, name, dtype, len(inputs), len(numbers), num_outputs)
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (*inputs, *outputs)]
        values = [ctypes.c_double(v) for v in {**numbers, **given}.values()]
        function(ctypes.c_int64(inputs[0].numel()), *pointers, *values)
        return outputs[0] if num_outputs == 1 else tuple(outputs)

    return call


def _loop(
    code: str, name: str, dtype: torch.dtype, inputs: int, numbers: int, outputs: int
) -> Callable[..., Any]:
    """Compile a loop over the elements."""
    kind = {torch.float32: "float", torch.float64: "double"}[dtype]
    arrays = [f"{kind}* p{i}" for i in range(inputs + outputs)]
    values = [f"double n{i}" for i in range(numbers)]
    taken = [f"p{i}[i]" for i in range(inputs)] + [f"n{i}" for i in range(numbers)]
    given = [f"p{i}[i]" for i in range(inputs, inputs + outputs)]
    text = f"""
        {FUNCTIONS}
        {code}
        extern "C" void loop(long long size, {", ".join(arrays + values)}) {{
            for (long long i = 0; i < size; i++) {name}<{kind}>({", ".join(taken + given)});
        }}
    """
    function: Callable[..., Any] = library(text).loop
    return function
