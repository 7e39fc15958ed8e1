"""Results do not depend on the engine: blocks of any size, layouts of any kind."""

import subprocess
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import pytest
import routes
from backends import Backend
from compare import (
    Case,
    cases,
    check_gradient,
    check_value,
    cotangents,
    fixed_cases,
    some_cases,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import LOSSES

import array_api_losses as xpl

loss = xpl.hinge_embedding_loss
pytestmark = pytest.mark.library("numpy")


@pytest.fixture(params=[1, 3, 4, 5, "scratch"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int | str:
    """Cut even small arrays into many blocks, or compute them at once in scratch.

    Scratch is overwritten when it is released, as another thread may do.
    """
    from array_api_losses._engines import blocks, threads

    release = blocks.Room.release

    def overwritten(room: blocks.Room) -> None:
        for buffer in room._buffers:
            buffer[...] = 255
        release(room)

    monkeypatch.setattr(blocks.Room, "release", overwritten)
    monkeypatch.setattr(blocks, "SMALL", 8)  # bytes: one element alone is neither cut nor laid out
    if request.param == "scratch":
        monkeypatch.setattr(blocks, "FEW", 0)
        return "scratch"
    monkeypatch.setattr(blocks, "AT_ONCE", 1)
    monkeypatch.setattr(blocks, "BLOCK", request.param)
    monkeypatch.setattr(blocks, "BIG_BLOCK", request.param)
    monkeypatch.setattr(blocks, "ROWS", 2 * request.param)
    monkeypatch.setattr(threads, "FOR_THREADS", 2 * request.param)
    return request.param


def _check(backend: Backend, case: Case) -> None:
    check_value(backend, case)
    for argument in case.differentiable:
        check_gradient(backend, case, routes.ROUTES["vjp"], argument, cotangents(case))
        check_gradient(backend, case, routes.ROUTES["value_and_grad"], argument, None)
    everything = xpl.value_and_grad(case.function, case.differentiable)
    value, gradients = everything(**case.arrays(backend), **case.keywords)
    check_value(backend, case, lambda **_: value)
    for argument, gradient in zip(case.differentiable, gradients, strict=True):
        check_gradient(backend, case, lambda *_, g=gradient: g, argument, None)


def test_blocks_on_fixed_cases(backend: Backend, block: int | str) -> None:
    assert block
    for case in [
        *fixed_cases(),
        *some_cases("float16"),
        *some_cases("float64"),
        *some_cases(step=2),
    ]:
        _check(backend, case)


@pytest.mark.parametrize("name", LOSSES)
@given(data=st.data())
@settings(max_examples=10)
def test_blocks_on_generic_cases(
    backend: Backend, block: int | str, name: str, data: st.DataObject
) -> None:
    assert block
    _check(backend, data.draw(cases(name)))


def _layouts(np: Any, a: Any) -> list[Any]:
    """Return arrays that equal `a` and lie in memory in many ways."""
    wide = np.repeat(a, 2, axis=-1)
    frozen = a.copy()
    frozen.flags.writeable = False
    return [
        a,
        np.asfortranarray(a),
        wide[..., ::2],
        a[::-1, ::-1].copy()[::-1, ::-1],
        np.swapaxes(np.swapaxes(a, 0, 1).copy(), 0, 1),
        frozen,
        a.astype(a.dtype.newbyteorder()),
    ]


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_layouts(backend: Backend, block: int | str, reduction: str) -> None:
    assert block
    np = backend.np
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(3, 8)), rng.choice([-1, 1], size=(3, 8))
    value, gradient = xpl.value_and_grad(loss)(x, y, reduction=reduction)
    for one in _layouts(np, x):
        for other in _layouts(np, y):
            got, slope = xpl.value_and_grad(loss)(one, other, reduction=reduction)
            np.testing.assert_allclose(got, value, rtol=1e-14)
            np.testing.assert_array_equal(slope, gradient)
            np.testing.assert_allclose(loss(one, other, reduction=reduction), value, rtol=1e-14)
    still = np.broadcast_to(np.float64(0.25), (3, 8))
    assert loss(still, np.broadcast_to(np.int8(-1), (3, 8))) == 0.75


def test_results_of_a_subclass_are_plain_arrays(backend: Backend) -> None:
    np = backend.np

    class Own(np.ndarray):
        pass

    for size in (8, 40_000, 300_000):
        x, y, w = np.ones(size), np.ones(size), np.ones(size)
        for arrays in ((x.view(Own), y, None), (x, y.view(Own), w), (x, y, w.view(Own))):
            value, gradient = xpl.value_and_grad(loss)(*arrays[:2], 1.0, "none", weight=arrays[2])
            assert type(value) is type(gradient) is np.ndarray


def test_gradients_are_rounded_once_to_float16(backend: Backend, block: int | str) -> None:
    """Also where they are subnormal, with ties: products of these weights are exact in float32."""
    assert block
    np = backend.np
    odd, powers = np.arange(-2047, 2048, 2), 2.0 ** -np.arange(1, 16)
    weight, cotangent = np.meshgrid(odd * 2.0**-14, np.append(powers, [0, np.inf]))
    weight, cotangent = weight.astype(np.float16), cotangent.astype(np.float16)
    ones = np.ones_like(weight)
    _, pullback = xpl.vjp(loss, ones, ones, reduction="none", weight=weight)
    gradient = pullback(cotangent)
    with np.errstate(all="ignore"):
        expected = weight.astype(np.float32) * cotangent.astype(np.float32)
        expected = expected.astype(np.float16)
    np.testing.assert_array_equal(gradient.view(np.int16), expected.view(np.int16))


def test_numbers_that_look_alike(backend: Backend, block: int | str) -> None:
    """What is noted for one margin, weight or cotangent is not taken for another."""
    assert block
    np = backend.np
    x, y, ones = np.zeros(10), -np.ones(10), np.ones(10)
    with np.printoptions(precision=2):
        for number in (0.123456789, 0.123456788, 0.125):
            one = np.asarray(number)
            for sums in (
                loss(x, y, one, "sum"),
                loss(x, y, 1.0, "sum", weight=one),
                -xpl.vjp(loss, x, y, reduction="sum")[1](one).sum(),
                -xpl.vjp(loss, x, y, reduction="sum", weight=ones)[1](one).sum(),
            ):
                np.testing.assert_allclose(sums, 10 * number, rtol=1e-14)


def test_a_wrong_label_in_a_late_block(backend: Backend, block: int | str) -> None:
    assert block
    np = backend.np
    x, y = np.ones((4, 5)), np.ones((4, 5))
    y[2, 3], y[3, 4] = 0, np.nan
    text = "2 elements that are neither 1 nor -1; the first is 0.0 at index (2, 3)."
    for call in (loss, xpl.value_and_grad(loss)):
        for weight in (None, np.full((4, 5), 2.0)):
            with pytest.raises(ValueError, match="neither 1 nor -1") as caught:
                call(x, y, weight=weight)
            assert text in str(caught.value)
    mask = (y == 1).astype(float)
    assert loss(x, y, weight=mask) == 1
    assert loss(x, y, np.where(y == 1, 1, np.inf), weight=mask) == 1


def test_a_margin_that_is_a_number_or_an_array(backend: Backend) -> None:
    """An array may hold what is no margin, so the one is not computed as the other was."""
    np = backend.np
    x, y, w = np.asarray([0.5, 2.0]), np.asarray([1, -1]), np.asarray([1.0, 2.0])
    for _ in range(2):
        for margin, expected in (
            (1.0, 0.5),
            (np.asarray([1.0, np.inf]), np.nan),
            (np.asarray(np.inf), np.nan),
            (3.0, 2.5),
        ):
            np.testing.assert_equal(loss(x, y, margin, "sum", weight=w), expected)


def test_sizes_around_a_block(backend: Backend) -> None:
    from array_api_losses._engines.blocks import AT_ONCE, BIG_BLOCK, BLOCK, SMALL
    from array_api_losses._engines.threads import FOR_THREADS

    np = backend.np
    rng = np.random.default_rng(6)
    edges = (SMALL // 8, AT_ONCE, BLOCK, 2 * BLOCK, FOR_THREADS, FOR_THREADS + BIG_BLOCK)
    for size in (edge + more for edge in edges for more in (-1, 0, 1)):
        x = rng.integers(-64, 64, size=size) / 32
        y = rng.choice([-1, 1], size=size).astype("int8")
        exact = np.where(y == 1, x, np.maximum(0, 1 - x))
        np.testing.assert_array_equal(loss(x, y, reduction="none"), exact)
        assert loss(x, y, reduction="sum") == exact.sum()
        value, gradient = xpl.value_and_grad(loss)(x, y, reduction="sum")
        assert value == exact.sum()
        np.testing.assert_array_equal(gradient, np.where(y == 1, 1.0, -1.0 * (x < 1)))


@pytest.mark.parametrize("width", [2, 32])
@pytest.mark.parametrize("name", [name for name in LOSSES if LOSSES[name].rowwise])
def test_rows_around_a_block(backend: Backend, name: str, width: int) -> None:
    """A row has the same loss and slopes, bit for bit, whatever stands beside it."""
    from array_api_losses._engines.blocks import AT_ONCE, SMALL

    np, function, spec = backend.np, getattr(xpl, name), LOSSES[name]
    call = xpl.value_and_grad(function, tuple(range(len(spec.inputs))))
    rng = np.random.default_rng(8)
    for count in (edge // width + more for edge in (SMALL // 4, AT_ONCE) for more in (0, 1)):
        arrays = [rng.normal(size=(count, width)).astype("float32") for _ in spec.inputs]
        arrays += [rng.choice([-1, 1], size=count).astype("int8")] if spec.label else []
        for reduction in ("none", "sum"):
            value, gradients = call(*arrays, reduction=reduction)
            for part in (slice(9), slice(count - 9, count)):
                few, slopes = call(*[a[part] for a in arrays], reduction=reduction)
                if reduction == "none":
                    np.testing.assert_array_equal(value[part], few)
                for gradient, slope in zip(gradients, slopes, strict=True):
                    np.testing.assert_array_equal(gradient[part], slope)


@pytest.mark.parametrize("block", [1, 3, 4, 5], indirect=True)
def test_a_forgotten_block_is_noticed(
    backend: Backend, block: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from array_api_losses._engines import blocks

    over_blocks = blocks._over_blocks

    def only_the_first(
        threads: int, tape_for: Any, work: Any, arguments: Any, outputs: dict[int, Any]
    ) -> Any:
        first: list[Any] = []

        def forgetful(room: Any, block: Any, shape: Any, slots: dict[int, Any]) -> Any:
            if not first:
                first.append(work(room, block, shape, slots))
            return first[0]

        for output in outputs.values():
            output[...] = 0
        return over_blocks(threads, tape_for, forgetful, arguments, outputs)

    assert block
    monkeypatch.setattr(blocks, "_over_blocks", only_the_first)
    with pytest.raises(AssertionError):
        for case in fixed_cases():
            check_value(backend, case)
    with pytest.raises(AssertionError):
        for case in fixed_cases():
            check_gradient(backend, case, routes.ROUTES["vjp"], "input", cotangents(case))


def test_sums_of_many_blocks(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    from array_api_losses._engines import blocks

    np = backend.np
    monkeypatch.setattr(blocks, "BLOCK", 16)
    monkeypatch.setattr(blocks, "BIG_BLOCK", 16)
    x = np.broadcast_to(0.1, (2**17,))
    total = loss(x, np.broadcast_to(1.0, x.shape), reduction="sum")
    assert abs(total / 0.1 - x.size) <= 16 * 2.0**-53 * x.size


@pytest.mark.parametrize("weight", ["expanded", "reversed"])
def test_weights_in_many_pieces(backend: Backend, weight: str) -> None:
    np = backend.np
    n = 4_000_000
    x, y = np.broadcast_to(0.5, (n, 4)), np.broadcast_to(1.0, (n, 4))
    weights = np.full((n, 4), 0.1)[::-1]
    if weight == "expanded":
        weights = np.broadcast_to(weights[:, :1], x.shape)
    assert abs(loss(x, y, weight=weights) - 0.5) <= 64 * 2.0**-53


def test_long_rows_leave_nothing_behind(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    from array_api_losses._engines import blocks, replay

    np = backend.np
    monkeypatch.setattr(blocks, "TAPES", {})
    monkeypatch.setattr(replay, "FREE", [])
    rows = np.ones((1, 600_001))
    tracemalloc.start()
    try:
        xpl.value_and_grad(xpl.triplet_margin_loss, (0, 1, 2))(rows, rows, rows)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert blocks.TAPES
    assert held < rows.nbytes / 4


def test_what_is_kept_is_bounded(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    from array_api_losses import _arrays
    from array_api_losses._engines import blocks, replay

    np = backend.np
    monkeypatch.setattr(_arrays, "_AGREED", {})
    monkeypatch.setattr(_arrays, "_MOST_AGREED", 2)
    monkeypatch.setattr(blocks, "TAPES", {})
    monkeypatch.setattr(blocks, "MOST_TAPES", 2)
    monkeypatch.setattr(replay, "FREE", [])
    monkeypatch.setattr(replay, "MOST_FREE", 2)
    for dtype in ("float32", "float64"):
        for reduction in ("none", "sum", "mean"):
            x = np.ones(300_000, dtype)
            xpl.value_and_grad(loss)(x, x, reduction=reduction)
            assert all(len(kept) <= 2 for kept in (_arrays._AGREED, blocks.TAPES, replay.FREE))


def test_a_call_within_another_one(backend: Backend) -> None:
    """As from a signal, or a subclass that computes; the outer one is silent ever after."""
    from array_api_losses._engines import numpy as engine

    np = backend.np
    big = np.asarray([1e308])
    assert loss(big, big / 1e308) == 1e308
    inner = engine._quietly(lambda: (loss(big, big / 1e308), np.multiply(big, 10)))
    assert inner == (1e308, np.inf)


def test_how_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    from array_api_losses._engines import threads

    for first_level in ("1", "1,4", " 1 "):
        monkeypatch.setenv("OMP_NUM_THREADS", first_level)
        assert threads.allowed(threads.FOR_THREADS) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "99")
    assert 1 <= threads.allowed(threads.FOR_THREADS) <= threads.MOST
    assert threads.allowed(threads.FOR_THREADS - 1) == 1
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(threads.allowed, threads.FOR_THREADS).result() == 1


def test_threads_after_a_fork() -> None:
    """The child of a process that has used its threads can use its own."""
    code = """
import os
import numpy as np
from array_api_losses import hinge_embedding_loss
from array_api_losses._engines import blocks
blocks.allowed = lambda _: 2
x = np.ones(2**20 + 1)
assert hinge_embedding_loss(x, x) == 1
child = os.fork()
if child == 0:
    assert hinge_embedding_loss(x, x) == 1
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("module", [None, ModuleType("torch")], ids=["none", "empty"])
def test_a_module_that_is_not_yet_pytorch(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, module: ModuleType | None
) -> None:
    """It is empty while another thread imports it; None stands for what must not be imported."""
    x = backend.asarray([1.0])
    assert loss(x, x) == 1
    monkeypatch.setitem(sys.modules, "torch", module)
    of_new_type = x.view(type("Array", (backend.np.ndarray,), {}))
    for array in (x, of_new_type):
        assert loss(array, array) == 1


def test_a_call_while_the_interpreter_ends() -> None:
    """Then the other threads no longer run."""
    code = """
from functools import partial
import numpy as np
from array_api_losses import hinge_embedding_loss
from array_api_losses._engines import threads

threads._processors = partial(frozenset, {0, 1})  # and nothing that refers to this module
x = np.ones(2**20)

class AtEnd:
    def __init__(self):
        self.function, self.arrays = hinge_embedding_loss, (x, x)

    def __del__(self):
        print(self.function(*self.arrays))

kept = AtEnd()
assert hinge_embedding_loss(x, x) == 1
"""
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True)
    assert ended.stdout.strip() == "1.0", ended.stderr


@pytest.mark.parametrize("started", [0, 1])
def test_a_system_that_refuses_threads(monkeypatch: pytest.MonkeyPatch, started: int) -> None:
    """Those that there are do the work, wherever they may run, or else the caller does."""
    from array_api_losses._engines import threads

    left = [None] * started
    start = threading.Thread.start

    def few(thread: threading.Thread) -> None:
        if not left:
            msg = "can't start new thread"
            raise RuntimeError(msg)
        left.pop()
        start(thread)

    def refuse(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(threads, "_POOLS", {})
    monkeypatch.setattr(threads, "_processors", lambda: frozenset({0, 1}))
    monkeypatch.setattr(threads, "_PIN", refuse)
    monkeypatch.setattr(threading.Thread, "start", few)
    found = threads.shared(lambda a, b: (a, b, threading.get_ident()), [0, 2, 3])
    assert [(a, b) for a, b, _ in found] == [(0, 2), (2, 3)]
    assert all((thread != threading.get_ident()) is bool(started) for *_, thread in found)


def test_threads_of_the_caller_keep_out_of_each_other(backend: Backend) -> None:
    np = backend.np
    y = np.tile(np.asarray([1, -1], "int8"), 50_000)
    inputs = [np.tile([float(k), 0.5], 50_000) for k in range(4)]
    with ThreadPoolExecutor(8) as pool:
        found = [*pool.map(lambda k: float(loss(inputs[k % 4], y)), range(512))]
    assert found == [(k % 4 + 0.5) / 2 for k in range(512)]


def test_errors_of_other_threads() -> None:
    """They come when all are done: the caller may use the memory again."""
    from array_api_losses._engines import threads

    done = []

    def work(start: int, stop: int) -> float:
        quotient = 1 / start
        time.sleep(0.05)
        done.append(start)
        return quotient

    with pytest.raises(ZeroDivisionError):
        threads.shared(work, [1, 0, 2, 3])
    assert sorted(done) == [1, 2]
    assert threads.shared(work, [1, 2, 3]) == [1, 1 / 2]


@pytest.mark.parametrize(("processors", "own"), [(2, True), (6, False)])
def test_each_thread_keeps_to_a_processor(
    monkeypatch: pytest.MonkeyPatch, processors: int, own: bool
) -> None:
    """Where there are no more processors than threads."""
    from array_api_losses._engines import threads

    pinned: list[set[int]] = []
    allowed = frozenset(range(processors))
    monkeypatch.setattr(threads, "_PIN", lambda _, processors: pinned.append(processors))
    count = min(processors, threads.MOST)
    all_there = threading.Barrier(count)
    pool = threads._Pool(allowed)
    pool.map(lambda *_: all_there.wait(60), [(0, 1)] * count)
    assert sorted(pinned, key=min) == ([{0}, {1}] if own else [set(allowed)] * count)


def test_what_needs_no_division_is_copied(backend: Backend) -> None:
    """Where the formula still needs the rows themselves."""
    from array_api_losses._engines import faster

    np = backend.np
    rows, found = np.asarray([[1.0, 2.0], [3.0, 4.0]]), np.zeros((2, 2))
    faster._quotients_into(rows, faster._ONE[rows.dtype], found)
    np.testing.assert_array_equal(found, rows)


def test_a_wrong_label_in_a_later_part(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    from array_api_losses._engines import blocks

    monkeypatch.setattr(blocks, "allowed", lambda _: 3)
    np = backend.np
    x, y = np.ones(2**20), np.ones(2**20)
    y[-1] = 0
    with pytest.raises(ValueError, match=r"first is 0.0 at index \(1048575,\)"):
        loss(x, y)
    assert loss(x, np.abs(x)) == 1


def test_a_replay_gives_every_result_its_own_array(backend: Backend) -> None:
    """Also one that is given twice, or is an argument, a part of one or nothing."""
    from array_api_losses._engines.replay import Replay, Room

    np = backend.np
    a, b = np.asarray([1.0, 2.0, 3.0]), np.asarray([4.0, 5.0, 6.0])
    outs = {i: np.zeros(3) for i in (0, 1, 2)}
    tape = Replay(lambda a, b: (a + b, a + b, b, a[...], None, b * 2), [a, b])
    *arrays, nothing, double = Room(tape)([a, b], (3,), outs)
    assert nothing is None
    for result, expected in zip((*arrays, double), (a + b, a + b, b, a, b * 2), strict=True):
        np.testing.assert_array_equal(result, expected)
    for i, expected in enumerate((a + b, a + b, b)):
        np.testing.assert_array_equal(outs[i], expected)
    rows = np.asarray([[1.0, 3.0], [4.0, 0.0], [2.0, 5.0]])
    tape = Replay(lambda v: (np.maximum(v, 2.0),), [rows])
    np.testing.assert_array_equal(*Room(tape)([rows], (3,), {}), np.maximum(rows, 2.0))


def test_numbers_kept_as_arrays_are_few(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    from array_api_losses._engines import replay

    monkeypatch.setattr(replay, "MOST_FREE", 1)
    monkeypatch.setattr(replay, "_FULL", {})
    for dtype in ("float32", "float64", "float32"):
        x = backend.np.ones(100_000, dtype)
        assert loss(x, x) == 1
        assert len(replay._FULL) == 1
