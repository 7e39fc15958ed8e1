"""Time the losses against the libraries' own and the plain expression, as ratios of one run.

    nox -s bench             everything, about a quarter of an hour
    nox -s bench -- --quick  under a minute

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

from contestants import CONTESTANTS, Job
from matplotlib.figure import Figure
from tqdm import tqdm

HERE = Path(__file__).parent
SIZES = [10, 1_000, 100_000, 1_000_000, 4_000_000, 40_000_000]
QUICK_SIZES = [10, 100_000, 1_000_000]
LARGE = 4_000_000
PAUSE = 0.01  # seconds, in which the threads of the one before stop spinning
PEERS = ("numpy expression", "torch own", "paddle own")

# What is promised: who, with gradient or not, elements, dtype of the labels, against whom, how many
# times faster (less than 1: slower).
BARS = [
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
]


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


def peaks(names: list[str], size: int) -> list[dict[str, Any]]:
    """Return the memory beyond the arguments, each in a fresh process."""
    rows = []
    for gradient in (False, True):
        job = Job(size, "float32", "float32", gradient)
        for name in tqdm(names, unit="process", desc="memory"):
            if CONTESTANTS[name].can(job):
                worker = Worker(name)
                peak = worker.ask("peak", job)
                rows.append({**vars(job), "contestant": name, "bytes": peak})
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


def print_times(rows: list[dict[str, Any]]) -> None:
    """Print the table of times."""
    print(f"\n{'':>12} {'':<20} {'time':>12}   times faster than")
    print(f"{'elements':>12} {'':<20} {'':>12}   " + "   ".join(PEERS))
    for row in rows:
        what = "value and gradient" if row["gradient"] else "value"
        faster = row["times faster"]
        ratios = "   ".join(
            f"{faster[p]:{len(p)}.2f}" if p in faster else " " * len(p) for p in PEERS
        )
        print(
            f"{row['size']:>12,} {row['contestant']:<20} {row['seconds'] * 1e6:>10,.0f}us"
            f"   {ratios}   {row['dtype']}, labels {row['label']}, {what}"
        )


def print_bars(rows: list[dict[str, Any]]) -> None:
    """Print what was promised beside what was measured."""
    print("\nPromised, and measured (times faster):")
    for name, gradient, size, label, peer, bar in BARS:
        for row in rows:
            key = row["contestant"], row["gradient"], row["size"], row["label"], row["dtype"]
            if key == (name, gradient, size, label, "float32") and peer in row["times faster"]:
                got = row["times faster"][peer]
                what = f"{name}, {size:,}, {label}, {'with gradient' if gradient else 'value'}"
                verdict = "met" if got >= bar else "MISSED"
                print(f"{what:<44} than {peer:<20} {bar:6.2f} {got:6.2f}  {verdict}")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the time of an element at one large size."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    for axes, gradient in zip(figure.subplots(1, 2, sharex=True), (False, True), strict=True):
        chosen = sorted(
            (r["seconds"] / r["size"] * 1e9, r["contestant"])
            for r in rows
            if r["size"] == LARGE and r["gradient"] == gradient and r["label"] == "float32"
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
    options = parser.parse_args()
    kinds = [("float32", "float32"), ("float32", "int64"), ("float64", "float64")]
    jobs = [
        Job(size, dtype, label, gradient)
        for size in (QUICK_SIZES if options.quick else SIZES)
        for dtype, label in kinds[: 1 if options.quick else None]
        for gradient in (False, True)
    ]
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
    held = {w.name: w.ask("held") for w in workers if w.name in {"torch", "torch own"}}
    print(f"\nHeld by PyTorch between forward and backward, beside the arguments (bytes): {held}")
    ratio = import_ratio()
    print(f"Importing takes {ratio:.2f} times as long as importing array_api_compat.")
    names = [worker.name for worker in workers]
    for worker in workers:
        worker.end()
    if options.quick:
        return
    memory = peaks(names, SIZES[-1]) if Path("/proc/self/clear_refs").exists() else []
    for row in memory:
        what = "value and gradient" if row["gradient"] else "value"
        print(f"{row['contestant']:<20} {what:<20} {row['bytes'] / 2**20:8.1f} MiB")
    machine = (
        f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}"
    )
    result = {
        "machine": machine,
        "date": time.strftime("%Y-%m-%d"),
        "times": rows,
        "memory at 40 million": memory,
        "held by torch": held,
        "import": ratio,
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(rows, options.chart)
    print(f"Wrote {options.output} and {options.chart}.")


if __name__ == "__main__":
    main()
