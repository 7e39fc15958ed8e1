"""What NumPy computes of a call: of few elements at once, of many in blocks.

These stay in the cache, so that memory does not grow with the arrays. A block is checked,
converted, computed and added up while it is near; value and gradient come from one pass.
`numpy.nditer` cuts the blocks, in the order of memory, from arrays of any layout, and a few threads
share them: NumPy lets go of the interpreter while it computes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, TypeVar

import array_api_compat.numpy as np
from numpy import asarray

from array_api_losses import _derivatives, _pipeline
from array_api_losses._arrays import check_labels
from array_api_losses._engines.faster import narrowed
from array_api_losses._engines.replay import Replay, Room
from array_api_losses._engines.threads import MOST, allowed, shared
from array_api_losses._loss import Array, Call, Loss

T = TypeVar("T")
_ARRAY, _ADD = np.ndarray, np.add.reduce  # sooner found than as attributes

BLOCK = 2**16
"""Elements of a block, for one thread: what it touches stays in the nearest cache."""

BIG_BLOCK = 2**18
"""The same for several threads: with less they wait for the interpreter more than they compute."""

ROWS = 2**18
"""Entries of a block of rows."""

SMALL = 2**18
"""Inputs of up to so many bytes: results in new memory are in the cache, and the system gives it
sooner than scratch is laid out. It takes memory back, and so is slow, where steps free megabytes.
"""

AT_ONCE = 2**18
"""Up to so many elements are not cut into blocks, if they lie in one piece."""

FEW = 64
"""Up to so many labels are looked at fastest in Python."""

SIGNS = frozenset({1, -1})

MOST_TAPES = 64
TAPES: dict[Any, Replay] = {}
"""What has been noted of formulas."""


@dataclass
class Formula:
    """What is computed of a block: whether its labels are good, the weighted losses, gradients.

    It takes the arguments of the call, then what slopes are multiplied and divided by, and the mean
    that slopes in the weight are about.
    """

    call: Call
    wanted: tuple[bool, ...]
    losses: bool
    check: bool

    def __call__(self, *arguments: Any) -> tuple[Any, ...]:
        *own, factor, divisor, mean = arguments
        call, loss, at = self.call, self.call.loss, len(self.call.loss.inputs)
        wanted = self.wanted or (False,) * len(own)
        if loss.label is not None and own[at].dtype.kind == "i":
            # No other integer rounds to 1, so this is quicker.
            own[at] = _pipeline.cast(np, own[at], _pipeline.accumulator(np, own[0].dtype))
        # Numbers need no preparing; what stands in for one does not know that it is one.
        numbers = [type(argument) is float for argument in call.arguments()]
        known = zip(numbers, call.arguments(), own, strict=True)
        block = call.with_arguments(tuple([a if number else b for number, a, b in known]))
        good = _good(block) if self.check else None
        if good is not None and block.weight is None:
            block = block.as_trusted()
        block = _pipeline.prepared(np, block)
        known = zip(numbers, own, block.arguments(), strict=True)
        block = block.with_arguments(tuple([a if number else b for number, a, b in known]))
        terms = in_weight = None
        if self.losses or wanted[-1]:
            losses = loss.value(np, *block.operands)
            terms = _pipeline.weighed(np, block.weight, losses) if self.losses else None
            if wanted[-1]:
                in_weight = _derivatives.slope_in_weight(np, block.weight, losses, mean)
        seed = factor, divisor
        return good, terms, *_derivatives.gradients(np, block, wanted, seed, in_weight)


def _good(call: Call) -> Array:
    """Whether each label is 1 or -1, or does not count."""
    good = np.abs(call.label()) == 1
    return good if call.weight is None else good | (call.weight == 0)


def in_blocks(
    call: Call,
    wanted: tuple[bool, ...] = (),
    seed: tuple[Any, Array | None] = (1, None),
    mean: Array | None = None,
    *,
    losses: bool = True,
    check: bool = True,
    most: int = MOST,
) -> tuple[Any, tuple[Array | None, ...]]:
    """Return the weighted losses or, if they are to be reduced, their sum; and the gradients.

    At most so many threads share the work. The gradient in an argument of one element is a sum, in
    others an array that is filled.
    """
    first = call.operands[0]
    wide = _pipeline.accumulator(np, first.dtype)
    small = [np.size(argument) <= 1 for argument in call.arguments()]
    check = check and not call.trusted
    tape_for = partial(_tape, call, call.trusted, wanted, losses, check)
    wanted = wanted or (False,) * len(call.arguments())
    adds = losses and call.reduction != "none"
    arrays: dict[int, Any] = {}  # by their place among the results of the formula
    if losses and not adds:
        arrays[1] = _empty(call, first.dtype)
    for i, (argument, want) in enumerate(zip(call.arguments(), wanted, strict=True)):
        if want and not small[i]:
            rows = call.loss.has_rows(i)
            broadcast = not rows and argument.shape != call.shape()
            arrays[i + 2] = _empty(call, wide if broadcast else first.dtype, rows=rows)

    def work(
        room: Room, arguments: list[Any], shape: tuple[int, ...], outputs: dict[int, Any]
    ) -> list[Any]:
        good, terms, *gradients = room(arguments, shape, outputs)
        columns = [terms if adds else None]
        columns += [g if one else None for g, one in zip(gradients, small, strict=True)]
        sums = [
            0.0 if c is None else np.add.reduce(c, dtype=_pipeline.accumulator(np, c.dtype))
            for c in columns
        ]
        return [0 if good is None else good.size - np.count_nonzero(good), *sums]

    threads = min(most, allowed(first.size))
    over = partial(_over_rows, call) if call.loss.rowwise else _over_blocks
    sums = over(threads, tape_for, work, [*call.arguments(), *seed, mean], arrays)
    columns = asarray(list(zip(*sums, strict=True)), dtype=np.float64)
    wrong, total, *totals = np.sum(columns, axis=-1)  # along which NumPy adds pairwise
    if wrong:
        check_labels(np, call)
    return arrays.get(1, total), tuple(
        None
        if not want
        else np.full(argument.shape, totals[i], dtype=first.dtype)[()]
        if small[i]
        else _derivatives.summed_to(np, arrays[i + 2], argument.shape, first.dtype)
        for i, (want, argument) in enumerate(zip(wanted, call.arguments(), strict=True))
    )


def fits_at_once(call: Call) -> bool:
    """Whether `at_once` is made for a call: what is not small has to lie in one piece."""
    loss, operands, weight, _, _, _ = call
    first = operands[0]
    if first.nbytes <= SMALL:
        return True
    if first.size > AT_ONCE:
        return False
    shape = call.shape()
    for i, argument in enumerate((*operands, weight)):
        if isinstance(argument, np.ndarray) and argument.ndim:
            needed = first.shape if loss.has_rows(i) else shape
            if argument.shape != needed or not argument.flags.c_contiguous:
                return False
    return True


def at_once(
    call: Call,
    wanted: tuple[bool, ...] = (),
    seed: tuple[Any, Any] = (1, None),
    mean: Any = None,
    *,
    losses: bool = True,
    check: bool = True,
) -> tuple[Any, tuple[Array | None, ...]]:
    """As `in_blocks`, of few elements: without blocks."""
    loss, operands, weight, reduction, _, trusted = call
    first, label = operands[0], operands[loss.first_parameter - 1]  # or the last input
    check = check and not trusted
    if check and label.size <= FEW and SIGNS.issuperset(label.ravel().tolist()):
        trusted, check = True, False
    dtype, arguments = first.dtype, [*operands, weight, *seed, mean]
    if loss.rowwise:
        arguments = side_by_side(loss, arguments)
    tape = _tape(call, trusted, wanted, losses, check, arguments)
    adds = losses and reduction != "none"
    room = None if first.nbytes <= SMALL else Room(tape)
    if room is None:
        good, found, *gradients = tape.anew(*arguments)
    else:
        shape = call.shape()
        good, found, *gradients = room(arguments, shape, tape.new(shape, 2 if adds else 1))
    if check and not good.all():
        check_labels(np, call)
    if losses:
        found = _ADD(found, None) if adds else narrowed(found, dtype)
    if room is not None:  # and not earlier: the next thread writes to it at once
        room.release()
    if not wanted:
        return found, ()
    return found, tuple(
        [
            None
            if g is None
            else narrowed(g, dtype)  # which is of no subclass
            if g.shape == a.shape != ()
            else asarray(_derivatives.summed_to(np, g, a.shape, dtype))[()]
            for g, a in zip(gradients, arguments, strict=False)
        ]
    )


def side_by_side(loss: Loss, arguments: Sequence[Any]) -> list[Any]:
    """Bring the entries of each row together: NumPy adds up others one after another."""
    count = len(loss.inputs)
    return [*map(np.ascontiguousarray, arguments[:count]), *arguments[count:]]


def _over_blocks(
    threads: int,
    tape_for: Callable[[list[Any]], Replay],
    work: Callable[[Room, list[Any], tuple[int, ...], dict[int, Any]], T],
    arguments: list[Any],
    outputs: dict[int, Any],
) -> list[T]:
    """Let `work` replay a formula on every block of `arguments`, with those of `outputs`."""
    arguments = [
        argument.reshape(())
        if isinstance(argument, np.ndarray) and argument.size == 1
        else argument
        for argument in arguments
    ]
    places = [i for i, argument in enumerate(arguments) if np.size(argument) > 1]
    flags: Any = [["readonly"]] * len(places) + [["writeonly"]] * len(outputs)
    size = BLOCK if threads == 1 else BIG_BLOCK
    whole = np.nditer(
        [*(arguments[i] for i in places), *outputs.values()],
        ["external_loop", "buffered", "ranged", "delay_bufalloc"],
        flags,
        buffersize=size,
    )

    tape = tape_for(arguments)

    def part(start: int, stop: int) -> list[T]:
        own, done, room = list(arguments), [], Room(tape)
        with np.errstate(all="ignore"), whole.copy() as iterator:
            iterator.iterrange = start, stop
            iterator.reset()
            for views in iterator:
                for i, view in zip(places, views, strict=False):
                    own[i] = view
                outs = dict(zip(outputs, views[len(places) :], strict=True))
                done.append(work(room, own, views[0].shape, outs))
        room.release()
        return done

    blocks = -(-whole.itersize // size)
    threads = min(threads, blocks)
    cuts = [size * (blocks * k // threads) for k in range(threads)] + [whole.itersize]
    return [result for done in shared(part, cuts) for result in done]


def _over_rows(
    call: Call,
    threads: int,
    tape_for: Callable[[list[Any]], Replay],
    work: Callable[[Room, list[Any], tuple[int, ...], dict[int, Any]], T],
    arguments: list[Any],
    outputs: dict[int, Any],
) -> list[T]:
    """As `_over_blocks`, on blocks of rows."""
    if not call.shape():
        arguments = [a[None] if isinstance(a, np.ndarray) else a for a in arguments]
        outputs = {i: a[None] for i, a in outputs.items()}
    loss, (*axes, width) = call.loss, arguments[0].shape
    count = math.prod(axes)

    def spread(array: Any, *, rows: bool) -> Any:
        if rows or not isinstance(array, np.ndarray):
            return array
        return array.reshape(()) if array.size == 1 < count else np.broadcast_to(array, axes)

    def join(array: Any) -> Any:
        if len(axes) == 1 or not np.ndim(array):
            return array
        vector = array.shape[len(axes) :]
        return array.reshape(math.prod(array.shape[: len(axes)]), *vector)

    arguments = [spread(a, rows=loss.has_rows(i)) for i, a in enumerate(arguments)]
    # What lies in one piece can be cut anywhere.
    if all(a.flags.c_contiguous for a in arguments if isinstance(a, np.ndarray)):
        arguments, outputs = [*map(join, arguments)], {i: join(a) for i, a in outputs.items()}
        axes = [count]
    most = max(1, ROWS // max(1, width))
    each = -(-count // (threads * most))  # blocks of a thread
    places = _places(axes, -(-count // (threads * each)))
    tape = tape_for(arguments)

    def part(start: int, stop: int) -> list[T]:
        room, done = Room(tape), []
        with np.errstate(all="ignore"):
            for place in places[start:stop]:
                # A copy only where a block lies in pieces, as of what has been broadcast.
                own = [join(a[place]) if np.ndim(a) else a for a in arguments]
                own = side_by_side(loss, own)
                outs = {i: join(a[place]) for i, a in outputs.items()}
                done.append(work(room, own, own[0].shape[:1], outs))
        room.release()
        return done

    threads = min(threads, len(places))
    cuts = [len(places) * k // threads for k in range(threads + 1)]
    return [result for done in shared(part, cuts) for result in done]


def _places(shape: list[int], most: int) -> list[tuple[slice, ...]]:
    """Return where blocks of at most so many elements lie in an array of a shape, in order."""
    inner = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    axis = next(axis for axis, size in enumerate(inner) if size <= most)
    pieces = -(-shape[axis] // (most // inner[axis]))
    step = -(-shape[axis] // pieces)
    cuts = [slice(start, start + step) for start in range(0, shape[axis], step)]
    each = product(*[[slice(i, i + 1) for i in range(length)] for length in shape[:axis]])
    return [(*outer, cut) for outer in each for cut in cuts]


def _tape(
    call: Call,
    trusted: bool,
    wanted: tuple[bool, ...],
    losses: bool,
    check: bool,
    arguments: list[Any],
) -> Replay:
    """Return what is noted of a formula, for arguments of these kinds."""
    loss, operands, weight, _, _, _ = call
    first, after = operands[0], loss.first_parameter
    key = (
        loss,
        trusted,
        wanted,
        losses,
        check,
        first.dtype,  # with those of the label and the weight, the others follow
        operands[after - 1].dtype,
        None if weight is None else weight.dtype,
        first.shape[-1] if loss.rowwise else None,
        # Numbers may change, but are no arrays.
        *[a.ndim > 0 if isinstance(a, _ARRAY) else type(a) for a in arguments[after:]],
    )
    found = TAPES.get(key)
    if found is None:
        formula = Formula(call._replace(trusted=trusted), wanted, losses, check)
        found = _noted(key, formula, arguments)
    return found


def _noted(key: Any, formula: Formula, arguments: list[Any]) -> Replay:
    """Note what a formula does with samples of its arguments, and keep it under a key."""
    loss, first = formula.call.loss, arguments[0]
    wide = _pipeline.accumulator(np, first.dtype)
    samples = []
    for i, argument in enumerate(arguments):
        shape: tuple[int, ...] = ()
        if i < loss.first_parameter or np.ndim(argument):
            shape = (1, *first.shape[-1:]) if loss.has_rows(i) else (1,)
        known = argument is None or type(argument) is int
        dtype = getattr(argument, "dtype", wide)
        samples.append(argument if known else np.ones(shape, dtype=dtype))
    if len(TAPES) >= MOST_TAPES:
        TAPES.clear()
    with np.errstate(all="ignore"):
        tape = TAPES[key] = Replay(formula, samples)
    return tape


def _empty(call: Call, dtype: Any, *, rows: bool = False) -> Array:
    """Return a new array for the losses of a call, or for rows as its inputs have."""
    first = call.operands[0]
    if call.loss.rowwise:
        return np.empty(first.shape if rows else call.shape(), dtype=dtype)
    return np.empty_like(first, dtype=dtype, subok=False)  # laid as it is, to be written in order
