"""The checks of this project. `nox -l` lists them, `nox` runs those that are starred.

What stands behind ``--`` goes to pytest: ``nox -s "tests(numpy)" -- -k margin``.
"""

import ast
import re
import shutil
import subprocess
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.error_on_missing_interpreters = True

PYPROJECT = nox.project.load_toml("pyproject.toml")


def _backends() -> tuple[str, ...]:
    """Read `NAMES` from tests/backends.py, the one list of the libraries, without importing it."""
    for node in ast.parse(Path("tests/backends.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "NAMES" and node.value:
            names: tuple[str, ...] = ast.literal_eval(node.value)
            return names
    msg = "tests/backends.py has no `NAMES: tuple[str, ...] = (...)`"
    raise ValueError(msg)


BACKENDS = _backends()
ON_CPU = tuple(name for name in BACKENDS if name != "cupy")

nox.options.sessions = [
    "lint",
    "types",
    *(f"tests({name})" for name in ON_CPU),
    "docs",
    "examples",
    "others",
    "cluster",
    "sharded",
    "dtensor",
    "onnx",
    "standard",
    "coverage",
]


def _groups(*names: str) -> tuple[str, ...]:
    return nox.project.dependency_groups(PYPROJECT, *names)


@nox.session
def lint(session: nox.Session) -> None:
    """Check rules and format with ruff."""
    session.install(*_groups("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the package with mypy, strictly."""
    session.install(*_groups("types"))
    session.run("mypy", "--strict", "src")


@nox.session
@nox.parametrize("backend", [nox.param(name, id=name) for name in BACKENDS])
def tests(session: nox.Session, backend: str) -> None:
    """Run the suite on one library, in an environment that has no other."""
    group = _cupy_group(session) if backend == "cupy" else backend
    session.install(".", *_groups("test", group))
    processes = () if backend == "cupy" else ("--numprocesses=auto",)
    report = f"--report=.report.{backend}.json"
    _measured(session, backend, *processes, "--backend", backend, report)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation, figures and all; a warning or a dead reference fails."""
    shutil.rmtree("docs/_build", ignore_errors=True)  # figures of an older version among it
    session.install(".", *_groups("docs"))
    session.run("sphinx-build", "-W", "-n", "-b", "html", "docs", "docs/_build/html")


@nox.session
def examples(session: nox.Session) -> None:
    """Run every example: README, documentation, docstrings and the scripts in examples/."""
    session.install(".[examples]", *_groups("test", *ON_CPU))
    places = ("README.md", "docs", "src", "examples", "tests/test_examples.py")
    _pytest(session, *places)


@nox.session
def cluster(session: nox.Session) -> None:
    """Run Dask on two worker processes, from files, and kill one of them."""
    _beyond(session, "cluster", "cluster")


@nox.session
def sharded(session: nox.Session) -> None:
    """Run JAX arrays that lie over eight simulated devices."""
    flags = "--xla_force_host_platform_device_count=8"
    _beyond(session, "sharded", "jax", XLA_FLAGS=flags)


@nox.session
def dtensor(session: nox.Session) -> None:
    """Run PyTorch's DTensor over two processes."""
    _beyond(session, "dtensor", "torch")


@nox.session
def onnx(session: nox.Session) -> None:
    """Export losses and gradients to ONNX, and run them there."""
    _beyond(session, "onnx", "onnx", "--numprocesses=auto")


@nox.session
def standard(session: nox.Session) -> None:
    """Run libraries that the package has no module for: Cubed and sparse."""
    _beyond(session, "standard", "standard", "--numprocesses=auto")


@nox.session
def coverage(session: nox.Session) -> None:
    """Add up what the tests reached; less than every line and branch fails."""
    if session.posargs:
        session.skip("the tests ran with arguments of their own, perhaps not all of them")
    session.install(*_groups("coverage"))
    session.run("coverage", "combine")
    session.run("coverage", "report")


@nox.session
def conformance(session: nox.Session) -> None:
    """Write docs/conformance.md from what the last tests of each library reported."""
    reports = [f".report.{name}.json" for name in BACKENDS if Path(f".report.{name}.json").exists()]
    session.run("python", "docs/conformance.py", *reports)


@nox.session
def others(session: nox.Session) -> None:
    """Compare with the libraries that people come from, as the documentation says they compare."""
    session.install(".", *_groups("test", "torch", "paddle", "others"))
    _pytest(session, "docs/coming-from.md")
    witnesses = ("tests/test_witnesses.py", "--backend", "numpy", "-k", "paddle")
    _pytest(session, *witnesses)


@nox.session
def all_backends(session: nox.Session) -> None:
    """Run everything in one environment that has all libraries."""
    session.install(".[examples]", *_groups("test", *ON_CPU))
    _pytest(session)


@nox.session(python="3.11")
@nox.parametrize("backend", [nox.param(name, id=name) for name in ON_CPU])
def minimum(session: nox.Session, backend: str) -> None:
    """Run the suite on one library, with the oldest releases that pyproject.toml allows."""
    wanted = (*PYPROJECT["project"]["dependencies"], *_groups("test", backend))
    session.install(".", *(requirement.replace(">=", "==") for requirement in wanted))
    _pytest(session, "--numprocesses=auto", "--backend", backend)


@nox.session
def bench(session: nox.Session) -> None:
    """Time the losses against those of the libraries; arguments go to benchmarks/run.py."""
    session.install(".", *_groups("numpy", "torch", "jax", "dask", "paddle", "bench"))
    session.run("python", "benchmarks/run.py", *session.posargs)


def _beyond(session: nox.Session, name: str, group: str, *arguments: str, **env: str) -> None:
    """Run the tests of more than one process or device, of another runtime or other libraries."""
    session.install(".", *_groups("test", group))
    _measured(session, name, f"tests/beyond/test_{name}.py", *arguments, **env)


def _measured(session: nox.Session, name: str, *arguments: str, **env: str) -> None:
    """Run tests, and keep what they reached; the session `coverage` judges the sum."""
    measure = ("--cov=array_api_losses", "--cov-branch", "--cov-report=", "--cov-fail-under=0")
    _pytest(session, *arguments, *measure, COVERAGE_FILE=f".coverage.{name}", **env)


def _pytest(session: nox.Session, *arguments: str, **env: str) -> None:
    """Run tests; one that takes more than ten minutes waits for what never comes, and fails."""
    session.run("pytest", "--timeout=600", *arguments, *session.posargs, env=env)


def _cupy_group(session: nox.Session) -> str:
    """Choose the CuPy that fits the driver; without a GPU the session fails, it does not skip."""
    try:
        shown = subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        shown = ""
    version = re.search(r"CUDA Version: *(\d+)", shown)
    if version is None:
        session.error("tests(cupy) needs a CUDA GPU, and `nvidia-smi` shows none here.")
    return f"cupy-cuda{max(12, min(int(version[1]), 13))}"
