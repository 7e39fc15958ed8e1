"""Every way to a gradient: the transforms of the package, and what each library has of its own.

A route takes (backend, case, arrays, name of the argument, cotangent or None) and returns the
gradient. All of them must agree with the oracle, at the kink too.
"""

from collections.abc import Callable
from typing import Any

from backends import Backend
from compare import Case, Route

import array_api_losses as xpl


def _value_and_grad(
    backend: Backend, case: Case, arrays: dict[str, Any], argument: str, cotangent: Any
) -> Any:
    """The cotangent of a whole goes in by hand; `vjp` takes any."""
    if cotangent is not None:
        return _vjp(backend, case, arrays, argument, cotangent)
    return xpl.value_and_grad(case.function, argument)(**arrays, **case.keywords)[1]


def _vjp(
    backend: Backend, case: Case, arrays: dict[str, Any], argument: str, cotangent: Any
) -> Any:
    value, pullback = xpl.vjp(case.function, **arrays, **case.keywords, argnums=argument)
    return pullback(backend.xp.ones_like(value) if cotangent is None else cotangent)


def _function(
    arrays: dict[str, Any], case: Case, argument: str, cotangent: Any, call: Callable[..., Any]
) -> Callable[[Any], Any]:
    """Return the scalar <cotangent, loss> as a function of one argument."""

    def scalar(argument_value: Any) -> Any:
        value = call(**{**arrays, argument: argument_value}, **case.keywords)
        return (value if cotangent is None else value * cotangent).sum()

    return scalar


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Spare it the C++ compiler, which takes seconds a call."""
    import torch

    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def _torch(
    differentiate: Callable[[Callable[[Any], Any], Any], Any], *, compiled: bool = False
) -> Route:
    def route(
        backend: Backend, case: Case, arrays: dict[str, Any], argument: str, cotangent: Any
    ) -> Any:
        call = _compiled(case.function) if compiled else case.function
        scalar = _function(arrays, case, argument, cotangent, call)
        return differentiate(scalar, arrays[argument]).detach()

    return route


def _backward(scalar: Callable[[Any], Any], x: Any) -> Any:
    x = x.detach().clone().requires_grad_()
    scalar(x).backward()
    return x.grad


def _autograd_grad(scalar: Callable[[Any], Any], x: Any) -> Any:
    import torch

    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(scalar(x), x, create_graph=True)[0]


def _func_grad(scalar: Callable[[Any], Any], x: Any) -> Any:
    import torch

    return torch.func.grad(scalar)(x)


def _func_jacrev(scalar: Callable[[Any], Any], x: Any) -> Any:
    import torch

    return torch.func.jacrev(scalar)(x)


def _func_jvp(
    scalar: Callable[[Any], Any], x: Any, wrap: Callable[[Any], Any] = lambda jvp: jvp
) -> Any:
    """Forward mode, one direction after another."""
    import torch

    slope = wrap(lambda x, row: torch.func.jvp(scalar, (x,), (row,))[1])
    flat = torch.eye(x.numel(), dtype=x.dtype, device=x.device)
    return torch.stack([slope(x, row.reshape(x.shape)) for row in flat]).reshape(x.shape)


def _compiled_grad(scalar: Callable[[Any], Any], x: Any) -> Any:
    import torch

    return _compiled(torch.func.grad(scalar))(x)


def _compiled_vmap(scalar: Callable[[Any], Any], x: Any) -> Any:
    """Two copies, of which the second is returned; backward outside of what is mapped."""
    import torch

    mapped = _compiled(torch.vmap(scalar))
    return _backward(lambda copies: mapped(copies)[1], torch.stack([x + 1, x]))[1]


def _compiled_jvp(scalar: Callable[[Any], Any], x: Any) -> Any:
    return _func_jvp(scalar, x, _compiled)


def _func_jacfwd(scalar: Callable[[Any], Any], x: Any) -> Any:
    import torch

    return torch.func.jacfwd(scalar)(x)


def _func_jacfwd_vmap(scalar: Callable[[Any], Any], x: Any) -> Any:
    """Forward mode around `vmap`."""
    import torch

    return torch.func.jacfwd(lambda x: torch.vmap(scalar)(torch.stack([x + 1, x]))[1])(x)


def _func_vmap(scalar: Callable[[Any], Any], x: Any) -> Any:
    """Per-sample gradients: two copies, of which the second is returned."""
    import torch

    return torch.vmap(torch.func.grad(scalar))(torch.stack([x + 1, x]))[1]


def _dual(scalar: Callable[[Any], Any], x: Any) -> Any:
    import torch
    from torch.autograd import forward_ad

    slopes = []
    for row in torch.eye(x.numel(), dtype=x.dtype, device=x.device):
        with forward_ad.dual_level():
            result = scalar(forward_ad.make_dual(x, row.reshape(x.shape)))
            slopes.append(forward_ad.unpack_dual(result).tangent)
    return torch.stack(slopes).reshape(x.shape)


def _jax(differentiate: Callable[[Callable[[Any], Any], Any], Any]) -> Route:
    def route(
        backend: Backend, case: Case, arrays: dict[str, Any], argument: str, cotangent: Any
    ) -> Any:
        return differentiate(
            _function(arrays, case, argument, cotangent, case.function), arrays[argument]
        )

    return route


def _jax_grad(scalar: Callable[[Any], Any], x: Any) -> Any:
    import jax

    return jax.grad(scalar)(x)


def _jax_jit_grad(scalar: Callable[[Any], Any], x: Any) -> Any:
    import jax

    return jax.jit(jax.grad(scalar))(x)


def _jax_grad_jit(scalar: Callable[[Any], Any], x: Any) -> Any:
    import jax

    return jax.value_and_grad(jax.jit(scalar))(x)[1]


def _jax_forward(scalar: Callable[[Any], Any], x: Any) -> Any:
    import jax

    return jax.jacfwd(scalar)(x)


def _jax_vmap(scalar: Callable[[Any], Any], x: Any) -> Any:
    import jax
    import jax.numpy as jnp

    return jax.vmap(jax.grad(scalar))(jnp.stack([x + 1, x]))[1]


ROUTES: dict[str, Route] = {
    "value_and_grad": _value_and_grad,
    "vjp": _vjp,
    "torch-backward": _torch(_backward),
    "torch-autograd.grad": _torch(_autograd_grad),
    "torch-func.grad": _torch(_func_grad),
    "torch-func.jacrev": _torch(_func_jacrev),
    "torch-vmap(func.grad)": _torch(_func_vmap),
    "torch-compile": _torch(_backward, compiled=True),
    "torch-compile(func.grad)": _torch(_compiled_grad),
    "torch-compile(vmap)": _torch(_compiled_vmap),
    "jax-grad": _jax(_jax_grad),
    "jax-jit(grad)": _jax(_jax_jit_grad),
    "jax-value_and_grad(jit)": _jax(_jax_grad_jit),
    "jax-vmap(grad)": _jax(_jax_vmap),
}
FORWARD_ROUTES: dict[str, Route] = {
    "torch-func.jvp": _torch(_func_jvp),
    "torch-func.jacfwd": _torch(_func_jacfwd),
    "torch-jacfwd(vmap)": _torch(_func_jacfwd_vmap),
    "torch-forward_ad": _torch(_dual),
    "torch-compile(func.jvp)": _torch(_compiled_jvp),
    "jax-jacfwd": _jax(_jax_forward),
}
"""One direction after another, so that a NaN in one place reaches the others by 0 * NaN."""

REVERSE_ROUTES = tuple(ROUTES)
ROUTES |= FORWARD_ROUTES
TRANSFORMS = ("value_and_grad", "vjp")


def names(library: str, *, reverse: bool) -> list[str]:
    """Return the routes that a library has: the transforms of the package, and its own."""
    chosen = REVERSE_ROUTES if reverse else ROUTES
    return [name for name in chosen if name in TRANSFORMS or name.startswith(library + "-")]
