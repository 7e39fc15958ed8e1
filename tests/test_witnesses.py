"""Independent witnesses: PyTorch's and Paddle's own loss, wherever all three define the same thing.

They agree on values for labels 1 and -1, and on gradients away from the kink.
"""

from typing import Any

import pytest
from backends import Backend
from reference import LOSSES

import array_api_losses as xpl

TRIPLETS = [
    {"p": p, "swap": swap, "margin": margin}
    for p, swap, margin in [
        (2.0, False, 1.0),
        (2.0, True, 0.5),
        (1.0, True, 2.0),
        (3.0, False, 1.0),
    ]
]
OTHERS = [
    *[("margin_ranking_loss", 2, {"margin": margin}) for margin in (0.0, 0.5, -0.25)],
    *[("cosine_embedding_loss", 2, {"margin": margin}) for margin in (0.0, 0.5, -0.25)],
    *[("triplet_margin_loss", 3, options) for options in TRIPLETS],
]
"""Losses of several inputs: the name in all three, how many inputs, and arguments by name."""

REDUCTIONS = ["none", "sum", "mean"]
MARGINS = [1.0, 0.3, -0.5, 2]


def _inputs(backend: Backend, dtype: str) -> tuple[Any, Any]:
    rng = backend.np.random.default_rng(11)
    return rng.normal(size=(50, 3)).astype(dtype), rng.choice([-1, 1], size=(50, 3)).astype(dtype)


@pytest.mark.library("torch")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("margin", MARGINS)
def test_torch(backend: Backend, dtype: str, reduction: str, margin: float) -> None:
    torch = backend.module
    results = []
    for loss in (torch.nn.functional.hinge_embedding_loss, xpl.hinge_embedding_loss):
        x, y = (torch.asarray(a) for a in _inputs(backend, dtype))
        x.requires_grad_()
        value = loss(x, y, margin=margin, reduction=reduction)
        value.sum().backward()
        results.append((value, x.grad))
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def _inputs_of_others(backend: Backend, name: str, count: int) -> list[Any]:
    rng = backend.np.random.default_rng(11)
    spec = LOSSES[name]
    inputs = [rng.normal(size=(40, 5) if spec.rowwise else 40) for _ in range(count)]
    return [*inputs, rng.choice([-1.0, 1.0], 40)] if spec.label else inputs


@pytest.mark.library("torch")
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("name", "count", "options"), OTHERS)
def test_torch_of_others(
    backend: Backend, name: str, count: int, options: dict[str, Any], reduction: str
) -> None:
    torch = backend.module
    results = []
    for loss in (getattr(torch.nn.functional, name), getattr(xpl, name)):
        arrays = [torch.asarray(a) for a in _inputs_of_others(backend, name, count)]
        inputs = [a.requires_grad_() for a in arrays[:count]]
        value = loss(*arrays, **options, reduction=reduction)
        value.sum().backward()
        results.append((value, *(x.grad for x in inputs)))
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.library("numpy")
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("name", "count", "options"), OTHERS)
@pytest.mark.needs("paddle")
def test_paddle_of_others(
    backend: Backend, name: str, count: int, options: dict[str, Any], reduction: str
) -> None:
    import paddle

    raw = _inputs_of_others(backend, name, count)
    tensors = [paddle.to_tensor(a) for a in raw]
    for tensor in tensors[:count]:
        tensor.stop_gradient = False
    theirs = getattr(paddle.nn.functional, name)(*tensors, **options, reduction=reduction)
    theirs.sum().backward()
    argnums = tuple(range(count))
    ours, gradients = xpl.value_and_grad(getattr(xpl, name), argnums)(
        *raw, **options, reduction=reduction
    )
    backend.np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6, atol=1e-7)
    for gradient, tensor in zip(gradients, tensors, strict=False):
        backend.np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=1e-6, atol=1e-7)


@pytest.mark.library("numpy")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("form", ["function", "class"])
@pytest.mark.needs("paddle")
def test_paddle(backend: Backend, dtype: str, reduction: str, margin: float, form: str) -> None:
    import paddle

    raw = _inputs(backend, dtype)
    x, y = (paddle.to_tensor(a) for a in raw)
    x.stop_gradient = False
    if form == "function":
        theirs = paddle.nn.functional.hinge_embedding_loss(x, y, margin, reduction)
        ours = xpl.hinge_embedding_loss(*raw, margin, reduction)
    else:
        theirs = paddle.nn.HingeEmbeddingLoss(margin, reduction)(x, y)
        ours = xpl.HingeEmbeddingLoss(margin, reduction)(*raw)
    theirs.sum().backward()
    _, gradient = xpl.value_and_grad(xpl.hinge_embedding_loss)(*raw, margin, reduction)
    backend.np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-6)
    backend.np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=1e-5, atol=1e-7)


@pytest.mark.library("numpy")
@pytest.mark.needs("paddle")
def test_paddle_is_at_rest_at_the_margin() -> None:
    import paddle

    x = paddle.to_tensor([1.0], stop_gradient=False)
    paddle.nn.functional.hinge_embedding_loss(x, paddle.to_tensor([-1.0])).backward()
    assert x.grad.numpy() == [0]


@pytest.mark.library("torch")
def test_torch_of_a_zero_vector(backend: Backend) -> None:
    """What it adds to the squares makes the gradient huge there; here it is 0."""
    torch = backend.module
    a, b = torch.zeros(1, 4, requires_grad=True), torch.ones(1, 4)
    torch.nn.functional.cosine_embedding_loss(a, b, torch.ones(1)).backward()
    assert a.grad.abs().min() > 1e5
    a.grad = None
    xpl.cosine_embedding_loss(a, b, torch.ones(1)).backward()
    assert not a.grad.any()
