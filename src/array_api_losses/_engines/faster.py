"""The primitives of formulas and the cast of results, as NumPy does them sooner or more exactly."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import array_api_compat.numpy as np
from numpy import asarray

from array_api_losses._primitives import EUCLIDEAN, by_largest

_KINDS = ("f4", "f8")
_INFINITY = {np.dtype(kind): np.asarray(math.inf, dtype=kind) for kind in _KINDS}
_ZERO = {np.dtype(kind): np.asarray(0, dtype=kind) for kind in _KINDS}
_ONE = {np.dtype(kind): np.asarray(1, dtype=kind) for kind in _KINDS}
_LARGEST = {np.dtype(kind): np.asarray(np.finfo(kind).max) for kind in _KINDS}


def _select(y: Any, a: Any, b: Any) -> Any:
    # As the generic one, but NumPy takes an array sooner than a number of Python.
    ceiling = y * _INFINITY[y.dtype]
    return np.maximum(np.minimum(a, ceiling), np.minimum(b, -ceiling))


def _except_where(condition: Any, other: Any, values: Any) -> Any:
    # `numpy.where` takes as long as three products.
    if hasattr(values, "apply"):
        return values.apply(_replaced, condition, other)
    return _replaced(values, condition, other)


def _replaced(values: Any, condition: Any, other: Any) -> Any:
    return np.where(condition, other, values) if np.count_nonzero(condition) else values


def _zero(y: Any) -> Any:
    return _ZERO[y.dtype]


def _steep(d: Any) -> Any:
    # `numpy.sign` takes as long as four products. One product is not enough for a subnormal.
    largest = _LARGEST[d.dtype]
    return d * largest * largest


_MODERATE = {np.dtype("f4"): (2.0**-60, 2.0**60), np.dtype("f8"): (2.0**-500, 2.0**500)}
"""Squares of rows between these can be multiplied with each other."""

SHORT = 2**11
"""BLAS adds up a row no longer than this with few roundings; longer ones are cut."""

PIECE = 2**16
"""So many numbers at once are added up of an array that does not lie in one piece."""


def _dot(a: Any, b: Any) -> Any:
    if a.shape[-1] <= SHORT:
        return np.vecdot(a, b)
    return a.apply(_dot_in_pieces, b) if hasattr(a, "apply") else _dot_in_pieces(a, b)


def _dot_in_pieces(a: Any, b: Any) -> Any:
    count = -(-a.shape[-1] // SHORT)
    length = a.shape[-1] // count // 32 * 32  # what is over, BLAS adds one after another
    even, shape = count * length, (*a.shape[:-1], count, length)
    found = np.vecdot(a[..., :even].reshape(shape), b[..., :even].reshape(shape)).sum(axis=-1)
    return found if even == a.shape[-1] else found + _dot(a[..., even:], b[..., even:])


def _moderate(v: Any) -> tuple[Any, Any, Any]:
    # Nearly always there is nothing to do, which costs less to see than to do.
    squares = _dot(v, v)
    if isinstance(v, np.ndarray):
        size = _sizes(v, squares)
        u = _quotients(v, size)
        return u, size, _squares(squares, u, size)
    size = v.apply(_sizes, squares)
    u = v.apply(_quotients, size)
    return u, size, squares.apply(_squares, u, size)


def _sizes(v: Any, squares: Any) -> Any:
    least, most = _MODERATE[squares.dtype]
    one, at = _ONE[squares.dtype], squares.item
    # `argmax` takes a quarter of the time of `max`; it finds NaN, which is within no bounds.
    if not squares.size or (
        at(squares.argmax()) <= most
        and (at(squares.argmin()) >= least or not v[squares < least].any())
    ):
        return one
    bad = (squares < least) | (squares > most)  # and not NaN, which no size mends
    if not bad.any():
        return one
    size = np.ones_like(squares)
    size[bad] = by_largest(np, v[bad])[1]
    return size


def _squares(squares: Any, u: Any, size: Any) -> Any:
    return squares if size is _ONE[size.dtype] else _dot(u, u)


def _quotients(v: Any, size: Any) -> Any:
    return v if size is _ONE[size.dtype] else v / size[..., None]


def _rows_divided(v: Any, size: Any) -> Any:
    if isinstance(v, np.ndarray):
        return _quotients(v, size)
    return v.apply(_quotients, size, into=_quotients_into)


def _quotients_into(v: Any, size: Any, out: Any) -> None:
    if out is not v or size is not _ONE[size.dtype]:
        np.divide(v, size[..., None], out=out)


def _root(s: Any, p: float) -> tuple[Any, Any]:
    # Nothing differentiates this, so that 0 may stand under the root. Its power is 1 where 1 / p is
    # too small for the dtype.
    zero = s == 0
    found = np.sqrt(s) if p == EUCLIDEAN else _except_where(zero, s, s ** (1 / p))
    return found, _except_where(zero, s, 1 / found)


def _total(values: Any, dtype: Any) -> Any:
    # What `numpy.sum` and array-api-compat do beforehand takes longer than a few elements do.
    if values.size <= PIECE or values.flags.forc:
        return np.add.reduce(values, None, dtype)
    # NumPy would take fewer at once, and add their sums one after another.
    flags = ["external_loop", "buffered"]
    pieces = np.nditer(values, flags, [["readonly"]], buffersize=PIECE)
    return np.add.reduce([np.add.reduce(piece, None, dtype) for piece in pieces])


_HALF, _SINGLE = np.dtype("f2"), np.dtype("f4")
_GRID = np.float32(0.75)
"""Around it, the numbers of float32 lie as far apart as those of float16 around 0."""
_BIT = np.uint32(1)
_NORMAL = np.uint32(2) * np.float32(2.0**-14).view(np.uint32)
"""Twice the bits, so without the sign, of the least float16 that is not subnormal."""


def narrowed(values: Any, dtype: Any) -> Any:
    """`values` in `dtype`.

    NumPy raises a flag for each float16 that is subnormal and rounded, which takes as long as ten
    conversions: so these are rounded beforehand.
    """
    if dtype is _HALF and values.dtype is _SINGLE:
        bits = values.view(np.uint32)
        small = bits + bits - _BIT < _NORMAL - _BIT  # and not 0
        if small.any():
            values = np.where(small, np.copysign(values + _GRID - _GRID, values), values)
    return asarray(values, dtype)


def in_one_piece(xp: Any, values: Any, axes: tuple[int, ...]) -> Any:
    """As `over`, but as exact along any axes.

    They are brought together at the end, for along a last axis NumPy adds pairwise, and along
    another one element after the other, which rounds as often as there are elements.
    """
    kept = tuple(i for i in range(values.ndim) if i not in axes)
    flat = xp.reshape(xp.permute_dims(values, (*kept, *axes)), (-1,))
    count = math.prod([values.shape[i] for i in axes])
    sums = xp.sum(xp.reshape(flat, (*[values.shape[i] for i in kept], count)), axis=-1)
    return xp.reshape(sums, tuple(1 if i in axes else n for i, n in enumerate(values.shape)))


PRIMITIVES: dict[str, Callable[..., Any]] = {
    "select": _select,
    "except_where": _except_where,
    "zero": _zero,
    "zeros": _zero,
    "root": _root,
    "steep": _steep,
    "dot": _dot,
    "moderate": _moderate,
    "rows_divided": _rows_divided,
    "total": _total,
    "over": partial(in_one_piece, np),
}
"""By their names in `FASTER`."""
