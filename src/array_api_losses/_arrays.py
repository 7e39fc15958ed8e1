"""What the arguments of a call must agree on, and the text of every error.

Everything is checked here before anything is computed, and nothing is moved, cast or written to.
"""

import inspect
import math
import struct
import sys
from collections.abc import Callable, Iterable
from numbers import Rational, Real
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from array_api_losses._engines import engine_of

if TYPE_CHECKING:
    from array_api_losses._engines.plain import Plain
    from array_api_losses._loss import Call, Loss

REDUCTIONS = ("none", "sum", "mean")
_TEXT = (str, type(None))

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

_BEFORE_REDUCTION = " In PyTorch two deprecated arguments precede it: name it, `reduction=`."

_LARGEST = sys.float_info.max

# Digits and largest exponent, as `math.frexp` counts them.
_FORMATS = {
    "float16": (11, 16),
    "bfloat16": (8, 128),
    "float32": (24, 128),
    "float64": (53, 1024),
}

_CODES = {
    "float16": struct.Struct("e"),
    "float32": struct.Struct("f"),
    "float64": struct.Struct("d"),
}

_NAMES: dict[Any, str] = {}

_AGREED: dict[Any, tuple["Plain", tuple[Any, ...] | None]] = {}
"""By what the checks have seen: the engine, and the parameters if they had to be rounded."""

_MOST_AGREED = 256


def agree(call: "Call") -> tuple["Plain", "Call"]:
    """Check the arguments against each other; return their engine, and the call.

    Numbers among the parameters come back rounded to the dtype of the inputs. What has agreed once
    is looked up from then on, since the checks take as long as the arithmetic of a small call.
    """
    loss, operands, weight, reduction, name, _, compiled = call
    engine = engine_of(operands[0])
    simple = weight is None and type(reduction) is str and type(name) in _TEXT
    if engine is None or not simple:
        return _checked(call)
    count = loss.first_parameter
    parameters = operands[count:]
    for parameter in parameters:
        if type(parameter) is not float:
            return _checked(call)
    arrays = operands[:count]
    shape = operands[0].shape
    if loss.rowwise and not shape:
        return _checked(call)
    traits = engine.traits(arrays)
    if traits is None:
        return _checked(call)
    seen = loss, reduction, compiled, parameters, traits
    known = _AGREED.get(seen)
    if known is not None and _of_one_shape(loss, arrays):
        engine, rounded = known
        return engine, call if rounded is None else call.with_arguments((*arrays, *rounded, None))
    engine, call = _checked(call)
    if len(_AGREED) >= _MOST_AGREED:
        _AGREED.clear()
    rounded = call.operands[count:]
    _AGREED[seen] = engine, None if rounded == parameters else rounded
    return engine, call


def _check_like_first(call: "Call", engine: "Plain", argument: str, array: Any) -> None:
    """Check an input or the label against the first input."""
    name, loss, first = call.title, call.loss, call.operands[0]
    who, rows = loss.inputs[0], loss.rowwise and argument == loss.label
    if engine_of(array) is None:
        dtype = "" if argument == loss.label else f", dtype={who}.dtype"
        _fail_not_array(name, argument, array, dtype, f"{who}[..., 0]" if rows else who)
    _check_same_home(name, engine, who, first, argument, array)
    needed = first.shape[:-1] if rows else first.shape
    if array.shape != needed and not _may_be(array.shape, needed):
        vectors = loss.rowwise and not rows
        _fail_shape(name, who, first.shape, argument, array.shape, rows=rows, vectors=vectors)
    if array.dtype == first.dtype:
        return
    kind = engine.kind(array.dtype)
    if argument != loss.label:
        _fail_input(name, who, first.dtype, argument, array.dtype, kind)
    if kind not in {"signed integer", "real floating"}:
        _fail_label_dtype(name, argument, kind, array.dtype)


def _of_one_shape(loss: "Loss", arrays: tuple[Any, ...]) -> bool:
    """Whether inputs and label have the shapes that they need."""
    shape, left = arrays[0].shape, len(loss.inputs)
    for array in arrays:
        if left == 0 and loss.rowwise:
            shape = shape[:-1]
        left -= 1
        if array.shape != shape:
            return False
    return True


def _checked(call: "Call") -> tuple["Plain", "Call"]:
    loss, operands, weight, reduction, name, _, compiled = call
    check_name(loss.name, name)
    first, at = operands[0], loss.first_parameter
    name, who = call.title, loss.inputs[0]
    check_reduction(name, reduction)
    engine = engine_of(first) or _fail_not_array(name, who, first)
    dtype = first.dtype
    if loss.rowwise and not first.shape:
        _fail_no_rows(name, who)

    if engine.kind(dtype) != "real floating":
        _fail_input_dtype(name, who, engine.kind(dtype), dtype)
    if dtype_name(dtype) not in _FORMATS:
        _fail_input_dtype(name, who, "other", dtype)
    names = loss.operands
    for argument, array in zip(names[1:at], operands[1:at], strict=True):
        _check_like_first(call, engine, argument, array)

    checked = list(operands)
    for i in range(at, len(operands)):
        checked[i] = _checked_parameter(call, engine, names[i], operands[i])
    if weight is not None:
        _check_same_home(name, engine, who, first, "weight", weight)
        mask = engine.kind(weight.dtype) == "bool"
        _check_partner(call, "weight", weight, mask=mask)
    if compiled:
        engine = engine.compiled(loss)
    return engine, call.with_arguments((*checked, weight))


class Signature(NamedTuple):
    """What errors say of a function. It is read beforehand, for TorchDynamo cannot read it."""

    title: str
    known: tuple[str, ...]
    places: tuple[str, ...]
    own: int
    """1 if there is a `self`, which is not among the others."""


def signature_of(function: Callable[..., Any]) -> Signature:
    """Read the signature of a function, or of a method of a class."""
    title = function.__qualname__.removesuffix(".__call__").removesuffix(".__init__")
    found = dict(inspect.signature(function).parameters)
    own = int(found.pop("self", None) is not None)
    places = [name for name in found if found[name].kind is not inspect.Parameter.KEYWORD_ONLY]
    return Signature(title, tuple(found), tuple(places), own)


def explained(
    about: Signature, args: tuple[Any, ...], keywords: dict[str, Any], error: TypeError
) -> TypeError:
    """Say more than Python does of arguments that there are not."""
    title, known, places, own = about
    given = len(args) - own
    for keyword in keywords:
        if keyword not in known:
            msg = f"{title}: there is no argument `{keyword}`; the arguments are"
            return TypeError(f"{msg} {', '.join(known)}.{elsewhere(keyword, known)}")
    if given > len(places):
        msg = f"{title}: {given} arguments are given by position, where there are {len(places)}:"
        msg += f" {', '.join(places)}."
        if "weight" in known:
            msg += " `weight` is given by name."
        if "reduction" in places:
            msg += _BEFORE_REDUCTION.replace("it", "`reduction`", 1)
        return TypeError(msg)
    return error


def elsewhere(argument: str, names: Iterable[str]) -> str:
    """Return a sentence on an argument that other libraries call otherwise, if it is one."""
    if argument in {"size_average", "reduce"}:
        return ' Of PyTorch, `size_average=False` is `reduction="sum"`, `reduce=False` "none".'
    ours = _ELSEWHERE.get(argument, "")
    return f" What is `{argument}` elsewhere is `{ours}` here." if ours in names else ""


def check_name(title: str, name: object) -> None:
    """Refuse a name that is no text."""
    if name is not None and not isinstance(name, str):
        msg = f"{title}: `name` is {_kind(name)}; it must be a text."
        raise TypeError(msg)


def _kind(value: object) -> str:
    """Return the type of a value, with its article."""
    kind = type(value).__name__
    return "None" if value is None else f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"


def check_reduction(name: str, reduction: object) -> None:
    """Refuse a reduction that is none of the three."""
    if not isinstance(reduction, str):
        msg = f"{name}: `reduction` is {_kind(reduction)}; it must be 'none', 'sum' or 'mean'."
        hint = _BEFORE_REDUCTION if reduction is None or isinstance(reduction, bool) else ""
        raise TypeError(msg + hint)
    if reduction not in REDUCTIONS:
        msg = f"{name}: `reduction` is {reduction!r}; it must be 'none', 'sum' or 'mean'."
        raise ValueError(msg)


def check_number(
    name: str,
    argument: str,
    value: object,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    alternative: str = "",
) -> None:
    """Refuse a parameter that is not a finite real number, or out of bounds."""
    low, high = bounds
    if type(value) is float and -math.inf < value < math.inf and low <= value <= high:
        return  # the rest takes longer
    if isinstance(value, bool) or not isinstance(value, Real):
        msg = (
            f"{name}: `{argument}` is {_kind(value)}; a finite real number {alternative}is needed."
        )
        raise TypeError(msg)
    # Not `isfinite`, which TorchDynamo cannot ask of a traced number. A NaN fails all of these.
    number: Any = value
    limit = _LARGEST if isinstance(value, Rational) else math.inf
    if not (-limit < number < limit and low <= number <= high):
        needed = "a finite number is needed"
        if low > -math.inf:
            needed = f"it must be between {low} and {high}"
        if low > -math.inf and high == math.inf:
            needed = f"it must be at least {low}"
        msg = f"{name}: `{argument}` is {_shown(number)}; {needed}."
        raise ValueError(msg)


def _shown(number: Any) -> str:
    try:
        return str(float(number))
    except OverflowError:
        return "too large for a float"


def check_no_array(kind: str, argument: str, value: object) -> None:
    """Refuse an array where a class is to be given numbers and names."""
    if not isinstance(value, Real) and engine_of(value) is not None:
        msg = (
            f"{kind}: `{argument}` is an array. This is the class of the loss: inputs go to an"
            f" instance of it, `{kind}()(...)`, and a margin that is an array to the function."
        )
        raise TypeError(msg)


def check_flag(name: str, argument: str, value: object) -> None:
    """Refuse what is not True or False."""
    if not isinstance(value, bool):
        msg = f"{name}: `{argument}` is {value!r:.40}; it must be True or False."
        raise TypeError(msg)


def dtype_name(dtype: Any) -> str:
    """Return the name that every library gives this dtype, such as "float32"."""
    key = type(dtype), dtype  # libraries mind being compared
    found = _NAMES.get(key)
    if found is None:
        found = _NAMES[key] = str(getattr(dtype, "name", dtype)).rpartition(".")[2]
    return found


def rounded(name: str, argument: str, value: float, dtype: Any) -> float:
    """Round a finite number to `dtype`, half to even, without any array library."""
    kind, number = dtype_name(dtype), float(value)
    digits, largest = _FORMATS[kind]
    limit = math.ldexp(1 - 2.0**-digits, largest)
    if abs(number) > limit:
        msg = f"{name}: `{argument}` is {number}, beyond the largest {kind}, {limit}."
        raise ValueError(msg)
    if kind in _CODES:
        code = _CODES[kind]
        return float(code.unpack(code.pack(number))[0])
    exponent = max(math.frexp(number)[1], 2 - largest) - digits
    return math.ldexp(round(math.ldexp(number, -exponent)), exponent)


def check_labels(xp: Any, call: "Call") -> None:
    """Raise if a label that counts is neither 1 nor -1. Reads values."""
    label = call.label
    wrong = (label != 1) & (label != -1)
    if call.weight is not None:
        counts = call.weight if call.weight.dtype == xp.bool else call.weight != 0
        wrong = wrong & counts
    if xp.any(wrong):
        _fail_labels(xp, call, label, wrong)


def _fail_labels(xp: Any, call: "Call", label: Any, wrong: Any) -> NoReturn:
    flat = xp.reshape(xp.astype(wrong, xp.int64), (-1,))
    count, first = int(xp.sum(flat)), int(xp.argmax(flat))
    value = xp.reshape(label, (-1,))[first]
    value = float(value) if "float" in dtype_name(label.dtype) else int(value)
    index: list[int] = []
    for axis in reversed(label.shape):
        first, i = divmod(first, axis)
        index.insert(0, i)
    s, is_ = ("", "is") if count == 1 else ("s", "are")
    msg = (
        f"{call.title}: `{call.loss.label}` has {count} element{s} that {is_} neither 1 nor -1;"
        f" the first is {value} at index {tuple(index)}."
    )
    if value == 0:
        msg += f" If 0 stands for -1, convert: {_TO_SIGNS}."
    raise ValueError(msg)


def _checked_parameter(call: "Call", engine: "Plain", argument: str, parameter: Any) -> Any:
    name, who, first = call.title, call.loss.inputs[0], call.operands[0]
    if isinstance(parameter, (list, tuple)):
        _fail_not_array(name, argument, parameter, f", dtype={who}.dtype")
    if type(parameter) is float or isinstance(parameter, Real) or engine_of(parameter) is None:
        alternative = "or an array of the dtype of the input "
        check_number(name, argument, parameter, call.loss.bounds, alternative)
        return engine.number(name, argument, parameter, first)
    _check_same_home(name, engine, who, first, argument, parameter)
    parameter = engine.strengthened(parameter, first.dtype)
    _check_partner(call, argument, parameter)
    return parameter


def _check_same_home(
    name: str, engine: "Plain", who: str, first: Any, argument: str, array: Any
) -> None:
    """Refuse another library and another device."""
    other = engine_of(array)
    if other is None:
        _fail_not_array(name, argument, array, f", dtype={who}.dtype")
    if other is not engine and other.name != engine.name:
        msg = (
            f"{name}: `{who}` is an array of {engine.name} but `{argument}` is an array of"
            f" {other.name}. Nothing is moved between libraries; convert one, e.g."
            f" `{argument} = xp.asarray({argument}, dtype={who}.dtype)` with the xp of `{who}`."
        )
        raise TypeError(msg)
    here, there = engine.device(first), engine.device(array)
    if here is not there and here != there and here is not None and there is not None:
        msg = (
            f"{name}: `{who}` is on device {here} but `{argument}` is on device {there}. Nothing is"
            f" copied between devices; move one, e.g."
            f" `{argument} = array_api_compat.to_device({argument}, {who}.device)`."
        )
        raise ValueError(msg)


def _check_partner(call: "Call", argument: str, array: Any, *, mask: bool | None = None) -> None:
    """Check an array that may broadcast to the losses: a parameter, or a weight, maybe a mask."""
    name, who, first = call.title, call.loss.inputs[0], call.operands[0]
    if array.dtype != first.dtype and not mask:
        bools = "" if mask is None else " (or be bool)"
        if mask is None and call.loss.label is None and "int" in dtype_name(array.dtype):
            bools = " (there is no label)"
        _fail_dtype(name, who, first.dtype, argument, array.dtype, bools)
    shape, target = array.shape, call.shape
    if shape == target:
        return
    tail = target[len(target) - len(shape) :]
    beyond = len(shape) > len(target)
    if beyond or any(a != 1 and not _may_be((a,), (b,)) for a, b in zip(shape, tail, strict=True)):
        msg = (
            f"{name}: `{argument}` has shape {tuple(shape)}, which does not broadcast to the shape"
            f" {tuple(target)} of {'the rows of ' if call.loss.rowwise else ''}`{who}`."
        )
        raise ValueError(msg)


def unknown(shape: tuple[Any, ...]) -> bool:
    """Whether a lazy library does not know a size yet: it is None or NaN."""
    return any(size is None or isinstance(size, float) for size in shape)


def _may_be(shape: tuple[Any, ...], needed: tuple[Any, ...]) -> bool:
    """Whether a shape is the one needed, as far as sizes are known."""
    return len(shape) == len(needed) and all(
        a == b or unknown((a, b)) for a, b in zip(shape, needed, strict=True)
    )


def _fail_not_array(
    name: str, argument: str, value: object, dtype: str = "", like: str = ""
) -> NoReturn:
    """Suggest an array of a dtype; a number goes everywhere where `like` has one."""
    if value is None:
        msg = f"{name}: `{argument}` is None; an array is needed."
        raise TypeError(msg)
    array = f"xp.asarray({argument}{dtype})"
    if like and isinstance(value, Real) and not isinstance(value, bool):
        array = f"xp.full_like({like}, {argument})"
    msg = (
        f"{name}: `{argument}` is {_kind(value)}, not an array. Make it one of the library you work"
        f" in, e.g. `{argument} = {array}`."
    )
    if type(value).__name__ == "MaskedArray":
        array = f"weight = ~np.ma.getmaskarray({argument})` and `{argument} = {argument}.data"
        if argument == "weight":
            array = "weight = weight.filled(0)"
        msg = (
            f"{name}: `{argument}` is a MaskedArray, whose mask would be lost. Let a weight say"
            f" what counts: `{array}`."
        )
    raise TypeError(msg)


def _fail_no_rows(name: str, who: str) -> NoReturn:
    msg = (
        f"{name}: `{who}` has shape (); a last axis is needed, along which the entries of a vector"
        f" stand. If each number is a vector, say so: `{who} = xp.reshape({who}, (1,))`."
    )
    raise ValueError(msg)


def _fail_shape(
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
    if size == partner:
        msg += f" Reshape one of them, e.g. `{argument} = xp.reshape({argument}, {needed})`."
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


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...] | None:
    length = max(len(a), len(b))
    pairs = zip((1,) * (length - len(a)) + a, (1,) * (length - len(b)) + b, strict=True)
    joint = tuple(m if n == 1 else n if m in {1, n} else -1 for m, n in pairs)
    return None if -1 in joint else joint


def _fail_label_dtype(name: str, argument: str, kind: str, dtype: Any) -> NoReturn:
    msg = (
        f"{name}: `{argument}` has dtype {dtype_name(dtype)}; it must hold 1 and -1 in a signed"
        f" integer or real floating dtype."
    )
    if kind == "bool":
        msg += f" If True stands for 1 and False for -1, convert: {_TO_SIGNS}."
    elif kind == "unsigned integer":
        msg += f" If 0 stands for -1, convert: {_TO_SIGNS}."
    raise TypeError(msg)


def _fail_input_dtype(name: str, argument: str, kind: str, dtype: Any) -> NoReturn:
    needed = (
        "float16, bfloat16, float32 or float64" if "float" in dtype_name(dtype) else "real floating"
    )
    msg = f"{name}: `{argument}` has dtype {dtype_name(dtype)}; it must be {needed}."
    if kind == "complex floating":
        msg += f" Take what you mean, e.g. `{argument} = xp.abs({argument})`."
    elif kind != "other":
        msg += f" Convert it, e.g. `{argument} = xp.astype({argument}, xp.float32)`."
    raise TypeError(msg)


def _fail_input(name: str, who: str, dtype: Any, argument: str, other: Any, kind: str) -> NoReturn:
    if kind != "real floating":
        _fail_input_dtype(name, argument, kind, other)
    _fail_dtype(name, who, dtype, argument, other)


def _fail_dtype(
    name: str, who: str, dtype: Any, argument: str, other: Any, bools: str = ""
) -> NoReturn:
    found, needed = dtype_name(other), dtype_name(dtype)
    if found == needed:  # in another byte order, which NumPy does not name
        found, needed = other.str, dtype.str
    msg = (
        f"{name}: `{argument}` has dtype {found} but `{who}` has dtype"
        f" {needed}; it must have the same{bools}. Convert it, e.g."
        f" `{argument} = xp.astype({argument}, {who}.dtype)`."
    )
    raise TypeError(msg)


def check_cotangent(engine: "Plain", value: Any, cotangent: Any) -> None:
    """Refuse a cotangent that does not have the library, device, shape and dtype of the value."""
    name = "pullback"
    _check_same_home(name, engine, "value", value, "cotangent", cotangent)
    if cotangent.dtype != value.dtype:
        _fail_dtype(name, "value", value.dtype, "cotangent", cotangent.dtype)
    if cotangent.shape != value.shape and not _may_be(cotangent.shape, value.shape):
        msg = (
            f"{name}: `cotangent` has shape {tuple(cotangent.shape)}, but the value has shape"
            f" {tuple(value.shape)}; they must be the same."
        )
        raise ValueError(msg)
