"""The oracle where a call is slow, or where there is no float64: the fixed cases in float32."""

import routes
from backends import Backend
from compare import check_gradient, check_value, cotangents, fixed_cases


def test_values(backend: Backend) -> None:
    for case in fixed_cases():
        check_value(backend, case)


def test_gradients(backend: Backend) -> None:
    for case in fixed_cases()[::5]:
        for argument in case.differentiable:
            check_gradient(backend, case, routes.ROUTES["vjp"], argument, cotangents(case))
