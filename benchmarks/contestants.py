"""The contestants, and the worker process that times one of them."""

import importlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

MARGIN = 1.0
LOSS = "hinge_embedding_loss"
WARM_UP = 0.015
"""Seconds before each timing: processors, caches and threads have idled while others had a turn."""


@dataclass(frozen=True)
class Job:
    """What is to be computed: the mean, perhaps with its gradient in the input."""

    size: int
    dtype: str
    label: str
    gradient: bool


@dataclass(frozen=True)
class Contestant:
    """A library's arrays, and a function of (x, y) that computes and waits for the result."""

    library: str
    value: Callable[[Any, Any], Any]
    gradient: Callable[[Any, Any], Any] | None
    array: Callable[[np.ndarray], Any]
    labels_of_input: bool = False
    """Whether labels must have the dtype of the input."""

    def can(self, job: Job) -> bool:
        """Whether this library does the job at all."""
        fits = not self.labels_of_input or job.label == job.dtype
        return fits and (not job.gradient or self.gradient is not None)

    def call(self, job: Job) -> Callable[[Any, Any], Any]:
        """Return what does the job."""
        return self.gradient if job.gradient and self.gradient is not None else self.value


@cache
def _module(name: str) -> Any:
    return importlib.import_module(name)


def _xpl() -> Any:
    return _module("array_api_losses")


def _expression(x: np.ndarray, y: np.ndarray) -> Any:
    return np.where(y == 1, x, np.maximum(0, MARGIN - x)).mean()


def _expression_gradient(x: np.ndarray, y: np.ndarray) -> Any:
    slope = np.where(y == 1, 1, np.where(x < MARGIN, -1, 0)).astype(x.dtype)
    return _expression(x, y), slope / x.size


@cache
def _function(*, gradient: bool, jit: bool) -> Callable[..., Any]:
    loss = getattr(_xpl(), LOSS)
    loss = _xpl().jit(loss) if jit else loss
    return _xpl().value_and_grad(loss) if gradient else loss


def _ours(x: Any, y: Any) -> Any:
    return _function(gradient=False, jit=False)(x, y, MARGIN)


def _ours_gradient(x: Any, y: Any) -> Any:
    return _function(gradient=True, jit=False)(x, y, MARGIN)


def _jitted(x: Any, y: Any) -> Any:
    return _function(gradient=False, jit=True)(x, y, MARGIN)


def _jitted_gradient(x: Any, y: Any) -> Any:
    return _function(gradient=True, jit=True)(x, y, MARGIN)


@cache
def _loop() -> Any:
    """Return the loss written out by hand for Numba, labels unchecked."""
    numba = importlib.import_module("numba")

    @numba.njit(parallel=True, fastmath=True)
    def loop(x: Any, y: Any, margin: Any) -> Any:
        total, zero = 0.0, x.dtype.type(0)
        for block in numba.prange((x.size + 4095) // 4096):
            part, xs, ys = zero, x[block * 4096 :][:4096], y[block * 4096 :][:4096]
            for i in range(xs.size):
                part += xs[i] if ys[i] > 0 else max(zero, margin - xs[i])
            total += part
        return total / x.size

    return loop


def _by_hand(x: np.ndarray, y: np.ndarray) -> Any:
    return _loop()(x, y, x.dtype.type(MARGIN))


def _jax_expression(x: Any, y: Any) -> Any:
    jnp = _module("jax.numpy")
    return jnp.where(y == 1, x, jnp.maximum(0, MARGIN - x)).mean()


@cache
def _in_jit() -> Any:
    return importlib.import_module("jax").jit(_jax_expression)


def _jax_jitted(x: Any, y: Any) -> Any:
    return _in_jit()(x, y)


def _torch_backward(loss: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def run(x: Any, y: Any) -> Any:
        x = x.detach().requires_grad_()
        loss(x, y).backward()
        return x.grad

    return run


def _torch_own(x: Any, y: Any) -> Any:
    return _module("torch").nn.functional.hinge_embedding_loss(x, y, margin=MARGIN)


def _from_numpy(array: np.ndarray) -> Any:
    return importlib.import_module("torch").from_numpy(array)


def _paddle(x: Any, y: Any) -> Any:
    return _module("paddle").nn.functional.hinge_embedding_loss(x, y, MARGIN)


def _paddle_backward(x: Any, y: Any) -> Any:
    x = x.detach()
    x.stop_gradient = False
    _paddle(x, y).backward()
    return x.grad


def _jax_array(array: np.ndarray) -> Any:
    importlib.import_module("jax").config.update("jax_enable_x64", val=True)
    return importlib.import_module("jax.numpy").asarray(array)


def _ready(call: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda x, y: _module("jax").block_until_ready(call(x, y))


def _computed(call: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda x, y: _module("dask").compute(call(x, y))


def _dask_array(array: np.ndarray) -> Any:
    return importlib.import_module("dask.array").from_array(array, chunks=1_000_000)


CONTESTANTS = {
    "numpy": Contestant("numpy", _ours, _ours_gradient, np.asarray),
    "numpy expression": Contestant("numpy", _expression, _expression_gradient, np.asarray),
    "numpy, jit": Contestant("numba", _jitted, _jitted_gradient, np.asarray),
    "numba by hand": Contestant("numba", _by_hand, None, np.asarray),
    "torch": Contestant("torch", _ours, _torch_backward(_ours), _from_numpy),
    "torch own": Contestant("torch", _torch_own, _torch_backward(_torch_own), _from_numpy),
    "torch, jit": Contestant("torch", _jitted, _torch_backward(_jitted), _from_numpy),
    "jax": Contestant("jax", _ready(_ours), _ready(_ours_gradient), _jax_array),
    "jax expression": Contestant("jax", _ready(_jax_expression), None, _jax_array),
    "jax expression, jit": Contestant("jax", _ready(_jax_jitted), None, _jax_array),
    "dask": Contestant("dask", _computed(_ours), _computed(_ours_gradient), _dask_array),
    "paddle own": Contestant(
        "paddle",
        _paddle,
        _paddle_backward,
        lambda array: importlib.import_module("paddle").to_tensor(array),
        labels_of_input=True,
    ),
}


def _held(call: Callable[[Any, Any], Any]) -> int:
    """Return the bytes that autograd keeps between forward and backward, beside the arguments."""
    torch = importlib.import_module("torch")
    x, y = torch.randn(1_000_000).requires_grad_(), torch.ones(1_000_000)
    saved: dict[int, int] = {}

    def pack(tensor: Any) -> Any:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call(x, y)
    own = {x.data_ptr(), y.data_ptr()}
    return sum(nbytes for pointer, nbytes in saved.items() if pointer not in own)


def _arrays(contestant: Contestant, job: Job) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(job.size, dtype=np.float32).astype(job.dtype)
    y = np.where(rng.random(job.size, dtype=np.float32) < 0.5, 1, -1).astype(job.label)
    return contestant.array(x), contestant.array(y)


def _memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def _peak(contestant: Contestant, job: Job) -> int:
    """Return how far the resident memory rises above what it is before the call."""
    call = contestant.call(job)
    call(*_arrays(contestant, replace(job, size=1000)))
    arrays = _arrays(contestant, job)
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    call(*arrays)
    return _memory("VmHWM") - before


def _work(contestant: Contestant) -> None:
    """Answer jobs from standard input until it ends."""
    importlib.import_module(contestant.library)
    run: Callable[[], Any] = _xpl
    repeats = 1
    for line in sys.stdin:
        job = json.loads(line)
        task = job.pop("task", None)
        answer: Any = None
        if task == "prepare":
            run = partial(contestant.call(Job(**job)), *_arrays(contestant, Job(**job)))
            run()
            start = time.perf_counter()
            run()
            repeats = max(1, min(2000, int(0.02 / (time.perf_counter() - start))))
        elif task == "time":
            start = time.perf_counter()
            while time.perf_counter() < start + WARM_UP:
                run()
            start = time.perf_counter()
            for _ in range(repeats):
                run()
            answer = (time.perf_counter() - start) / repeats
        elif task == "peak":
            answer = _peak(contestant, Job(**job))
        elif task == "held":
            answer = _held(contestant.value)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _work(CONTESTANTS[sys.argv[1]])
