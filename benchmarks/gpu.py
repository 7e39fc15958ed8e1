"""Time the losses on a CUDA device, as ratios of one run; needs CuPy, and PyTorch for CUDA.

    python benchmarks/gpu.py

All take turns, round by round, between two events of the device; a ratio is the median over the
rounds. A copy on the device says what its memory allows.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import cupy
import torch
from contestants import (
    CONTESTANTS,
    HINGE,
    LOSSES,
    Job,
    _arrays,
    _backward,
    _held,
    _hinge,
    _ours,
    _own,
)

LARGE, SMALL = 100_000_000, 1_000
ROUNDS = 11

# What is promised of hinge embedding: who, with gradient or not, elements, against whom, how many
# times faster.
BARS = [
    ("torch", True, LARGE, "torch own", 2),
    ("torch, jit", True, LARGE, "torch own, compiled", 1),
    ("torch", True, SMALL, "torch own", 1),
    ("torch", False, SMALL, "torch own", 1),
]
COPY_BAR = 0.8
"""The share of the bandwidth of a copy that the mean on CuPy is to reach."""

Run = Callable[[], Any]


def _seconds(run: Run, repeats: int, device: str) -> float:
    """Return the time of a run, as the device sees it."""
    if device == "cpu":
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        return (time.perf_counter() - start) / repeats
    events = cupy.cuda.Event(), cupy.cuda.Event()
    events[0].record()
    for _ in range(repeats):
        run()
    events[1].record()
    events[1].synchronize()
    return cupy.cuda.get_elapsed_time(*events) / 1e3 / repeats


def contestants(job: Job, device: str) -> dict[str, Run]:
    """Return what is timed: each a function of nothing that leaves its result on the device."""
    arrays = _arrays(CONTESTANTS["numpy"], job)
    on_cupy = [cupy.asarray(array) for array in arrays]
    on_torch = [torch.from_numpy(array).to(device) for array in arrays]
    other = cupy.empty_like(on_cupy[0])
    torch.compiler.reset()  # which gives up on a function after some kinds of call
    compiled = torch.compile(_own("torch")(job))
    jitted = _ours(replace(job, gradient=False), jit=True)
    runs = {
        "copy": partial(cupy.copyto, other, on_cupy[0]),
        "cupy": partial(_ours(job), *on_cupy),
        "torch": partial(_backward(_ours)(job), *on_torch),
        "torch own": partial(_backward(_own("torch"))(job), *on_torch),
        "torch, jit": partial(_backward(lambda _: jitted)(job), *on_torch),
        "torch own, compiled": partial(_backward(lambda _: compiled)(job), *on_torch),
    }
    if job.loss == HINGE and not job.gradient:
        runs["cupy expression"] = partial(_hinge, *on_cupy, 1.0, cupy)
    return runs


def measure(runs: dict[str, Run], device: str) -> dict[str, list[float]]:
    """Let all take turns; return their times in each round."""
    repeats = {}
    for name, run in runs.items():
        _seconds(run, 3, device)  # compiles, and fills the pools of memory
        repeats[name] = max(1, min(1000, int(0.03 / _seconds(run, 3, device))))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            times[name].append(_seconds(run, repeats[name], device))
    return times


def _times_faster(times: dict[str, list[float]], name: str, peer: str) -> float:
    return statistics.median(p / t for p, t in zip(times[peer], times[name], strict=True))


def report(times: dict[str, list[float]], job: Job) -> None:
    """Print the times of one job, and what was promised of them."""
    shape = (f"{n:,}" for n in (job.size, *LOSSES[job.loss].row))
    what = "value and gradient" if job.gradient else "value"
    print(f"\n{job.loss}, {' x '.join(shape)} float32, {what}")
    for name, own in times.items():
        print(f"  {name:<22} {statistics.median(own) * 1e6:12,.1f} us")
    for name in ("torch", "cupy"):
        print(f"  {name}: {_times_faster(times, name, 'torch own'):.2f} x torch own")
    if job.loss != HINGE:
        return
    if not job.gradient:
        # The mean reads two arrays; a copy reads one and writes one.
        share = _times_faster(times, "cupy", "copy")
        print(f"  cupy: {share:.2f} of the bandwidth of a copy (at {LARGE:,}: {COPY_BAR})")
        print(f"  cupy: {_times_faster(times, 'cupy', 'cupy expression'):.2f} x the expression")
    for name, with_gradient, elements, peer, bar in BARS:
        if (with_gradient, elements) == (job.gradient, job.size):
            print(f"  {name}: {_times_faster(times, name, peer):.2f} x {peer} (bar {bar})")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[LARGE, SMALL])
    parser.add_argument("--device", default="cuda", help='of PyTorch; "cpu" only to try the script')
    options = parser.parse_args()
    if options.device == "cuda":
        print(torch.cuda.get_device_name(), "CuPy", cupy.__version__, "PyTorch", torch.__version__)
        stream = torch.cuda.current_stream()
        cupy.cuda.ExternalStream(stream.cuda_stream).use()  # of which the events tell
    for name, size, gradient in product(LOSSES, options.sizes, (False, True)):
        rows = math.ceil(size / math.prod(LOSSES[name].row))
        job = Job(rows, "float32", "float32", gradient, name)
        report(measure(contestants(job, options.device), options.device), job)
    held = _held(_ours(Job(1, "float32", "float32", gradient=False)), options.device)
    print(f"\nHeld by PyTorch between forward and backward, beside the arguments: {held} bytes")


if __name__ == "__main__":
    main()
