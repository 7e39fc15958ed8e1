"""The tests are tested: each planted mistake must be rejected by the suite's own comparison."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import routes
from backends import Backend
from compare import check_gradient, check_value, cotangents, fixed_cases

from array_api_losses import _loss
from array_api_losses._primitives import select, steep
from array_api_losses.losses import hinge_embedding as module

GOOD = module.HINGE_EMBEDDING
Kernel = Callable[..., Any]

VALUES: dict[str, Kernel] = {
    # Written out, so that every mode can trace or compile them.
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
}


def _slope(change: Callable[..., Any], *, of: int) -> Kernel:
    """Break one slope and leave the others."""

    def slopes(xp: Any, wanted: tuple[bool, ...], *operands: Any) -> tuple[Any, ...]:
        found = list(GOOD.slopes(xp, wanted, *operands))
        if wanted[of]:
            found[of] = change(xp, found[of], *operands)
        return tuple(found)

    return slopes


def _at_tie(xp: Any, slope: Any, x: Any, y: Any, m: Any, *, value: float) -> Any:
    tie = xp.astype((x == m) & (y < 0), x.dtype)
    return slope + value * tie


SLOPES: dict[str, tuple[str, Kernel]] = {
    "-1 at the kink": ("input", _slope(lambda *a: _at_tie(*a, value=-1.0), of=0)),
    "-1/2 at the kink": ("input", _slope(lambda *a: _at_tie(*a, value=-0.5), of=0)),
    "1 at the kink, in the margin": ("margin", _slope(lambda *a: _at_tie(*a, value=1.0), of=2)),
    "hinge forgotten": ("input", _slope(lambda xp, s, x, y, m: y, of=0)),
    "labels swapped": (
        "input",
        _slope(lambda xp, s, x, y, m: GOOD.slopes(xp, (True, False, False), x, -y, m)[0], of=0),
    ),
    "sign of the margin": ("margin", _slope(lambda xp, s, *a: -s, of=2)),
    "margin felt by similar pairs": (
        "margin",
        _slope(lambda xp, s, x, y, m: xp.maximum(steep(xp, m - x), y - y), of=2),
    ),
}


def is_rejected(check: Callable[[], None]) -> None:
    check_failed = False
    try:
        check()
    except AssertionError:
        check_failed = True
    assert check_failed, "the suite did not notice"


def _values(backend: Backend) -> None:
    for case in fixed_cases():
        check_value(backend, case)


def _gradients(backend: Backend, argument: str, route: str) -> None:
    for case in fixed_cases():
        if argument in case.differentiable:
            check_gradient(backend, case, routes.ROUTES[route], argument, cotangents(case))


@pytest.mark.parametrize("mistake", VALUES)
def test_mistakes_in_the_value(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    broken = replace(GOOD, value=VALUES[mistake])
    monkeypatch.setattr(module, "HINGE_EMBEDDING", broken)
    is_rejected(lambda: _values(backend))


@pytest.mark.parametrize("mistake", SLOPES)
@pytest.mark.parametrize("own", [False, True], ids=["vjp", "own autodiff"])
def test_mistakes_in_a_slope(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, mistake: str, own: bool
) -> None:
    if own:
        backend.require("own autodiff")
    argument, slopes = SLOPES[mistake]
    monkeypatch.setattr(module, "HINGE_EMBEDDING", replace(GOOD, slopes=slopes))
    names = routes.names(backend.library, reverse=True)
    is_rejected(lambda: _gradients(backend, argument, names[2 if own else 1]))


def _count_all(xp: Any, call: Any, dtype: Any) -> Any:
    return math.prod(call.operands[0].shape)


def _count_rows(xp: Any, call: Any, dtype: Any) -> Any:
    return call.operands[0].shape[0] + 1


@pytest.mark.parametrize("wrong", [_count_all, _count_rows])
def test_a_wrong_denominator(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, wrong: Kernel
) -> None:
    monkeypatch.setattr(_loss, "weight_sum", wrong)
    monkeypatch.setattr(module, "HINGE_EMBEDDING", replace(GOOD, name=wrong.__name__))
    is_rejected(lambda: _values(backend))
    is_rejected(lambda: _gradients(backend, "input", "vjp"))


@pytest.mark.parametrize("argument", ["input", "margin", "weight"])
def test_a_forgotten_weight(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, argument: str
) -> None:
    monkeypatch.setattr(_loss, "weighed", lambda xp, weight, values: values)
    monkeypatch.setattr(_loss, "slope_in_weight", lambda xp, w, losses, mean: losses)
    monkeypatch.setattr(module, "HINGE_EMBEDDING", replace(GOOD, name="forgotten weight"))
    is_rejected(lambda: _values(backend))
    is_rejected(lambda: _gradients(backend, argument, "vjp"))


def test_a_forgotten_cotangent(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    seed_of = _loss.seed_of
    monkeypatch.setattr(_loss, "seed_of", lambda xp, call, _, w: seed_of(xp, call, None, w))
    monkeypatch.setattr(module, "HINGE_EMBEDDING", replace(GOOD, name="forgotten cotangent"))
    is_rejected(lambda: _gradients(backend, "input", "vjp"))


def test_the_good_kernels_pass(backend: Backend) -> None:
    assert module.HINGE_EMBEDDING is GOOD
    _values(backend)
    _gradients(backend, "input", "vjp")
