"""Time the losses against the libraries' own and the plain expression, as ratios of one run.

    nox -s bench             everything, about a quarter of an hour
    nox -s bench -- --quick  about a minute
    nox -s bench -- --loss triplet_margin_loss

Each contestant has a process of its own, since one library's idle threads slow down another, and
all take turns, round by round; a ratio is the median over the rounds. Inputs are random, labels are
checked, results are used. Memory is measured in fresh processes. Writes benchmarks/results.json and
docs/speed.png.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from contestants import CONTESTANTS, COSINE, HINGE, LOSSES, TRIPLET, Job
from matplotlib.figure import Figure
from tqdm import tqdm

HERE = Path(__file__).parent
SIZES = [10, 1_000, 100_000, 1_000_000, 4_000_000, 40_000_000]
QUICK_SIZES = [10, 100_000, 1_000_000]
LARGE = 4_000_000
ROWS, QUICK_ROWS = 100_000, 20_000
ROWWISE = [name for name, loss in LOSSES.items() if loss.row]
PAUSE = 0.01  # seconds, in which the threads of the one before stop spinning
PEERS = ("numpy expression", "torch own", "paddle own")

# What is promised of each loss: who, with gradient or not, elements or rows, dtype of the labels,
# against whom, how many times faster (less than 1: slower).
BARS = {
    HINGE: [
        ("numpy", False, 4_000_000, "float32", "numpy expression", 3.5),
        ("numpy", False, 4_000_000, "float32", "torch own", 4),
        ("numpy", False, 4_000_000, "int64", "numpy expression", 2.5),
        ("numpy", True, 4_000_000, "float32", "torch own", 4.5),
        ("numpy", True, 4_000_000, "float32", "numpy expression", 5),
        ("numpy, jit", False, 4_000_000, "float32", "numpy expression", 12),
        ("numpy, jit", False, 4_000_000, "float32", "numba by hand", 1 / 1.5),
        ("torch", False, 4_000_000, "float32", "torch own", 4),
        ("torch", True, 100_000, "float32", "torch own", 3),
        ("torch", True, 4_000_000, "float32", "torch own", 3.5),
        ("torch", True, 1_000, "float32", "torch own", 1 / 1.3),
        ("jax", False, 1_000_000, "float32", "jax expression", 2),
        ("jax", False, 1_000_000, "float32", "jax expression, jit", 1 / 1.1),
        ("numpy", False, 10, "float32", "numpy expression", 1 / 1.5),
        ("numpy", False, 10, "float32", "torch own", 1),
        ("torch", False, 10, "float32", "torch own", 1 / 1.4),
    ],
    COSINE: [("torch", True, rows, "float32", "torch own", 2) for rows in (ROWS, QUICK_ROWS)],
    TRIPLET: [("torch", True, rows, "float32", "torch own", 2) for rows in (ROWS, QUICK_ROWS)],
}

# Likewise of the memory beyond arguments and gradients: who, against whom, less than which share.
MEMORY_BAR = ("torch", "torch own", 0.1)


class Worker:
    """A process that times one contestant."""

    def __init__(self, name: str) -> None:
        """Start it."""
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "contestants.py"), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ask(None)

    def ask(self, task: str | None, job: Job | None = None) -> Any:
        """Send a task and wait for the answer."""
        pipe, answer = self.process.stdin, self.process.stdout
        if pipe is None or answer is None:
            raise RuntimeError
        pipe.write(json.dumps({"task": task, **(vars(job) if job else {})}) + "\n")
        pipe.flush()
        line = answer.readline()
        if not line:
            msg = f"the worker of {self.name} ended early"
            raise RuntimeError(msg)
        return json.loads(line)

    def end(self) -> None:
        """Let the process end."""
        self.process.communicate()


def measure(job: Job, workers: list[Worker], rounds: int) -> list[dict[str, Any]]:
    """Let all workers take turns at one job; return a row for each."""
    able = [worker for worker in workers if CONTESTANTS[worker.name].can(job)]
    for worker in able:
        worker.ask("prepare", job)
    times: dict[str, list[float]] = {worker.name: [] for worker in able}
    for _ in range(rounds):
        for worker in able:
            time.sleep(PAUSE)
            times[worker.name].append(worker.ask("time"))
    return [
        {
            **vars(job),
            "contestant": name,
            "seconds": statistics.median(own),
            "times faster": {
                peer: statistics.median(p / t for p, t in zip(theirs, own, strict=True))
                for peer, theirs in times.items()
                if peer != name
            },
        }
        for name, own in times.items()
    ]


def jobs_of(name: str, *, quick: bool) -> list[Job]:
    """Return what is timed of a loss."""
    if name == HINGE:
        kinds = [("float32", "float32"), ("float32", "int64"), ("float64", "float64")]
        return [
            Job(size, dtype, label, gradient)
            for size in (QUICK_SIZES if quick else SIZES)
            for dtype, label in kinds[: 1 if quick else None]
            for gradient in (False, True)
        ]
    sizes = (QUICK_ROWS, ROWS) if LOSSES[name].row else (QUICK_SIZES[-1], LARGE)
    size = sizes[0 if quick else 1]
    return [Job(size, "float32", "float32", gradient, name) for gradient in (False, True)]


def peaks(names: list[str], losses: list[str], *, quick: bool) -> list[dict[str, Any]]:
    """Return the memory beyond the arguments, each in a fresh process."""
    jobs = [Job(ROWS, "float32", "float32", gradient=True, loss=n) for n in losses if n in ROWWISE]
    if quick:  # as many rows: the allocator serves smaller arrays from memory it has kept
        names = [name for name in names if name in MEMORY_BAR]
    elif HINGE in losses:
        jobs = [Job(SIZES[-1], "float32", "float32", gradient) for gradient in (False, True)] + jobs
    rows = []
    for job in jobs:
        for name in tqdm(names, unit="process", desc="memory"):
            if CONTESTANTS[name].can(job):
                worker = Worker(name)
                peak = worker.ask("peak", job)
                row = {**vars(job), "contestant": name, "bytes": peak}
                rows.append({**row, "gradient bytes": job.gradient_bytes})
                worker.end()
    return rows


def import_ratio(rounds: int = 15) -> float:
    """Return how much longer this package takes to import than array-api-compat."""
    code = "import time; s = time.perf_counter(); import {}; print(time.perf_counter() - s)"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    ratios = []
    for _ in range(rounds):
        ours, compat = (
            float(
                subprocess.check_output(
                    [sys.executable, "-c", code.format(module)], env=environment
                )
            )
            for module in ("array_api_losses", "array_api_compat")
        )
        ratios.append(ours / compat)
    return statistics.median(ratios)


def _what(row: dict[str, Any]) -> str:
    return "value and gradient" if row["gradient"] else "value"


def print_times(rows: list[dict[str, Any]]) -> None:
    """Print the table of times."""
    print(f"\n{'':>12} {'':<20} {'time':>12}   times faster than")
    print(f"{'size':>12} {'':<20} {'':>12}   " + "   ".join(PEERS))
    for row in rows:
        labels = f", labels {row['label']}" if LOSSES[row["loss"]].labels else ""
        faster = row["times faster"]
        ratios = "   ".join(
            f"{faster[p]:{len(p)}.2f}" if p in faster else " " * len(p) for p in PEERS
        )
        print(
            f"{row['size']:>12,} {row['contestant']:<20} {row['seconds'] * 1e6:>10,.0f}us"
            f"   {ratios}   {row['loss']}, {row['dtype']}{labels}, {_what(row)}"
        )


def print_bars(rows: list[dict[str, Any]]) -> None:
    """Print what was promised beside what was measured."""
    print("\nPromised, and measured (times faster):")
    for loss, (name, gradient, size, label, peer, bar) in (
        (loss, bar) for loss, bars in BARS.items() for bar in bars
    ):
        wanted = loss, name, gradient, size, label, "float32"
        for row in rows:
            keys = "loss", "contestant", "gradient", "size", "label", "dtype"
            if tuple(row[key] for key in keys) == wanted and peer in row["times faster"]:
                got = row["times faster"][peer]
                of = f"{name}, {size:,}, {label if loss == HINGE else loss}"
                what = f"{of}, {'with gradient' if gradient else 'value'}"
                verdict = "met" if got >= bar else "MISSED"
                print(f"{what:<52} than {peer:<20} {bar:6.2f} {got:6.2f}  {verdict}")


def print_memory(rows: list[dict[str, Any]]) -> None:
    """Print the peaks, and what was promised of them."""
    print("\nMemory at the peak beyond the arguments:")
    for row in rows:
        of = f"{row['contestant']:<20} {row['loss']:<22} {_what(row):<20}"
        print(f"{of} {row['bytes'] / 2**20:8.1f} MiB")
    name, peer, bar = MEMORY_BAR
    beyond = {(r["loss"], r["contestant"]): r["bytes"] - r["gradient bytes"] for r in rows}
    for loss in ROWWISE:
        if (loss, name) in beyond and (loss, peer) in beyond:
            got = beyond[loss, name] / beyond[loss, peer]
            verdict = "met" if got < bar else "MISSED"
            what = f"{name}, {ROWS:,}, {loss}, beyond gradients"
            print(f"{what:<52} of {peer}, promised < {bar:.2f} {got:6.3f}  {verdict}")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the time of an element at one large size."""
    figure = Figure(figsize=(6, 6.5), layout="constrained")  # to be read on a phone too
    for axes, gradient in zip(figure.subplots(2, 1, sharex=True), (False, True), strict=True):
        chosen = sorted(
            (r["seconds"] / r["size"] * 1e9, r["contestant"])
            for r in rows
            if r["size"] == LARGE
            and r["gradient"] == gradient
            and r["label"] == "float32"
            and r["loss"] == HINGE
        )
        times, names = zip(*reversed(chosen), strict=True)
        theirs = ("expression", "own", "by hand")
        colours = ["#b0b0b0" if any(t in n for t in theirs) else "#1f77b4" for n in names]
        bars = axes.barh(names, times, color=colours)
        axes.bar_label(bars, fmt="%.2g", padding=2, fontsize=8)
        axes.set_xscale("log")
        axes.margins(x=0.15)
        axes.set_title("value and gradient" if gradient else "value")
        axes.set_xlabel("nanoseconds an element")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Mean hinge embedding loss, 4 million float32 (blue: this package)")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run, print the tables, write them and draw them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds, no files")
    parser.add_argument("--output", type=Path, default=HERE / "results.json")
    parser.add_argument("--chart", type=Path, default=HERE.parent / "docs" / "speed.png")
    parser.add_argument("--loss", action="append", choices=LOSSES, help="of these alone")
    options = parser.parse_args()
    losses = options.loss or list(LOSSES)
    jobs = [job for loss in losses for job in jobs_of(loss, quick=options.quick)]
    workers = []
    for name in CONTESTANTS:
        try:
            workers.append(Worker(name))
        except RuntimeError:
            print(f"left out, as its library is not installed: {name}")
    rows = []
    for job in tqdm(jobs, unit="job"):
        rows += measure(job, workers, rounds=5 if options.quick or job.size > LARGE else 11)
    print_times(rows)
    print_bars(rows)
    hinge = Job(1, "float32", "float32", gradient=False)
    held = {w.name: w.ask("held", hinge) for w in workers if w.name in {"torch", "torch own"}}
    print(f"\nHeld by PyTorch between forward and backward, beside the arguments (bytes): {held}")
    ratio = import_ratio()
    print(f"Importing takes {ratio:.2f} times as long as importing array_api_compat.")
    names = [worker.name for worker in workers]
    for worker in workers:
        worker.end()
    able = Path("/proc/self/clear_refs").exists()
    memory = peaks(names, losses, quick=options.quick) if able else []
    if memory:
        print_memory(memory)
    if options.quick:
        return
    machine = (
        f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}"
    )
    result = {
        "machine": machine,
        "date": time.strftime("%Y-%m-%d"),
        "times": rows,
        "memory": memory,
        "held by torch": held,
        "import": ratio,
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"Wrote {options.output}.")
    if HINGE in losses:
        draw(rows, options.chart)
        print(f"Drew {options.chart}.")


if __name__ == "__main__":
    main()
