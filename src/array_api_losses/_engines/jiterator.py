"""PyTorch on CUDA: the pipeline of an elementwise loss as one kernel, by PyTorch's jiterator.

The pipeline is called once for each kind of call, with stand-ins for numbers; what it does to them
becomes the lines of a function in C++, which PyTorch compiles and calls for every element. Inputs
of half precision are computed with in float32, as everything then is that meets them.

Nothing waits for the device: labels are not read, so the loss of a wrong one is NaN.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import array_api_compat.torch as xp
import torch
from torch.cuda.jiterator import _create_multi_output_jit_fn as compiled

from array_api_losses import _loss
from array_api_losses._engines.fused import Fused, identifier
from array_api_losses._loss import Array, Call, Loss


class Number:
    """Stands in for a number or a truth value in a function of C++, which it writes by the line."""

    dtype = "T"
    ndim = 0

    def __init__(self, lines: list[str], text: str) -> None:
        self.lines, self.text = lines, text

    def line(self, form: str, *others: Any) -> "Number":
        """Write down what the form says of this number and others; return the result."""
        texts = [o.text if isinstance(o, Number) else _literal(o) for o in others]
        name = f"v{len(self.lines)}"
        self.lines.append(f"const auto {name} = {form.format(self.text, *texts)};")
        return Number(self.lines, name)


for _method, _form in {
    "__add__": "{0} + {1}",
    "__radd__": "{1} + {0}",
    "__sub__": "{0} - {1}",
    "__rsub__": "{1} - {0}",
    "__mul__": "{0} * {1}",
    "__rmul__": "{1} * {0}",
    "__truediv__": "{0} / {1}",
    "__rtruediv__": "{1} / {0}",
    "__pow__": "pow({0}, {1})",
    "__neg__": "-{0}",
    "__eq__": "{0} == {1}",
    "__lt__": "{0} < {1}",
    "__le__": "{0} <= {1}",
    "__gt__": "{0} > {1}",
    "__ge__": "{0} >= {1}",
    "__and__": "{0} && {1}",
    "__invert__": "!{0}",
}.items():
    setattr(Number, _method, lambda self, *others, form=_form: self.line(form, *others))


def _literal(value: float) -> str:
    if math.isnan(value):
        return "T(NAN)"
    return f"T({value})" if math.isfinite(value) else f"T({'-' if value < 0 else ''}INFINITY)"


def _function(form: str) -> Callable[..., Number]:
    return lambda first, *others: first.line(form, *others)


TRACED: Any = SimpleNamespace(
    __name__=__name__,
    abs=_function("{0} < T(0) ? -{0} : {0}"),
    astype=lambda values, _: values,
    isfinite=_function("{0} - {0} == T(0)"),
    maximum=_function("{0} > {1} || {0} != {0} ? {0} : {1}"),  # NaN is kept, on either side
    minimum=_function("{0} < {1} || {0} != {0} ? {0} : {1}"),
    sign=_function("{0} > T(0) ? T(1) : {0} < T(0) ? T(-1) : {0}"),
    where=_function("{0} ? {1} : {2}"),
    zeros_like=_function("T(0)"),
)
"""What the pipeline may call; all numbers have the same dtype."""

TENSOR, NUMBER = "tensor", "number"
"""What an argument of a kernel is; if neither, it is known when the kernel is made."""


def _kernel(
    name: str, pipeline: Callable[..., Sequence[Number | None]], given: tuple[Any, ...]
) -> Any:
    lines: list[str] = []
    names = {kind: [f"a{i}" for i, k in enumerate(given) if k == kind] for kind in (TENSOR, NUMBER)}
    results = pipeline(
        *(Number(lines, f"a{i}") if kind in names else kind for i, kind in enumerate(given))
    )
    outputs = [result.text for result in results if result is not None]
    parameters = ", ".join(
        [f"T {argument}" for kind in names for argument in names[kind]]
        + [f"T& out{i}" for i in range(len(outputs))]
    )
    body = " ".join(lines + [f"out{i} = {text};" for i, text in enumerate(outputs)])
    code = f"template <typename T> void {identifier(name)}({parameters}) {{ {body} }}"
    return compiled(code, len(outputs), **dict.fromkeys(names[NUMBER], 0.0))


@cache
def _losses(loss: Loss, given: tuple[Any, ...]) -> Any:
    def losses(*arguments: Any) -> list[Number]:
        return [_loss.terms_of(TRACED, _loss.prepared(TRACED, _call(loss, arguments)))]

    return _kernel(loss.name, losses, given)


@cache
def _gradients(loss: Loss, wanted: tuple[bool, ...], given: tuple[Any, ...]) -> Any:
    def gradients(factor: Any, divisor: Any, mean: Any, *arguments: Any) -> list[Number | None]:
        call = _call(loss, arguments)
        return _loss.gradients_by_element(TRACED, call, wanted, (factor, divisor), mean)

    return _kernel(f"{loss.name}_gradients", gradients, given)


def _call(loss: Loss, arguments: tuple[Any, ...]) -> Call:
    return Call(loss, arguments[:-1], arguments[-1], "none", None)


def _run(made: Callable[..., Any], kind: tuple[Any, ...], *arguments: Any) -> Any:
    """Run the kernel of this kind on arguments that may be tensors, numbers or None."""
    given, tensors, numbers = [], [], {}
    for i, argument in enumerate(arguments):
        if isinstance(argument, torch.Tensor):
            given.append(TENSOR)
            tensors.append(argument)
        elif isinstance(argument, float):
            given.append(NUMBER)
            numbers[f"a{i}"] = argument
        else:
            given.append(argument)
    return made(*kind, tuple(given))(*tensors, **numbers)


def _arguments(call: Call) -> tuple[Any, ...]:
    first, *others = call.arguments
    return _loss.cast(xp, first, _loss.accumulator(xp, first.dtype)), *others


class Jiterator(Fused):
    """One kernel for the losses, whose sum is PyTorch's; and one for all gradients."""

    devices = frozenset({"cuda"})
    """The types of devices that the jiterator knows; ROCm goes by this name too."""

    def run(self, call: Call) -> Array:
        terms = _run(_losses, (call.loss,), *_arguments(call))
        return _loss.reduced(xp, call, terms, call.operands[0].dtype)

    def by_element(
        self,
        call: Call,
        wanted: tuple[bool, ...],
        seed: tuple[Any, Array | None],
        mean: Array | None,
    ) -> Sequence[Array]:
        found = _run(_gradients, (call.loss, wanted), *seed, mean, *_arguments(call))
        return (found,) if isinstance(found, torch.Tensor) else found

    def takes(self, call: Call, tensors: list[Array]) -> bool:
        """Whether a kernel can run the call: the jiterator reads memory as it lies there."""
        first = call.operands[0]
        wide = _loss.accumulator(xp, first.dtype)
        for tensor in tensors:  # and not `all`, which takes longer on a small call
            if (
                not torch._C._has_storage(tensor)  # within `vmap`
                or tensor.layout is not torch.strided
                or tensor.is_neg()
                or tensor._is_zerotensor()
                or (tensor.dtype != wide and torch.promote_types(tensor.dtype, wide) != wide)
            ):
                return False
        return not call.loss.rowwise and _works(first.device)


@cache
def _works(device: torch.device) -> bool:
    """Whether PyTorch can compile there, which takes a library that some installations lack."""
    try:
        _kernel("probe", lambda number: [number + 1], (TENSOR,))(torch.ones(1, device=device))
    except (AssertionError, RuntimeError):
        return False
    return True


ENGINE = Jiterator(xp)
