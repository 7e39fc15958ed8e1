"""The few pieces that formulas are made of, in functions of the standard only.

`where` on random labels costs several nanoseconds an element on a CPU, because its branch cannot be
predicted. A label is a sign, so `minimum` and `maximum` can choose instead: they are vectorised
everywhere, keep NaN and are exact at infinity.

Where a library has something faster of the same meaning, its engine enters it in `FASTER`; the
formulas stay as they are, and the suite holds the two against each other.
"""

from collections.abc import Callable
from typing import Any

INFINITY = float("inf")

FASTER: dict[str, dict[str, Callable[..., Any]]] = {
    "select": {},
    "zero": {},
    "steep": {},
    "total": {},
}
"""By the name of a primitive and the name of a namespace: the library's own way to do it."""


def select(xp: Any, y: Any, a: Any, b: Any) -> Any:
    """`a` where y is 1, `b` where y is -1, NaN where y is NaN. Any other y is not allowed."""
    faster = FASTER["select"].get(xp.__name__)
    if faster is not None:
        return faster(y, a, b)
    ceiling = y * INFINITY
    return xp.maximum(xp.minimum(a, ceiling), xp.minimum(b, -ceiling))


def zero(xp: Any, y: Any) -> Any:
    """0 in the dtype of y, or an array of it; where y is NaN, whatever there is then NaN anyway.

    Not a number of Python, which some libraries would have to bring to the device first.
    """
    faster = FASTER["zero"].get(xp.__name__)
    return y - y if faster is None else faster(y)


def steep(xp: Any, d: Any) -> Any:
    """The sign of d or a multiple of it: 0 at 0, at least 1 above, at most -1 below; NaN is kept.

    Slopes bound it by the label, so that its size does not matter.
    """
    return FASTER["steep"].get(xp.__name__, xp.sign)(d)


def total(xp: Any, values: Any, dtype: Any) -> Any:
    """The sum of all values, added in `dtype`."""
    faster = FASTER["total"].get(xp.__name__)
    return xp.sum(values, dtype=dtype) if faster is None else faster(values, dtype)
