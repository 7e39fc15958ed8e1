"""What runs on an accelerator goes on while the device works."""

from functools import partial
from typing import Any

import pytest
from backends import Backend
from compare import REDUCTIONS, check_value, some_cases
from reference import LOSSES

import array_api_losses as xpl

pytestmark = pytest.mark.library("cupy", "torch", "jax")


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_no_call_waits_for_the_device(backend: Backend, name: str, reduction: str) -> None:
    backend.require("accelerator")
    cases = [c for c in some_cases() if c.loss == name and c.reduction == reduction]
    assert cases
    for case in cases:
        both = xpl.value_and_grad(case.function, case.differentiable)
        arrays = case.arrays(backend)
        value, _ = backend.without_waiting(partial(both, **arrays, **case.keywords))
        check_value(backend, case, lambda value=value, **_: value)


@pytest.mark.library("torch")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_backward_does_not_wait_for_the_device(
    backend: Backend, name: str, *, compiled: bool
) -> None:
    backend.require("accelerator")
    cases = [c for c in some_cases() if c.loss == name]
    for case in cases[:1] if compiled else cases:
        function = xpl.jit(case.function) if compiled else case.function
        arrays = case.arrays(backend)
        wanted = [arrays[argument].requires_grad_() for argument in case.differentiable]

        def both(
            function: Any = function, arrays: Any = arrays, case: Any = case, wanted: Any = wanted
        ) -> Any:
            value = function(**arrays, **case.keywords)
            return value.detach(), backend.module.autograd.grad(value.sum(), wanted)

        value, _ = backend.without_waiting(both)
        check_value(backend, case, lambda value=value, **_: value)
