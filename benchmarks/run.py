"""Time the losses against the libraries' own and the plain expression, as ratios of one run.

    nox -s bench             everything, about ten minutes
    nox -s bench -- --quick  under a minute

Each contestant has a process of its own, since one library's idle threads slow down another, and
all take turns, round by round; a ratio is the median over the rounds. Inputs are random, labels are
checked, results are used. Writes benchmarks/results.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from contestants import CONTESTANTS, Job
from tqdm import tqdm

SIZES = [10, 1_000, 100_000, 4_000_000, 40_000_000]
QUICK_SIZES = [10, 100_000, 1_000_000]
PEERS = ("numpy expression", "torch own", "paddle own")


class Worker:
    """A process that times one contestant."""

    def __init__(self, name: str) -> None:
        """Start it."""
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("contestants.py")), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ask({})

    def ask(self, job: dict[str, Any]) -> Any:
        """Send a job and wait for the answer."""
        pipe, answer = self.process.stdin, self.process.stdout
        if pipe is None or answer is None:
            raise RuntimeError
        pipe.write(json.dumps(job) + "\n")
        pipe.flush()
        line = answer.readline()
        if not line:
            msg = "a worker ended early"
            raise RuntimeError(msg)
        return json.loads(line)


def measure(job: Job, workers: dict[str, Worker], rounds: int) -> list[dict[str, Any]]:
    """Let all workers take turns at one job; return a row for each."""
    able = {name: worker for name, worker in workers.items() if CONTESTANTS[name].can(job)}
    for worker in able.values():
        worker.ask({**vars(job), "prepare": True})
    times: dict[str, list[float]] = {name: [] for name in able}
    for _ in range(rounds):
        for name, worker in able.items():
            times[name].append(worker.ask({"time": True}))
    rows = []
    for name in able:
        ratios = {
            peer: statistics.median(p / t for p, t in zip(times[peer], times[name], strict=True))
            for peer in PEERS
            if peer in able
        }
        seconds = statistics.median(times[name])
        rows.append({**vars(job), "contestant": name, "seconds": seconds, "times faster": ratios})
    return rows


def main() -> None:
    """Run, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results.json"))
    options = parser.parse_args()
    jobs = [
        Job(size, dtype, label, gradient)
        for size in (QUICK_SIZES if options.quick else SIZES)
        for dtype, label in (
            [("float32", "float32")]
            if options.quick
            else [("float32", "float32"), ("float32", "int64"), ("float64", "float64")]
        )
        for gradient in (False, True)
    ]
    workers = {}
    for name in CONTESTANTS:
        try:
            workers[name] = Worker(name)
        except RuntimeError:
            print(f"left out, as its library is not installed: {name}")
    rows = []
    started = time.perf_counter()
    for job in tqdm(jobs, unit="job"):
        rows += measure(job, workers, rounds=7 if options.quick else 11)
    options.output.write_text(json.dumps(rows, indent=1), encoding="utf-8")

    print(f"\n{'':>12} {'':<22} {'time':>10}   times faster than")
    print(f"{'elements':>12} {'':<22} {'':>10}   " + "   ".join(PEERS))
    for row in rows:
        what = "value+grad" if row["gradient"] else "value"
        ratios = "   ".join(
            f"{row['times faster'][peer]:{len(peer)}.2f}"
            if peer in row["times faster"]
            else " " * len(peer)
            for peer in PEERS
        )
        kind = f"{row['dtype']}, {row['label']}, {what}"
        print(
            f"{row['size']:>12,} {row['contestant']:<22} {row['seconds'] * 1e6:>8,.0f}us"
            f"   {ratios}   {kind}"
        )
    print("\nHeld by PyTorch between forward and backward, beside the arguments (bytes):")
    for name in ("torch", "torch own"):
        if name in workers:
            held = workers[name].ask({"held": True})
            print(f"{name:>20}: {held:,}")
    print(f"Wrote {options.output} after {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
