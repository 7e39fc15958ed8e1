"""PyTorch, for `jit`: forward, and backward, each through `torch.compile`."""

from dataclasses import replace
from functools import lru_cache
from types import FunctionType
from typing import Any

import array_api_compat.torch as xp
import torch

from array_api_losses import _derivatives
from array_api_losses._engines.torch import ENGINE as EAGER
from array_api_losses._engines.torch import (
    Eager,
    Static,
    Torch,
    Transformed,
    apply_of,
    pulled_back,
    rule_for,
    savable,
    taken_apart,
    transforming,
    watched,
)
from array_api_losses._loss import Array, Call, Loss

MOST_COMPILED = 256
"""So many kinds of call are kept: norms and the like are constants in them."""

_CHOOSES_GUARDS = hasattr(torch.compiler, "skip_guard_on_globals_unsafe")
"""As PyTorch 2.7 does not."""


class _ThroughCompile(Torch):
    """Compiles a call, except where something watches; labels are not read.

    Forward and backward are compiled apart: of both together there is no second derivative, and
    of rows PyTorch keeps more than the arguments in between.
    """

    def readable(self, call: Call) -> bool:
        return False

    def tracked(self, call: Call) -> Array:
        if watched() or torch.is_inference_mode_enabled():  # what is made there cannot be saved
            return super().tracked(call)
        return _APPLY_COMPILED(*taken_apart(_without_numbers(call), self))

    def untracked(self, call: Call) -> Array:
        if watched():
            return super().untracked(call)
        return _value(*taken_apart(_without_numbers(call), self))

    def gradient(
        self, call: Call, wanted: tuple[bool, ...], cotangent: Array | None
    ) -> tuple[Array | None, tuple[Array | None, ...]]:
        found = None
        rule = rule_for((*call.arguments(), cotangent))
        if rule is Eager:
            call = savable(call)
        if rule is not Transformed:
            found = self.untracked_gradient(call, wanted, cotangent)
        return super().gradient(call, wanted, cotangent) if found is None else found

    def untracked_gradient(
        self, call: Call, wanted: tuple[bool, ...], cotangent: Array | None
    ) -> tuple[Array | None, tuple[Array | None, ...]] | None:
        if watched(cotangent):
            return None
        return _gradient(wanted, cotangent, *taken_apart(_without_numbers(call), self))


class _EagerCompiled(Eager):
    """Does little in its backward pass, which on CUDA runs in a thread that has long waited."""

    @staticmethod
    def forward(ctx: Any, static: Static, *tensors: Any) -> Any:
        ctx.static = static
        ctx.save_for_backward(*tensors)
        kind, usual = _kind(static, *tensors), True  # the cotangent is in one piece
        ctx.gradient = _compiled(compiled_gradient, ctx.needs_input_grad[1:], usual, *kind)
        return _compiled(compiled_value, *kind)(static, *tensors)

    @staticmethod
    def backward(ctx: Any, cotangent: Any) -> Any:
        static, tensors, wanted = ctx.static, ctx.saved_tensors, ctx.needs_input_grad[1:]
        usual = cotangent.is_contiguous() and not torch.is_grad_enabled()
        if usual and not transforming() and not watched(cotangent):
            return None, *ctx.gradient(wanted, cotangent, static, *tensors)[1]
        return None, *pulled_back(static.call(tensors), wanted, cotangent, static.engine)


_APPLY_COMPILED = apply_of(_EagerCompiled)


def _value(static: Static, *tensors: Any) -> Array:
    return _compiled(compiled_value, *_kind(static, *tensors))(static, *tensors)


def _gradient(
    wanted: tuple[bool, ...], cotangent: Any, static: Static, *tensors: Any
) -> tuple[Array | None, tuple[Array | None, ...]]:
    usual = None if cotangent is None else cotangent.is_contiguous()  # of a sum it is not
    compiled = _compiled(compiled_gradient, wanted, usual, *_kind(static, *tensors))
    found: tuple[Array | None, tuple[Array | None, ...]]
    found = compiled(wanted, cotangent, static, *tensors)
    return found


@lru_cache(MOST_COMPILED)
def _compiled(function: FunctionType, *kind: Any) -> Any:
    """Compile a copy of the function: PyTorch gives up on one that sees too many kinds of call."""
    code = function.__code__.replace(co_name=f"{function.__name__}_{abs(hash(kind))}")
    options = {"guard_filter_fn": _left} if _CHOOSES_GUARDS else None
    return torch.compile(FunctionType(code, function.__globals__), options=options)


def _left(guards: Any) -> list[bool]:
    """Return which guards are to be checked in each call.

    Not those on globals, which stay as they are, and on what is in `_kind`; nor those on hooks of
    what autograd saves, where it saves nothing.
    """
    hooks = "" if torch.is_grad_enabled() else "AUTOGRAD_SAVED_TENSORS_HOOKS"
    told = ("static", "wanted")
    return [
        not g.is_global and g.guard_type != hooks and not any(name in g.name for name in told)
        for g in guards
    ]


def _kind(static: Static, *tensors: Any) -> tuple[Any, ...]:
    kinds = (t if t is None else (t.dtype, t.ndim, t.requires_grad) for t in tensors)
    own = static.loss, static.reduction, static.trusted
    return *own, torch.is_grad_enabled(), *kinds


def compiled_value(static: Static, *tensors: Any) -> Any:
    return EAGER.run(static.call(tensors))


def compiled_gradient(
    wanted: tuple[bool, ...], cotangent: Any, static: Static, *tensors: Any
) -> Any:
    call = static.call(tensors)
    value = EAGER.run(call) if cotangent is None else None
    return value, _derivatives.pullback(xp, call, wanted, cotangent, EAGER.run)


def _without_numbers(call: Call) -> Call:
    """Return the call with its numbers as tensors, for `torch.compile` would compile for each.

    All of them: a checkpoint takes what is saved by its place, twice, and a margin that is a tensor
    in one of the two only would be taken for a weight.
    """
    loss, operands, first = call.loss, call.operands, call.operands[0]
    if not any(isinstance(o, torch.Tensor) for o in operands[loss.first_parameter :]):
        loss = _sure(loss)
    operands = tuple(
        o
        if isinstance(o, torch.Tensor)
        else torch.scalar_tensor(o, dtype=first.dtype, device=first.device)
        for o in operands
    )
    return call._replace(loss=loss, operands=operands)


@lru_cache(MOST_COMPILED)
def _sure(loss: Loss) -> Loss:
    """Return the loss without the check of parameters, which numbers have passed already."""
    return replace(loss, sure=True)


ENGINE = _ThroughCompile(xp)
