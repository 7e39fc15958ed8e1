"""Write conformance.md from what the last runs of the suite reported (`nox -s conformance`)."""

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
GROUPS = {
    "test_values": "values",
    "test_gradients": "gradients",
    "test_rows": "rows",
    "test_errors": "errors",
    "test_properties": "properties",
    "test_mutants": "mistakes caught",
    "test_jit": "`jit`",
    "test_modes": "oracle alone",
}
HEAD = """# Conformance

One suite runs on every library, in several modes each, against the same exact oracle. This page is
written from such runs by `nox -s conformance`; a number says how many tests passed, and a dash that
the group is not for that row. Each test of a row is skipped only where the table of features in
`tests/backends.py` says that the library lacks something.

Where a library stands without a mode, its arrays are as it makes them. The modes: `plain` is the
path of libraries without an engine, `blocks` cuts even small arrays into blocks on two threads,
`readonly`, `strided`, `subclass` and `memmap` say how arrays lie in memory, `strictest` is
array-api-strict without boolean indexing, data-dependent shapes and extensions, `device1` another
device of it and `no_float64` one without that dtype, `float64` another default dtype of PyTorch,
`kernels` what PyTorch does on CUDA, and on arrays of NumPy what CuPy does, with a compiler for the
CPU in place of theirs, and threads that take turns, `x32` JAX without 64 bits, `mismatched` arrays
of Dask whose chunks differ; `jit`, `vmap` and `compile` wrap the call. Dask runs under a scheduler
that refuses to compute anything inside of a call.
"""

ON_A_GPU = """## On a GPU

CI has none. What follows was run by hand, on one NVIDIA H200, and not again after every change.

| `--backend` | passed | failed | not reached |
| --- | --- | --- | --- |
| `cupy` (CuPy 14.2), in all its modes | 795 | 0 | 2 |
| `torch:cuda` (PyTorch 2.11) | 706 | 0 | 1 |
| `jax:cuda` (JAX 0.11) | 492 | 0 | 0 |

Two runs were cut off; what they did not reach had passed in runs before. Since then, some of what
CuPy does around its kernels has changed: how they are looked up and, for more than 500 million
elements, how many threads add up and how views are indexed. Without a GPU, that runs in the mode
`kernels`. Of `jit` on PyTorch, what is done around what is compiled has changed, and
margins come to kernels by value."""


def main(paths: list[str]) -> None:
    """Join the reports into one table."""
    versions, rows = [], {}
    for path in paths:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        versions.append(report["backends"].removeprefix("backends: "))
        rows |= sorted(report["rows"].items())
    lines = [HEAD, f"Versions: {', '.join(versions)}.", ""]
    lines += ["| | " + " | ".join(GROUPS.values()) + " |", "| --- " * (len(GROUPS) + 1) + "|"]
    for name, row in rows.items():
        cells = []
        for module in GROUPS:
            counts = row.get(module, {})
            failed = f", {counts['failed']} failed" if "failed" in counts else ""
            cells.append(f"{counts.get('passed', '-')}{failed}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", ON_A_GPU]
    (HERE / "conformance.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
