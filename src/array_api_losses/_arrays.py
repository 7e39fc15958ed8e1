"""What the arguments of a call must agree on, and the text of every error.

Everything is checked here before anything is computed, and nothing is moved, cast or written to.
"""

import inspect
import math
import struct
import sys
from collections.abc import Callable, Iterable
from numbers import Rational, Real
from typing import TYPE_CHECKING, Any, NoReturn

from array_api_losses._engines import engine_of

if TYPE_CHECKING:
    from array_api_losses._engines.plain import Plain
    from array_api_losses._loss import Call, Loss

REDUCTIONS = ("none", "sum", "mean")
_TEXT = (str, type(None))

_TO_SIGNS = "`label = 2 * xp.astype(label, xp.int8) - 1`"

_ELSEWHERE = {
    "target": "label",
    "y_true": "label",
    "y_pred": "input",
    "anchor": "input",
    "input1": "input",
    "input2": "other",
    "eps": "epsilon",
    "mask": "weight",
    "sample_weight": "weight",
    "size_average": "reduction",
    "reduce": "reduction",
}
"""What arguments of other libraries are here."""

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
        like = "" if argument == loss.label else who
        _fail_not_array(name, argument, array, like, f"{who}.shape{'[:-1]' if rows else ''}")
    _check_same_home(name, engine, who, first, argument, array)
    needed = first.shape[:-1] if rows else first.shape
    if array.shape != needed and not unknown(array.shape, needed):
        _fail_shape(name, who, first.shape, argument, array.shape, rows=rows)
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


def explained(
    bind: Callable[..., Any], args: tuple[Any, ...], keywords: dict[str, Any], error: TypeError
) -> TypeError:
    """Say more than Python does of arguments that there are not."""
    title = bind.__qualname__.removesuffix(".__call__").removesuffix(".__init__")
    known = dict(inspect.signature(bind).parameters)
    given = len(args) - (known.pop("self", None) is not None)
    for keyword in keywords:
        if keyword not in known:
            msg = f"{title}: there is no argument `{keyword}`; the arguments are"
            return TypeError(f"{msg} {', '.join(known)}.{elsewhere(keyword, known)}")
    places = [name for name in known if known[name].kind is not inspect.Parameter.KEYWORD_ONLY]
    if given > len(places):
        msg = f"{title}: {given} arguments are given by position, where there are {len(places)}:"
        msg += f" {', '.join(places)}."
        if "reduction" in places:
            msg += " PyTorch has two deprecated ones before `reduction`: name it, `reduction=`."
        return TypeError(msg)
    return error


def elsewhere(argument: str, names: Iterable[str]) -> str:
    """Return a sentence on an argument that other libraries call otherwise, if it is one."""
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
        raise TypeError(msg)
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
            f"{kind}: `{argument}` is an array. This is the class of the loss: arrays go to an"
            f" instance of it, `{kind}()(...)`, or to the function."
        )
        raise TypeError(msg)


def check_flag(name: str, argument: str, value: object) -> None:
    """Refuse what is not True or False."""
    if not isinstance(value, bool):
        msg = f"{name}: `{argument}` is {value!r}; it must be True or False."
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
        _fail_not_array(name, argument, parameter, who)
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
        _fail_not_array(name, argument, array, who)
    if other is not engine and other.name != engine.name:
        msg = (
            f"{name}: `{who}` is a {engine.name} array but `{argument}` is a {other.name} array."
            f" Nothing is moved between libraries; convert one, e.g."
            f" `{argument} = xp.asarray({argument})` with the xp of `{who}`."
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
        _fail_dtype(name, who, first.dtype, argument, array.dtype, bools)
    shape, target = array.shape, call.shape
    if shape == target or unknown(shape, target):
        return
    tail = target[len(target) - len(shape) :]
    if len(shape) > len(target) or any(a not in {1, b} for a, b in zip(shape, tail, strict=True)):
        msg = (
            f"{name}: `{argument}` has shape {tuple(shape)}, which does not broadcast to the shape"
            f" {tuple(target)} of {'the rows of ' if call.loss.rowwise else ''}`{who}`."
        )
        raise ValueError(msg)


def unknown(*shapes: tuple[Any, ...]) -> bool:
    """Whether a lazy library does not know a size yet: it is None or NaN."""
    return any(size is None or isinstance(size, float) for shape in shapes for size in shape)


def _fail_not_array(
    name: str, argument: str, value: object, like: str = "", shape: str = ""
) -> NoReturn:
    """Suggest an array of the dtype of `like`; a number goes everywhere in `shape`."""
    if value is None:
        msg = f"{name}: `{argument}` is None; an array is needed."
        raise TypeError(msg)
    dtype = f", dtype={like}.dtype" if like else ""
    array = f"xp.asarray({argument}{dtype})"
    if shape and isinstance(value, Real):
        array = f"xp.full({shape}, {argument}{dtype})"
    msg = (
        f"{name}: `{argument}` is {_kind(value)}, not an array. Make it one of the library you work"
        f" in, e.g. `{argument} = {array}`."
    )
    if type(value).__name__ == "MaskedArray":
        msg = (
            f"{name}: `{argument}` is a MaskedArray, whose mask would be lost. Pass the data, and"
            f" the mask as a weight: `{argument} = {argument}.data` and `weight = ~mask`."
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
) -> NoReturn:
    shape, other = tuple(shape), tuple(other)  # torch prints its own
    have, needed = f"has shape {shape}", f"{who}.shape"
    if rows:
        shape = shape[:-1]
        have, needed = f"{have}, rows of shape {shape},", f"{needed}[:-1]"
    msg = f"{name}: `{who}` {have} but `{argument}` has shape {other}."
    size, partner = math.prod(shape), math.prod(other)
    joint = _broadcast(shape, other)
    if joint is not None:
        pairs = math.prod(joint)
        if pairs != size:
            msg += f" Broadcasting would compare {pairs} pairs, not {size}."
    if size == partner:
        msg += f" Reshape one of them, e.g. `{argument} = xp.reshape({argument}, {needed})`."
    elif joint == shape:
        msg += f" If that is meant, say so: `{argument} = xp.broadcast_to({argument}, {needed})`."
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
    msg = (
        f"{name}: `{argument}` has dtype {dtype_name(other)} but `{who}` has dtype"
        f" {dtype_name(dtype)}; it must have the same{bools}. Convert it, e.g."
        f" `{argument} = xp.astype({argument}, {who}.dtype)`."
    )
    raise TypeError(msg)


def check_cotangent(engine: "Plain", value: Any, cotangent: Any) -> None:
    """Refuse a cotangent that does not have the library, device, shape and dtype of the value."""
    name = "pullback"
    _check_same_home(name, engine, "value", value, "cotangent", cotangent)
    if cotangent.dtype != value.dtype:
        _fail_dtype(name, "value", value.dtype, "cotangent", cotangent.dtype)
    if cotangent.shape != value.shape and not unknown(cotangent.shape, value.shape):
        msg = (
            f"{name}: `cotangent` has shape {tuple(cotangent.shape)}, but the value has shape"
            f" {tuple(value.shape)}; they must be the same."
        )
        raise ValueError(msg)
