"""A stand-in for CuPy: arrays of NumPy, and kernels that are compiled for the CPU.

It takes the same text in C++, and does what CuPy does around it. To read or write beside an array
is an error, to wait for threads that never come is another, and what is not written is NaN.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import array_api_compat.numpy as xp
import numpy as np
from compiler import FUNCTIONS, library
from numpy.lib.stride_tricks import as_strided

_IN_C = {"float16": "_Float16", "float32": "float", "float64": "double", "bool": "bool"}
_IN_C |= {f"int{bits}": f"int{bits}_t" for bits in (8, 16, 32, 64)}
_IN_C |= {f"u{name}": f"u{kind}" for name, kind in _IN_C.items() if name.startswith("int")}

_FAULTS = ("", "threads wait for others in vain", "beside an array")

_THREADS = Path(__file__).with_name("threads.cpp").read_text(encoding="utf-8")

_HEAD = """
#include <stddef.h>
#include <stdint.h>
#define __device__
#define __shared__ static
typedef _Float16 float16;
struct Index { int x; };
extern "C" Index threadIdx;
extern "C" void __syncthreads();
extern "C" void shuffle(const void*, size_t, int, void*);
extern "C" bool launch(void (*)(ptrdiff_t), ptrdiff_t, ptrdiff_t);
template <typename Kind> Kind min(Kind a, Kind b) { return b < a ? b : a; }
template <typename Kind> Kind __shfl_xor_sync(unsigned, Kind own, int other) {
    Kind taken;
    shuffle(&own, sizeof own, other, &taken);
    return taken;
}
static bool beside;
template <typename Kind> struct Raw {
    Kind* data; ptrdiff_t size;
    Kind& operator[](ptrdiff_t at) const {
        static Kind nothing;
        if (0 <= at && at < size) return data[at];
        beside = true;
        return nothing;
    }
};
"""

_RUN = """
extern "C" int run(ptrdiff_t count, ptrdiff_t most, void** data, ptrdiff_t* sizes) {
    take(data, sizes);
    beside = false;
    return !launch(kernel, count, most) ? 1 : beside ? 2 : 0;
}
"""


class Array(np.ndarray):
    """Has what NumPy's arrays lack: a device, elements that are arrays, another way to be made."""

    device = nullcontext()

    def __new__(cls, shape: Any, dtype: Any, memory: Any, strides: Any) -> Any:
        assert memory.of.dtype == dtype
        return _own(as_strided(memory.of, shape, strides))

    @property
    def data(self) -> Any:
        return SimpleNamespace(device_id=0, of=self)

    def __getitem__(self, index: Any) -> Any:
        return _own(super().__getitem__(index))


class ElementwiseKernel:
    """One that is called for a number of threads, with arrays that are all raw."""

    def __init__(self, given: str, results: str, operation: str, name: str, preamble: str) -> None:
        self._parameters = [text.split() for text in f"{given}, {results}".split(", ")]
        declared, taken = [], []
        for i, (*raw, dtype, own) in enumerate(self._parameters):
            kind = _IN_C[np.dtype(dtype).name]
            declared.append(f"static {f'Raw<{kind}>' if raw else kind} {own};")
            array = f"({kind}*) data[{i}]"
            taken.append(f"{own} = {{{array}, sizes[{i}]}};" if raw else f"{own} = *{array};")
        head = preamble.replace("#include <cupy/math_constants.h>", "")
        take = f"static void take(void** data, ptrdiff_t* sizes) {{ {' '.join(taken)} }}"
        kernel = f"static void kernel(ptrdiff_t i) {{ {operation}; }}"
        self._text = "\n".join([FUNCTIONS, _HEAD, head, *declared, take, kernel, _RUN])
        self._name = name

    def __call__(self, *arguments: Any, size: int, block_size: int) -> None:
        arrays = []
        for (*raw, dtype, _), value in zip(self._parameters, arguments, strict=True):
            assert not raw or value.dtype.name == np.dtype(dtype).name
            arrays.append(np.ascontiguousarray(value, np.dtype(dtype).name))
        data = (ctypes.c_void_p * len(arrays))(*[a.ctypes.data for a in arrays])
        sizes = (ctypes.c_ssize_t * len(arrays))(*[a.size for a in arrays])
        counts = map(ctypes.c_ssize_t, (size, block_size))
        library(_THREADS, ctypes.RTLD_GLOBAL)
        fault = library(self._text).run(*counts, data, sizes)
        assert not fault, f"{self._name}: {_FAULTS[fault]}"


def _own(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value).view(Array)
    return type(value)(map(_own, value)) if isinstance(value, tuple | list) else value


def _owned(function: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        return _own(function(*args, **kwargs))

    return call


def _module(name: str, like: ModuleType, **others: Any) -> ModuleType:
    """Make a module that is like one of NumPy, but for its arrays."""
    made = ModuleType(name)
    for key, value in vars(like).items():
        if not key.startswith("__"):
            plain = isinstance(value, type) or not callable(value)
            setattr(made, key, value if plain else _owned(value))
    vars(made).update(others)
    return made


def _empty(shape: Any, dtype: Any) -> Any:
    return _own(np.full(shape, np.nan, dtype.name))


_MODULES = {
    "cupy": _module(
        "cupy", np, ndarray=Array, generic=Array, empty=_empty, ElementwiseKernel=ElementwiseKernel
    ),
    "array_api_compat.cupy": _module("standin_cupy", xp),
}
_ENGINES = ("array_api_losses._engines.cupy_kernels", "array_api_losses._engines.cupy")


@contextmanager
def in_place() -> Iterator[Any]:
    """Let it be found where CuPy would be, and give an engine that has found it."""
    before = {name: sys.modules.pop(name, None) for name in (*_MODULES, *_ENGINES)}
    sys.modules.update(_MODULES)
    try:
        _MODULES.update((name, import_module(name)) for name in _ENGINES)
        yield sys.modules[_ENGINES[-1]].ENGINE
    finally:
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module
