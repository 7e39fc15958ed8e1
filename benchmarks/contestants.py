"""The contestants, and the worker process that times one of them."""

import importlib
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

HINGE = "hinge_embedding_loss"
RANKING = "margin_ranking_loss"
COSINE = "cosine_embedding_loss"
TRIPLET = "triplet_margin_loss"
WARM_UP = 0.015
"""Seconds before each timing: processors, caches and threads have idled while others had a turn."""


def _hinge(x: Any, y: Any, margin: float, xp: Any = np) -> Any:
    return xp.where(y == 1, x, xp.maximum(0, margin - x)).mean()


def _hinge_gradient(x: np.ndarray, y: np.ndarray, margin: float) -> Any:
    slope = np.where(y == 1, 1, np.where(x < margin, -1, 0)).astype(x.dtype)
    return _hinge(x, y, margin), slope / x.size


def _ranking(a: np.ndarray, b: np.ndarray, y: np.ndarray, margin: float) -> Any:
    return np.maximum(0, -y * (a - b) + margin).mean()


def _ranking_gradient(a: np.ndarray, b: np.ndarray, y: np.ndarray, margin: float) -> Any:
    loss = np.maximum(0, -y * (a - b) + margin)
    slope = np.where(loss > 0, y, 0).astype(a.dtype) / a.size
    return loss.mean(), -slope, slope


def _cosine(a: np.ndarray, b: np.ndarray, y: np.ndarray, margin: float) -> Any:
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosine = (a * b).sum(axis=-1) / norms
    return np.where(y == 1, 1 - cosine, np.maximum(0, cosine - margin)).mean()


def _triplet(a: np.ndarray, b: np.ndarray, c: np.ndarray, margin: float) -> Any:
    near, far = np.linalg.norm(a - b, axis=-1), np.linalg.norm(a - c, axis=-1)
    return np.maximum(0, near - far + margin).mean()


@dataclass(frozen=True)
class Loss:
    """What the benchmarks know of a loss; PyTorch and Paddle have it under the same name."""

    inputs: int
    margin: float
    expression: Callable[..., Any]
    expression_gradient: Callable[..., Any] | None = None
    row: tuple[int, ...] = ()
    """The shape of what one loss is made of: none for elements."""
    labels: bool = True


LOSSES = {
    HINGE: Loss(1, 1.0, _hinge, _hinge_gradient),
    RANKING: Loss(2, 0.5, _ranking, _ranking_gradient),
    COSINE: Loss(2, 0.1, _cosine, row=(128,)),
    TRIPLET: Loss(3, 1.0, _triplet, row=(128,), labels=False),
}


@dataclass(frozen=True)
class Job:
    """What is to be computed: the mean, perhaps with its gradient in all inputs."""

    size: int
    """Elements, or rows."""
    dtype: str
    label: str
    gradient: bool
    loss: str = HINGE

    @property
    def gradient_bytes(self) -> int:
        """What the gradients themselves take."""
        loss = LOSSES[self.loss]
        entries = loss.inputs * self.size * math.prod(loss.row)
        return entries * np.dtype(self.dtype).itemsize if self.gradient else 0


Function = Callable[..., Any]
"""Of the arrays; computes and waits for the result."""


@dataclass(frozen=True)
class Contestant:
    """A library's arrays, and what makes a function of them that does a job."""

    library: str
    call: Callable[[Job], Function]
    array: Callable[[np.ndarray], Any]
    losses: tuple[str, ...] = tuple(LOSSES)
    gradients: tuple[str, ...] = tuple(LOSSES)
    labels_of_input: bool = False
    """Whether labels must have the dtype of the input."""

    def can(self, job: Job) -> bool:
        """Whether this library does the job at all."""
        fits = not self.labels_of_input or job.label == job.dtype
        return fits and job.loss in self.losses and (not job.gradient or job.loss in self.gradients)


@cache
def _module(name: str) -> Any:
    return importlib.import_module(name)


def _xpl() -> Any:
    return _module("array_api_losses")


def _with_margin(job: Job, function: Function) -> Function:
    margin = LOSSES[job.loss].margin
    return lambda *arrays: function(*arrays, margin)


def _expression(job: Job) -> Function:
    loss = LOSSES[job.loss]
    gradient = loss.expression_gradient if job.gradient else None
    return _with_margin(job, gradient or loss.expression)


@cache
def _function(name: str, *, gradient: bool, jit: bool) -> Function:
    loss = getattr(_xpl(), name)
    loss = _xpl().jit(loss) if jit else loss
    return _xpl().value_and_grad(loss, tuple(range(LOSSES[name].inputs))) if gradient else loss


def _ours(job: Job, *, jit: bool = False) -> Function:
    return _with_margin(job, _function(job.loss, gradient=job.gradient, jit=jit))


_jitted = partial(_ours, jit=True)


@cache
def _loop() -> Any:
    """Return the hinge written out by hand for Numba, labels unchecked."""
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


def _by_hand(job: Job) -> Function:
    loop, margin = _loop(), np.dtype(job.dtype).type(LOSSES[job.loss].margin)
    return lambda x, y: loop(x, y, margin)


def _jax_expression(job: Job) -> Function:
    return _with_margin(job, partial(_hinge, xp=_module("jax.numpy")))


def _jax_jitted(job: Job) -> Function:
    return _module("jax").jit(_jax_expression(job))


def _own(library: str) -> Callable[[Job], Function]:
    """Return what makes the library's own function, which takes the same arguments as ours."""

    def call(job: Job) -> Function:
        function = getattr(_module(library).nn.functional, job.loss)
        return partial(function, margin=LOSSES[job.loss].margin)

    return call


def _torch_tracked(tensor: Any) -> Any:
    return tensor.detach().requires_grad_()


def _paddle_tracked(tensor: Any) -> Any:
    tensor = tensor.detach()
    tensor.stop_gradient = False
    return tensor


def _backward(
    make: Callable[[Job], Function], tracked: Callable[[Any], Any] = _torch_tracked
) -> Callable[[Job], Function]:
    """Return the same, with gradients through the library's own autograd."""

    def call(job: Job) -> Function:
        loss, inputs = make(replace(job, gradient=False)), LOSSES[job.loss].inputs

        def run(*arrays: Any) -> Any:
            leaves = [tracked(array) for array in arrays[:inputs]]
            loss(*leaves, *arrays[inputs:]).backward()
            return [leaf.grad for leaf in leaves]

        return run if job.gradient else loss

    return call


def _from_numpy(array: np.ndarray) -> Any:
    return importlib.import_module("torch").from_numpy(array)


def _jax_array(array: np.ndarray) -> Any:
    importlib.import_module("jax").config.update("jax_enable_x64", val=True)
    return importlib.import_module("jax.numpy").asarray(array)


def _finished(
    make: Callable[[Job], Function], library: str, name: str
) -> Callable[[Job], Function]:
    """Return the same, finished by this function of the library."""

    def call(job: Job) -> Function:
        function, finish = make(job), getattr(_module(library), name)
        return lambda *arrays: finish(function(*arrays))

    return call


_ready = partial(_finished, library="jax", name="block_until_ready")
_computed = partial(_finished, library="dask", name="compute")


def _dask_array(array: np.ndarray) -> Any:
    return importlib.import_module("dask.array").from_array(array, chunks=1_000_000)


def _paddle_array(array: np.ndarray) -> Any:
    return importlib.import_module("paddle").to_tensor(array)


ONE = (HINGE,)
ELEMENTS = tuple(name for name, loss in LOSSES.items() if not loss.row)
CONTESTANTS = {
    "numpy": Contestant("numpy", _ours, np.asarray),
    "numpy expression": Contestant("numpy", _expression, np.asarray, gradients=ELEMENTS),
    "numpy, jit": Contestant("numba", _jitted, np.asarray, losses=ELEMENTS),
    "numba by hand": Contestant("numba", _by_hand, np.asarray, losses=ONE, gradients=()),
    "torch": Contestant("torch", _backward(_ours), _from_numpy),
    "torch own": Contestant("torch", _backward(_own("torch")), _from_numpy),
    "torch, jit": Contestant("torch", _backward(_jitted), _from_numpy, losses=ONE),
    "jax": Contestant("jax", _ready(_ours), _jax_array),
    "jax expression": Contestant(
        "jax", _ready(_jax_expression), _jax_array, losses=ONE, gradients=()
    ),
    "jax expression, jit": Contestant(
        "jax", _ready(_jax_jitted), _jax_array, losses=ONE, gradients=()
    ),
    "dask": Contestant("dask", _computed(_ours), _dask_array, losses=ONE),
    "paddle own": Contestant(
        "paddle", _backward(_own("paddle"), _paddle_tracked), _paddle_array, labels_of_input=True
    ),
}


def _held(call: Function, device: str = "cpu") -> int:
    """Return the bytes that autograd keeps between forward and backward, beside the arguments."""
    torch = importlib.import_module("torch")
    x = torch.randn(1_000_000, device=device).requires_grad_()
    y = torch.ones(1_000_000, device=device)
    saved: dict[int, int] = {}

    def pack(tensor: Any) -> Any:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call(x, y)
    own = {x.data_ptr(), y.data_ptr()}
    return sum(nbytes for pointer, nbytes in saved.items() if pointer not in own)


def _arrays(contestant: Contestant, job: Job) -> list[Any]:
    rng, loss = np.random.default_rng(0), LOSSES[job.loss]
    arrays = [
        rng.standard_normal((job.size, *loss.row), dtype=np.float32).astype(job.dtype)
        for _ in range(loss.inputs)
    ]
    if loss.labels:
        similar = rng.random(job.size, dtype=np.float32) < 0.5
        arrays.append(np.where(similar, 1, -1).astype(job.label))
    return [contestant.array(array) for array in arrays]


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
            answer = _held(contestant.call(Job(**job)))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _work(CONTESTANTS[sys.argv[1]])
