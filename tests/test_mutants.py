"""The tests are tested: each planted mistake must be rejected by the suite's own comparison."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import routes
from backends import Backend
from compare import check_gradient, check_value, cotangents, fixed_cases
from mistakes import KINKS, SLOPES, VALUES, plant, records, steep_at_zero, with_value
from reference import LOSSES

from array_api_losses import _derivatives, _loss, _pipeline

HINGE = "hinge_embedding_loss"


def pairs(table: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """Return each loss with each of its mistakes."""
    return [(loss, mistake) for loss in table for mistake in table[loss]]


def is_rejected(check: Callable[[], None]) -> None:
    check_failed = False
    try:
        check()
    except AssertionError:
        check_failed = True
    assert check_failed, "the suite did not notice"


def _values(backend: Backend, loss: str = HINGE) -> None:
    for case in fixed_cases(loss=loss):
        check_value(backend, case)


def _gradients(backend: Backend, argument: str, route: str, loss: str = HINGE) -> None:
    for case in fixed_cases(loss=loss)[:: 1 if loss == HINGE else 5]:
        if argument in case.differentiable:
            check_gradient(backend, case, routes.ROUTES[route], argument, cotangents(case))


@pytest.mark.parametrize(("loss", "mistake"), pairs(VALUES))
def test_mistakes_in_the_value(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, loss: str, mistake: str
) -> None:
    plant(monkeypatch, loss, with_value(VALUES[loss][mistake]))
    is_rejected(lambda: _values(backend, loss))


def _route(backend: Backend, *, own: bool) -> str:
    if own:
        backend.require("own autodiff")
    return routes.names(backend.library, reverse=True)[2 if own else 1]


@pytest.mark.parametrize(("loss", "mistake"), pairs(SLOPES))
@pytest.mark.parametrize("own", [False, True], ids=["vjp", "own autodiff"])
def test_mistakes_in_a_slope(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, loss: str, mistake: str, own: bool
) -> None:
    route = _route(backend, own=own)
    argument, change = SLOPES[loss][mistake]
    plant(monkeypatch, loss, change)
    is_rejected(lambda: _gradients(backend, argument, route, loss))


@pytest.mark.parametrize("loss", KINKS)
@pytest.mark.parametrize("slope", [1.0, 0.5])
@pytest.mark.parametrize("own", [False, True], ids=["vjp", "own autodiff"])
def test_a_slope_at_the_kink(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, loss: str, slope: float, own: bool
) -> None:
    route = _route(backend, own=own)
    argument, sign = KINKS[loss]
    monkeypatch.setattr(records(loss)[0], "steep", steep_at_zero(sign * slope))
    plant(monkeypatch, loss, replace)
    is_rejected(lambda: _gradients(backend, argument, route, loss))


def _count_all(xp: Any, call: Any, dtype: Any) -> Any:
    return math.prod(call.operands[0].shape)


def _count_rows(xp: Any, call: Any, dtype: Any) -> Any:
    return call.operands[0].shape[0] + 1


def _set(monkeypatch: pytest.MonkeyPatch, name: str, wrong: Callable[..., Any]) -> None:
    """Put a wrong function where the pipeline has this one, and where its derivatives do."""
    monkeypatch.setattr(_pipeline, name, wrong)
    monkeypatch.setattr(_derivatives, name, wrong)


def _renamed(name: str) -> Callable[[_loss.Loss], _loss.Loss]:
    return lambda record: replace(record, name=name)


@pytest.mark.parametrize("loss", [HINGE, "triplet_margin_loss"])
@pytest.mark.parametrize("wrong", [_count_all, _count_rows])
def test_a_wrong_denominator(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, wrong: Callable[..., Any], loss: str
) -> None:
    _set(monkeypatch, "weight_sum", wrong)
    plant(monkeypatch, loss, _renamed(wrong.__name__))
    is_rejected(lambda: _values(backend, loss))
    is_rejected(lambda: _gradients(backend, "input", "vjp", loss))


@pytest.mark.parametrize("argument", ["input", "margin", "weight"])
def test_a_forgotten_weight(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, argument: str
) -> None:
    _set(monkeypatch, "weighed", lambda xp, weight, values: values)
    monkeypatch.setattr(_derivatives, "slope_in_weight", lambda xp, w, losses, mean: losses)
    plant(monkeypatch, HINGE, _renamed("forgotten weight"))
    is_rejected(lambda: _values(backend))
    is_rejected(lambda: _gradients(backend, argument, "vjp"))


def test_a_forgotten_cotangent(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    seed_of = _derivatives.seed_of
    monkeypatch.setattr(_derivatives, "seed_of", lambda xp, call, _, w: seed_of(xp, call, None, w))
    plant(monkeypatch, HINGE, _renamed("forgotten cotangent"))
    is_rejected(lambda: _gradients(backend, "input", "vjp"))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_good_kernels_pass(backend: Backend, loss: str) -> None:
    _values(backend, loss)
    _gradients(backend, LOSSES[loss].inputs[0], "vjp", loss)
