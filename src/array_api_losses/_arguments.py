"""What each argument must be by itself, whatever the others are: names, reductions, numbers."""

import math
import sys
from typing import Any

from array_api_losses._engines import engine_of

REDUCTIONS = ("none", "sum", "mean")
BEFORE_REDUCTION = " In PyTorch two deprecated arguments precede it: name it, `reduction=`."

_LARGEST = sys.float_info.max

# Digits and largest exponent, as `math.frexp` counts them.
FORMATS = {
    "float16": (11, 16),
    "bfloat16": (8, 128),
    "float32": (24, 128),
    "float64": (53, 1024),
}


def check_name(title: str, name: object) -> None:
    """Refuse a name that is no text."""
    if name is not None and not isinstance(name, str):
        msg = f"{title}: `name` is {kind_of(name)}; it must be a text."
        raise TypeError(msg)


def check_reduction(name: str, reduction: object) -> None:
    """Refuse a reduction that is none of the three."""
    if not isinstance(reduction, str):
        msg = f"{name}: `reduction` is {kind_of(reduction)}; it must be 'none', 'sum' or 'mean'."
        hint = BEFORE_REDUCTION if reduction is None or isinstance(reduction, bool) else ""
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
    import numbers  # here, as in `is_real`

    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        msg = f"{name}: `{argument}` is {kind_of(value)}; a finite real number {alternative}is"
        msg += " needed."
        raise TypeError(msg)
    # Not `isfinite`, which TorchDynamo cannot ask of a traced number. A NaN fails all of these.
    number: Any = value
    finite = -math.inf < number < math.inf
    if isinstance(value, numbers.Rational):
        finite = -_LARGEST <= number <= _LARGEST
    if not (finite and low <= number <= high):
        needed = "a finite number is needed"
        if low > -math.inf:
            needed = f"it must be between {low} and {high}"
        if low > -math.inf and high == math.inf:
            needed = f"it must be at least {low}"
        msg = f"{name}: `{argument}` is {_shown(number)}; {needed}."
        raise ValueError(msg)


def check_no_array(kind: str, argument: str, value: object) -> None:
    """Refuse an array where a class is to be given numbers and names."""
    if not is_real(value) and engine_of(value) is not None:
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


def rounded(name: str, argument: str, value: float, dtype: Any) -> float:
    """Round a finite number to `dtype`, half to even, without any array library."""
    kind, number = dtype_name(dtype), float(value)
    digits, largest = FORMATS[kind]
    limit = math.ldexp(1 - 2.0**-digits, largest)
    if abs(number) > limit:
        msg = f"{name}: `{argument}` is {number}, beyond the largest {kind}, {limit}."
        raise ValueError(msg)
    exponent = max(math.frexp(number)[1], 3 - largest) - digits
    return math.ldexp(round(math.ldexp(number, -exponent)), exponent)


def is_real(value: object) -> bool:
    """Whether a value is a real number, of Python or of another library that says so."""
    import numbers  # here, since few calls need it

    return isinstance(value, numbers.Real)


def _shown(number: Any) -> str:
    try:
        return str(float(number))
    except OverflowError:
        return "too large for a float"


def kind_of(value: object) -> str:
    """Return the type of a value, with its article."""
    kind = type(value).__name__
    return "None" if value is None else f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"


def dtype_name(dtype: Any) -> str:
    """Return the name that every library gives this dtype, such as "float32"."""
    return str(getattr(dtype, "name", dtype)).rpartition(".")[2]


def unknown(shape: tuple[Any, ...]) -> bool:
    """Whether a lazy library does not know a size yet: it is None or NaN."""
    return any(size is None or isinstance(size, float) for size in shape)
