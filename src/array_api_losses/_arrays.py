"""What the arguments of a call must agree on.

All but what stands in arrays is checked before anything is computed, and nothing is moved or
written to.
"""

from typing import TYPE_CHECKING, Any

from array_api_losses._arguments import (
    check_name,
    check_number,
    check_reduction,
    dtype_name,
    is_real,
    unknown,
)
from array_api_losses._engines import engine_of
from array_api_losses._messages import (
    fail_device,
    fail_dtype,
    fail_input_dtype,
    fail_label_dtype,
    fail_labels,
    fail_library,
    fail_no_rows,
    fail_not_array,
    fail_partner_shape,
    fail_shape,
)

if TYPE_CHECKING:
    from array_api_losses._engines.plain import Plain
    from array_api_losses._loss import Call, Loss

_TEXT = (str, type(None))

_AGREED: dict[Any, tuple["Plain", tuple[Any, ...] | None]] = {}
"""By what the checks have seen: the engine, and the parameters if they had to be rounded."""

_MOST_AGREED = 256


def agree(call: "Call", *, compiled: bool) -> tuple["Plain", "Call"]:
    """Check the arguments against each other; return their engine, and the call.

    Where `compiled`, it is the engine that compiles.

    Numbers among the parameters come back rounded to the dtype of the inputs. What has agreed once
    is looked up from then on, since the checks take as long as the arithmetic of a small call.
    """
    loss, operands, weight, reduction, name, _ = call
    engine = engine_of(operands[0])
    if engine is None or type(reduction) is not str or type(name) not in _TEXT:
        return _checked(call, compiled=compiled)
    count = loss.first_parameter
    parameters = operands[count:]
    for parameter in parameters:
        if type(parameter) is not float:
            return _checked(call, compiled=compiled)
    inputs = operands[:count]
    arrays = inputs if weight is None else (*inputs, weight)
    shape = operands[0].shape
    if loss.rowwise and not shape:
        return _checked(call, compiled=compiled)
    traits = engine.traits(arrays)
    if traits is None:
        return _checked(call, compiled=compiled)
    shapes = None if _of_one_shape(loss, arrays) else tuple([array.shape for array in arrays])
    seen = loss, reduction, compiled, parameters, traits, shapes
    known = _AGREED.get(seen)
    if known is not None:
        engine, rounded = known
        return engine, call if rounded is None else call.with_arguments((*inputs, *rounded, weight))
    engine, call = _checked(call, compiled=compiled)
    if len(_AGREED) >= _MOST_AGREED:
        _AGREED.clear()
    rounded = call.operands[count:]
    _AGREED[seen] = engine, None if rounded == parameters else rounded
    return engine, call


def _of_one_shape(loss: "Loss", arrays: tuple[Any, ...]) -> bool:
    """Whether inputs, label and weight have the same shape, as far as they are to."""
    shape, left = arrays[0].shape, len(loss.inputs)
    for array in arrays:
        if left == 0 and loss.rowwise:
            shape = shape[:-1]
        left -= 1
        if array.shape != shape:
            return False
    return True


def _checked(call: "Call", *, compiled: bool) -> tuple["Plain", "Call"]:
    loss, operands, weight, reduction, name, _ = call
    check_name(loss.name, name)
    first, at = operands[0], loss.first_parameter
    name, who = call.title(), loss.inputs[0]
    check_reduction(name, reduction)
    engine = engine_of(first) or fail_not_array(name, who, first)
    dtype = first.dtype
    if loss.rowwise and not first.shape:
        fail_no_rows(name, who)

    if engine.kind(dtype) != "real floating":
        fail_input_dtype(name, who, engine.kind(dtype), dtype)
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


def _check_like_first(call: "Call", engine: "Plain", argument: str, array: Any) -> None:
    """Check an input or the label against the first input."""
    name, loss, first = call.title(), call.loss, call.operands[0]
    who, rows = loss.inputs[0], loss.rowwise and argument == loss.label
    if engine_of(array) is None:
        alike = _alike(engine, who, first, dtype=argument != loss.label)
        fail_not_array(name, argument, array, alike, f"{who}[..., 0]" if rows else who)
    _check_same_home(name, engine, who, first, argument, array)
    needed = first.shape[:-1] if rows else first.shape
    if array.shape != needed and not _may_be(array.shape, needed):
        vectors = loss.rowwise and not rows
        fail_shape(name, who, first.shape, argument, array.shape, rows=rows, vectors=vectors)
    if array.dtype == first.dtype:
        return
    kind = engine.kind(array.dtype)
    if argument != loss.label:
        if kind != "real floating":
            fail_input_dtype(name, argument, kind, array.dtype)
        fail_dtype(name, who, first.dtype, argument, array.dtype)
    if kind not in {"signed integer", "real floating", "other floating"}:
        fail_label_dtype(name, argument, kind, array.dtype)


def _checked_parameter(call: "Call", engine: "Plain", argument: str, parameter: Any) -> Any:
    name, who, first = call.title(), call.loss.inputs[0], call.operands[0]
    if isinstance(parameter, (list, tuple)):
        fail_not_array(name, argument, parameter, _alike(engine, who, first))
    if type(parameter) is float or is_real(parameter) or engine_of(parameter) is None:
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
        fail_not_array(name, argument, array, _alike(engine, who, first))
    if other is not engine and other.name != engine.name:
        fail_library(name, who, engine.name, argument, other.name, _alike(engine, who, first))
    here, there = engine.device(first), engine.device(array)
    if here is not there and here != there and here is not None and there is not None:
        fail_device(name, who, here, argument, there)


def _alike(engine: "Plain", who: str, first: Any, *, dtype: bool = True) -> str:
    """Return what `asarray` has to be told for an array that fits the first input."""
    told, device = f", dtype={who}.dtype" if dtype else "", engine.device(first)
    if device is None or "cpu" in str(device).lower() or not hasattr(first, "device"):
        return told
    return f"{told}, device={who}.device"


def _check_partner(call: "Call", argument: str, array: Any, *, mask: bool | None = None) -> None:
    """Check an array that may broadcast to the losses: a parameter, or a weight, maybe a mask."""
    name, who, first = call.title(), call.loss.inputs[0], call.operands[0]
    if array.dtype != first.dtype and not mask:
        bools = "" if mask is None else " (or be bool)"
        if mask is None and call.loss.label is None and "int" in dtype_name(array.dtype):
            bools = " (there is no label)"
        fail_dtype(name, who, first.dtype, argument, array.dtype, bools)
    shape, target = array.shape, call.shape()
    if len(shape) == len(target) and shape == target:  # sizes of other axes may be symbolic
        return
    tail = target[len(target) - len(shape) :]
    beyond = len(shape) > len(target)
    if beyond or any(a != 1 and not _may_be((a,), (b,)) for a, b in zip(shape, tail, strict=True)):
        fail_partner_shape(call, argument, shape)


def _may_be(shape: tuple[Any, ...], needed: tuple[Any, ...]) -> bool:
    """Whether a shape is the one needed, as far as sizes are known."""
    return len(shape) == len(needed) and all(
        a == b or unknown((a, b)) for a, b in zip(shape, needed, strict=True)
    )


def check_labels(xp: Any, call: "Call") -> None:
    """Raise if a label that counts is neither 1 nor -1. Reads values."""
    label = call.label()
    wrong = (label != 1) & (label != -1)
    if call.weight is not None:
        counts = call.weight if call.weight.dtype == xp.bool else call.weight != 0
        wrong = wrong & counts
    if xp.any(wrong):
        fail_labels(xp, call, label, wrong)


def check_cotangent(engine: "Plain", value: Any, cotangent: Any) -> None:
    """Refuse a cotangent that does not have the library, device, shape and dtype of the value."""
    name = "pullback"
    _check_same_home(name, engine, "value", value, "cotangent", cotangent)
    if cotangent.dtype != value.dtype:
        fail_dtype(name, "value", value.dtype, "cotangent", cotangent.dtype)
    if cotangent.shape != value.shape and not _may_be(cotangent.shape, value.shape):
        msg = (
            f"{name}: `cotangent` has shape {tuple(cotangent.shape)}, but the value has shape"
            f" {tuple(value.shape)}; they must be the same."
        )
        raise ValueError(msg)
