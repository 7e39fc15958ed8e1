"""PyTorch: the slope is told to autograd by three functions that share forward and backward.

On the CPU a tensor is an array of NumPy by another name: what autograd does not look into runs on
the engine of NumPy, on the same memory, in blocks. On CUDA it runs in kernels of the jiterator.

`Eager` is the quick one, for `backward` and `torch.autograd.grad`; for `jit` there is one like it.
`Transformed` also knows `jvp` and batching, for `torch.func` and forward mode. `_Compiled` is
`Transformed` without `jvp`, which `torch.compile` refuses. All hold the arguments, and nothing
else, between forward and backward; but `torch.compile` keeps numbers of each row, quotients for p
other than 1, 2 and infinity, and of what is no input and no label what it chooses to.
"""

from contextlib import suppress
from typing import Any

import array_api_compat.torch as xp
import torch
from torch.autograd import forward_ad
from torch.autograd.forward_ad import unpack_dual

from array_api_losses import _derivatives, _pipeline
from array_api_losses._engines import BY_TYPE
from array_api_losses._engines.plain import Plain
from array_api_losses._loss import Array, Call, Loss, evaluated_early, loss_of
from array_api_losses._primitives import FASTER, largest

NUMPY: Any = None
with suppress(ImportError):  # PyTorch does not need NumPy
    from numpy import asarray

    from array_api_losses._engines.numpy import NumPy

    NUMPY = NumPy(torch.get_num_threads)

KERNELS: Any = None
with suppress(ImportError):  # the jiterator is a beta feature of PyTorch
    from array_api_losses._engines.jiterator import ENGINE as KERNELS

HALVES = frozenset({torch.float16, torch.bfloat16})
HOSTED = HALVES | {torch.float32, torch.float64}
"""The dtypes that NumPy has too, and those that PyTorch converts sooner, or NumPy does not know."""

STRIDED = torch.strided

TENSORS = frozenset({torch.Tensor, torch.nn.Parameter})
"""Types whose values lie in memory; a subclass may do anything."""


def compiling() -> bool:
    """Whether PyTorch compiles or exports this call.

    While one thread does so, `torch.compiler.is_compiling` is true in all of them. TorchDynamo says
    when it reads this; in an export without it, only the context of the trace is per thread.
    """
    if not torch.compiler.is_compiling():
        return False
    traced: bool = torch.compiler.is_dynamo_compiling()
    return traced or torch._guards.TracingContext.try_get() is not None


def _select(y: Any, a: Any, b: Any) -> Any:
    # Compiled, it has no branch; and the fewer operations there are, the more of them are fused.
    return torch.where(y > 0, a, torch.where(y < 0, b, y))


def _steep(d: Any) -> Any:
    # `torch.sign` makes 0 of NaN; the repair in array-api-compat waits on a GPU and refuses `vmap`.
    d = d.detach()
    return torch.sign(d) + torch.clamp(d, 0, 0)


def _moderate(v: Any) -> tuple[Any, Any, Any]:
    # Sizes have reciprocals that are neither 0 nor infinite; and nothing comes after the reduction,
    # else what is compiled for a CPU reads the rows once more.
    tiny = torch.finfo(v.dtype).tiny
    size = largest(xp, torch.clamp(torch.abs(v.detach()), tiny, 1 / tiny))
    u = v * (1 / size)[..., None]
    return u, size, torch.sum(u * u, -1)


def _once(*numbers: Any) -> Any:
    # What is compiled for a GPU has the row, and all of its numbers, at hand.
    if compiling() and numbers[0].is_cpu:
        return torch.stack(numbers).unbind()
    return numbers


def _total(values: Any, dtype: Any) -> Any:
    if not compiling():
        values = values.contiguous()  # else PyTorch adds one element after another
    return torch.sum(values, dtype=_wide(values, dtype))


def _over(values: Any, axes: tuple[int, ...]) -> Any:
    return torch.sum(values, axes, keepdim=True, dtype=_wide(values, values.dtype))


def _wide(values: Any, dtype: Any) -> Any:
    """Return the dtype to add in: what is compiled for a CPU adds one element after another."""
    if values.is_cpu and compiling():
        return torch.float64
    return dtype


FASTER["steep"][xp.__name__] = FASTER["sign"][xp.__name__] = _steep
FASTER["select"][xp.__name__] = _select
FASTER["zero"][xp.__name__] = torch.zeros_like
FASTER["moderate"][xp.__name__] = _moderate
FASTER["once"][xp.__name__] = _once
FASTER["scale"][xp.__name__] = torch.Tensor.detach
FASTER["total"][xp.__name__] = _total
FASTER["over"][xp.__name__] = _over


class Static:
    """What a call is, beside its tensors. No tuple: `torch.func` would take that apart."""

    def __init__(self, call: Call, numbers: tuple[Any, ...], engine: "Torch") -> None:
        self.loss, _, _, self.reduction, self.name, self.trusted = call
        self.numbers, self.engine = numbers, engine

    def call(self, tensors: tuple[Any, ...]) -> Call:
        arguments = [n if t is None else t for n, t in zip(self.numbers, tensors, strict=True)]
        weight, operands = arguments.pop(), tuple(arguments)
        return Call(self.loss, operands, weight, self.reduction, self.name, self.trusted)


class _Compiled(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(static: Static, *tensors: Any) -> Any:
        return _pipeline.value(xp, static.call(tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.static = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, cotangent: Any) -> Any:
        call, wanted = _saved(ctx)
        if compiling() and not call.loss.rowwise:
            call = _afterwards(call, cotangent)
        return None, *_derivatives.pullback(xp, call, wanted, cotangent, ENGINE.run)


def _afterwards(call: Call, cotangent: Any) -> Call:
    """Return the call with inputs and labels that seem to depend on the cotangent.

    Else `torch.compile` computes slopes in the forward pass, and holds them until the backward one:
    as large as the arguments, which are there anyway, and slower to write and read than to compute.
    """
    n, either = call.loss.first_parameter, cotangent > 0
    operands = (*[torch.where(either, o, o) for o in call.operands[:n]], *call.operands[n:])
    return call.with_arguments((*operands, call.weight))


def _saved(ctx: Any) -> tuple[Call, tuple[bool, ...]]:
    """Return the call, and which gradients are wanted; once, for checkpoints refuse a second."""
    return ctx.static.call(ctx.saved_tensors), ctx.needs_input_grad[1:]


class Transformed(_Compiled):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _Compiled.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Any) -> Any:
        # PyTorch switches forward mode off in here, so that a forward pass around this one would
        # silently see zeros (pytorch#197867). With it on, this level must be taken off the tensors.
        with forward_ad._set_fwd_grad_enabled(mode=True):
            saved = tuple(t if t is None else _primal(t) for t in ctx.saved_tensors)
            return _derivatives.pushforward(xp, ctx.static.call(saved), tangents, ENGINE.run)


def _primal(tensor: Any) -> Any:
    """Return a tensor without its tangent, also within `vmap`, which has no rule for that."""
    functorch = torch._C._functorch
    if not functorch.is_batchedtensor(tensor):
        return unpack_dual(tensor, level=0).primal  # the only level there is
    axis, level = functorch.maybe_get_bdim(tensor), functorch.maybe_get_level(tensor)
    return functorch._add_batch_dim(_primal(functorch.get_unwrapped(tensor)), axis, level)


@evaluated_early
def _traced_in_transform() -> bool:
    """Whether what is compiled, and not exported, is within `torch.func` or forward mode."""
    torch.compiler.allow_in_graph(_in_graph)  # not at import, for it imports TorchDynamo
    return transforming() and not torch.compiler.is_exporting()


def _in_graph(key: str, reduction: str, trusted: bool, *arguments: Any) -> Any:
    """Run a call into which TorchDynamo does not look, but what comes after it does.

    For within transforms it follows `forward` alone: it does not see in `vmap` that a gradient is
    wanted, and before PyTorch 2.15 forgets that there is `backward`, as it still does `jvp`.
    """
    call = Call(loss_of(key), (), None, reduction, None, trusted)
    return Transformed.apply(*taken_apart(call.with_arguments(arguments), ENGINE))


class Eager(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, static: Static, *tensors: Any) -> Any:
        call, engine = static.call(tensors), static.engine
        result = engine.untracked(call)
        if not call.trusted and call.weight is None and engine.readable(call):
            static.trusted = True  # they have been read now
        ctx.static = static
        ctx.save_for_backward(*tensors)
        return result

    @staticmethod
    def backward(ctx: Any, cotangent: Any) -> Any:
        return None, *pulled_back(*_saved(ctx), cotangent, ctx.static.engine)


def pulled_back(
    call: Call, wanted: tuple[bool, ...], cotangent: Array, engine: "Torch"
) -> tuple[Array | None, ...]:
    """Return gradients, the fast way if there is one and autodiff need not know of it."""
    if rule_for((*call.arguments(), cotangent)) is None:
        found = engine.untracked_gradient(call, wanted, cotangent)
        if found is not None:
            return found[1]
    return _derivatives.pullback(xp, call, wanted, cotangent, ENGINE.run)


def apply_of(function: Any) -> Any:
    """Return `apply` without what it does first for `torch.func`, which has `Transformed`."""
    return super(torch.autograd.Function, function).apply


_APPLY_EAGER = apply_of(Eager)


class Torch(Plain):
    """Labels are read on the CPU only, and only outside `vmap`, `torch.compile` and the like."""

    def value(self, call: Call) -> Array:
        if compiling():
            return self.run(call)
        rule = rule_for(call.arguments())
        if rule is None:
            return self.untracked(call)
        if rule is Eager:
            try:
                return _APPLY_EAGER(*taken_apart(call, self))
            except RuntimeError as error:
                return self.value(mended(call, error))
        return rule.apply(*taken_apart(self.checked(call), self))

    def untracked(self, call: Call) -> Array:
        """Return the result, of which autodiff need not know."""
        host = _host(call)
        if host is not None:
            return _tensor(NUMPY.value(host[0]), call.operands[0].dtype)
        if _takes_kernel(call):
            return KERNELS.run(call)
        return _pipeline.value(xp, self.checked(call))

    def gradient(
        self, call: Call, wanted: tuple[bool, ...], cotangent: Array | None
    ) -> tuple[Array | None, tuple[Array | None, ...]]:
        found = None
        rule = rule_for((*call.arguments(), cotangent))
        if rule is None:
            found = self.untracked_gradient(call, wanted, cotangent)
        elif rule is Eager:
            call = savable(call)
        return super().gradient(call, wanted, cotangent) if found is None else found

    def untracked_gradient(
        self, call: Call, wanted: tuple[bool, ...], cotangent: Array | None
    ) -> tuple[Array | None, tuple[Array | None, ...]] | None:
        """Return value and gradients, of which autodiff need not know, if there is a fast way."""
        host = _host(call, cotangent)
        if host is not None:
            value, gradients = NUMPY.gradient(host[0], wanted, host[1])
            dtype = call.operands[0].dtype
            return _tensor(value, dtype), tuple([_tensor(g, dtype) for g in gradients])
        if _takes_kernel(call, cotangent):
            found: tuple[Array | None, tuple[Array | None, ...]]
            found = KERNELS.gradient(call, wanted, cotangent)
            return found
        return None

    def run(self, call: Call) -> Array:
        if compiling() and _traced_in_transform():
            loss, operands, weight, reduction, _, trusted = call
            return _in_graph(loss.key, reduction, trusted, *operands, weight)
        rule = rule_for(call.arguments())
        return _pipeline.value(xp, call) if rule is None else rule.apply(*taken_apart(call, self))

    def compiled(self, loss: Loss) -> Plain:
        if compiling():
            return self
        from array_api_losses._engines import torch_compile

        return torch_compile.ENGINE

    def checked(self, call: Call) -> Call:
        try:
            return super().checked(call)
        except RuntimeError:  # from `vmap` or a fake tensor: there is no value to read
            return call

    def readable(self, call: Call) -> bool:
        label = call.label()
        # A DTensor has the rest in other processes, a fake tensor nothing; both are subclasses.
        subclass = type(label) not in TENSORS
        part = subclass and (hasattr(label, "to_local") or hasattr(label, "fake_mode"))
        traced = compiling() or torch.jit.is_tracing()
        return not (part or traced) and label.device.type == "cpu"

    def traits(self, arrays: tuple[Array, ...]) -> tuple[Any, ...] | None:
        if watched():  # tracing, PyTorch compares the graphs of two calls, line by line
            return None
        found: list[Any] = []
        for array in arrays:  # `regular`, but a call of it takes a percent of a small loss
            if type(array) not in TENSORS or array.layout is not STRIDED or array.is_nested:
                return None
            found += array.dtype, array.device
        return tuple(found)

    def regular(self, array: Array) -> bool:
        return array.layout is STRIDED and not array.is_nested

    def device(self, array: Array) -> Any:
        return array.device

    def number(self, name: str, argument: str, value: Any, like: Array) -> Any:
        if compiling():
            return torch.full((), value, dtype=like.dtype, device=like.device)
        return super().number(name, argument, value, like)


def taken_apart(call: Call, engine: Torch) -> tuple[Any, ...]:
    """Return what a call is beside its tensors, and these."""
    tensors: list[Any] = []
    numbers: list[Any] = []
    for argument in call.arguments():
        tensor, other = tensors, numbers
        if not isinstance(argument, torch.Tensor):
            tensor, other = numbers, tensors
        tensor.append(argument)
        other.append(None)
    return Static(call, tuple(numbers), engine), *tensors


def savable(call: Call) -> Call:
    """Return the call with copies of what is made in inference mode, which autograd cannot save."""
    arguments = call.arguments()
    made = [isinstance(a, torch.Tensor) and a.is_inference() for a in arguments]
    if not any(made):
        return call
    copies = [a.clone() if m else a for a, m in zip(arguments, made, strict=True)]
    return call.with_arguments(tuple(copies))


def mended(call: Call, error: RuntimeError) -> Call:
    """Return the call in what autograd can save; if it could before, that was not the error."""
    copied = savable(call)
    if copied is call:
        raise error
    return copied


def rule_for(arguments: tuple[Any, ...]) -> Any:
    """Return the function that autodiff, in the mode it is in now, needs; None if it is not on."""
    traced = compiling()
    if not traced and (
        torch._C._are_functorch_transforms_active()
        or (
            forward_ad._current_level >= 0  # within forward mode; quicker to see than tangents
            and any(
                isinstance(a, torch.Tensor) and unpack_dual(a).tangent is not None
                for a in arguments
            )
        )
    ):
        return Transformed
    if torch.is_grad_enabled():
        for argument in arguments:  # and not `any`, which is a tenth of a small call
            if isinstance(argument, torch.Tensor) and argument.requires_grad:
                return _Compiled if traced else Eager
    return None


def transforming() -> bool:
    """Whether tensors may be those of `torch.func` or of forward mode."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def watched(cotangent: Any = None) -> bool:
    """Whether something watches tensors that would not see what is done to their memory.

    A cotangent has no memory where `torch.autograd.grad` takes a batch of them.
    """
    return (
        (cotangent is not None and not torch._C._has_storage(cotangent))
        or (torch.compiler.is_compiling() and compiling())
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._is_tracing()
    )


def _takes_kernel(call: Call, cotangent: Any = None) -> bool:
    """Whether a kernel can run the call, on tensors that are memory and nothing else."""
    if KERNELS is None or call.operands[0].device.type not in KERNELS.devices:
        return False
    tensors = [a for a in (*call.arguments(), cotangent) if isinstance(a, torch.Tensor)]
    return not watched() and TENSORS.issuperset(map(type, tensors)) and KERNELS.takes(call, tensors)


def _host(call: Call, cotangent: Any = None) -> tuple[Call, Any] | None:
    """Return the call, and the cotangent, in arrays of NumPy, if that can be.

    They are on the same memory; but half precision is in float32, in which it is computed anyway.
    """
    loss, operands, weight, reduction, name, trusted = call
    first = operands[0]
    if NUMPY is None or first.dtype not in HOSTED or not first.is_cpu or watched():
        return None
    arrays = []
    for argument in (*operands, weight, cotangent):
        array = argument
        if type(argument) in TENSORS:
            try:
                array = argument.detach() if argument.requires_grad else argument
                array = (array.float() if array.dtype in HALVES else array).numpy()
            except (RuntimeError, TypeError):  # within `vmap`, or not a strided tensor
                return None
        elif isinstance(argument, torch.Tensor):
            return None
        arrays.append(array)
    cotangent, weight = arrays.pop(), arrays.pop()
    return Call(loss, tuple(arrays), weight, reduction, name, trusted), cotangent


def _tensor(array: Any, dtype: Any) -> Any:
    """Turn a result of NumPy, an array or a scalar, into a tensor."""
    if array is None:
        return None
    tensor = torch.from_numpy(asarray(array))
    return tensor if tensor.dtype is dtype else tensor.to(dtype)  # which takes longer to see it


ENGINE = Torch(xp)
BY_TYPE.update(dict.fromkeys(TENSORS, ENGINE))
