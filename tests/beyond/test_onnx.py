"""Losses and gradients as graphs of ONNX, built by ndonnx and run by onnxruntime."""

import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ndonnx as ndx
import numpy as np
import onnxruntime
import pytest
from compare import Case, check_close, fixed_cases, summed_to
from reference import LOSSES

import array_api_losses as xpl

NUMPY = SimpleNamespace(np=np, asarray=np.asarray)

KNOWN: dict[str, Callable[[int], int | None]] = {
    "all": lambda size: size,
    "ones": lambda size: 1 if size == 1 else None,
    "none": lambda _: None,
}
"""Which sizes a graph knows."""


def _run(call: Callable[..., Any], arrays: dict[str, Any], known: str) -> Any:
    """Build the graph of a call, and run it on arrays of NumPy."""
    feeds = {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}
    arguments = {
        name: ndx.argument(
            shape=tuple(map(KNOWN[known], array.shape)),
            dtype=getattr(ndx, str(array.dtype)),
        )
        for name, array in feeds.items()
    }
    graph = ndx.build(arguments, {"result": call(**{**arrays, **arguments})})
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    return session.run(None, feeds)[0]


def _check(case: Case, result: Any, expected: Any) -> None:
    assert result.dtype == case.dtype
    check_close(result.reshape(-1).tolist(), expected, case.dtype, 256)


@pytest.mark.parametrize("known", ["all", "none"])
@pytest.mark.parametrize("name", LOSSES)
def test_values(name: str, known: str) -> None:
    for case in fixed_cases(loss=name)[:: 3 if known == "all" else 1]:
        call = lambda case=case, **arrays: case.function(**arrays, **case.keywords)
        result = _run(call, case.arrays(NUMPY), known)
        assert result.shape == (case.shape if case.reduction == "none" else ())
        _check(case, result, case.answer().value)


@pytest.mark.parametrize("known", ["all", "ones"])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name: str, known: str) -> None:
    for case in fixed_cases(loss=name)[::5]:
        arrays = case.arrays(NUMPY)
        for argument in case.differentiable:
            both = xpl.value_and_grad(case.function, argument)
            call = lambda case=case, both=both, **arrays: both(**arrays, **case.keywords)[1]
            result = _run(call, arrays, known)
            full, small = case.full if argument in case.inputs else case.shape, result.shape
            assert small == arrays[argument].shape
            _check(case, result, summed_to(case.answer().gradients[argument], full, small))


def test_a_wrong_label_gives_nan() -> None:
    x, y = np.asarray([1.0, 2.0]), np.asarray([1, 0])
    call = lambda **arrays: xpl.hinge_embedding_loss(**arrays, reduction="none")
    result = _run(call, {"input": x, "label": y}, "none")
    assert result[0] == 1
    assert np.isnan(result[1])


@pytest.mark.parametrize("width", [None, 0])
@pytest.mark.parametrize("name", ["cosine_embedding_loss", "triplet_margin_loss"])
def test_vectors_without_entries(name: str, width: int | None) -> None:
    x = ndx.argument(shape=(None, width), dtype=ndx.float32)
    last = x if name[0] == "t" else ndx.argument(shape=(None,), dtype=ndx.float32)
    loss = getattr(xpl, name)(x, x, last)
    arguments = {"x": x} if last is x else {"x": x, "last": last}
    session = onnxruntime.InferenceSession(ndx.build(arguments, {"loss": loss}).SerializeToString())
    feeds = {"x": np.zeros((5, 0), "float32"), "last": np.ones(5, "float32")}
    assert session.run(None, {name: feeds[name] for name in arguments})[0] == 1


def test_what_is_known_of_shapes_is_checked() -> None:
    def make(*shape: int | None) -> Any:
        return ndx.argument(shape=shape, dtype=ndx.float32)

    with pytest.raises(ValueError, match="`label` has shape"):
        xpl.hinge_embedding_loss(make(None), make(None, 1))
    with pytest.raises(ValueError, match="`label` has shape"):
        xpl.hinge_embedding_loss(make(None, 1), make(None, 4))
    with pytest.raises(ValueError, match="`weight` has shape"):
        xpl.hinge_embedding_loss(make(None), make(None), weight=make(None, None))


def test_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "export_onnx.py"))
    assert (tmp_path / "loss.onnx").exists()
