"""What PyTorch alone has: double backward, gradcheck, compiling, parameters."""

import gc
import itertools
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from backends import Backend
from reference import LOSSES

import array_api_losses as xpl
from array_api_losses import _arrays
from array_api_losses.losses import triplet_margin

loss = xpl.hinge_embedding_loss
pytestmark = pytest.mark.library("torch")


@pytest.fixture
def arguments(backend: Backend) -> dict[str, Any]:
    """Away from kinks, in float64."""
    return {
        "input": backend.asarray([0.3, -0.4, 1.8, 2.5, 0.1]),
        "label": backend.asarray([1, -1, -1, 1, -1], "int64"),
        "margin": backend.asarray([1.0, 0.5, 1.5, 1.0, 2.0]),
        "weight": backend.asarray([0.5, 2.0, 1.0, 3.0, 0.25]),
    }


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_gradcheck(backend: Backend, arguments: dict[str, Any], reduction: str) -> None:
    torch = backend.module
    leaves = [arguments[k].requires_grad_() for k in ("input", "margin", "weight")]

    def call(x: Any, margin: Any, weight: Any) -> Any:
        return loss(x, arguments["label"], margin, reduction, weight=weight)

    assert torch.autograd.gradcheck(
        call,
        leaves,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert torch.autograd.gradgradcheck(call, leaves, check_batched_grad=True)


def test_hessian(backend: Backend, arguments: dict[str, Any]) -> None:
    """Zero in input and margin; not so between input and weight. All nestings agree."""
    func = backend.module.func
    label = arguments.pop("label")

    def call(a: dict[str, Any]) -> Any:
        return loss(a["input"], label, a["margin"], weight=a["weight"])

    outer = inner = (func.jacrev, func.jacfwd)
    nested = [second(first(call))(arguments) for second, first in itertools.product(outer, inner)]
    for one in nested:
        assert not one["input"]["input"].any()
        assert not one["margin"]["input"].any()
        assert one["input"]["weight"].any()
        for a, b in itertools.product(one, one):
            backend.module.testing.assert_close(one[a][b], nested[0][a][b])
            backend.module.testing.assert_close(one[a][b], one[b][a].T)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_export_of_what_a_mask_leaves(
    backend: Backend, arguments: dict[str, Any], reduction: str
) -> None:
    """Its size is not known, and cannot be asked whether it is 0 or 1."""
    torch = backend.module
    x, label = arguments["input"], arguments["label"]

    class Exported(torch.nn.Module):
        def forward(self, x: Any, label: Any, keep: Any) -> Any:
            return xpl.value_and_grad(loss)(x[keep], label[keep], reduction=reduction)

    graph = torch.export.export(Exported(), (x, label, x > 0.2), strict=False).module()
    for least in (-1, 0.2, 1):
        keep = x > least
        expected = xpl.value_and_grad(loss)(x[keep], label[keep], reduction=reduction)
        torch.testing.assert_close(graph(x, label, keep), expected)


@pytest.mark.parametrize("kind", ["float64", "float32", "int64"])
def test_a_scalar_of_numpy_in_compiled_code(
    backend: Backend, arguments: dict[str, Any], kind: str
) -> None:
    """As of `numpy.linspace`. TorchDynamo takes it for an array, so that it breaks the graph."""
    x, label = arguments["input"], arguments["label"]
    margin = getattr(backend.np, kind)(2)
    for function in (xpl.HingeEmbeddingLoss(margin), lambda x, y: loss(x, y, margin)):
        backend.module.compiler.reset()
        compiled = backend.module.compile(function, backend="eager")
        backend.module.testing.assert_close(compiled(x, label), loss(x, label, 2.0))


@pytest.mark.parametrize("name", ["hinge_embedding_loss", "cosine_embedding_loss"])
def test_forward_mode_around_vmap(backend: Backend, name: str) -> None:
    """Of second order, too, and of what only the weight is mapped over."""
    torch, func, function = backend.module, backend.module.func, getattr(xpl, name)
    rng = backend.np.random.default_rng(8)
    a, b, w = (
        backend.asarray(rng.uniform(0.1, 0.9, shape)) for shape in ((2, 4, 3), (4, 3), (2, 4))
    )
    y = backend.asarray([1, -1, 1, -1], "int8")
    others = (y,) if LOSSES[name].inputs == ("input",) else (b, y)
    a = a[..., 0] if len(others) == 1 else a

    def losses(a: Any) -> Any:
        return torch.vmap(lambda a, w: function(a, *others, weight=w))(a, w)

    torch.testing.assert_close(func.jacfwd(losses)(a), func.jacrev(losses)(a))
    expected = func.jacrev(func.jacrev(losses))(a)
    for outer, inner in itertools.product((func.jacfwd, func.jacrev), repeat=2):
        torch.testing.assert_close(outer(inner(losses))(a), expected)

    def weighted(a: Any) -> Any:
        return torch.vmap(lambda w: function(a, *others, weight=w))(w)

    torch.testing.assert_close(func.jacfwd(weighted)(a[0]), func.jacrev(weighted)(a[0]))


def test_vmap_over_labels_cannot_read_them(backend: Backend) -> None:
    torch = backend.module
    x = backend.asarray([[1.0, 2.0], [3.0, 4.0]])
    y = backend.asarray([[1, 0], [1, 1]], "int8")
    mean = torch.vmap(loss)(x, y)
    assert mean.isnan().tolist() == [True, False]
    assert mean[1] == 3.5


def test_wrong_labels_within_transforms(backend: Backend) -> None:
    """They are read where their values are there, as without the transform."""
    backend.require("reads labels")
    torch = backend.module
    x, y = backend.asarray([1.0, 2.0]), backend.asarray([1, 0], "int8")
    for transformed in (
        lambda: torch.func.grad(loss)(x, y),
        lambda: torch.func.jvp(lambda x: loss(x, y), (x,), (x,)),
        lambda: torch.func.grad(lambda x: xpl.value_and_grad(loss)(x, y)[0])(x),
    ):
        with pytest.raises(ValueError, match="1 element that is neither 1 nor -1"):
            transformed()


def test_one_compiled_function_takes_many_margins(backend: Backend) -> None:
    torch = backend.module
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True)
    y = backend.asarray([1, -1, -1, 1], "int64")
    for margin in (1.0, 0.5, 2, 1.75):
        x = backend.asarray([0.25, 0.25, 1.6, -2.0], "float32").requires_grad_()
        value = compiled(x, y, margin)
        value.backward()
        plain = x.detach().clone().requires_grad_()
        loss(plain, y, margin).backward()
        torch.testing.assert_close(value, loss(plain, y, margin), rtol=1e-6, atol=0)
        assert x.grad.tolist() == plain.grad.tolist()


@pytest.mark.parametrize("name", LOSSES)
def test_a_compiled_function_takes_a_smaller_batch(backend: Backend, name: str) -> None:
    torch, spec, call = backend.module, LOSSES[name], getattr(xpl, name)
    rng = backend.np.random.default_rng(6)
    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for size in (5, 3):
        shape = (size, 4) if spec.rowwise else (size,)
        inputs = [backend.asarray(rng.normal(size=shape)).requires_grad_() for _ in spec.inputs]
        labels = [backend.asarray([1, -1, 1, 1, -1][:size], "int8")] if spec.label else []
        found = []
        for function in (compiled, call):
            value = function(*inputs, *labels)
            found.append([value, *torch.autograd.grad(value, inputs)])
        torch.testing.assert_close(*found)


def test_an_exported_loss_takes_a_smaller_batch(backend: Backend) -> None:
    """With a weight for each column, too."""
    torch = backend.module

    class Module(torch.nn.Module):
        def forward(self, x: Any, y: Any, weight: Any) -> Any:
            return loss(x, y, weight=weight)

    x, y = backend.asarray([[1.5, 0.25]] * 5), backend.asarray([[1, -1]] * 5, "int8")
    weight, batch = backend.asarray([1.0, 3.0]), {0: torch.export.Dim("batch", min=1, max=64)}
    exported = torch.export.export(
        Module(), (x, y, weight), dynamic_shapes=(batch, batch, None), strict=False
    )
    assert exported.module()(x[:3], y[:3], weight).item() == 0.9375


def test_exported_gradients_take_a_smaller_batch(backend: Backend) -> None:
    """Also in a margin for each column."""
    torch = backend.module

    class Module(torch.nn.Module):
        def forward(self, x: Any, y: Any, margin: Any) -> Any:
            value = loss(x, y, margin, "none")
            return torch.autograd.grad(value, (x, margin), 2 * torch.ones_like(value))

    x = backend.asarray([[1.5, 0.25]] * 5).requires_grad_()
    y, margin = backend.asarray([[1, -1]] * 5, "int8"), backend.asarray([1.0, 0.5]).requires_grad_()
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    exported = torch.export.export(
        Module(), (x, y, margin), dynamic_shapes=(batch, batch, None), strict=False
    )
    slopes, in_margin = exported.module()(x[:3], y[:3], margin)
    assert slopes.tolist() == [[2, -2]] * 3
    assert in_margin.tolist() == [0, 6]


def test_exported_gradients_of_rows_take_a_smaller_batch(backend: Backend) -> None:
    torch = backend.module

    class Module(torch.nn.Module):
        def forward(self, a: Any, b: Any, y: Any) -> Any:
            value = xpl.cosine_embedding_loss(a, b, y, reduction="sum")
            return torch.autograd.grad(value, (a, b))

    a, b = (backend.asarray([v] * 5).requires_grad_() for v in ([3.0, 4.0], [4.0, 3.0]))
    y, batch = backend.asarray([1] * 5, "int8"), {0: torch.export.Dim("batch", min=1, max=64)}
    exported = torch.export.export(Module(), (a, b, y), dynamic_shapes=(batch,) * 3, strict=False)
    found = exported.module()(a[:3], b[:3], y[:3])
    for gradient, row in zip(found, ([-0.0448, 0.0336], [0.0336, -0.0448]), strict=True):
        expected = backend.np.asarray([row] * 3)
        assert backend.tonumpy(gradient) == pytest.approx(expected, rel=2.0**-45)


def test_the_first_call_is_a_compiled_one(backend: Backend) -> None:
    """When no engine has been imported yet, and another library has been used."""
    assert backend.module
    code = """
import sys
import numpy as np
import torch
import array_api_losses as xpl
x = np.asarray([1.0, 2.0])
assert xpl.hinge_embedding_loss(x, np.sign(x)) == 1.5
assert "array_api_losses._engines.torch" not in sys.modules
loss = torch.compile(xpl.hinge_embedding_loss, fullgraph=True, backend="aot_eager")
assert loss(torch.tensor([1.0, 2.0]), torch.tensor([1, -1])) == 0.5
triplet = torch.compile(xpl.triplet_margin_loss, fullgraph=True, backend="aot_eager")
row = torch.tensor([3.0, 4.0])
for p, far in [(2.0, 5), (1.0, 7), (3.0, 91 ** (1 / 3))]:  # of which Dynamo makes a variable
    result = triplet(row, 0 * row, row, 1.0, p, 0.0, False)
    assert abs(result - far - 1) < 1e-5
instance = xpl.TripletMarginLoss(p=1, epsilon=0.0)
instance = torch.compile(instance, fullgraph=True, backend="aot_eager")
assert instance(row, 0 * row, row) == 8
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_compiled_with_weight_and_learnable_margin(backend: Backend, reduction: str) -> None:
    torch = backend.module
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True)
    x = backend.asarray([0.25, 0.25, 1.6, float("nan")]).requires_grad_()
    y = backend.asarray([1, -1, -1, 0], "int64")
    margin = torch.nn.Parameter(backend.asarray(1.0))
    weight = backend.asarray([1.0, 2.0, 3.0, 0.0]).requires_grad_()
    found = []
    for call in (compiled, loss):
        value = call(x, y, margin, reduction, weight=weight)
        found.append([value, *torch.autograd.grad(value.sum(), (x, margin, weight))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("name", LOSSES)
def test_compiled_code_holds_the_arguments_only(
    backend: Backend, name: str, reduction: str
) -> None:
    """Slopes are computed in the backward pass; what is kept of rows are a few numbers of each."""
    torch, spec, rng = backend.module, LOSSES[name], backend.np.random.default_rng(7)
    torch.compiler.reset()
    compiled = torch.compile(
        getattr(xpl, name), fullgraph=True, backend="aot_eager_decomp_partition"
    )
    shape = (8, 64) if spec.rowwise else (64,)
    arrays = {n: backend.asarray(rng.normal(size=shape)).requires_grad_() for n in spec.inputs}
    if spec.label:
        arrays["label"] = backend.asarray(rng.choice([-1, 1], shape[0]), "int64")
    value = compiled(**arrays, reduction=reduction)
    own = {array.data_ptr() for array in arrays.values()}
    held = [t.data_ptr() for t in value.grad_fn.saved_tensors if t.numel() >= 64]
    assert held
    assert own.issuperset(held)


@pytest.mark.parametrize("fullgraph", [True, False])
def test_forward_mode_that_is_compiled(backend: Backend, *, fullgraph: bool) -> None:
    torch = backend.module
    from torch.autograd import forward_ad

    def slope(x: Any, w: Any, tangent: Any) -> Any:
        with forward_ad.dual_level():
            x, w = forward_ad.make_dual(x, tangent), forward_ad.make_dual(w, tangent)
            return forward_ad.unpack_dual(loss(x, y, reduction="none", weight=w)).tangent

    x, y = backend.asarray([0.5, 1.0, 0.25]), backend.asarray([1, -1, -1], "int8")
    ones = torch.ones_like(x)
    torch.compiler.reset()
    compiled = torch.compile(slope, fullgraph=fullgraph, backend="aot_eager")
    assert compiled(x, ones, ones).tolist() == [1.5, 0, -0.25]


@pytest.mark.parametrize("transform", ["vmap", "jacrev", "jacfwd", "hessian"])
def test_a_smaller_batch_within_what_is_compiled(backend: Backend, transform: str) -> None:
    """From the second size on, a size is a symbol."""
    torch = backend.module

    def weighted(x: Any, w: Any) -> Any:
        return loss(x, -torch.ones_like(x), weight=w)  # to which the weight broadcasts

    function = getattr(torch.func, transform)(weighted)
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for size in (3, 2, 5):
        x = backend.asarray([[0.25 * i for i in range(size)]] * 2)
        w = backend.asarray([[1.0], [3.0]])
        torch.testing.assert_close(compiled(x, w), function(x, w))


@pytest.mark.parametrize("strict", [True, False])
def test_what_is_mapped_and_exported(backend: Backend, *, strict: bool) -> None:
    torch = backend.module

    class Mapped(torch.nn.Module):
        def forward(self, x: Any, y: Any) -> Any:
            return torch.vmap(loss)(x, y)

    x, y = backend.asarray([0.5, 0.25]), backend.asarray([1, -1], "int8")
    assert torch.export.export(Mapped(), (x, y), strict=strict).module()(x, y).tolist() == [
        0.5,
        0.75,
    ]


def test_a_loss_in_a_graph_that_is_kept(backend: Backend) -> None:
    """Longer than the loss by its options."""
    torch = backend.module
    a, b, c = (backend.asarray([[number, 2.0]]) for number in (1.0, 2.0, -3.0))
    torch.compiler.reset()
    slope = torch.func.grad(lambda a: xpl.triplet_margin_loss(a, b, c, 5.0, p=1, epsilon=0.25))
    compiled = torch.compile(slope, backend="eager", fullgraph=True)
    assert compiled(a).tolist() == [[-2, 0]]
    vars(triplet_margin._KNOWN).clear()
    gc.collect()
    assert compiled(a).tolist() == [[-2, 0]]


def test_compiled_code_gives_nan_for_wrong_labels(backend: Backend) -> None:
    torch = backend.module
    torch.compiler.reset()
    x, y = backend.asarray([1.0, 2.0]), backend.asarray([1, 0], "int8")
    each = torch.compile(loss, fullgraph=True)(x, y, reduction="none")
    assert each[0] == 1
    assert each[1].isnan()


def test_sums_of_compiled_code(backend: Backend) -> None:
    """What is compiled for a CPU adds one after another; of equal terms errors add up too."""
    torch, rng = backend.module, backend.np.random.default_rng(4)
    torch.compiler.reset()
    x = torch.asarray(rng.uniform(0.5, 1, (2**16, 3)), dtype=torch.float32)
    weight, margin = torch.asarray([0.5, 0.6, 0.7]), torch.ones(3)
    call = xpl.jit(xpl.value_and_grad(loss, "margin"))
    _, gradient = call(x, -torch.ones(x.shape), margin, "sum", weight=weight)
    torch.testing.assert_close(gradient, weight * len(x), rtol=8 * 2.0**-24, atol=0)
    total = xpl.jit(loss)(x := torch.full((2**20,), 0.6), torch.ones(x.shape), reduction="sum")
    torch.testing.assert_close(total, x[0] * len(x), rtol=8 * 2.0**-24, atol=0)


@pytest.mark.parametrize("lay", [lambda w: w[:, :1].expand(-1, 4), lambda w: w[:, ::2]])
def test_weights_in_many_pieces_within_transforms(
    backend: Backend, lay: Callable[[Any], Any]
) -> None:
    """Of these PyTorch by itself adds up one element after another."""
    torch = backend.module
    n = 100_000
    x, w = backend.asarray(backend.np.full((n, 4), 0.5), "float32"), torch.full((n, 8), 0.1)
    y, weight = torch.ones_like(x), lay(w.to(x.device))
    gradient, value = torch.func.grad_and_value(lambda x: loss(x, y, weight=weight))(x)
    assert value.item() == pytest.approx(0.5, rel=2**-16)
    assert gradient[0, 0].item() * 4 * n == pytest.approx(1, rel=2**-16)


@pytest.mark.parametrize("weighted", [False, True])
def test_traced_code_gives_nan_for_wrong_labels(backend: Backend, *, weighted: bool) -> None:
    """Those of the example are good, but that holds for no other."""
    torch = backend.module
    x, y = backend.asarray([1.5, 0.25]), backend.asarray([1, -1], "int8")
    weight = torch.ones_like(x) if weighted else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this way is deprecated
        traced = torch.jit.trace(lambda x, y: loss(x, y, weight=weight), (x, y))
    assert traced(x, y).item() == 1.125
    assert traced(x, 2 * y).isnan()


@pytest.mark.parametrize("fullgraph", [False, True])
def test_losses_that_are_first_met_by_the_compiler(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, *, fullgraph: bool
) -> None:
    """The second as well, which it meets when it has looked at the table of them already."""
    monkeypatch.setattr(triplet_margin, "_KNOWN", SimpleNamespace())
    torch, triplet = backend.module, xpl.triplet_margin_loss
    rows = [
        backend.asarray([[0.5, 1.0]]),
        backend.asarray([[2.0, 0.5]]),
        backend.asarray([[1.0, 1.5]]),
    ]

    def both(*rows: Any) -> Any:
        return triplet(*rows, p=1) + triplet(*rows, p=3)

    torch.compiler.reset()
    found = torch.compile(both, backend="aot_eager", fullgraph=fullgraph)(*rows)
    torch.testing.assert_close(found, both(*rows))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_tensors_are_refused(backend: Backend) -> None:
    torch = backend.module
    strided = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    good = backend.asarray([1.0, 1.0])
    for input_, label, weight in (
        (strided, strided, None),
        (good, strided, None),
        (good, good, strided),
    ):
        with pytest.raises(TypeError, match="is a Tensor, whose rows may differ in length"):
            loss(input_, label, weight=weight)
    rows = [backend.asarray([0.5, 1.5, 0.25]), backend.asarray([2.0, 1.0])]
    x = torch.nested.nested_tensor(rows, layout=torch.jagged)
    y = torch.ones_like(x)
    text = "`input` is a NestedTensor, whose rows may differ in length. Give all of them as one"
    with pytest.raises(TypeError, match=text):
        loss(x, y)
    with pytest.raises(RuntimeError, match="NestedTensor, whose rows may"):
        torch.compile(loss, backend="eager", fullgraph=True)(x, y)
    assert loss(x.values(), y.values()).item() == 1.05


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning")
@pytest.mark.parametrize("layout", ["sparse_coo", "sparse_csr", "_mkldnn"])
@pytest.mark.parametrize("argument", ["input", "label", "weight"])
def test_tensors_that_are_not_dense_are_refused(
    backend: Backend, argument: str, layout: str
) -> None:
    torch = backend.module
    if layout == "_mkldnn":
        sparse = torch.ones(2, 2).to_mkldnn()
    else:
        sparse = torch.ones(2, 2).to_sparse(layout=getattr(torch, layout))
    ones = backend.asarray([[1.0, 1.0]] * 2, "float32")
    arguments = {"input": ones, "label": ones, argument: sparse}
    text = f"`{argument}` has layout torch.{layout}; .* `{argument} = {argument}.to_dense"
    loss(ones, ones, weight=ones)  # what has agreed once is looked up
    for call in (loss, xpl.jit(loss), xpl.value_and_grad(loss)):
        with pytest.raises(TypeError, match=text):
            call(**arguments)


def test_a_parameter_trains(backend: Backend) -> None:
    torch = backend.module
    margin = torch.nn.Parameter(backend.asarray(2.0))
    optimizer = torch.optim.SGD([margin], lr=1.0)
    x, y = backend.asarray([0.5, 0.5]), backend.asarray([1, -1], "int8")
    loss(x, y, margin).backward()
    optimizer.step()
    assert margin.detach() == 1.5


def test_labels_get_no_gradient(backend: Backend) -> None:
    x = backend.asarray([1.0, 2.0]).requires_grad_()
    y = backend.asarray([1.0, -1.0]).requires_grad_()
    for first in (x, x.detach()):
        loss(first, y).backward()
        assert y.grad is None
    y = y.detach()
    _, tangent = backend.module.func.jvp(lambda y: loss(x.detach(), y), (y,), (y,))
    assert tangent == 0


def test_a_gradient_of_value_and_grad(backend: Backend) -> None:
    """The transform can be differentiated again, by autograd."""
    torch = backend.module
    x, y = backend.asarray([2.0, 0.5]), backend.asarray([1, -1], "int8")
    w = backend.asarray([1.0, 3.0]).requires_grad_()
    value, gradient = xpl.value_and_grad(loss)(x, y, reduction="sum", weight=w)
    assert torch.autograd.grad(gradient.sum(), w)[0].tolist() == [1, -1]
    assert torch.autograd.grad(value, w)[0].tolist() == [2, 0.5]


def test_a_cotangent_has_a_tangent(backend: Backend) -> None:
    from torch.autograd import forward_ad

    torch = backend.module
    x, y = backend.asarray([1.5, 0.25]).requires_grad_(), backend.asarray([1, -1], "int64")
    value = loss(x, y, reduction="none")
    with forward_ad.dual_level():
        cotangent = forward_ad.make_dual(torch.ones_like(value), backend.asarray([2.0, 3.0]))
        gradient = forward_ad.unpack_dual(torch.autograd.grad(value, x, cotangent)[0])
    assert gradient.primal.tolist() == [1, -1]
    assert gradient.tangent.tolist() == [2, -3]


def test_fake_and_meta_tensors_have_shapes_only(backend: Backend) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    torch = backend.module
    with FakeTensorMode():
        fake = torch.empty(3)
    for x, context in [(torch.empty(3, device="meta"), nullcontext()), (fake, fake.fake_mode)]:
        with context:
            assert type(loss(x, x)) is type(x)
            assert loss(x, x).shape == ()
            value, gradient = xpl.value_and_grad(loss)(x, x, reduction="none")
            assert value.shape == gradient.shape == (3,)
            assert value.device == x.device
            x.requires_grad_()
            loss(x, x.detach()).backward()
            assert x.grad.shape == (3,)


@pytest.mark.parametrize("tracer", ["real", "symbolic", "jit"])
def test_tracers_see_every_operation(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, tracer: str
) -> None:
    """What they make of one call is right for other values: none has been taken for constant."""
    monkeypatch.setattr(_arrays, "_AGREED", {})  # it is the first call of its kind
    from torch.fx.experimental.proxy_tensor import make_fx

    torch = backend.module
    x, y = backend.asarray([1.5, 0.25]), backend.asarray([1, -1], "int8")
    call = lambda x, y: loss(x, y, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of labels that are read
        if tracer == "jit":
            traced = torch.jit.trace(call, (x, y))
        else:
            traced = make_fx(call, tracing_mode=tracer)(x, y)
    assert traced(x + 0.5, y).item() == 1.125
    if tracer == "symbolic":
        assert traced(x.repeat(3), y.repeat(3)).item() == 1.125


def test_saved_tensors_are_the_arguments(backend: Backend, arguments: dict[str, Any]) -> None:
    torch = backend.module
    leaves = {k: v.requires_grad_() if k != "label" else v for k, v in arguments.items()}
    saved: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        loss(**leaves)
    own = {v.data_ptr() for v in leaves.values()}
    assert {t.data_ptr() for t in saved} <= own


def test_tensors_of_inference_mode_beside_others(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they come from a teacher, or are mined."""
    torch = backend.module
    with torch.inference_mode():
        y = backend.asarray([1, -1], "int8")
        near, far = backend.asarray([[6.0, 8.0]]), backend.asarray([[0.0, 0.0]])
    x = backend.asarray([1.5, 0.25]).requires_grad_()
    loss(x, y, reduction="sum").backward()
    assert x.grad.tolist() == [1, -1]
    assert xpl.value_and_grad(loss)(x, y, reduction="sum")[1].tolist() == [1, -1]
    a = backend.asarray([[3.0, 4.0]]).requires_grad_()
    _, slope = xpl.value_and_grad(xpl.triplet_margin_loss)(a, near, far, epsilon=0.0)
    xpl.triplet_margin_loss(a, near, far, epsilon=0.0).backward()
    for found in (slope, a.grad):
        torch.testing.assert_close(found, -near / 5)

    def refuse(*_: Any) -> None:
        msg = "out of memory"
        raise RuntimeError(msg)

    monkeypatch.setattr("array_api_losses._engines.torch._APPLY_EAGER", refuse)
    with pytest.raises(RuntimeError, match="out of memory"):
        loss(x, x.detach())


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("function", [loss, xpl.jit(loss)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_tensors_are_read_once(
    backend: Backend, dtype: str, function: Any, *, create_graph: bool
) -> None:
    """Checkpoints refuse a second time."""
    from torch.utils.checkpoint import checkpoint

    x = backend.asarray([1.5, 0.25], dtype).requires_grad_()
    y = backend.asarray([1, -1], "int64")
    value = checkpoint(lambda x: function(x, y, reduction="sum"), x, use_reentrant=False)
    (slope,) = backend.module.autograd.grad(value, x, create_graph=create_graph)
    assert slope.tolist() == [1, -1]


@pytest.mark.parametrize("export", [False, True])
def test_another_thread_may_compile(backend: Backend, *, export: bool) -> None:
    """Which PyTorch tells every thread: arrays of NumPy were none, and other tensors were saved."""
    torch, host = backend.module, backend.np.ones(2)
    x, y = backend.asarray([1.5, 0.25]).requires_grad_(), backend.asarray([1, -1], "int64")
    found = []

    def elsewhere(*given: Any) -> Any:
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(loss, host, host).result() == 1
            found.append(type(pool.submit(loss, x, y).result().grad_fn).__name__)
        return given[0]

    class Module(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return elsewhere(x) + 1

    if export:
        torch.export.export(Module(), (x.detach(),), strict=False)
    else:
        torch.compile(lambda x: x + 1, backend=elsewhere)(x.detach())
    assert found == ["EagerBackward"]


def test_tensors_that_numpy_cannot_share(backend: Backend) -> None:
    """A lazily negated tensor, a subclass: the same results without NumPy."""
    torch = backend.module
    y = backend.asarray([1, -1], "int64")
    negated = torch.tensor([1.5j, 0.25j], device=y.device).conj().imag
    assert negated.is_neg()
    assert loss(negated, y, reduction="none").tolist() == [-1.5, 1.25]

    class Sub(torch.Tensor):
        pass

    sub = torch.tensor([1.5, 0.25], device=y.device).as_subclass(Sub)
    assert loss(sub, y).item() == 1.125


def test_no_more_threads_than_pytorch_may_use(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    from array_api_losses._engines import blocks

    backend.require("reads labels")  # by NumPy, which the threads are for
    torch = backend.module
    parts, shared, before = [], blocks.shared, torch.get_num_threads()

    def noted(work: Any, cuts: list[int]) -> Any:
        parts.append(len(cuts) - 1)
        return shared(work, cuts)

    monkeypatch.setattr(blocks, "shared", noted)
    monkeypatch.setattr(blocks, "allowed", lambda _: 2)
    x = torch.ones(2**20)
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert loss(x, x).item() == 1
    finally:
        torch.set_num_threads(before)
    assert parts == [1, 2]


def test_errors_of_compiled_code(backend: Backend) -> None:
    """They stand in what PyTorch raises; those of a class too."""
    torch, x = backend.module, backend.asarray([1.0])
    for call, text in [
        (lambda x: xpl.HingeEmbeddingLoss(margin="a")(x, x), "`margin` is a str"),
        (lambda x: loss(x, 1), "`label` is an int, not an array"),
        (lambda x: loss(x, [1.0]), "`label` is a list, not an array"),
        (lambda x: xpl.triplet_margin_loss(x, x, x, swap=1), "`swap` is 1"),
        (lambda x: xpl.hinge_embedding_loss(x, x > 0), "If True stands for 1"),
    ]:
        with pytest.raises(RuntimeError, match=f"raised exception TypeError.*{text}"):
            torch.compile(call, fullgraph=True, backend="eager")(x)
