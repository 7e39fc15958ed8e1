"""CuPy: each program as one kernel, whatever it computes.

Of elements a thread has several; what it reads for them, it asks for at once. A row is shared by
some threads, and what one sum along it needs of another, by going through the row once more, which
by then is in a cache.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, TypeAlias

import array_api_compat.cupy as xp
import cupy
import numpy as np

from array_api_losses import _pipeline
from array_api_losses._engines.fused import identifier
from array_api_losses._engines.program import ABS, TRACED, Node, assignment, order
from array_api_losses._engines.programs import BEFORE, Programs, Runs, losses_of
from array_api_losses._loss import Array, Call, Loss

WARP, BLOCK = 32, 256
"""So many threads add up without shared memory, as `of_all` has it; and so many are a block."""

EACH = 8
"""So many elements a thread reads at once."""

FEW = 2**13
"""No more elements are added up by one block."""

ADDING, MOST = 2**20, 2**9
"""So many threads add up many elements; and more of them where each would have more than `MOST`."""

LONG = 2**10
"""Rows of more entries are shared by a block, others by at most a warp."""

WIDE = 2**31
"""So many bytes can be indexed by 32 bits."""

_PREAMBLE = """
#include <cupy/math_constants.h>
#ifndef INFINITY
#define INFINITY CUDART_INF_F
#endif
#ifndef NAN
#define NAN CUDART_NAN_F
#endif
typedef %s T;
__device__ T exact(double a) { return double(T(a)) == a ? T(a) : T(NAN); }
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

_REDUCTIONS: dict[Any, tuple[str, str, str]] = {
    "sum": ("Sum()", "T(0)", "{0}"),
    "largest": ("Largest()", "-T(INFINITY)", "{0}"),
    "absolute": ("Largest()", "T(0)", f"({ABS})"),
}

_ENTRIES = "for (ptrdiff_t at = row * step + lane; at < (row + 1) * step; at += THREADS) {"


Names: TypeAlias = dict[Node, str]
"""What nodes are called in a kernel, or how they are read."""


class OneKernel:
    """Computes the results of a pipeline from its arguments, in at least float32.

    Results that are `narrow` are in the dtype of the first operand.
    """

    kernels = 1
    """How many it takes."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[Any],
        results: Sequence[Node],
        first: int = 0,
        narrow: Sequence[bool] = (),
    ) -> None:
        self._name, self._results, self._first = identifier(name), results, first
        self._narrow = [*narrow, *[False] * (len(results) - len(narrow))]
        self._order = order(results)
        needed = set(self._order)
        self._places = [i for i, a in enumerate(arguments) if isinstance(a, Node) and a in needed]
        self._given = [arguments[i] for i in self._places]
        self._of_rows = any(node.entries for node in self._given)
        self._adds = not self._of_rows and results[0].reduction is not None
        self._kernel = cache(self._kernel_for)

    def __call__(self, arguments: Sequence[Any]) -> list[Any]:
        """Return the results for these arguments."""
        first = arguments[self._first]
        wide = np.dtype(_pipeline.accumulator(xp, first.dtype))
        shape = first.shape[:-1] if self._of_rows else first.shape
        values, kinds = [], []
        for place, node in zip(self._places, self._given, strict=True):
            value, kind = _laid(arguments[place], node, first.shape if node.entries else shape)
            values.append(value)
            kinds.append(kind)
        count = math.prod(shape)
        threads, size, step = self._extent(count, first)
        dtypes = [first.dtype if narrow else wide for narrow in self._narrow]
        if self._adds:
            found = [cupy.empty(size // threads, wide)]
        else:
            shapes = [first.shape if node.entries else shape for node in self._results]
            found = [cupy.empty(*kind) for kind in zip(shapes, dtypes, strict=True)]
        if size:
            kernel = self._kernel(wide, threads, *dtypes, *kinds)
            kernel(*values, count, step, *found, size=size, block_size=BLOCK)
        return found

    def _extent(self, count: int, first: Any) -> tuple[int, int, int]:
        """Return how many threads work together, how many there are, and where the next row begins.

        Or, of elements, where the next one is that a thread has.
        """
        if self._of_rows:
            width = first.shape[-1]
            few = min(WARP, 1 << max(0, (width - 1).bit_length() - 2))  # four entries for each
            threads = BLOCK if width > LONG else few
            return threads, _up(count * threads, WARP), width
        threads = -(-count // EACH)
        if not self._adds:
            return 1, threads, threads
        if count <= FEW:
            return BLOCK, BLOCK, BLOCK
        size = _up(min(threads, max(ADDING, count // MOST)), WARP)
        return WARP, size, size

    def _kernel_for(self, wide: np.dtype[Any], threads: int, *kinds: Any) -> Any:
        """Compile it for results and arguments of these kinds, and for so many threads together."""
        outputs, inputs = kinds[: len(self._results)], kinds[len(self._results) :]
        names: Names = {}
        loads: Names = {}
        parameters = []
        for i, (node, kind) in enumerate(zip(self._given, inputs, strict=True)):
            if node.number:
                parameters.append(f"{wide} n{i}")
                names[node] = f"n{i}"
            else:
                dtype, where = kind
                parameters.append(f"raw {dtype} a{i}")
                read = "exact" if wide == np.float32 and dtype == np.float64 else "T"
                loads[node] = f"{read}(a{i}[{where}])"
        lines = self._rows if self._of_rows else self._sum if self._adds else self._elements
        return cupy.ElementwiseKernel(
            ", ".join([*parameters, "int64 count", "int64 step"]),
            ", ".join(f"raw {dtype} out{i}" for i, dtype in enumerate(outputs)),
            "\n".join([f"const int THREADS = {threads};", *lines(names, loads, outputs)]),
            self._name,
            preamble=_PREAMBLE % _IN_C[wide.name],
        )

    def _elements(self, names: Names, loads: Names, dtypes: Sequence[Any]) -> Iterator[str]:
        """Yield what each thread does: for some elements, a step apart."""

        def use(known: Names, own: str) -> Iterator[str]:
            yield from _assignments(self._results, known)
            yield from self._stores(own, known, dtypes)

        yield "const ptrdiff_t start = i;"
        yield from _several(names, loads, use)

    def _sum(self, names: Names, loads: Names, dtypes: Sequence[Any]) -> Iterator[str]:
        """Yield what each thread does: add up elements, many steps apart, and then with others."""
        terms = self._results[0].nodes

        def use(known: Names, _: str) -> Iterator[str]:
            yield from _assignments(terms, known)
            yield f"sum += {known[terms[0]]};"

        yield f"T sum = 0; for (ptrdiff_t start = i; start < count; start += {EACH} * step) {{"
        yield from _several(names, loads, use)
        yield "} sum = of_all<THREADS>(sum, Sum());"
        yield "if (i % THREADS == 0) out0[i / THREADS] = sum;"

    def _rows(self, names: Names, loads: Names, dtypes: Sequence[Any]) -> Iterator[str]:
        """Yield what each thread does for its row: reductions stage by stage, then the results."""
        yield "const ptrdiff_t row = min(ptrdiff_t(i / THREADS), ptrdiff_t(count - 1));"
        yield "const ptrdiff_t lane = i % THREADS;"
        for stage in range(1 + max(node.stage for node in self._order)):
            nodes = [node for node in self._order if node.stage == stage]
            yield from _reduced([node for node in nodes if node.reduction], names, loads)
            yield from _assignments([n for n in nodes if not n.entries], names, loads)
        yield "if (lane == 0) {"
        yield from self._stores("row", names, dtypes, entries=False)
        yield f"}} {_ENTRIES}"
        yield from _assignments([n for n in self._results if n.entries], names, loads)
        yield from self._stores("at", names, dtypes, entries=True)
        yield "}"

    def _stores(
        self, where: str, names: Names, dtypes: Sequence[Any], *, entries: bool = False
    ) -> Iterator[str]:
        for i, (node, dtype) in enumerate(zip(self._results, dtypes, strict=True)):
            if node.entries == entries:
                kind = "float16" if dtype == np.float16 else "T"
                yield f"out{i}[{where}] = {kind}({names[node]});"


def _several(
    names: Names, loads: Names, use: Callable[[Names, str], Iterator[str]]
) -> Iterator[str]:
    """Yield what reads several elements at once, and then what uses those that there are."""
    known = [dict(names) for _ in range(EACH)]
    for u, own in enumerate(known):
        yield f"const ptrdiff_t own{u} = start + {u} * step;"
        yield f"const ptrdiff_t at{u} = min(own{u}, ptrdiff_t(count - 1));"
        for i, (node, text) in enumerate(loads.items()):
            own[node] = f"x{i}_{u}"
            yield f"const T x{i}_{u} = {text.replace('[row]', f'[at{u}]')};"
    for u, own in enumerate(known):
        yield f"if (own{u} < count) {{"
        yield from use(own, f"own{u}")
        yield "}"


def _reduced(nodes: list[Node], names: Names, loads: Names) -> Iterator[str]:
    """Yield what reduces a row in one go, for all reductions that can be so."""
    if not nodes:
        return
    found = {node: f"r{len(names) + i}" for i, node in enumerate(nodes)}
    for node, name in found.items():
        yield f"T {name} = {_REDUCTIONS[node.reduction][1]};"
    inner = dict(names)
    yield _ENTRIES
    yield from _assignments([node.nodes[0] for node in nodes], inner, loads)
    for node, name in found.items():
        both, _, form = _REDUCTIONS[node.reduction]
        yield f"{name} = {both}({name}, {form.format(inner[node.nodes[0]])});"
    yield "}"
    for node, name in found.items():
        yield f"{name} = of_all<THREADS>({name}, {_REDUCTIONS[node.reduction][0]});"
    names |= found


def _assignments(nodes: Sequence[Node], names: Names, loads: Names | None = None) -> Iterator[str]:
    """Yield what computes nodes from those that have names already, and gives them names."""
    for node in order(nodes, names):
        if node not in names:
            yield assignment(node, names, loads or {})


def _up(number: int, step: int) -> int:
    return -(-number // step) * step


def _laid(value: Any, node: Node, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Return an argument as a kernel takes it, and its kind: its dtype and how it is indexed."""
    if node.number:
        return value, None
    if value.size == 1 and not node.entries:
        return value, (value.dtype, "0")
    if value.shape != shape:
        value = cupy.broadcast_to(value, shape)
    if value.nbytes > WIDE and not value.flags.c_contiguous:
        # A view has the indices, of 32 bits perhaps, of what it is a view of, however large it is.
        value = cupy.ndarray(shape, value.dtype, value.data, value.strides)
    return value, (value.dtype, "at" if node.entries else "row")


class Kernels(Programs):
    """Programs that are a kernel each: of what they are given, they leave only the results."""

    def __init__(self) -> None:
        super().__init__(xp, cupy.ndarray, OneKernel)
        self._sums = self.kept(self.sums)
        self._quotients = self.kept(self.quotients)

    def terms(self, call: Call, *, narrow: bool) -> Array:
        """Return the weighted losses, in the dtype of the inputs or in at least float32."""
        (terms,) = self.run(self._losses, (call.loss,), *call.arguments(), narrow=(narrow,))
        return terms

    def total(self, call: Call) -> Array:
        """Return the sum of the weighted losses, in at least float32."""
        if call.loss.rowwise:
            return cupy.sum(self.terms(call, narrow=False))
        (parts,) = self.run(self._sums, (call.loss,), *call.arguments())
        return parts.reshape(()) if parts.size == 1 else cupy.sum(parts)

    def mean(self, total: Array, weights: Any) -> Array:
        """Return total / W."""
        weights = float(weights or math.nan) if isinstance(weights, int) else weights
        return self.run(self._quotients, (), total, weights)[0]

    def by_element(
        self,
        call: Call,
        wanted: tuple[bool, ...],
        seed: tuple[Any, Array | None],
        mean: Array | None,
    ) -> Sequence[Array]:
        """Return the wanted gradients, by element.

        In arguments that are whole, and so are not broadcast, they are in the dtype of the inputs.
        """
        arguments, shape = call.arguments(), call.shape()
        whole = tuple(
            call.loss.has_rows(i) or getattr(arguments[i], "shape", ()) == shape
            for i, want in enumerate(wanted)
            if want
        )
        how, kind = {"first": BEFORE, "narrow": whole}, (call.loss, wanted)
        return self.run(self._gradients, kind, *seed, mean, *arguments, **how)

    def sums(self, loss: Loss, given: tuple[Any, ...]) -> Runs:
        """Make the program that adds up the weighted losses of elements."""

        def sums(*arguments: Any) -> list[Node]:
            return [terms.reduced("sum") for terms in losses_of(loss)(*arguments)]

        return self.program(f"{loss.name}_sum", sums, given)

    def quotients(self, given: tuple[Any, ...]) -> Runs:
        """Make the program that divides a sum by W."""
        return self.program("mean", lambda *of: [_pipeline.divided(TRACED, *of)], given)


PROGRAMS = Kernels()
