"""What CuPy alone has: the pipeline of an elementwise loss as one kernel."""

import itertools

import pytest
from backends import Backend
from compare import some_cases
from reference import LOSSES

import array_api_losses as xpl

pytestmark = pytest.mark.library("cupy")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_kernel_is_fused_in_the_fast_way(backend: Backend, dtype: str) -> None:
    """At any error `cupy.fuse` turns, silently and for good, to a way that is much slower."""
    from array_api_losses._engines import cupy as engine

    for case in some_cases(dtype):
        if not LOSSES[case.loss].rowwise:
            arrays = case.arrays(backend)
            for call in (case.function, xpl.value_and_grad(case.function, case.differentiable)):
                call(**arrays, **case.keywords)
    assert engine.KERNELS
    assert all(kernel.new_fusion is None for kernel in engine.KERNELS)


@pytest.mark.parametrize("name", LOSSES)
def test_results_lie_where_the_arrays_do(backend: Backend, name: str) -> None:
    """Whichever device is the current one; with a single one, there is not much to see."""
    cuda = backend.module.cuda
    devices = [cuda.Device(i) for i in range(cuda.runtime.getDeviceCount())]
    cases = [case for case in some_cases() if case.loss == name]
    for own, current, case in itertools.product(devices, devices, cases):
        with own:
            arrays = case.arrays(backend)
        with current:
            both = xpl.value_and_grad(case.function, case.differentiable)
            value, gradients = both(**arrays, **case.keywords)
        assert {array.device.id for array in (value, *gradients)} == {own.id}
