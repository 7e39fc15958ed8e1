"""The texts of errors: what does not fit, and what to write instead."""

import inspect
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NoReturn

from array_api_losses._arguments import (
    BEFORE_REDUCTION,
    FORMATS,
    dtype_name,
    is_real,
    kind_of,
    unknown,
)
from array_api_losses._engines import masked

if TYPE_CHECKING:
    from array_api_losses._loss import Call

_TO_SIGNS = "`label = 2 * xp.astype(label, xp.int8) - 1`"

_ELSEWHERE = {
    "target": "label",
    "labels": "label",
    "anchor": "input",
    "input1": "input",
    "input2": "other",
    "input": "input1",
    "other": "input2",
    "eps": "epsilon",
    "mask": "weight",
    "weights": "weight",
    "sample_weight": "weight",
}
"""What arguments of other libraries are here."""


def explainer(
    function: Callable[..., Any],
) -> Callable[[tuple[Any, ...], dict[str, Any], TypeError], TypeError]:
    """Return what says more than Python does of arguments that a function does not have.

    The signature is read beforehand, for TorchDynamo cannot read it, and from the code, since
    `inspect.signature` would take a good part of the import.
    """
    title = function.__qualname__.removesuffix(".__call__").removesuffix(".__init__")
    code = inspect.unwrap(function).__code__
    method, count = code.co_varnames[:1] == ("self",), code.co_argcount
    places = code.co_varnames[method:count]
    known = code.co_varnames[method : count + code.co_kwonlyargcount]
    own = method and not hasattr(function, "__wrapped__")  # `jit` wraps methods that are bound

    def explained(args: tuple[Any, ...], keywords: dict[str, Any], error: TypeError) -> TypeError:
        given = len(args) - own
        for keyword in keywords:
            if keyword not in known:
                msg = f"{title}: there is no argument `{keyword}`; the arguments are"
                return TypeError(f"{msg} {', '.join(known)}.{elsewhere(keyword, known)}")
        if given > len(places):
            msg = f"{title}: {given} arguments are given by position, where there are"
            msg += f" {len(places)}: {', '.join(places)}."
            if "weight" in known:
                msg += " `weight` is given by name."
            if "reduction" in places:
                msg += BEFORE_REDUCTION.replace("it", "`reduction`", 1)
            return TypeError(msg)
        return error

    return explained


def elsewhere(argument: str, names: Iterable[str]) -> str:
    """Return a sentence on an argument that other libraries call otherwise, if it is one."""
    if argument in {"size_average", "reduce"}:
        return ' Of PyTorch, `size_average=False` is `reduction="sum"`, `reduce=False` "none".'
    ours = _ELSEWHERE.get(argument, "")
    return f" What is `{argument}` elsewhere is `{ours}` here." if ours in names else ""


def fail_not_array(
    name: str, argument: str, value: object, alike: str = "", like: str = ""
) -> NoReturn:
    """Suggest an array; a number goes everywhere where `like` has one."""
    if value is None:
        msg = f"{name}: `{argument}` is None; an array is needed."
        raise TypeError(msg)
    array = f"xp.asarray({argument}{alike})"
    if like and is_real(value) and not isinstance(value, bool):
        array = f"xp.full_like({like}, {argument})"
    msg = (
        f"{name}: `{argument}` is {kind_of(value)}, not an array. Make it one of the library you"
        f" work in, e.g. `{argument} = {array}`."
    )
    kind = masked(value)
    if kind is not None:
        mask = f"{argument}.mask"
        if kind == "MaskedArray":  # of NumPy, whose mask may be a single False
            mask = f"np.ma.getmaskarray({argument})"
        array = f"weight = ~{mask}` and `{argument} = {argument}.data"
        if argument == "weight":
            array = f"weight = xp.where({mask}, 0, weight.data)"
        msg = (
            f"{name}: `{argument}` is {kind_of(value)}, whose mask would be lost. Let a weight say"
            f" what counts: `{array}`."
        )
    if getattr(value, "is_nested", False):  # by PyTorch
        msg = (
            f"{name}: `{argument}` is {kind_of(value)}, whose rows may differ in length. Give all"
            f" of them as one array, `{argument} = {argument}.values()`, or pad them and let a"
            " weight say what counts."
        )
    elif hasattr(value, "to_dense"):  # likewise
        layout = getattr(value, "layout", None)
        msg = (
            f"{name}: `{argument}` has layout {layout}; it must be strided. Convert it, e.g."
            f" `{argument} = {argument}.to_dense()`."
        )
    raise TypeError(msg)


def fail_library(
    name: str, who: str, library: str, argument: str, other: str, alike: str
) -> NoReturn:
    array = argument
    if library == "torch" and other in {"jax", "dask"}:  # of which it would read the bytes, or none
        array = f"np.asarray({argument})"
    msg = (
        f"{name}: `{who}` is an array of {library} but `{argument}` is an array of {other}. Nothing"
        f" is moved between libraries; convert one, e.g. `{argument} = xp.asarray({array}{alike})`"
        f" with the xp of `{who}`."
    )
    raise TypeError(msg)


def fail_device(name: str, who: str, device: Any, argument: str, other: Any) -> NoReturn:
    msg = (
        f"{name}: `{who}` is on device {device} but `{argument}` is on device {other}. Nothing is"
        f" copied between devices; move one, e.g."
        f" `{argument} = array_api_compat.to_device({argument}, {who}.device)`."
    )
    raise ValueError(msg)


def fail_no_rows(name: str, who: str) -> NoReturn:
    msg = (
        f"{name}: `{who}` has shape (); a last axis is needed, along which the entries of a vector"
        f" stand. If each number is a vector, say so: `{who} = xp.reshape({who}, (1,))`."
    )
    raise ValueError(msg)


def fail_shape(
    name: str,
    who: str,
    shape: tuple[int, ...],
    argument: str,
    other: tuple[int, ...],
    *,
    rows: bool,
    vectors: bool,
) -> NoReturn:
    """The argument has one number for each of the `rows`, or has `vectors` itself."""
    shape, other = tuple(shape), tuple(other)  # torch prints its own
    have, needed = f"has shape {shape}", f"{who}.shape"
    if rows:
        shape = shape[:-1]
        have, needed = f"{have}, rows of shape {shape},", f"{needed}[:-1]"
    msg = f"{name}: `{who}` {have} but `{argument}` has shape {other}."
    if unknown(shape) or unknown(other):
        raise ValueError(msg)
    size, partner = math.prod(shape), math.prod(other)
    joint = _broadcast(shape, other)
    if joint is not None:
        axes = len(joint) - vectors
        pairs, found = math.prod(joint[:axes]), math.prod(shape[: len(shape) - vectors])
        if pairs != found:
            msg += f" Broadcasting would compare {pairs} pairs, not {found}."
    in_order = [n for n in shape if n != 1] == [n for n in other if n != 1]
    if size == partner and (in_order or 1 in {len(shape), len(other)}):
        msg += f" Reshape one of them, e.g. `{argument} = xp.reshape({argument}, {needed})`."
    elif sorted(shape) == sorted(other):
        turned = f"xp.permute_dims({argument}, {_axes(shape, other)})"
        msg += f" If its axes are in another order, change it: `{argument} = {turned}`."
    elif joint == shape:
        msg += f" If that is meant, say so: `{argument} = xp.broadcast_to({argument}, {needed})`."
    elif joint == other and not rows:
        msg += f" If that is meant, say so: `{who} = xp.broadcast_to({who}, {argument}.shape)`."
    elif joint is not None and not rows:
        both = f"{who}, {argument}"
        msg += f" If that is meant, say so: `{both} = xp.broadcast_arrays({both})`."
    else:
        msg += f" {'It must be that of the rows' if rows else 'They must be the same'}."
    raise ValueError(msg)


def _axes(shape: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    """Return an order of the axes of another shape in which it is this one."""
    left = [*range(len(other))]
    return tuple(left.pop([other[axis] for axis in left].index(size)) for size in shape)


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...] | None:
    length = max(len(a), len(b))
    pairs = zip((1,) * (length - len(a)) + a, (1,) * (length - len(b)) + b, strict=True)
    joint = tuple(m if n == 1 else n if m in {1, n} else -1 for m, n in pairs)
    return None if -1 in joint else joint


def fail_partner_shape(call: "Call", argument: str, shape: tuple[int, ...]) -> NoReturn:
    """Of what may broadcast to the losses, but not beyond."""
    rows = "the rows of " if call.loss.rowwise else ""
    msg = (
        f"{call.title()}: `{argument}` has shape {tuple(shape)}, which does not broadcast to the"
        f" shape {tuple(call.shape())} of {rows}`{call.loss.inputs[0]}`."
    )
    raise ValueError(msg)


def fail_label_dtype(name: str, argument: str, kind: str, dtype: Any) -> NoReturn:
    msg = (
        f"{name}: `{argument}` has dtype {dtype_name(dtype)}; it must hold 1 and -1 in a signed"
        f" integer or real floating dtype."
    )
    if kind == "bool":
        msg += f" If True stands for 1 and False for -1, convert: {_TO_SIGNS}."
    elif kind == "unsigned integer":
        msg += f" If 0 stands for -1, convert: {_TO_SIGNS}."
    raise TypeError(msg)


def fail_input_dtype(name: str, argument: str, kind: str, dtype: Any) -> NoReturn:
    found, needed = dtype_name(dtype), "real floating"
    if "float" in found:  # without bfloat16, if it is that of another library
        *some, last = [name for name in FORMATS if name != found]
        needed = f"{', '.join(some)} or {last}"
    msg = f"{name}: `{argument}` has dtype {found}; it must be {needed}."
    if kind == "complex floating":
        msg += f" Take what you mean, e.g. `{argument} = xp.abs({argument})`."
    elif not kind.startswith("other"):
        msg += f" Convert it, e.g. `{argument} = xp.astype({argument}, xp.float32)`."
    raise TypeError(msg)


def fail_dtype(
    name: str, who: str, dtype: Any, argument: str, other: Any, bools: str = ""
) -> NoReturn:
    found, needed = dtype_name(other), dtype_name(dtype)
    if found == needed:  # in another byte order, which NumPy does not name
        found, needed = other.str, dtype.str
    msg = (
        f"{name}: `{argument}` has dtype {found} but `{who}` has dtype {needed}; it must have the"
        f" same{bools}. Convert it, e.g. `{argument} = xp.astype({argument}, {who}.dtype)`."
    )
    raise TypeError(msg)


def fail_labels(xp: Any, call: "Call", label: Any, wrong: Any) -> NoReturn:
    flat = xp.reshape(xp.astype(wrong, xp.uint8), (-1,))
    count, first = int(xp.sum(flat, dtype=xp.int64)), int(xp.argmax(flat))
    value = xp.reshape(label, (-1,))[first]
    value = float(value) if "float" in dtype_name(label.dtype) else int(value)
    index: list[int] = []
    for axis in reversed(label.shape):
        first, i = divmod(first, axis)
        index.insert(0, i)
    s, is_ = ("", "is") if count == 1 else ("s", "are")
    msg = (
        f"{call.title()}: `{call.loss.label}` has {count} element{s} that {is_} neither 1 nor -1;"
        f" the first is {value} at index {tuple(index)}."
    )
    if value == 0:
        msg += f" If 0 stands for -1, convert: {_TO_SIGNS}."
    raise ValueError(msg)
