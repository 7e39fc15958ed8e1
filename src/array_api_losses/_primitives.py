"""The few pieces that formulas are made of, in functions of the standard only.

`where` on random labels costs several nanoseconds an element on a CPU, because its branch cannot be
predicted. A label is a sign, so `minimum` and `maximum` can choose instead: they are vectorised
everywhere, keep NaN and are exact at infinity.

Where a library has something faster of the same meaning, or more exact, its engine enters it in
`FASTER`; the formulas stay as they are, and the suite holds the two against each other.
"""

from collections.abc import Callable
from typing import Any

INFINITY = float("inf")
EUCLIDEAN = 2

FASTER: dict[str, dict[str, Callable[..., Any]]] = {
    "select": {},
    "except_where": {},
    "zero": {},
    "zeros": {},
    "steep": {},
    "total": {},
    "over": {},
    "sign": {},
    "dot": {},
    "moderate": {},
    "rows_divided": {},
    "once": {},
    "scale": {},
    "root": {},
}
"""By the name of a primitive and the name of a namespace: the library's own way to do it."""


def select(xp: Any, y: Any, a: Any, b: Any) -> Any:
    """`a` where y is 1, `b` where y is -1, NaN where y is NaN. Any other y is not allowed."""
    faster = FASTER["select"].get(xp.__name__)
    if faster is not None:
        return faster(y, a, b)
    ceiling = y * INFINITY
    return xp.maximum(xp.minimum(a, ceiling), xp.minimum(b, -ceiling))


def except_where(xp: Any, condition: Any, other: Any, values: Any) -> Any:
    """`values`, but `other` where a condition holds, as it seldom does anywhere."""
    faster = FASTER["except_where"].get(xp.__name__)
    if faster is not None:
        return faster(condition, other, values)
    return xp.where(condition, other, values)


def zero(xp: Any, y: Any) -> Any:
    """0 in the dtype of y, or an array of it; where y is NaN, whatever there is then NaN anyway.

    Not a number of Python, which some libraries would have to bring to the device first.
    """
    faster = FASTER["zero"].get(xp.__name__)
    return y - y if faster is None else faster(y)


def zeros(xp: Any, v: Any) -> Any:
    """0 in the dtype of v, or an array of it as long, whatever v holds."""
    faster = FASTER["zeros"].get(xp.__name__)
    return xp.zeros_like(v) if faster is None else faster(v)


def steep(xp: Any, d: Any) -> Any:
    """The sign of d or a multiple of it: 0 at 0, at least 1 above, at most -1 below; NaN is kept.

    Slopes bound it by the label, so that its size does not matter.
    """
    return FASTER["steep"].get(xp.__name__, xp.sign)(d)


def sign(xp: Any, d: Any) -> Any:
    """The sign of d: 1, 0 or -1; NaN is kept."""
    return FASTER["sign"].get(xp.__name__, xp.sign)(d)


def total(xp: Any, values: Any, dtype: Any) -> Any:
    """The sum of all values, added in `dtype`."""
    faster = FASTER["total"].get(xp.__name__)
    return xp.sum(values, dtype=dtype) if faster is None else faster(values, dtype)


def over(xp: Any, values: Any, axes: tuple[int, ...]) -> Any:
    """The sum over some axes, which stay with length 1."""
    faster = FASTER["over"].get(xp.__name__)
    return xp.sum(values, axis=axes, keepdims=True) if faster is None else faster(values, axes)


def dot(xp: Any, a: Any, b: Any) -> Any:
    """The inner product of each row of a with that of b."""
    faster = FASTER["dot"].get(xp.__name__)
    return xp.sum(a * b, axis=-1) if faster is None else faster(a, b)


def largest(xp: Any, v: Any) -> Any:
    """The largest absolute value in each row; 0 where rows have no entries."""
    return xp.sum(v, axis=-1) if v.shape[-1] == 0 else xp.max(xp.abs(v), axis=-1)


def moderate(xp: Any, v: Any) -> tuple[Any, Any, Any]:
    """Rows divided by a size of their own, these sizes, and the sums of squares of what results.

    The squares then neither overflow nor vanish in the sum, and a row is zero, NaN or infinite only
    if it has been so before.
    """
    faster = FASTER["moderate"].get(xp.__name__)
    if faster is None:
        u, size = by_largest(xp, v)
        return u, size, dot(xp, u, u)
    found: tuple[Any, Any, Any] = faster(v)
    return found


def by_largest(xp: Any, v: Any) -> tuple[Any, Any]:
    """Rows divided by their largest absolute value, which keeps any powers within 1; and these.

    Where `scale` makes less of these, powers are as much larger.
    """
    size = scale(xp, largest(xp, v))
    size = xp.where((size > 0) & xp.isfinite(size), size, 1)
    return rows_divided(xp, v, size), size


def scale(xp: Any, size: Any) -> Any:
    """What to divide rows of a size by: it, or no less than a quarter of it.

    Autodiff takes no derivative of it, for its effect cancels out.
    """
    faster = FASTER["scale"].get(xp.__name__)
    return size if faster is None else faster(size)


def rows_divided(xp: Any, v: Any, size: Any) -> Any:
    """Rows divided by a number each."""
    faster = FASTER["rows_divided"].get(xp.__name__)
    return v / size[..., None] if faster is None else faster(v, size)


def once(xp: Any, *numbers: Any) -> tuple[Any, ...]:
    """Numbers of rows as they are, which nothing is to compute again for each entry."""
    faster = FASTER["once"].get(xp.__name__)
    return numbers if faster is None else faster(*numbers)


def root(xp: Any, s: Any, p: float) -> tuple[Any, Any]:
    """The p-th root of each s, and its reciprocal; both are 0 where s is 0. NaN is kept.

    What stands under the root is never 0, so that autodiff that goes through here finds no NaN.
    """
    faster = FASTER["root"].get(xp.__name__)
    if faster is not None:
        quick: tuple[Any, Any] = faster(s, p)
        return quick
    positive = s > 0
    safe = xp.where(positive, s, 1)
    found = xp.sqrt(safe) if p == EUCLIDEAN else safe ** (1 / p)
    return xp.where(positive, found, s), xp.where(positive, 1 / found, s)


def length(xp: Any, v: Any, p: float) -> Any:
    """The p-norm of each row, for p from 1 to infinity; rows of any size have one."""
    return length_and_slope(xp, v, p, slope=False)[0]


def length_and_slope(xp: Any, v: Any, p: float, *, slope: bool = True) -> tuple[Any, Any, Any]:
    """The p-norm of each row, and its gradient in two parts: rows, and a factor for each.

    It is the gradient of least norm where there are several: 0 at a row of zeros, 0 in entries of 0
    for p = 1, and shared out among the entries that are largest for infinite p.
    """
    if p == EUCLIDEAN:
        u, size, squares = moderate(xp, v)
        norm, reciprocal = root(xp, squares, p)
        # Not `u`, which PyTorch, compiled, would hold until the backward pass.
        return size * norm, rows_divided(xp, v, size) if slope else None, reciprocal
    if p == 1:
        norm = xp.sum(xp.abs(v), axis=-1)
        return norm, sign(xp, v) if slope else None, 1
    if p == INFINITY:
        norm = largest(xp, v)
        if not slope:
            return norm, None, 1
        top = sign(xp, v) * xp.astype(xp.abs(v) == norm[..., None], v.dtype)
        count = xp.sum(xp.abs(top), axis=-1)
        return norm, top, 1 / xp.where(count == 0, 1, count)
    u, size = by_largest(xp, v)
    norm, reciprocal = root(xp, xp.sum(xp.abs(u) ** p, axis=-1), p)
    if not slope:
        return size * norm, None, 1
    return size * norm, sign(xp, u) * (xp.abs(u) * reciprocal[..., None]) ** (p - 1), 1
