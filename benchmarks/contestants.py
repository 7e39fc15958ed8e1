"""The contestants, and the worker process that times one of them."""

import importlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

MARGIN = 1.0
LOSS = "hinge_embedding_loss"


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
    gradient: Callable[[Any, Any], Any]
    array: Callable[[np.ndarray], Any]
    labels_of_input: bool = False
    """Whether labels must have the dtype of the input."""

    def can(self, job: Job) -> bool:
        """Whether this library does the job at all."""
        return not self.labels_of_input or job.label == job.dtype


def _xpl() -> Any:
    return importlib.import_module("array_api_losses")


def _expression(x: np.ndarray, y: np.ndarray) -> Any:
    return np.where(y == 1, x, np.maximum(0, MARGIN - x)).mean()


def _expression_gradient(x: np.ndarray, y: np.ndarray) -> Any:
    slope = np.where(y == 1, 1, np.where(x < MARGIN, -1, 0)).astype(x.dtype)
    return _expression(x, y), slope / x.size


def _ours(x: Any, y: Any) -> Any:
    return getattr(_xpl(), LOSS)(x, y, MARGIN)


def _ours_gradient(x: Any, y: Any) -> Any:
    return _xpl().value_and_grad(getattr(_xpl(), LOSS))(x, y, MARGIN)


def _torch_backward(loss: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def run(x: Any, y: Any) -> Any:
        x = x.detach().requires_grad_()
        loss(x, y).backward()
        return x.grad

    return run


def _torch_own(x: Any, y: Any) -> Any:
    return importlib.import_module("torch").nn.functional.hinge_embedding_loss(x, y, margin=MARGIN)


def _from_numpy(array: np.ndarray) -> Any:
    return importlib.import_module("torch").from_numpy(array)


def _paddle(x: Any, y: Any) -> Any:
    return importlib.import_module("paddle").nn.functional.hinge_embedding_loss(x, y, MARGIN)


def _paddle_backward(x: Any, y: Any) -> Any:
    x = x.detach()
    x.stop_gradient = False
    _paddle(x, y).backward()
    return x.grad


def _jax_array(array: np.ndarray) -> Any:
    importlib.import_module("jax").config.update("jax_enable_x64", val=True)
    return importlib.import_module("jax.numpy").asarray(array)


def _ready(call: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda x, y: importlib.import_module("jax").block_until_ready(call(x, y))


def _computed(call: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda x, y: importlib.import_module("dask").compute(call(x, y))


def _dask_array(array: np.ndarray) -> Any:
    return importlib.import_module("dask.array").from_array(array, chunks=1_000_000)


CONTESTANTS = {
    "numpy": Contestant("numpy", _ours, _ours_gradient, np.asarray),
    "numpy expression": Contestant("numpy", _expression, _expression_gradient, np.asarray),
    "torch": Contestant("torch", _ours, _torch_backward(_ours), _from_numpy),
    "torch own": Contestant("torch", _torch_own, _torch_backward(_torch_own), _from_numpy),
    "jax": Contestant("jax", _ready(_ours), _ready(_ours_gradient), _jax_array),
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


def _work(contestant: Contestant) -> None:
    """Answer jobs from standard input until it ends."""
    importlib.import_module(contestant.library)
    run: Callable[[], Any] = lambda: None  # noqa: E731
    repeats = 1
    for line in sys.stdin:
        job = json.loads(line)
        answer: Any = None
        if job.pop("prepare", False):
            job = Job(**job)
            rng = np.random.default_rng(0)
            x = contestant.array(rng.standard_normal(job.size).astype(job.dtype))
            y = contestant.array(np.where(rng.random(job.size) < 0.5, 1, -1).astype(job.label))
            call = contestant.gradient if job.gradient else contestant.value
            run = lambda call=call, x=x, y=y: call(x, y)  # noqa: E731
            run()
            start = time.perf_counter()
            run()
            repeats = max(1, min(2000, int(0.02 / (time.perf_counter() - start))))
        elif "time" in job:
            start = time.perf_counter()
            for _ in range(repeats):
                run()
            answer = (time.perf_counter() - start) / repeats
        elif "held" in job:
            answer = _held(contestant.value)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _work(CONTESTANTS[sys.argv[1]])
