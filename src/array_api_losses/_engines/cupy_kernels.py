"""Kernels of CuPy for the losses of rows, which `cupy.fuse` does not know."""

from collections.abc import Sequence
from typing import Any

import array_api_compat.cupy as xp
import cupy

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

    def function(self, code: Code) -> Kernel:
        outputs = [f"out{i}" for i in range(len(code.results))]
        ends = [f"{o} = {result};" for o, result in zip(outputs, code.results, strict=True)]
        text = " ".join([code.lines, *ends])
        kernel = cupy.ElementwiseKernel(_parameters(code), _typed(outputs), text, **_named(code))

        def launch(arrays: Sequence[Any], numbers: Sequence[float]) -> Sequence[Any]:
            found = kernel(*arrays, *numbers)
            return found if isinstance(found, tuple) else (found,)

        return launch

    def reduction(self, kind: str, code: Code) -> Kernel:
        (result,) = code.results
        form, reduce, identity = _REDUCTIONS[kind]
        # CuPy may replace names in these texts by others: none may stand within another word.
        mapped = f"([&] {{ {code.lines} return {form.format(result)}; }}())"
        kernel = cupy.ReductionKernel(
            _parameters(code), "T out", mapped, reduce, "out = a", identity, **_named(code)
        )
        return lambda arrays, numbers: [kernel(*arrays, *numbers, axis=-1)]


def _typed(names: list[str]) -> str:
    return ", ".join(f"T {name}" for name in names)


def _parameters(code: Code) -> str:
    return _typed([*code.arrays, *code.numbers])


def _named(code: Code) -> dict[str, str]:
    return {"name": code.name, "preamble": _NUMBERS}


PROGRAMS = Programs(xp, cupy.ndarray, _Kernels())
