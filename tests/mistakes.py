"""Mistakes to plant in each loss, which the suite has to notice.

They are written out, so that every mode can trace or compile them.
"""

import importlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import reference

from array_api_losses._loss import Loss
from array_api_losses._primitives import dot, length, moderate, root, select, steep

Kernel = Callable[..., Any]


def _cos(xp: Any, a: Any, b: Any, squares: Any = None) -> Any:
    (a, *_), (b, *_) = moderate(xp, a), moderate(xp, b)
    squares = dot(xp, a, a) * dot(xp, b, b) if squares is None else squares(xp, a, b)
    return dot(xp, a, b) * root(xp, squares, 2)[1]


def _hinge(xp: Any, excess: Any) -> Any:
    return xp.maximum(excess, xp.zeros_like(excess))


class Options(NamedTuple):
    p: float
    epsilon: float
    swap: bool


def _distance(d: Options, xp: Any, a: Any, b: Any, **changed: Any) -> Any:
    options = {"p": d.p, "epsilon": d.epsilon, **changed}
    return length(xp, a - b + options["epsilon"], options["p"])


def _far(d: Options, xp: Any, a: Any, b: Any, c: Any, **changed: Any) -> Any:
    far = _distance(d, xp, a, c, **changed)
    return xp.minimum(far, _distance(d, xp, b, c, **changed)) if d.swap else far


VALUES: dict[str, dict[str, Kernel]] = {
    "hinge_embedding_loss": {
        "labels swapped": lambda xp, x, y, m: select(xp, -y, x, xp.maximum(m - x, y - y)),
        "hinge forgotten": lambda xp, x, y, m: select(xp, y, x, m - x),
        "margin ignored": lambda xp, x, y, m: select(xp, y, x, xp.maximum(1 - x, y - y)),
        "margin negated": lambda xp, x, y, m: select(xp, y, x, xp.maximum(-m - x, y - y)),
        "hinge on similar pairs too": lambda xp, x, y, m: select(
            xp, y, xp.maximum(x, y - y), xp.maximum(m - x, y - y)
        ),
        "squared": lambda xp, x, y, m: select(xp, y, x, xp.maximum(m - x, y - y)) ** 2,
        "off by one part in ten thousand": lambda xp, x, y, m: (
            select(xp, y, x, xp.maximum(m - x, y - y)) * 1.0001
        ),
    },
    "margin_ranking_loss": {
        "labels swapped": lambda xp, a, b, y, m: xp.maximum(m + y * (a - b), y - y),
        "hinge forgotten": lambda xp, a, b, y, m: m - y * (a - b),
        "margin ignored": lambda xp, a, b, y, m: xp.maximum(-y * (a - b), y - y),
        "margin negated": lambda xp, a, b, y, m: xp.maximum(-m - y * (a - b), y - y),
    },
    "cosine_embedding_loss": {
        "labels swapped": lambda xp, a, b, y, m: select(
            xp, -y, 1 - _cos(xp, a, b), xp.maximum(_cos(xp, a, b) - m, y - y)
        ),
        "hinge forgotten": lambda xp, a, b, y, m: select(
            xp, y, 1 - _cos(xp, a, b), _cos(xp, a, b) - m
        ),
        "margin ignored": lambda xp, a, b, y, m: select(
            xp, y, 1 - _cos(xp, a, b), xp.maximum(_cos(xp, a, b), y - y)
        ),
        "only one vector normalised": lambda xp, a, b, y, m: select(
            xp,
            y,
            1 - _cos(xp, a, b, lambda xp, a, b: dot(xp, a, a) ** 2),
            xp.maximum(_cos(xp, a, b, lambda xp, a, b: dot(xp, a, a) ** 2) - m, y - y),
        ),
    },
    "triplet_margin_loss": {
        "positive and negative swapped": lambda d, xp, a, b, c, m: _hinge(
            xp, _distance(d, xp, a, c) - _far(d, xp, a, c, b) + m
        ),
        "hinge forgotten": lambda d, xp, a, b, c, m: (
            _distance(d, xp, a, b) - _far(d, xp, a, b, c) + m
        ),
        "margin ignored": lambda d, xp, a, b, c, m: _hinge(
            xp, _distance(d, xp, a, b) - _far(d, xp, a, b, c)
        ),
        "swap forgotten": lambda d, xp, a, b, c, m: _hinge(
            xp, _distance(d, xp, a, b) - _distance(d, xp, a, c) + m
        ),
        "epsilon forgotten": lambda d, xp, a, b, c, m: _hinge(
            xp, _distance(d, xp, a, b, epsilon=0) - _far(d, xp, a, b, c, epsilon=0) + m
        ),
        "always the Euclidean norm": lambda d, xp, a, b, c, m: _hinge(
            xp, _distance(d, xp, a, b, p=2) - _far(d, xp, a, b, c, p=2) + m
        ),
    },
}


def records(loss: str) -> tuple[Any, str, dict[Any, Loss]]:
    """Return the module of a loss, the name of what holds its records there, and these."""
    module = importlib.import_module(f"array_api_losses.losses.{loss.removesuffix('_loss')}")
    if not hasattr(module, "_KNOWN"):
        name = loss.removesuffix("_loss").upper()
        return module, name, {None: getattr(module, name)}
    known = {}
    for options in reference.LOSSES[loss].options:
        p, epsilon, swap = {"p": 2.0, "epsilon": 1e-6, "swap": False, **options}.values()
        key = module._attribute(float(p).hex(), float(epsilon).hex(), swap)
        known[key] = module._loss(loss, p, epsilon, swap)
    return module, "_KNOWN", known


def plant(monkeypatch: pytest.MonkeyPatch, loss: str, change: Callable[[Loss], Loss]) -> None:
    """Put changed records in the place of those of a loss."""
    module, name, good = records(loss)
    changed = {key: change(record) for key, record in good.items()}
    monkeypatch.setattr(module, name, changed.get(None) or SimpleNamespace(**changed))


def with_value(kernel: Kernel) -> Callable[[Loss], Loss]:
    """Return what puts another formula into a record."""

    def change(record: Loss) -> Loss:
        options = getattr(record.value, "args", None)  # of the distances
        return replace(record, value=partial(kernel, Options(*options)) if options else kernel)

    return change


def with_slope(change: Callable[..., Any], of: int) -> Callable[[Loss], Loss]:
    """Return what breaks one slope of a record and leaves the others."""

    def changed(record: Loss) -> Loss:
        def slopes(xp: Any, wanted: tuple[bool, ...], *operands: Any) -> tuple[Any, ...]:
            found = list(record.slopes(xp, wanted, *operands))
            if wanted[of]:
                found[of] = change(xp, found[of], *operands[-len(record.operands) :])
            return tuple(found)

        return replace(record, slopes=slopes)

    return changed


def steep_at_zero(value: float) -> Kernel:
    """Return a `steep` that is not 0 at 0."""
    return lambda xp, d: steep(xp, d) + value * xp.astype(d == 0, d.dtype)


SLOPES: dict[str, dict[str, tuple[str, Callable[[Loss], Loss]]]] = {
    "hinge_embedding_loss": {
        "hinge forgotten": ("input", with_slope(lambda xp, s, x, y, m: y, 0)),
        "labels swapped": ("input", with_slope(lambda xp, s, x, y, m: s - 2 * y, 0)),
        "sign of the margin": ("margin", with_slope(lambda xp, s, *_: -s, 2)),
        "margin felt by similar pairs": (
            "margin",
            with_slope(
                lambda xp, s, x, y, m: xp.minimum(xp.maximum(steep(xp, m - x), y - y), y * y), 2
            ),
        ),
    },
    "margin_ranking_loss": {
        "sign": ("input", with_slope(lambda xp, s, *_: -s, 0)),
        "sign of the other": ("other", with_slope(lambda xp, s, *_: -s, 1)),
        "hinge forgotten": ("input", with_slope(lambda xp, s, a, b, y, m: -y, 0)),
        "sign of the margin": ("margin", with_slope(lambda xp, s, *_: -s, 3)),
    },
    "cosine_embedding_loss": {
        "sign": ("input1", with_slope(lambda xp, s, *_: -s, 0)),
        "of the other vector": ("input2", with_slope(lambda xp, s, a, *_: a, 1)),
        "length kept in": (
            "input1",
            with_slope(lambda xp, s, a, *_: s * root(xp, dot(xp, a, a), 2)[0][..., None], 0),
        ),
        "along the vector": ("input2", with_slope(lambda xp, s, a, b, *_: s + b / 64, 1)),
        "sign of the margin": ("margin", with_slope(lambda xp, s, *_: -s, 3)),
    },
    "triplet_margin_loss": {
        "sign": ("input", with_slope(lambda xp, s, *_: -s, 0)),
        "sign of the positive": ("positive", with_slope(lambda xp, s, *_: -s, 1)),
        "sign of the negative": ("negative", with_slope(lambda xp, s, *_: -s, 2)),
        "length kept in": (
            "negative",
            with_slope(lambda xp, s, a, b, c, m: s * length(xp, a - c, 2)[..., None], 2),
        ),
        "sign of the margin": ("margin", with_slope(lambda xp, s, *_: -s, 3)),
    },
}
"""The argument whose gradient is wrong, and what makes it so."""

KINKS = {
    "hinge_embedding_loss": ("input", -1),
    "margin_ranking_loss": ("other", 1),
    "cosine_embedding_loss": ("input1", 1),
    "triplet_margin_loss": ("negative", 1),
}
"""An argument whose gradient shows a wrong slope at the kink, and the sign of that in `steep`."""
