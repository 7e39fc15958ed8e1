"""`jit`: the same results, compiled; and both ways round with `value_and_grad`."""

import sys
from functools import lru_cache, partial
from typing import Any

import pytest
from backends import Backend
from compare import Case, check_gradient, check_value, cotangents, fixed_cases
from reference import LOSSES

import array_api_losses as xpl

loss = xpl.hinge_embedding_loss


@pytest.fixture(autouse=True)
def _quick(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let PyTorch trace everything, but spare it the C++ compiler, which takes seconds a call."""
    if backend.library == "torch":
        from array_api_losses._engines import torch_compile

        torch = backend.module
        torch.compiler.reset()
        monkeypatch.setattr(
            torch, "compile", partial(torch.compile, fullgraph=True, backend="aot_eager")
        )
        for name in ("_compiled", "_ready"):
            function = getattr(torch_compile, name).__wrapped__
            monkeypatch.setattr(torch_compile, name, lru_cache(function))


def _route(
    backend: Backend, case: Case, arrays: dict[str, Any], argument: str, cotangent: Any
) -> Any:
    if cotangent is None:
        both = xpl.jit(xpl.value_and_grad(case.function, argument))
        return both(**arrays, **case.keywords)[1]
    arguments = {**arrays, **case.keywords}
    if backend.library == "torch":  # whose `backward` runs what `vjp` does
        x = arguments[argument] = arguments[argument].clone().requires_grad_()
        xpl.jit(case.function)(**arguments).backward(cotangent)
        return x.grad
    _, pullback = xpl.vjp(xpl.jit(case.function), **arguments, argnums=argument)
    return pullback(cotangent)


def _check(backend: Backend, cases: list[Case]) -> None:
    for case in cases:
        if backend.library == "torch":
            backend.module.compiler.reset()
        check_value(backend, case, xpl.jit(case.function))
        for argument in case.differentiable:
            check_gradient(backend, case, _route, argument, cotangents(case))
            check_gradient(backend, case, _route, argument, None)


@pytest.mark.parametrize("name", LOSSES)
def test_compiled_values_and_gradients(backend: Backend, name: str) -> None:
    step = 1
    if backend.library in {"torch", "jax"}:  # where compiling takes seconds
        step = 7 if name == "hinge_embedding_loss" else 17
    _check(backend, fixed_cases(loss=name)[::step])


def test_instances_and_both_ways_round(backend: Backend) -> None:
    x, y = backend.asarray([1.5, 0.25, 2.0]), backend.asarray([1, -1, -1], "int64")
    instance = xpl.HingeEmbeddingLoss(margin=2.0, reduction="sum")
    assert backend.tolist(xpl.jit(instance)(x, label=y)) == [3.25]
    for transformed in (
        xpl.jit(xpl.value_and_grad(instance)),
        xpl.value_and_grad(xpl.jit(instance)),
        xpl.jit(xpl.jit(xpl.value_and_grad(xpl.jit(instance)))),
    ):
        value, gradient = transformed(x, y)
        assert backend.tolist(value) == [3.25]
        assert backend.tolist(gradient) == [1, -1, 0]
    assert xpl.jit(loss).__name__ == "hinge_embedding_loss"
    assert "Pull similar" in str(xpl.jit(loss).__doc__)


def test_three_margins_through_one_function(backend: Backend) -> None:
    x, y = backend.asarray([0.5, 0.25]), backend.asarray([1, -1], "int64")
    compiled = xpl.jit(loss)
    for margin in (1.0, 2.0, 3.5):
        assert backend.tolist(compiled(x, y, margin, "sum")) == [0.25 + margin]
    for_each = backend.asarray([2.0, 3.0])
    assert backend.tolist(compiled(x, y, for_each, "sum")) == [3.25]


def test_errors(backend: Backend) -> None:
    x, y = backend.asarray([1.0, 2.0]), backend.asarray([1, 0], "int64")
    with pytest.raises(ValueError, match=r"^hinge_embedding_loss: `input` has shape \(2,\) but"):
        xpl.jit(loss)(x, y[:1])
    if backend.has("reads labels") and backend.library != "torch":
        text = r"1 element that is neither 1 nor -1; the first is 0 at index \(1,\)\."
        with pytest.raises(ValueError, match=text):
            xpl.jit(loss)(x, y)
        with pytest.raises(ValueError, match=text):
            xpl.value_and_grad(xpl.jit(loss))(x, y)
    else:
        assert backend.np.isnan(backend.tolist(xpl.jit(loss)(x, y))[0])
    with pytest.raises(TypeError, match=r"^jit: len is not a loss .*`jax\.jit`"):
        xpl.jit(len)
    with pytest.raises(TypeError, match=r"no gradient in `margin`, which is 1\.0, not an array"):
        xpl.jit(xpl.value_and_grad(loss, "margin"))(x, y)


@pytest.mark.library("torch")
def test_inside_of_other_transforms(backend: Backend) -> None:
    torch = backend.module
    x, y = backend.asarray([1.5, 0.25]), backend.asarray([1, -1], "int64")
    assert torch.func.grad(xpl.jit(loss))(x, y).tolist() == [0.5, -0.5]
    assert torch.func.grad(lambda x: xpl.value_and_grad(xpl.jit(loss))(x, y)[0])(x).tolist() == [
        0.5,
        -0.5,
    ]
    outer = torch.compile(xpl.jit(loss), fullgraph=True, backend="aot_eager")
    assert outer(x, y).item() == 1.125
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    with FakeTensorMode():
        assert xpl.jit(loss)(torch.rand(3, requires_grad=True), torch.ones(3)).requires_grad
    traced = make_fx(lambda x: xpl.value_and_grad(xpl.jit(loss))(x, y))(x)
    value, gradient = traced(x + 1)
    assert value.item() == 1.25
    assert gradient.tolist() == [0.5, 0]
    traced = make_fx(lambda x: xpl.jit(loss)(x, y - 1, reduction="none"))(x)  # labels 0 and -2
    assert traced(x).isnan().all()
    _, pullback = xpl.vjp(xpl.jit(loss), x, y)
    assert pullback(backend.asarray(2.0)).tolist() == [1, -1]


@pytest.mark.library("torch")
def test_forward_and_backward_are_compiled_apart(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between them only the arguments are kept; and a gradient has a derivative itself."""
    from array_api_losses._engines import torch_compile

    torch = backend.module
    x, w = backend.asarray([1.5, 0.25]).requires_grad_(), backend.asarray([1.0, 3.0])
    y, saved = backend.asarray([1, -1], "int64"), []
    for margin in (2.0, 1.0):  # a checkpoint takes them by their place: always as many
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            value = xpl.jit(loss)(x, y, margin, "sum", weight=w.requires_grad_())
        assert [t.data_ptr() for t in saved] == [x.data_ptr(), y.data_ptr(), w.data_ptr()]
    batch = backend.asarray([1.0, 2.0])
    with monkeypatch.context() as patch:
        patch.setattr(torch_compile, "_compiled", None)  # which cannot take a batch
        slopes = torch.autograd.grad(value, x, batch, retain_graph=True, is_grads_batched=True)[0]
    assert slopes.tolist() == [[1, -3], [2, -6]]
    (slope,) = torch.autograd.grad(value, x, create_graph=True)
    assert slope.tolist() == [1, -3]
    assert torch.autograd.grad(slope.sum(), w)[0].tolist() == [1, -1]


@pytest.mark.library("torch")
def test_what_is_made_in_inference_mode(backend: Backend) -> None:
    torch, compiled = backend.module, xpl.jit(loss)
    graded = xpl.value_and_grad(compiled)
    x, y = backend.asarray([1.5, 0.25]).requires_grad_(), backend.asarray([1, -1], "int64")
    with torch.inference_mode():
        made = y.clone()
        with torch.enable_grad():
            value = compiled(x, y, 0.5)  # with a margin that is made there, and kept
            graded(x, y, 0.5)
    for result in (value, compiled(x, made, 0.5)):
        x.grad = None
        result.backward()
        assert x.grad.tolist() == [0.5, -0.5]
    for label in (y, made):
        _, gradient = graded(x, label, 0.5)
        assert gradient.tolist() == [0.5, -0.5]


@pytest.mark.library("torch")
def test_an_error_of_the_compiler(backend: Backend) -> None:
    torch, x = backend.module, backend.asarray([[[[[1.5]]]]]).requires_grad_()
    refused = pytest.raises(RuntimeError, match="recompile")
    with torch.compiler.set_stance("fail_on_recompile"), refused:
        xpl.jit(loss)(x, x)


@pytest.mark.library("torch")
def test_cotangents_of_any_layout(backend: Backend) -> None:
    """That of a sum has strides of 0. PyTorch gives up where kinds of call share a function."""
    torch, compiled = backend.module, xpl.jit(loss)
    for shape in [(4, 5), (6, 7), (1, 4), (4, 1), (1, 1), (8, 8), (9, 3)]:
        y, cotangent = torch.ones(shape), torch.rand(shape)
        for given in (torch.ones(()).expand(shape), cotangent):
            x = torch.rand(shape, requires_grad=True)
            compiled(x, y, reduction="none").backward(given)
            assert torch.equal(x.grad, given)


@pytest.mark.library("numpy")
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", ">f4"])
def test_loop_of_numba(backend: Backend, dtype: str) -> None:
    """Across blocks and threads, contiguous or not; the same bits for each element."""
    np, rng = backend.np, backend.np.random.default_rng(7)
    compiled, n = xpl.jit(loss), 2**19 + 3
    x = (rng.integers(-64, 64, size=(n,)) / 32).astype(dtype)
    for label in (rng.choice([-1, 1], size=n).astype(kind) for kind in ("i1", "i8", dtype)):
        for a, b in [
            (x, label),
            (x[::2], label[::2]),
            (x[:6].reshape(2, 3), label[:6].reshape(2, 3)),
        ]:
            for reduction in ("none", "sum", "mean"):
                value, gradient = xpl.value_and_grad(compiled)(a, b, reduction=reduction)
                exact, slope = xpl.value_and_grad(loss)(a, b, reduction=reduction)
                np.testing.assert_array_equal(gradient, slope)
                np.testing.assert_allclose(value, exact, rtol=1e-3 if dtype == "float16" else 1e-6)
                assert value.dtype.type == x.dtype.type
                assert value == compiled(a, b, reduction=reduction) if value.ndim == 0 else True
    x[-1], label[-1] = np.nan, -1
    assert np.isnan(compiled(x, label))
    _, gradient = xpl.value_and_grad(compiled)(x, label, reduction="sum")
    assert np.isnan(gradient[-1])
    assert not np.isnan(gradient[:-1]).any()


@pytest.mark.library("numpy")
def test_the_loop_of_numba_adds_many_float64(backend: Backend) -> None:
    """Of equal terms the errors add up too; the sums of blocks must not be one long sum."""
    x = backend.np.full(10_000_001, 0.1)
    y = backend.np.ones(x.size, "int8")
    assert abs(float(xpl.jit(loss)(x, y)) / 0.1 - 1) <= 100 * 2.0**-53  # of the 256 it may be off


@pytest.mark.library("numpy")
def test_the_gradient_in_a_margin_that_is_a_scalar(backend: Backend) -> None:
    np = backend.np
    x, y, margin = np.asarray([1.5, 0.25]), np.asarray([1, -1]), np.float64(1)
    for function in (loss, xpl.jit(loss)):
        value, (slope, in_margin) = xpl.value_and_grad(function, (0, "margin"))(x, y, margin)
        assert (value, slope.tolist(), in_margin) == (1.125, [0.5, -0.5], 0.5)


@pytest.mark.library("numpy")
def test_a_forgotten_thread_is_noticed(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    from array_api_losses._engines import numba as engine

    monkeypatch.setattr(engine, "allowed", lambda _: 3)
    _check(backend, fixed_cases())
    monkeypatch.setattr(engine, "shared", lambda work, cuts: [work(*cuts[:2]), work(*cuts[2:])])
    with pytest.raises(AssertionError):
        _check(backend, fixed_cases())


@pytest.mark.library("numpy")
def test_without_numba(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "array_api_losses._engines.numba", raising=False)
    monkeypatch.delattr("array_api_losses._engines.numba", raising=False)
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.setattr("array_api_losses._arrays._AGREED", {})
    x = backend.asarray([1.5, 0.25])
    with pytest.raises(ImportError) as caught:
        xpl.jit(loss)(x, x)
    assert str(caught.value) == (
        "jit: compiling for NumPy needs Numba, which is not installed. Install it, e.g."
        " `pip install numba`."
    )


def _loops(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Note which loops are asked for."""
    from array_api_losses._engines import numba as engine

    asked, loop = [], engine._loop

    def noted(*key: Any) -> Any:
        asked.append(key)
        return loop(*key)

    monkeypatch.setattr(engine, "_loop", noted)
    return asked


@pytest.mark.library("numpy")
def test_only_what_is_to_be_compiled_is(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever has come first with the same arrays."""
    x, asked = backend.asarray([1.0, 1.0]), _loops(monkeypatch)
    for first, then in ((loss, xpl.jit(loss)), (xpl.jit(loss), loss)):
        monkeypatch.setattr("array_api_losses._arrays._AGREED", {})
        for function in (first, then):
            asked.clear()
            function(x, x)
            assert bool(asked) is (function is not loss)


@pytest.mark.library("dask")
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_chunks_are_compiled(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, reduction: str
) -> None:
    asked = _loops(monkeypatch)
    case = next(c for c in fixed_cases() if c.reduction == reduction and c.weight is None)
    check_value(backend, case, xpl.jit(case.function))
    assert asked
    arrays = case.arrays(backend)
    arrays["label"] = 0 * arrays["label"]
    wrong = xpl.jit(case.function)(**arrays, **case.keywords)
    assert backend.np.isnan(backend.tolist(wrong)).all()


@pytest.mark.library("numpy")
def test_types_are_those_of_what_is_not_compiled(backend: Backend) -> None:
    np = backend.np

    class Own(np.ndarray):
        pass

    label = np.ones(3)
    for x in (label.view(Own), label, np.ones(())):
        for reduction in ("none", "sum"):
            kinds = []
            for function in (loss, xpl.jit(loss)):
                arguments = x, np.ones(x.shape), 1.0, reduction
                value, gradient = xpl.value_and_grad(function)(*arguments)
                kinds.append([type(r) for r in (function(*arguments), value, gradient)])
            assert kinds[0] == kinds[1]
