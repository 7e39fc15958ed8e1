"""The package as such: its names, what importing it costs, and its immutable instances."""

import copy
import dataclasses
import importlib.metadata
import inspect
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import modes
import pytest
from backends import _MODULES, FEATURES, MODES, NAMES, Backend
from compare import check_value, some_cases
from reference import LOSSES

import array_api_losses as xpl
from array_api_losses._loss import LossInstance
from array_api_losses.losses import triplet_margin

LIBRARIES = ("numpy", "torch", "jax", "dask", "cupy", "array_api_strict", "numba")


def test_importing_it_imports_no_array_library() -> None:
    code = f"import sys, array_api_losses; print([m for m in {LIBRARIES!r} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_only_hard_dependency() -> None:
    needed = importlib.metadata.requires("array-api-losses") or []
    assert [name for name in needed if "extra ==" not in name] == ["array-api-compat>=1.12"]
    assert importlib.metadata.version("array-api-losses") == xpl.__version__


def test_every_public_name_is_documented() -> None:
    for name in xpl.__all__:
        assert inspect.getdoc(getattr(xpl, name))
    assert xpl.__all__ == sorted(xpl.__all__, key=lambda n: (n[0].islower(), n))


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_arguments_is_that_of_paddle(name: str) -> None:
    arrays = (*LOSSES[name].inputs, *(["label"] if LOSSES[name].label else []))
    margin = () if LOSSES[name].margin is None else ("margin",)
    options = ("p", "epsilon", "swap") if name == "triplet_margin_loss" else ()
    rest = (*margin, *options, "reduction", "name")
    assert tuple(inspect.signature(getattr(xpl, name)).parameters) == (*arrays, *rest, "weight")
    assert tuple(inspect.signature(_class_of(name)).parameters) == rest
    for loss in (getattr(xpl, name), _class_of(name)()):
        for transformed in (xpl.jit(loss), xpl.value_and_grad(loss)):
            assert inspect.signature(transformed) == inspect.signature(loss)
            assert transformed.__doc__


def _class_of(name: str) -> Any:
    return getattr(xpl, name.replace("_", " ").title().replace(" ", ""))


@pytest.mark.parametrize("name", LOSSES)
def test_every_instance_calls_its_function(backend: Backend, name: str) -> None:
    for case in some_cases(step=12):
        if case.loss == name and not isinstance(case.margin, list):
            arrays = case.arrays(backend)
            margin = {"margin": arrays.pop("margin")} if "margin" in arrays else {}
            keywords = {**margin, **case.keywords}
            loss = pickle.loads(pickle.dumps(_class_of(name)(**keywords)))
            assert loss == _class_of(name)(**keywords)
            for call in (loss, loss.forward):
                check_value(backend, case, lambda call=call, a=arrays, **_: call(**a))


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_comes_out_of_a_pickle_as_itself(name: str) -> None:
    """For all that is compiled and noted is kept of that one."""
    loss = _class_of(name)().loss(name)
    again = dataclasses.replace(loss)
    assert copy.deepcopy(again) is pickle.loads(pickle.dumps(loss)) is loss
    del again
    assert pickle.loads(pickle.dumps(loss)) is loss
    other = dataclasses.replace(loss, sure=True)
    assert pickle.loads(pickle.dumps(other)).sure


def test_instances_are_values() -> None:
    a, b = xpl.HingeEmbeddingLoss(2.0, "sum", "pairs"), xpl.HingeEmbeddingLoss(2.0, "sum", "pairs")
    assert a == b
    assert a != xpl.MarginRankingLoss(2.0, "sum", "pairs")
    assert len({a, b, xpl.HingeEmbeddingLoss()}) == 2
    assert dataclasses.replace(a, margin=1.0) == xpl.HingeEmbeddingLoss(1.0, "sum", "pairs")
    assert repr(a) == "HingeEmbeddingLoss(margin=2.0, reduction='sum', name='pairs')"
    assert pickle.loads(pickle.dumps(a)) == copy.deepcopy(a) == a
    with pytest.raises(dataclasses.FrozenInstanceError):
        a.margin = 3.0


def test_an_instance_calls_the_function(backend: Backend) -> None:
    x, y = backend.asarray([1.0, 0.5]), backend.asarray([1, -1], "int8")
    w = backend.asarray([1.0, 3.0])
    loss = xpl.HingeEmbeddingLoss(2.0, "none")
    expected = [1, 4.5]
    assert backend.tolist(loss(x, y, weight=w)) == expected
    assert backend.tolist(loss.forward(input=x, label=y, weight=w)) == expected
    assert backend.tolist(pickle.loads(pickle.dumps(loss))(x, y, weight=w)) == expected
    function = pickle.loads(pickle.dumps(xpl.hinge_embedding_loss))
    assert backend.tolist(function(x, y, 2.0, "none", weight=w)) == expected


@pytest.mark.library("numpy")
def test_a_subclass_of_an_array_is_an_array(backend: Backend) -> None:

    class Mine(backend.np.ndarray):
        pass

    x = backend.asarray([1.0, 0.5]).view(Mine)
    y = backend.asarray([1, -1], "int8")
    assert backend.tolist(xpl.hinge_embedding_loss(x, y)) == [0.75]
    x.flags.writeable = y.flags.writeable = False
    assert backend.tolist(xpl.hinge_embedding_loss(x, y)) == [0.75]


@pytest.mark.library("numpy")
def test_arrays_of_objects_are_refused(backend: Backend) -> None:
    x = backend.np.asarray([1.0, None])
    with pytest.raises(TypeError) as caught:
        xpl.hinge_embedding_loss(x, x)
    text = "hinge_embedding_loss: `input` has dtype object; it must be real floating."
    assert str(caught.value) == text


@pytest.mark.library("numpy")
def test_masked_arrays_are_refused(backend: Backend) -> None:
    class Own(backend.np.ma.MaskedArray):
        pass

    x = backend.np.ma.masked_array([1.0, 2.0], [False, True])
    y = backend.np.ones(2)
    for masked in (x[1], x.view(Own)):  # the first is a constant of NumPy
        for name in ("input", "label", "weight"):
            with pytest.raises(TypeError, match=rf"`{name}` is an? \w+, whose mask would be"):
                xpl.hinge_embedding_loss(**{"input": y, "label": y, name: masked})
    with pytest.raises(TypeError, match="`input` is a MaskedArray, whose mask would be lost"):
        xpl.hinge_embedding_loss(x, y)
    weight = ~backend.np.ma.getmaskarray(x)  # as it says
    assert xpl.hinge_embedding_loss(x.data, y, weight=weight) == 1
    weight = backend.np.ma.masked_array([1.0, 2.0], [False, True])
    text = "`weight = xp.where(np.ma.getmaskarray(weight), 0, weight.data)`"
    with pytest.raises(TypeError, match=re.escape(text)):
        xpl.hinge_embedding_loss(x.data, y, weight=weight)
    np = backend.np
    weight = np.where(np.ma.getmaskarray(weight), 0, weight.data)
    assert xpl.hinge_embedding_loss(x.data, y, weight=weight) == 1


@pytest.mark.library("numpy")
def test_any_rational_margin(backend: Backend) -> None:
    for dtype in ("float32", "float64"):
        x, y = backend.asarray([0.25], dtype), backend.asarray([-1], "int8")
        for margin in (Fraction(3, 4), backend.np.float32(0.75), backend.np.float64(0.75)):
            assert xpl.hinge_embedding_loss(x, y, margin) == 0.5


def test_forward_can_be_differentiated(backend: Backend) -> None:
    x, y = backend.asarray([1.0, 2.0]), backend.asarray([1, 1], "int8")
    value, _ = xpl.value_and_grad(xpl.HingeEmbeddingLoss().forward)(x, y)
    assert backend.tolist(value) == [1.5]


@pytest.mark.library("numpy")
def test_scalars_of_numpy_are_arrays(backend: Backend) -> None:
    value = xpl.hinge_embedding_loss(backend.np.float32(0.25), backend.np.int64(-1))
    assert value == 0.75
    assert type(value) is backend.np.float32


@pytest.mark.library("dask")
def test_dask_computes_nothing_inside_of_a_call(backend: Backend) -> None:
    import dask

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError

    x, y = backend.asarray([1.0] * 12), backend.asarray([-1] * 12, "int8")
    w = backend.asarray([2.0] * 12)
    unknown = x[x > 0]
    with dask.config.set(scheduler=refuse):
        lazy = [
            xpl.hinge_embedding_loss(x, y),
            xpl.hinge_embedding_loss(x, y.rechunk(5), 2.0, "none", weight=w),
            *xpl.value_and_grad(xpl.hinge_embedding_loss, ("input", "weight"))(x, y, weight=w)[1],
            xpl.hinge_embedding_loss(unknown, unknown),
        ]
        with pytest.raises(AssertionError):
            lazy[0].compute()
    assert [float(value.compute().sum()) for value in lazy] == [0, 24, 0, 0, 1]
    few, many = (
        len(xpl.hinge_embedding_loss(x.rechunk(n), y.rechunk(n)).__dask_graph__()) for n in (4, 2)
    )
    assert many <= 2 * few


def test_many_threads_share_an_instance(backend: Backend) -> None:
    instance = xpl.HingeEmbeddingLoss(reduction="sum")
    y = backend.asarray([1, -1], "int8")

    def run(k: int) -> list[float]:
        x = backend.asarray([float(k), 0.5])
        value, gradient = xpl.value_and_grad(instance)(x, y)
        return backend.tolist(value) + backend.tolist(gradient)

    with ThreadPoolExecutor(8) as pool:
        for k, found in enumerate(pool.map(run, range(64))):
            assert found == [k + 0.5, 1, -1]


def test_the_check_of_what_is_here(backend: Backend, capsys: pytest.CaptureFixture[str]) -> None:
    from array_api_losses import __main__ as check

    assert check.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"array-api-losses {xpl.__version__}, array-api-compat ")
    mine = [line for line in lines[1:] if line.startswith(backend.module.__name__.split(".")[0])]
    assert mine
    assert all(line.endswith(" ok") for line in mine)


def test_the_check_of_a_library_without_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    from array_api_losses import __main__ as check

    module = SimpleNamespace(__version__="14.0", cuda=SimpleNamespace(is_available=lambda: False))
    assert check.check("cupy", module)
    assert capsys.readouterr().out == "cupy              14.0          no device\n"


def test_the_check_notices(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from array_api_losses import __main__ as check
    from array_api_losses.losses import hinge_embedding

    good = hinge_embedding.HINGE_EMBEDDING
    broken = dataclasses.replace(
        good,
        value=lambda xp, x, y, m: good.value(xp, x, -y, m),
        slopes=lambda xp, wanted, x, y, m: good.slopes(xp, wanted, x, -y, m),
    )
    monkeypatch.setattr(hinge_embedding, "HINGE_EMBEDDING", broken)
    monkeypatch.setattr(check, "MANY", 1)
    name = backend.module.__name__.split(".")[0]
    monkeypatch.setattr(check, "LIBRARIES", {name: check.LIBRARIES[name], "missing": "no_such"})
    assert check.main() == 1
    out = capsys.readouterr().out
    assert (
        "WRONG: hinge_embedding_loss: losses of 6 in float32, hinge_embedding_loss: sum of 6" in out
    )
    assert "missing           not installed" in out


def test_the_matrix_is_complete() -> None:
    for row in FEATURES.values():
        assert tuple(row) == NAMES
    assert tuple(_MODULES) == NAMES
    assert tuple(MODES) == tuple(modes.MODES)


def test_losses_that_are_kept_are_few(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each epsilon makes a loss of its own; that of a class which has none is an error."""
    monkeypatch.setattr(triplet_margin, "_MOST_KNOWN", 1)
    monkeypatch.setattr(triplet_margin, "_KNOWN", SimpleNamespace())
    row = backend.asarray([1.0, 2.0])
    for epsilon in (0.0, 0.5, 0.0):
        assert backend.tolist(xpl.triplet_margin_loss(row, row, row, epsilon=epsilon)) == [1]
        assert len(vars(triplet_margin._KNOWN)) == 1
    cleared, see_to = [], triplet_margin._see_to
    # As by another thread, between two steps of a call.
    monkeypatch.setattr(
        triplet_margin, "_see_to", lambda *key: see_to(*key) if cleared else cleared.append(key)
    )
    assert backend.tolist(xpl.triplet_margin_loss(row, row, row, epsilon=0.25)) == [1]
    with pytest.raises(NotImplementedError):
        LossInstance().loss("of none")
