"""Kernels of CuPy for the losses of rows, which `cupy.fuse` does not know."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import array_api_compat.cupy as xp
import cupy
import numpy as np

from array_api_losses._engines.program import Code, Kernel
from array_api_losses._engines.programs import Programs

_NUMBERS = """
#include <cupy/math_constants.h>
#ifndef INFINITY
#define INFINITY CUDART_INF_F
#endif
#ifndef NAN
#define NAN CUDART_NAN_F
#endif
"""

_HALF = np.dtype(np.float16)

_LARGEST = "a > b || a != a ? a : b"  # NaN is kept, on either side
_REDUCTIONS = {
    "sum": ("{0}", "a + b", "0"),
    "largest": ("{0}", _LARGEST, "-INFINITY"),
    "absolute": ("({0} < T(0) ? -{0} : {0})", _LARGEST, "0"),
}


class _Kernels:
    """Kernels that compute what they reduce, so that no product of rows lies in memory."""

    most = 24
    """What a kernel is called with has to fit in 4 KiB."""
    reduces_expressions = True
    reads_float16 = True

    def function(self, code: Code) -> Kernel:
        outputs = [f"out{i}" for i in range(len(code.results))]
        ends = [f"{o} = {result};" for o, result in zip(outputs, code.results, strict=True)]

        @cache
        def kernel(halves: tuple[bool, ...]) -> Any:
            dtype, parameters, widened, preamble = _read(code, halves)
            text = " ".join([widened, code.lines, *ends])
            results = ", ".join(f"{dtype} {output}" for output in outputs)
            return cupy.ElementwiseKernel(parameters, results, text, code.name, preamble=preamble)

        def launch(arrays: Sequence[Any], numbers: Sequence[float]) -> Sequence[Any]:
            found = kernel(_halves(arrays))(*arrays, *numbers)
            return found if isinstance(found, tuple) else (found,)

        return launch

    def reduction(self, kind: str, code: Code) -> Kernel:
        (result,) = code.results
        form, reduce, identity = _REDUCTIONS[kind]

        @cache
        def kernel(halves: tuple[bool, ...]) -> Any:
            dtype, parameters, widened, preamble = _read(code, halves)
            # CuPy may replace names in these texts by others: none may stand within another word.
            mapped = f"([&] {{ {widened} {code.lines} return {form.format(result)}; }}())"
            texts = mapped, reduce, "out = a", identity, code.name
            return cupy.ReductionKernel(parameters, f"{dtype} out", *texts, preamble=preamble)

        return lambda arrays, numbers: [kernel(_halves(arrays))(*arrays, *numbers, axis=-1)]


def _halves(arrays: Sequence[Any]) -> tuple[bool, ...]:
    return tuple([array.dtype == _HALF for array in arrays])


def _read(code: Code, halves: tuple[bool, ...]) -> tuple[str, str, str, str]:
    """Return the dtype of a kernel, its parameters, the lines that widen halves, and its preamble.

    With halves it is float32; else it is that of the arrays, which CuPy finds out.
    """
    if True not in halves:
        return "T", ", ".join(f"T {name}" for name in (*code.arrays, *code.numbers)), "", _NUMBERS
    parameters, widened = [], []
    for name, half in zip(code.arrays, halves, strict=True):
        if half:
            parameters.append(f"float16 {name.upper()}")
            widened.append(f"const T {name} = T({name.upper()});")
        else:
            parameters.append(f"float32 {name}")
    parameters += [f"float32 {name}" for name in code.numbers]
    return "float32", ", ".join(parameters), " ".join(widened), f"{_NUMBERS}typedef float T;\n"


PROGRAMS = Programs(xp, cupy.ndarray, _Kernels())
