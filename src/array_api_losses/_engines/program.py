"""Programs of few kernels, noted while the pipeline runs on stand-ins for arrays.

What is done to a stand-in is an expression in C++. All expressions that need no sum along rows in
between become one function, which a library compiles and calls for every entry, or for every row.
"""

import math
from collections.abc import Callable, Container, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol, TypeAlias

from array_api_losses._engines.fused import identifier

Kernel: TypeAlias = Callable[[Sequence[Any], Sequence[float]], Sequence[Any]]
"""Takes arrays and numbers, and gives back as many arrays as there are results."""


class Code(NamedTuple):
    """What a kernel computes, in C++, where all numbers are of the type T."""

    name: str
    arrays: list[str]
    numbers: list[str]
    lines: str
    results: list[str]


class Kernels(Protocol):
    """What makes kernels for a library."""

    most: int
    """So many arrays can a function take, and give back."""

    def function(self, code: Code) -> Kernel:
        """Return a kernel that computes the results for each entry, or for each row."""

    def reduction(self, kind: str) -> Kernel:
        """Return a kernel that reduces an array along the last axis.

        It is the "sum", the "largest" of all or of the "absolute" values, NaN if there is one.
        """


class Node:
    """Stands in for a number, or a truth value as 0 or 1, of each entry; or of each row."""

    dtype = "T"  # in C++
    ndim = 1
    shape = (1,)

    def __init__(
        self,
        form: str = "",
        operands: tuple[Any, ...] = (),
        *,
        entries: bool = False,
        reduction: str | None = None,
        number: bool = False,
    ) -> None:
        self.form, self.operands, self.reduction, self.number = form, operands, reduction, number
        self.nodes: list[Node] = [o for o in operands if isinstance(o, Node)]
        own_rows = reduction is None and any(n.entries for n in self.nodes)
        self.entries: bool = entries or own_rows
        # After how many reductions, one upon another, it can be computed.
        self.stage: int = max([n.stage for n in self.nodes], default=0) + (reduction is not None)
        self.given = not operands or reduction is not None  # and not computed by a function
        self._made: dict[Any, Node] = {}  # of this one, so that nothing is computed twice

    def then(self, form: str, *others: Any, **options: Any) -> "Node":
        """Return what an expression makes of this and others."""
        known = [id(other) if isinstance(other, Node) else repr(other) for other in others]
        key = form, *known, *options.items()
        if key not in self._made:
            self._made[key] = Node(form, (self, *others), **options)
        return self._made[key]

    def reduced(self, kind: str) -> "Node":
        """Return a reduction along the rows."""
        return self.then("", reduction=kind)

    def __getitem__(self, _: Any) -> "Node":
        return self.then("{0}", entries=True)  # a number of each row, in each entry


# A product is rounded. Else it might be so in the one and not in the other of two that are added,
# and vectors that are equal would not be.
_PRODUCT = (
    "sizeof(T) == 4 ? T(__fmul_rn(float({0}), float({1}))) : T(__dmul_rn(double({0}), double({1})))"
)

for _method, _form in {
    "__add__": "{0} + {1}",
    "__radd__": "{1} + {0}",
    "__sub__": "{0} - {1}",
    "__rsub__": "{1} - {0}",
    "__mul__": _PRODUCT,
    "__rmul__": _PRODUCT,
    "__truediv__": "{0} / {1}",
    "__rtruediv__": "{1} / {0}",
    "__pow__": "pow({0}, {1})",
    "__neg__": "-{0}",
    "__eq__": "{0} == {1}",
    "__lt__": "{0} < {1}",
    "__le__": "{0} <= {1}",
    "__gt__": "{0} > {1}",
    "__ge__": "{0} >= {1}",
    "__and__": "{0} && {1}",
    "__invert__": "!{0}",
}.items():
    setattr(Node, _method, lambda self, *others, form=_form: self.then(form, *others))


def _expression(form: str) -> Callable[..., Node]:
    return lambda first, *others: first.then(form, *others)


ABS = "{0} < T(0) ? -{0} : {0}"


def _max(values: Node) -> Node:
    if values.form == ABS:  # of which there is a kernel that reads only what it is of
        return values.nodes[0].reduced("absolute")
    return values.reduced("largest")


TRACED: Any = SimpleNamespace(
    __name__=__name__,
    abs=_expression(ABS),
    astype=lambda values, _: values,
    exp=_expression("exp({0})"),
    expm1=_expression("expm1({0})"),
    isfinite=_expression("{0} > -T(INFINITY) && {0} < T(INFINITY)"),
    isinf=_expression("{0} == T(INFINITY) || {0} == -T(INFINITY)"),
    log=_expression("log({0})"),
    log1p=_expression("log1p({0})"),
    max=lambda values, axis: _max(values),
    maximum=_expression("{0} > {1} || {0} != {0} ? {0} : {1}"),  # NaN is kept, on either side
    minimum=_expression("{0} < {1} || {0} != {0} ? {0} : {1}"),
    sign=_expression("{0} > T(0) ? T(1) : {0} < T(0) ? T(-1) : {0}"),
    sqrt=_expression("sqrt({0})"),
    sum=lambda values, axis: values.reduced("sum"),
    where=_expression("{0} ? {1} : {2}"),
    zeros_like=_expression("T(0)"),
)
"""What the pipeline may call; all numbers have the same dtype."""


class Program:
    """What computes the results of a pipeline from its arguments, step by step."""

    def __init__(
        self, kernels: Kernels, name: str, arguments: Sequence[Any], results: Sequence[Node]
    ) -> None:
        self._kernels, self._name, self._count = kernels, identifier(name), len(arguments)
        # Where nodes lie among all values, of which the arguments are the first.
        self._places = {a: i for i, a in enumerate(arguments) if isinstance(a, Node)}
        self._steps: list[tuple[Callable[..., Any], list[int], list[int]]] = []
        results = [Node("{0}", (result,)) for result in results]  # none is an argument, or another
        nodes = order(results)
        self._kept = dict.fromkeys(results)  # what functions leave behind
        for node in nodes:
            self._kept |= dict.fromkeys(o for o in node.nodes if self._is_left_for(node, o))
        for stage in range(1 + max(node.stage for node in nodes)):
            self._add_stage([node for node in nodes if node.stage == stage])
        self._results = [self._places[result] for result in results]
        last = {place: i for i, step in enumerate(self._steps) for place in step[1]}
        for place in (*range(self._count), *self._results):
            last.pop(place, None)
        self._dead = [[p for p in last if last[p] == i] for i in range(len(self._steps))]

    @property
    def kernels(self) -> int:
        """How many it takes."""
        return len(self._steps)

    def __call__(self, arguments: Sequence[Any]) -> list[Any]:
        """Return the results for these arguments."""
        known = [*arguments, *[None] * len(self._places)]
        for (function, sources, targets), dead in zip(self._steps, self._dead, strict=True):
            found = function(*[known[i] for i in sources])
            for place, value in zip(targets, found, strict=True):
                known[place] = value
            for place in dead:  # nobody needs it any more
                known[place] = None
        return [known[i] for i in self._results]

    def _is_left_for(self, node: Node, operand: Node) -> bool:
        """Whether an operand is to be computed before the function that uses it."""
        if operand.given:
            return False
        if node.entries and not operand.entries:  # of one tensor, it is as well computed there
            return len(_arrays(_sources([operand], self._kept))) > 1
        return node.reduction is not None

    def _add_stage(self, nodes: list[Node]) -> None:
        """Add the reductions of what there is, then functions of rows, then of entries."""
        for node in nodes:
            if node.reduction:
                self._add(self._kernels.reduction(node.reduction), node.nodes, [node])
        for entries in (False, True):
            outputs = [n for n in nodes if n in self._kept and n.entries == entries]
            if outputs:
                self._add_function(outputs)

    def _add_function(self, outputs: list[Node]) -> None:
        """Add the function that computes some nodes; or several, if one would take too many."""
        inputs, code = self._code(outputs)
        most = self._kernels.most
        if len(code.arrays) > most or len(outputs) > most:
            first, rest = outputs[: len(outputs) // 2], outputs[len(outputs) // 2 :]
            if not first:
                first = [_largest_part(outputs[0], self._earlier, most)]
                self._kept[first[0]] = None
            self._add_function(first)
            self._add_function(rest)
            return
        self._add(self._kernels.function(code), inputs, outputs)

    @property
    def _earlier(self) -> set[Node]:
        return {node for node in self._kept if node in self._places}

    def _code(self, results: list[Node]) -> tuple[list[Node], Code]:
        """Return what computes some nodes, and from which: arrays first, then numbers."""
        earlier = self._earlier
        inputs = sorted(_sources(results, earlier), key=lambda node: node.number)
        names = {node: f"a{i}" for i, node in enumerate(inputs)}
        lines = [
            assignment(node, names, {}) for node in order(results, earlier) if node not in names
        ]
        arrays = [names[node] for node in _arrays(inputs)]
        numbers = [names[node] for node in inputs if node.number]
        found = [names[result] for result in results]
        return inputs, Code(self._name, arrays, numbers, " ".join(lines), found)

    def _add(self, kernel: Kernel, inputs: list[Node], outputs: list[Node]) -> None:
        over = outputs if outputs[0].reduction is None else outputs[0].nodes
        columns = [over[0].entries and not node.entries for node in _arrays(inputs)]
        sources = [self._places[node] for node in inputs]
        targets = [self._count + len(self._places) + i for i in range(len(outputs))]
        self._places |= dict(zip(outputs, targets, strict=True))
        self._steps.append((partial(_launch, kernel, columns), sources, targets))


def order(nodes: Sequence[Node], ends: Container[Node] | None = None) -> list[Node]:
    """Return nodes behind all that they are made of; if there are ends, from these on."""
    found: dict[Node, None] = {}

    def follow(node: Node) -> None:
        if node not in found:
            if ends is None or not (node.given or node in ends):
                for operand in node.nodes:
                    follow(operand)
            found[node] = None

    for node in nodes:
        follow(node)
    return [*found]


def _sources(nodes: Sequence[Node], ends: Container[Node]) -> list[Node]:
    """Return what a function takes that computes some nodes from given ones and from ends."""
    return [node for node in order(nodes, ends) if node.given or node in ends]


def _arrays(nodes: Sequence[Node]) -> list[Node]:
    return [node for node in nodes if not node.number]


def _largest_part(node: Node, ends: Container[Node], most: int) -> Node:
    """Return the part of a node that takes the most arrays that a function can take."""
    parts = [p for p in order([node], ends) if not (p is node or p.given or p in ends)]
    taken = {part: len(_arrays(_sources([part], ends))) for part in parts}
    return max((part for part in parts if taken[part] <= most), key=taken.__getitem__)


def assignment(node: Node, names: dict[Node, str], given: dict[Node, str]) -> str:
    """Return the line that computes a node, or reads it if it is given; it has a name then."""
    texts = [names[o] if isinstance(o, Node) else _literal(o) for o in node.operands]
    text = given[node] if node in given else node.form.format(*texts)
    names[node] = f"v{len(names)}"
    return f"const T {names[node]} = {text};"


def _literal(value: float) -> str:
    if math.isnan(value):
        return "T(NAN)"
    return f"T({value})" if math.isfinite(value) else f"T({'-' if value < 0 else ''}INFINITY)"


def _launch(kernel: Kernel, columns: list[bool], *values: Any) -> Sequence[Any]:
    """Call a kernel with arrays and numbers; numbers of rows stand in a column of their own."""
    arrays, numbers = values[: len(columns)], values[len(columns) :]
    if True in columns:
        arrays = tuple(
            value[..., None] if column and value.ndim else value
            for column, value in zip(columns, arrays, strict=True)
        )
    return kernel(arrays, numbers)
