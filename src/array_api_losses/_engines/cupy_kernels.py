"""CuPy: what is computed of rows, in one kernel.

A row is shared by some threads. What one sum along it needs of another, is computed by going
through the row once more, which by then is in a cache.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import array_api_compat.cupy as xp
import cupy
import numpy as np

from array_api_losses._engines.fused import identifier
from array_api_losses._engines.program import Node, assignment, order
from array_api_losses._engines.programs import Programs

WARP = 32
"""So many threads, whose numbers are added up without shared memory."""

LONG, BLOCK = 2**10, 256
"""Rows of more entries than that are shared by a block of so many, which leaves each registers."""

_PREAMBLE = """
#include <cupy/math_constants.h>
#ifndef INFINITY
#define INFINITY CUDART_INF_F
#endif
#ifndef NAN
#define NAN CUDART_NAN_F
#endif
typedef %s T;
struct Sum { __device__ T operator()(T a, T b) const { return a + b; } };
struct Largest { __device__ T operator()(T a, T b) const { return a > b || a != a ? a : b; } };
template <int THREADS, typename Both>
__device__ T of_all(T own, Both both) {
    for (int k = (THREADS < 32 ? THREADS : 32) / 2; k > 0; k /= 2)
        own = both(own, __shfl_xor_sync(0xffffffff, own, k));
    if (THREADS > 32) {
        __shared__ T parts[32];
        if (threadIdx.x %% 32 == 0) parts[threadIdx.x / 32] = own;
        __syncthreads();
        own = parts[0];
        for (int k = 1; k < THREADS / 32; k++) own = both(own, parts[k]);
        __syncthreads();
    }
    return own;
}
"""

_IN_C = {"float32": "float", "float64": "double"}

_LOOP = "for (ptrdiff_t at = row * width + lane; at < (row + 1) * width; at += THREADS) {"

_REDUCTIONS: dict[Any, tuple[str, str, str]] = {
    "sum": ("Sum", "T(0)", "{0}"),
    "largest": ("Largest", "-T(INFINITY)", "{0}"),
    "absolute": ("Largest", "T(0)", "({0} < T(0) ? -{0} : {0})"),
}


class RowProgram:
    """One kernel that computes the results of a pipeline from its arguments."""

    kernels = 1

    def __init__(self, name: str, arguments: Sequence[Any], results: Sequence[Node]) -> None:
        self._name, self._results = identifier(name), results
        self._order = order(results)
        needed = set(self._order)
        self._places = [i for i, a in enumerate(arguments) if isinstance(a, Node) and a in needed]
        self._given = [arguments[i] for i in self._places]
        self._kernel = cache(self._kernel_for)

    def __call__(self, arguments: Sequence[Any]) -> list[Any]:
        """Return the results for these arguments."""
        values = [arguments[i] for i in self._places]
        shape = next(v.shape for v, n in zip(values, self._given, strict=True) if n.entries)
        pairs = [_laid(v, n, shape) for v, n in zip(values, self._given, strict=True)]
        values, kinds = [value for value, _ in pairs], [kind for _, kind in pairs]
        wide = np.result_type(np.float32, *[v.dtype for v in values if isinstance(v, cupy.ndarray)])
        found = [cupy.empty(shape if n.entries else shape[:-1], wide) for n in self._results]
        rows, threads = math.prod(shape[:-1]), _threads(shape[-1])
        if rows:
            kernel = self._kernel(wide.name, threads, *kinds)
            whole_warps = -(-rows * threads // WARP) * WARP
            numbers = shape[-1], rows
            kernel(*values, *numbers, *found, size=whole_warps, block_size=max(threads, 128))
        return found

    def _kernel_for(self, wide: str, threads: int, *kinds: str) -> Any:
        """Compile it for arguments of these kinds, and for so many threads a row."""
        names: dict[Node, str] = {}
        loads: dict[Node, str] = {}
        inputs = []
        for i, (node, kind) in enumerate(zip(self._given, kinds, strict=True)):
            if node.number:
                inputs.append(f"{wide} n{i}")
                names[node] = f"n{i}"
            else:
                dtype, where = kind.split()
                inputs.append(f"raw {dtype} a{i}")
                loads[node] = f"T(a{i}[{where}])"
        outputs = [f"raw {wide} out{i}" for i in range(len(self._results))]
        return cupy.ElementwiseKernel(
            ", ".join([*inputs, "int64 width", "int64 rows"]),
            ", ".join(outputs),
            "\n".join([f"const int THREADS = {threads};", *self._lines(names, loads)]),
            self._name,
            preamble=_PREAMBLE % _IN_C[wide],
        )

    def _lines(self, names: dict[Node, str], loads: dict[Node, str]) -> Iterator[str]:
        """Yield what each thread does: reductions stage by stage, and what is made of them."""
        yield "const ptrdiff_t row = min(ptrdiff_t(i / THREADS), ptrdiff_t(rows - 1));"
        yield "const ptrdiff_t lane = i % THREADS;"
        for stage in range(1 + max(node.stage for node in self._order)):
            nodes = [node for node in self._order if node.stage == stage]
            yield from _reduced([node for node in nodes if node.reduction], names, loads)
            yield from _assignments([n for n in nodes if not n.entries], names, loads)
        for i, node in enumerate(self._results):
            if not node.entries:
                yield f"if (lane == 0) out{i}[row] = {names[node]};"
        yield _LOOP
        yield from _assignments([n for n in self._results if n.entries], names, loads)
        for i, node in enumerate(self._results):
            if node.entries:
                yield f"out{i}[at] = {names[node]};"
        yield "}"


def _reduced(nodes: list[Node], names: dict[Node, str], loads: dict[Node, str]) -> Iterator[str]:
    """Yield what reduces a row in one go, for all reductions that can be so."""
    if not nodes:
        return
    found = [f"r{len(names) + i}" for i in range(len(nodes))]
    for node, name in zip(nodes, found, strict=True):
        yield f"T {name} = {_REDUCTIONS[node.reduction][1]};"
    inner = dict(names)
    yield _LOOP
    yield from _assignments([node.nodes[0] for node in nodes], inner, loads)
    for node, name in zip(nodes, found, strict=True):
        both, _, form = _REDUCTIONS[node.reduction]
        yield f"{name} = {both}()({name}, {form.format(inner[node.nodes[0]])});"
    yield "}"
    for node, name in zip(nodes, found, strict=True):
        yield f"{name} = of_all<THREADS>({name}, {_REDUCTIONS[node.reduction][0]}());"
        names[node] = name


def _assignments(
    nodes: list[Node], names: dict[Node, str], loads: dict[Node, str]
) -> Iterator[str]:
    """Yield what computes nodes from those that have names already."""
    for node in order(nodes, names):
        if node not in names:
            yield assignment(node, names, loads)


def _threads(width: int) -> int:
    """Return how many threads share a row: with four entries each, as far as a warp goes."""
    return BLOCK if width > LONG else min(WARP, 1 << max(0, (width - 1).bit_length() - 2))


def _laid(value: Any, node: Node, shape: tuple[int, ...]) -> tuple[Any, str]:
    """Return an argument as a kernel takes it, and its kind: its dtype and how it is indexed."""
    if node.number:
        return value, ""
    if node.entries:
        kind, whole = "at", shape
    elif value.size == 1:
        return value, f"{value.dtype} 0"
    else:
        kind, whole = "row", shape[:-1]
    value = value if value.shape == whole else cupy.broadcast_to(value, whole)
    return value, f"{value.dtype} {kind}"


PROGRAMS = Programs(xp, cupy.ndarray, RowProgram, whole=True)
