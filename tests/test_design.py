"""A second loss, of two inputs and defined here alone, runs through the shared pipeline."""

from typing import Any

import pytest
from backends import Backend

import array_api_losses as xpl
from array_api_losses._loss import Call, Loss, loss_function


def _value(xp: Any, a: Any, b: Any, y: Any, margin: Any) -> Any:
    return xp.maximum(margin - y * (a - b), y - y)


def _slopes(xp: Any, wanted: tuple[bool, ...], a: Any, b: Any, y: Any, margin: Any) -> Any:
    active = xp.astype(margin > y * (a - b), a.dtype)
    found = (-y * active, y * active, None, active)
    return tuple(slope if want else None for slope, want in zip(found, wanted, strict=False))


TOY = Loss("toy_loss", _value, _slopes, ("input", "other"), "label", ("margin",))


@loss_function
def toy_loss(input: Any, other: Any, label: Any, margin: Any = 0.0, reduction: str = "mean") -> Any:
    return Call(TOY, (input, other, label, margin), None, reduction, None)


def test_value_and_gradients(backend: Backend) -> None:
    a, b = backend.asarray([1.0, 2.0, 0.0, 1.0]), backend.asarray([0.5, 4.0, 1.0, 1.0])
    y = backend.asarray([1, 1, -1, -1], "int8")
    value, gradients = xpl.value_and_grad(toy_loss, ("input", "other"))(a, b, y, 1.0, "sum")
    assert backend.tolist(value) == [4.5]
    assert [backend.tolist(g) for g in gradients] == [[-1, -1, 0, 1], [1, 1, 0, -1]]
    _, pullback = xpl.vjp(toy_loss, a, b, y, backend.asarray(1.0), "none", argnums="margin")
    assert backend.tolist(pullback(backend.asarray([1.0, 2.0, 4.0, 8.0]))) == [11]


def test_inputs_agree(backend: Backend) -> None:
    x, y = backend.asarray([1.0, 2.0]), backend.asarray([1, -1], "int8")
    with pytest.raises(TypeError) as caught:
        toy_loss(x, backend.asarray([1.0, 2.0], "float32"), y)
    assert str(caught.value) == (
        "toy_loss: `other` has dtype float32 but `input` has dtype float64; it must have the same."
        " Convert it, e.g. `other = xp.astype(other, input.dtype)`."
    )
    with pytest.raises(TypeError) as caught:
        toy_loss(x, y, y)
    assert str(caught.value) == (
        "toy_loss: `other` has dtype int8; it must be real floating. Convert it, e.g."
        " `other = xp.astype(other, xp.float32)`."
    )
    with pytest.raises(ValueError, match=r"^toy_loss: `input` has shape \(2,\) but `other` has"):
        toy_loss(x, x[:1], y)
    with pytest.raises(ValueError, match=r"^toy_loss: `input` has shape \(2,\) but `label` has"):
        toy_loss(x, x, y[:1])
    with pytest.raises(TypeError, match=r"^toy_loss: `label` has dtype uint8; it must hold"):
        toy_loss(x, x, backend.asarray([1, 0], "uint8"))


@pytest.mark.library("torch", "jax")
def test_own_autodiff(backend: Backend) -> None:
    a, b = backend.asarray([1.0, 2.0]), backend.asarray([0.5, 4.0])
    y = backend.asarray([1, 1], "int8")
    if backend.library == "torch":
        a.requires_grad_()
        toy_loss(a, b, y, 1.0).backward()
        gradient = a.grad
    else:
        import jax

        gradient = jax.grad(toy_loss)(a, b, y, 1.0)
    assert backend.tolist(gradient) == [-0.5, -0.5]
