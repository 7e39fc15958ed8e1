"""JAX: one compiled function a loss, which knows its slope as a derivative rule."""

import math
from functools import partial
from typing import Any, NamedTuple

import array_api_compat.numpy as np
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from array_api_losses import _derivatives, _pipeline
from array_api_losses._arrays import check_labels
from array_api_losses._engines.plain import Plain
from array_api_losses._loss import Array, Call, Loss
from array_api_losses._primitives import FASTER


def _select(y: Any, a: Any, b: Any) -> Any:
    # XLA turns a choice into a blend, so `where` costs less here than `minimum` and `maximum`.
    return jnp.where(y > 0, a, b + (y - y))


def _scale(size: Any) -> Any:
    # XLA multiplies by the reciprocal, which it takes for zero if it is subnormal.
    most = 1 / jnp.finfo(size.dtype).tiny
    return jax.lax.stop_gradient(jnp.where(jnp.isfinite(size), jnp.minimum(size, most), size))


FASTER["select"][jnp.__name__] = _select
FASTER["scale"][jnp.__name__] = _scale


class _Static(NamedTuple):
    """What a compiled function is compiled for, beside shapes and dtypes."""

    loss: Loss
    reduction: str
    trusted: bool

    def call(self, arguments: tuple[Any, ...]) -> Call:
        return Call(self.loss, arguments[:-1], arguments[-1], self.reduction, None, self.trusted)


def _static(call: Call) -> _Static:
    return _Static(call.loss, call.reduction, call.trusted)


@partial(jax.jit, static_argnums=0)
@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _value(static: _Static, arguments: tuple[Any, ...]) -> Array:
    return _pipeline.value(jnp, static.call(arguments))


def _attached(call: Call) -> Array:
    return _value(_static(call), call.arguments())


@partial(_value.__wrapped__.defjvp, symbolic_zeros=True)
def _jvp(static: _Static, primals: tuple[Any], tangents: tuple[Any]) -> tuple[Array, Array]:
    call = static.call(primals[0])
    flows = tuple(None if isinstance(t, SymbolicZero) else t for t in tangents[0])
    return _attached(call), _derivatives.pushforward(jnp, call, flows, _attached)


@partial(jax.jit, static_argnums=(0, 1))
def _gradient(
    static: _Static, wanted: tuple[bool, ...], arguments: tuple[Any, ...], cotangent: Array | None
) -> tuple[Array | None, tuple[Array | None, ...]]:
    call = static.call(arguments)
    result = _attached(call) if cotangent is None else None
    return result, _derivatives.pullback(jnp, call, wanted, cotangent, _attached)


class JAX(Plain):
    """Everything runs compiled; where labels have values, wrong ones are looked for afterwards.

    They have made NaN of the result, so that it costs nothing to see that there are none.
    """

    def value(self, call: Call) -> Array:
        if call.reduction == "none":
            return super().value(call)
        result = self.run(call)
        if isinstance(result, jax.core.Tracer):
            self.checked(call)
        else:
            self._explain(call, result)
        return result

    def gradient(
        self, call: Call, wanted: tuple[bool, ...], cotangent: Array | None
    ) -> tuple[Array | None, tuple[Array | None, ...]]:
        afterwards = call.reduction != "none" and cotangent is None and _concrete(call)
        if not afterwards:
            call = self.checked(call)
        value, gradients = _gradient(_static(call), wanted, call.arguments(), cotangent)
        if afterwards:
            self._explain(call, value)
        return value, gradients

    def _explain(self, call: Call, value: Array) -> None:
        if _readable(value) and math.isnan(value.item()):
            self.checked(call)

    def run(self, call: Call) -> Array:
        return _attached(call)

    def checked(self, call: Call) -> Call:
        if call.trusted:
            return call
        at, label, weight = len(call.loss.inputs), call.label(), call.weight
        if not (_readable(label) and (weight is None or _readable(weight))):
            return call
        operands = (*call.operands[:at], np.asarray(label), *call.operands[at + 1 :])
        weight = None if weight is None else np.asarray(weight)
        check_labels(np, call._replace(operands=operands, weight=weight))
        return call._replace(trusted=weight is None)

    def traits(self, arrays: tuple[Array, ...]) -> tuple[Any, ...] | None:
        found: list[Any] = []
        for array in arrays:
            if isinstance(array, jax.core.Tracer) or not isinstance(array, jax.Array):
                return None
            found += array.dtype, array.sharding, array.committed
        return tuple(found)

    def kind(self, dtype: Any) -> str:
        # To ask what kind the dtype of a random key is, is an error.
        return "other" if jnp.issubdtype(dtype, jax.dtypes.extended) else super().kind(dtype)

    def device(self, array: Array) -> Any:
        if isinstance(array, jax.core.Tracer) or not array.committed:
            return None  # JAX takes what is not committed to a device to wherever the others are
        devices = array.devices()
        return frozenset(devices) if len(devices) > 1 else next(iter(devices))

    def strengthened(self, parameter: Array, dtype: Any) -> Array:
        return parameter.astype(dtype) if parameter.aval.weak_type else parameter


def _concrete(call: Call) -> bool:
    for argument in call.arguments():
        if isinstance(argument, jax.core.Tracer):
            return False
    return True


def _readable(array: Array) -> bool:
    if isinstance(array, jax.core.Tracer) or not array.is_fully_addressable:
        return False
    return {device.platform for device in array.devices()} == {"cpu"}


ENGINE = JAX(jnp)
