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
    mended,
    pulled_back,
    rule_for,
    savable,
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

    def value(self, call: Call) -> Array:
        if watched() or (transforming() and rule_for(call.arguments()) is Transformed):
            return super().value(call)
        ready, tensors, tracked = _ready_for(call, differentiable=False)
        if not tracked:
            return ready.value(*ready.numbers, *tensors)
        try:
            return _APPLY_COMPILED(ready, *tensors)
        except RuntimeError as error:
            return self.value(mended(call, error))

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
        ready, tensors, _ = _ready_for(call, differentiable=True)
        usual = None if cotangent is None else cotangent.is_contiguous()  # of a sum it is not
        found: tuple[Array | None, tuple[Array | None, ...]]
        found = ready.gradient(wanted, usual)(cotangent, *ready.numbers, *tensors)
        return found


class _Ready:
    """What is kept for a kind of call: all that it is beside its tensors, and what it runs.

    Its numbers are tensors, for `torch.compile` would compile for each. For CUDA they lie on the
    CPU: a kernel is given the value of such a tensor, if nothing is to be done to it before, so it
    has the dtype that is computed in.
    """

    def __init__(
        self,
        call: tuple[Loss, str, str | None, bool],
        recorded: bool,
        device: Any,
        *kinds: Any,
    ) -> None:
        loss, reduction, name, trusted = call
        numbers = tuple(None if isinstance(k, tuple) else k for k in kinds)
        self.static = Static(Call(loss, (), None, reduction, name, trusted), numbers, ENGINE)
        of_tensors = [k if isinstance(k, tuple) else None for k in kinds]
        self._kind = loss, reduction, trusted, recorded, *of_tensors
        dtype = torch.float32 if kinds[0][0] in HALVES else kinds[0][0]
        device = "cpu" if device.type == "cuda" else device
        with torch.inference_mode(mode=False):  # what is made in that mode is of another kind
            self.numbers = [
                torch.scalar_tensor(number, dtype=dtype, device=device)
                for number in numbers
                if number is not None
            ]
        self.value = _compiled(None, None, *self._kind)

    def gradient(self, wanted: tuple[bool, ...], usual: bool | None) -> Any:
        return _compiled(wanted, usual, *self._kind)


_ready = lru_cache(MOST_COMPILED)(_Ready)


def _ready_for(call: Call, *, differentiable: bool) -> tuple[_Ready, list[Any], bool]:
    """Return what is kept for a call, its tensors, and whether autograd is to know of it.

    If so, what runs does not see autograd, unless it is to be `differentiable` itself.
    """
    loss, operands, weight, reduction, name, trusted = call
    tensors: list[Any] = []
    kinds: list[Any] = []
    recorded, tracked = torch.is_grad_enabled(), False
    for argument in (*operands, weight):
        if isinstance(argument, torch.Tensor):
            wants = argument.requires_grad
            tracked = tracked or (recorded and wants)
            tensors.append(argument)
            kinds.append((argument.dtype, argument.ndim, wants))
        else:
            tensors.append(None)
            kinds.append(argument)
    recorded = recorded and (differentiable or not tracked)
    kept = _ready((loss, reduction, name, trusted), recorded, tensors[0].device, *kinds)
    return kept, tensors, tracked


class _EagerCompiled(Eager):
    """Does little in its backward pass, which on CUDA runs in a thread that has long waited."""

    @staticmethod
    def forward(ctx: Any, ready: Any, *tensors: Any) -> Any:
        ctx.static, ctx.numbers = ready.static, ready.numbers
        ctx.save_for_backward(*tensors)
        usual = True  # the cotangent is in one piece
        ctx.gradient = ready.gradient(ctx.needs_input_grad[1:], usual)
        return ready.value(*ready.numbers, *tensors)

    @staticmethod
    def backward(ctx: Any, cotangent: Any) -> Any:
        tensors = ctx.saved_tensors
        usual = cotangent.is_contiguous() and not torch.is_grad_enabled()
        if usual and not transforming() and not watched(cotangent):
            return None, *ctx.gradient(cotangent, *ctx.numbers, *tensors)[1]
        static, wanted = ctx.static, ctx.needs_input_grad[1:]
        return None, *pulled_back(static.call(tensors), wanted, cotangent, static.engine)


_APPLY_COMPILED = apply_of(_EagerCompiled)


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
