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
    HALVES,
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
from array_api_losses._loss import Array, Call

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
        if watched():
            return super().tracked(call)
        return _APPLY_COMPILED(*taken_apart(call, self))

    def untracked(self, call: Call) -> Array:
        if watched():
            return super().untracked(call)
        return _value(*taken_apart(call, self))

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
        return _gradient(wanted, cotangent, *taken_apart(call, self))


class _EagerCompiled(Eager):
    """Does little in its backward pass, which on CUDA runs in a thread that has long waited."""

    @staticmethod
    def forward(ctx: Any, static: Static, *tensors: Any) -> Any:
        ctx.static, ctx.numbers = static, _numbers(static, tensors[0])
        ctx.save_for_backward(*tensors)
        kind, usual = _kind(static, *tensors), True  # the cotangent is in one piece
        ctx.gradient = _compiled(ctx.needs_input_grad[1:], usual, *kind)
        return _compiled(None, None, *kind)(*ctx.numbers, *tensors)

    @staticmethod
    def backward(ctx: Any, cotangent: Any) -> Any:
        tensors = ctx.saved_tensors
        usual = cotangent.is_contiguous() and not torch.is_grad_enabled()
        if usual and not transforming() and not watched(cotangent):
            return None, *ctx.gradient(cotangent, *ctx.numbers, *tensors)[1]
        static, wanted = ctx.static, ctx.needs_input_grad[1:]
        return None, *pulled_back(static.call(tensors), wanted, cotangent, static.engine)


_APPLY_COMPILED = apply_of(_EagerCompiled)


def _value(static: Static, *tensors: Any) -> Array:
    compiled = _compiled(None, None, *_kind(static, *tensors))
    return compiled(*_numbers(static, tensors[0]), *tensors)


def _gradient(
    wanted: tuple[bool, ...], cotangent: Any, static: Static, *tensors: Any
) -> tuple[Array | None, tuple[Array | None, ...]]:
    usual = None if cotangent is None else cotangent.is_contiguous()  # of a sum it is not
    compiled = _compiled(wanted, usual, *_kind(static, *tensors))
    found: tuple[Array | None, tuple[Array | None, ...]]
    found = compiled(cotangent, *_numbers(static, tensors[0]), *tensors)
    return found


@lru_cache(MOST_COMPILED)
def _compiled(wanted: tuple[bool, ...] | None, usual: bool | None, *kind: Any) -> Any:
    """Compile a copy of the function: PyTorch gives up on one that sees too many kinds of call."""
    function = compiled_value if wanted is None else compiled_gradient
    name = f"{function.__name__}_{abs(hash((wanted, usual, kind)))}"
    copy = FunctionType(function.__code__.replace(co_name=name), function.__globals__)
    loss, reduction, trusted, _, *kinds = kind
    # Numbers have passed the check of parameters already.
    sure = not any(kinds[loss.first_parameter : -1])
    static = replace(loss, sure=sure), reduction, trusted, tuple(k is None for k in kinds[:-1])
    copy.__kwdefaults__ = {"static": static} | ({} if wanted is None else {"wanted": wanted})
    options = {"guard_filter_fn": _left} if _CHOOSES_GUARDS else None
    return torch.compile(copy, options=options)


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
    kinds = [t if t is None else (t.dtype, t.ndim, t.requires_grad) for t in tensors]
    return static.loss, static.reduction, static.trusted, torch.is_grad_enabled(), *kinds


def _numbers(static: Static, first: Array) -> list[Array]:
    """Return the numbers as tensors, for `torch.compile` would compile for each.

    For CUDA they lie on the CPU: a kernel is given the value of such a tensor, if nothing is to be
    done to it before, so it has the dtype that is computed in.
    """
    dtype = torch.float32 if first.dtype in HALVES else first.dtype
    device = "cpu" if first.is_cuda else first.device
    return [
        torch.scalar_tensor(n, dtype=dtype, device=device) for n in static.numbers if n is not None
    ]


def compiled_value(*arguments: Any, static: Any) -> Any:
    return EAGER.run(compiled_call(static, arguments))


def compiled_gradient(
    cotangent: Any, *arguments: Any, static: Any, wanted: tuple[bool, ...]
) -> Any:
    call = compiled_call(static, arguments)
    value = EAGER.run(call) if cotangent is None else None
    return value, _derivatives.pullback(xp, call, wanted, cotangent, EAGER.run)


def compiled_call(static: Any, arguments: tuple[Any, ...]) -> Call:
    """Put the call together: before its tensors stand the numbers, which are missing there."""
    loss, reduction, trusted, missing = static
    numbers = list(arguments[: sum(missing)])
    present = arguments[len(numbers) : -1]
    operands = [numbers.pop(0) if m else o for m, o in zip(missing, present, strict=True)]
    return Call(loss, tuple(operands), arguments[-1], reduction, None, trusted)


ENGINE = _ThroughCompile(xp)
