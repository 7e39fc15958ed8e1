"""The oracle where a call is slow, or where there is no float64: the fixed cases in float32."""

from dataclasses import replace

import pytest
import routes
from backends import Backend
from compare import check_gradient, check_value, cotangents, fixed_cases, some_cases
from test_mutants import GOOD, VALUES, is_rejected, module


def test_values(backend: Backend) -> None:
    for case in [*fixed_cases(), *some_cases()]:
        check_value(backend, case)


def test_gradients(backend: Backend) -> None:
    for case in some_cases():
        for argument in case.differentiable:
            check_gradient(backend, case, routes.ROUTES["vjp"], argument, cotangents(case))


@pytest.mark.parametrize("mistake", VALUES)
def test_mistakes_in_the_value(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    monkeypatch.setattr(module, "HINGE_EMBEDDING", replace(GOOD, value=VALUES[mistake]))
    is_rejected(lambda: test_values(backend))
