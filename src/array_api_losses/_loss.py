"""What a loss is, and how a call of one begins.

A call goes: bind the arguments (the public function) -> agree on arrays (`_arrays`) -> run on the
library's engine (`_engines`), which ends in the functions of `_pipeline` and `_derivatives`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial, wraps
from itertools import count
from typing import Any, ClassVar, NamedTuple, ParamSpec, TypeAlias, TypeVar, dataclass_transform
from weakref import WeakValueDictionary

from array_api_losses._arguments import (
    check_name,
    check_no_array,
    check_number,
    check_reduction,
)
from array_api_losses._arrays import agree
from array_api_losses._messages import explainer

Array: TypeAlias = Any
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(eq=False)  # two are equal if they are the same, which is quick to see
class Loss:
    """A loss as data: its formula, its slopes and the roles of the arguments.

    `value(xp, *operands)` is the loss of each element. `slopes(xp, wanted, *operands)` is a tuple
    with the partial derivative in each operand that is wanted, and None for the others. Operands
    are the inputs, the label if there is one (1 or -1, in the dtype of the inputs; NaN gives NaN),
    then the parameters; all come in at least float32.

    Where `rowwise`, an element is a row: inputs have a last axis, of the entries of vectors, that
    labels, parameters and losses do not have. There `slopes(xp, wanted, factor, *operands)`
    multiplies all slopes by a number, or by one of each row, since that is cheaper where rows are
    still numbers.
    """

    name: str
    value: Callable[..., Array]
    slopes: Callable[..., tuple[Array | None, ...]]
    inputs: tuple[str, ...]
    label: str | None
    parameters: tuple[str, ...]
    rowwise: bool = False
    bounds: tuple[float, float] = (-math.inf, math.inf)
    """Between which the parameters lie; they are finite in any case."""
    sure: bool = False
    """Whether parameters that are arrays are known to be finite and within `bounds`."""
    first_parameter: int = field(init=False)
    """Where the parameters begin among the operands."""
    key: str = field(init=False)
    """By which `loss_of` finds it: a text, which to TorchDynamo is a constant of a graph."""

    def __post_init__(self) -> None:
        self.first_parameter = len(self.inputs) + (self.label is not None)
        self.key = f"{self.name} {next(_NUMBERS)}"
        _BY_KEY[self.key] = self
        _LIVING.setdefault(self._content(), self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Come out of a pickle as the one that is there: what is kept of a loss is by identity."""
        return _unpickled, tuple(getattr(self, f.name) for f in fields(self) if f.init)

    def first(self) -> "Loss":
        """Return the first of all that have the same content and are still there."""
        return _LIVING.get(self._content(), self)

    def _content(self) -> tuple[Any, ...]:
        content = self.__reduce__()[1]  # of which partial functions would not compare
        return tuple(
            (c.func, c.args, *c.keywords.items()) if isinstance(c, partial) else c for c in content
        )

    @property  # and not cached: on Python 3.11 that takes a lock, at which `torch.compile` stops
    def operands(self) -> tuple[str, ...]:
        """The names of the operands, in the order of the formula."""
        labels = () if self.label is None else (self.label,)
        return (*self.inputs, *labels, *self.parameters)

    def has_rows(self, position: int) -> bool:
        """Whether an operand has the last axis that losses do not have."""
        return self.rowwise and position < len(self.inputs)


_LIVING: WeakValueDictionary[tuple[Any, ...], Loss] = WeakValueDictionary()
_BY_KEY: WeakValueDictionary[str, Loss] = WeakValueDictionary()
_NUMBERS = count()


def loss_of(key: str) -> Loss:
    """Return the loss that has this key."""
    return _BY_KEY[key]


def _unpickled(*content: Any) -> Loss:
    return Loss(*content).first()


class Call(NamedTuple):
    """One call of a loss: what is to be computed, on which arrays.

    It has no properties, and what comes to a formula has seen no `_replace`: `torch.compile` of
    PyTorch 2.10 cannot follow the former, that of 2.7 not the latter.
    """

    loss: Loss
    operands: tuple[Any, ...]
    weight: Array | None
    reduction: str
    name: str | None
    trusted: bool = False
    """Whether every label is known to be 1 or -1, or there are none."""

    def title(self) -> str:
        """What stands at the head of error messages."""
        return self.name or self.loss.name

    def arguments(self) -> tuple[Any, ...]:
        """All that a gradient can be asked for: the operands, then the weight."""
        return (*self.operands, self.weight)

    def with_arguments(self, arguments: tuple[Any, ...]) -> "Call":
        """Return the same call of other arrays."""
        loss, _, _, reduction, name, trusted = self
        return Call(loss, arguments[:-1], arguments[-1], reduction, name, trusted)

    def as_trusted(self) -> "Call":
        """Return the same call, its labels known to be 1 or -1."""
        loss, operands, weight, reduction, name, _ = self
        return Call(loss, operands, weight, reduction, name, trusted=True)

    def label(self) -> Array:
        """The label, of a loss that has one."""
        return self.operands[len(self.loss.inputs)]

    def shape(self) -> tuple[int, ...]:
        """The shape of the losses."""
        shape: tuple[int, ...] = self.operands[0].shape
        return shape[:-1] if self.loss.rowwise else shape


def evaluated_early(function: Callable[P, T]) -> Callable[P, T]:
    """Let TorchDynamo call a function while it compiles, and not look into it.

    This is what `torch.compiler.assume_constant_result` does, without importing PyTorch.
    """
    function.__dict__["_dynamo_marked_constant"] = True
    return function


def loss_function(bind: Callable[P, Call], *, compiled: bool = False) -> Callable[P, Array]:
    """Turn a function that binds its arguments to a `Call` into one that evaluates that call.

    The transforms use what is within: `loss.bind`, to make another of it, and `loss.agreed`, to
    see the call, and the engine that is to run it, without running it.
    """
    explained = explainer(bind)

    @wraps(bind)
    def loss(*args: P.args, **kwargs: P.kwargs) -> Array:
        try:
            call = bind(*args, **kwargs)
        except TypeError as error:
            raise explained(args, kwargs, error) from None
        engine, call = agree(call, compiled=compiled)
        return engine.value(call)

    def agreed(*args: P.args, **kwargs: P.kwargs) -> tuple[Any, Call]:
        try:
            call = bind(*args, **kwargs)
        except TypeError as error:
            raise explained(args, kwargs, error) from None
        return agree(call, compiled=compiled)

    loss.__annotations__["return"] = Array
    loss.__dict__.update(bind=bind, agreed=agreed)
    return loss


@dataclass_transform(frozen_default=True)
def loss_class(cls: type[T]) -> type[T]:
    """Make a frozen dataclass that says more than Python does of arguments that there are not."""
    made: Any = dataclass(frozen=True, eq=False, repr=False)(cls)  # see `LossInstance`
    init, explained = made.__init__, explainer(made.__init__)

    @wraps(init)
    def explaining(*args: Any, **kwargs: Any) -> None:
        try:
            init(*args, **kwargs)
        except TypeError as error:
            for name, value in kwargs.items():
                check_no_array(cls.__name__, name, value)
            raise explained(args, kwargs, error) from None

    made.__init__ = explaining
    return cls


class LossInstance:
    """Base of the classes: checks the parameters once, and lends its name to the calls.

    It compares, hashes and prints for all of them: `dataclass` would compile that for each, at
    every import.
    """

    __match_args__: ClassVar[tuple[str, ...]]
    """The names of its fields, as `dataclass` leaves them."""

    def __post_init__(self) -> None:
        own, kind = self.__dict__, type(self).__name__
        for argument in self.__match_args__:
            check_no_array(kind, argument, own[argument])
        check_name(kind, own["name"])
        name = own["name"] or kind
        check_reduction(name, own["reduction"])
        loss = self.loss(name)
        for parameter in loss.parameters:
            check_number(name, parameter, own[parameter], loss.bounds)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__.values()))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.__dict__.items())
        return f"{type(self).__qualname__}({fields})"

    def loss(self, name: str) -> Loss:
        """Return the loss; errors in what chooses it begin with `name`."""
        raise NotImplementedError

    def call(self, *inputs: Array, weight: Array | None) -> Call:
        """Bind a call with the parameters, reduction and name of this instance."""
        own = self.__dict__
        name = own["name"] or type(self).__name__
        loss = self.loss(name)
        operands = (*inputs, *[own[parameter] for parameter in loss.parameters])
        trusted = loss.label is None
        return Call(loss, operands, weight, own["reduction"], name, trusted)
