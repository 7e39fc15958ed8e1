"""Independent witnesses: PyTorch's and Paddle's own loss, wherever all three define the same thing.

They agree on values for labels 1 and -1, and on gradients away from the kink.
"""

from typing import Any

import pytest
from backends import Backend

import array_api_losses as xpl

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
def test_torch_is_not_at_rest_at_the_margin(backend: Backend) -> None:
    torch = backend.module
    x = torch.ones(1, requires_grad=True)
    torch.nn.functional.hinge_embedding_loss(x, -torch.ones(1)).backward()
    assert x.grad == -1
