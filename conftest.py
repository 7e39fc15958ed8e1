"""`--backend`, the fixture that every test of the suite runs on, and the documented examples."""

import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import backends
import pytest
import routes
from hypothesis import HealthCheck, settings
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser
from sybil.parsers.rest import DocTestParser
from sybil.sybil import SybilCollection

_COUNTS: dict[str, dict[str, dict[str, int]]] = {}
"""By backend, module of tests and outcome."""

# Before anything imports JAX: the suite tests float64 too, and processes may share a GPU, most of
# whose memory JAX would take at once. And Keras, which looks for TensorFlow.
os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("KERAS_BACKEND", "torch")

settings.register_profile(
    "suite",
    deadline=None,
    max_examples=25,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile(
    "long", settings.get_profile("suite"), max_examples=2000, derandomize=False
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--backend`."""
    parser.addoption(
        "--backend",
        action="append",
        default=[],
        help=f"test this backend, which must be there (may be repeated): one of"
        f" {', '.join((*backends.NAMES, *backends.MORE_NAMES, *backends.MODES))}; the name of a"
        " library stands for all its modes; by default, all that are installed",
    )

    parser.addoption("--report", help="write to this file what ran where, as JSON")


def _chosen(config: pytest.Config) -> list[str]:
    names = config.getoption("--backend") or backends.NAMES
    return [name for chosen in names for name in backends.with_modes(chosen)]


def _runs(name: str, module: str) -> bool:
    """Whether the tests of a module run on a row of the registry."""
    if name in backends.MODES:
        return module in backends.MODES[name][0]
    return module not in backends.FEW


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say what will run, and what is not installed."""
    lines = []
    for name in _chosen(config):
        if name in backends.MODES:
            continue
        backend = backends.get(name)
        try:
            version = (
                getattr(backend.module, "__version__", None)
                or sys.modules[backend.library].__version__
            )
        except Exception as error:
            version = f"not here ({error})"
        lines.append(f"{name} {version}")
    shared = getattr(config.option, "numprocesses", None)
    examples = ["examples: left out, for processes would share their pages"] if shared else []
    return ["backends: " + ", ".join(lines), *examples]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test on every backend chosen, by every route to a gradient if it takes one.

    `@pytest.mark.library("torch")` keeps a test to one library, or to one of its modes.
    """
    if "backend" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("library")
    names = [
        n
        for n in _chosen(metafunc.config)
        if _runs(n, metafunc.module.__name__)
        and (not marker or not {n, backends.Backend(n).library}.isdisjoint(marker.args))
    ]
    if "route" in metafunc.fixturenames:
        reverse = metafunc.definition.get_closest_marker("reverse_mode") is not None
        pairs = [
            (n, r)
            for n in names
            for r in (
                routes.TRANSFORMS
                if n in backends.MODES
                else routes.names(backends.Backend(n).library, reverse=reverse)
            )
        ]
        metafunc.parametrize(("backend", "route"), pairs, indirect=True, scope="session")
    else:
        metafunc.parametrize("backend", names, indirect=True, scope="session")


def _there(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in modules)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what belongs to libraries that were not chosen, or to modules not installed.

    And examples where several processes share the tests: those of one page share their variables.
    """
    shared = hasattr(config, "workerinput")
    names = _chosen(config)
    libraries = {*names, *(backends.Backend(name).library for name in names)}
    chosen, left_out = [], []
    for item in items:
        needs, library = map(item.get_closest_marker, ("needs", "library"))
        misses = needs is not None and not _there(*needs.args)
        other = library is not None and libraries.isdisjoint(library.args)
        example = not isinstance(item, pytest.Function)
        left = misses or other or "NOTSET" in item.name or (shared and example)
        (left_out if left else chosen).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = chosen


@pytest.fixture(scope="session")
def route(request: pytest.FixtureRequest) -> Any:
    """One way to a gradient that the backend has."""
    return routes.ROUTES[request.param]


@pytest.fixture(scope="session")
def backend(request: pytest.FixtureRequest) -> Iterator[backends.Backend]:
    """One row of the registry. One that was asked for by name must be there."""
    row = backends.get(request.param)
    try:
        _ = row.module
    except Exception as error:
        if request.config.getoption("--backend"):
            pytest.fail(f"--backend {row.name}: {error}")
        pytest.skip(f"by the matrix: {row.name} is not installed")
    with row.around():
        yield row


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    """Run what compiles without the tracer of coverage: TorchDynamo takes twice as long with it.

    The other tests reach the same lines. The mark `no_cover` of pytest-cov fails beside xdist.
    """
    tracer = sys.gettrace()
    if re.search(r"compiled_\w*\[torch|torch[:-]compile", item.name):
        sys.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(tracer)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Turn a skip that the matrix does not know into a failure."""
    report = yield
    if call.when == "call" and hasattr(item, "callspec") and "backend" in item.callspec.params:
        where = item.callspec.params["backend"], Path(item.path).stem
        report.user_properties.append(("where", where))
    if report.skipped and "by the matrix: " not in str(report.longrepr):
        report.outcome = "failed"
        report.longrepr = f"skipped outside the matrix of tests/backends.py: {report.longrepr}"
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count what ran where, in whichever process it ran."""
    for name, value in report.user_properties:
        if name == "where":
            backend, module = value
            counts = _COUNTS.setdefault(backend, {}).setdefault(module, {})
            counts[report.outcome] = counts.get(report.outcome, 0) + 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the report, for docs/conformance.py."""
    path = session.config.getoption("--report")
    if path and not hasattr(session.config, "workerinput"):
        found = {
            "backends": pytest_report_header(session.config)[0],
            "rows": _COUNTS,
        }
        Path(path).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


# Documented examples use NumPy and Numba; pages with several libraries run where all of these are,
# and the comparison with the libraries that people come from where those are.
_patterns = ["src/*/*.py", "src/*/*/*.py"] if _there("numpy", "numba") else []
_needed = "numpy", "torch", "jax", "dask", "sklearn", "matplotlib"
_pages = ["README.md", "docs/*.md"] if _there(*_needed) else []
_compared = "paddle", "keras", "pytorch_metric_learning", "sentence_transformers"
_page = ["docs/coming-from.md"]
pytest_collect_file = SybilCollection(
    (
        Sybil(parsers=[DocTestParser()], patterns=_patterns),
        Sybil(parsers=[PythonCodeBlockParser()], patterns=_pages, excludes=_page),
        Sybil(parsers=[PythonCodeBlockParser()], patterns=_page if _there(*_compared) else []),
    )
).pytest()
