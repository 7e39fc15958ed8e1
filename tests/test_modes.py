"""The oracle where a call is slow, or where there is no float64: the fixed cases in float32."""

import pytest
import routes
from backends import Backend
from compare import check_gradient, check_value, cotangents, fixed_cases, some_cases
from mistakes import VALUES, plant, with_value
from test_mutants import is_rejected, pairs


def test_values(backend: Backend) -> None:
    for case in [*fixed_cases(), *some_cases()]:
        check_value(backend, case)


def _some_values(backend: Backend, loss: str) -> None:
    for case in fixed_cases(loss=loss):
        check_value(backend, case)


def test_gradients(backend: Backend) -> None:
    for case in some_cases():
        for argument in case.differentiable:
            check_gradient(backend, case, routes.ROUTES["vjp"], argument, cotangents(case))


@pytest.mark.parametrize(("loss", "mistake"), pairs(VALUES))
def test_mistakes_in_the_value(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, loss: str, mistake: str
) -> None:
    plant(monkeypatch, loss, with_value(VALUES[loss][mistake]))
    is_rejected(lambda: _some_values(backend, loss))
