"""How each library runs a loss fast, and how its own autodiff is told the slope. No formula.

`engine_of` finds the engine by the type of an array, so that a call costs one look-up. A library
without a module here runs on the plain path.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import array_api_compat as compat

if TYPE_CHECKING:
    from array_api_losses._engines.plain import Plain

BY_TYPE: dict[type, "Plain"] = {}
_BY_NAMESPACE: dict[str, "Plain"] = {}

_MASKED = ("MaskedArray", "MArray")
"""Types of NumPy and of marray whose mask would be lost on the way; `weight` is that of a loss."""


def masked(value: Any) -> str | None:
    """Return which of the types with a mask a value is of, also by way of a subclass."""
    if not hasattr(value, "mask"):  # nor could TorchDynamo read what follows
        return None
    names = [kind.__name__ for kind in type(value).__mro__]
    return next((name for name in _MASKED if name in names), None)


def engine_of(array: Any) -> "Plain | None":
    """Return the engine for an array, or None for what is none of the standard."""
    torch: Any = sys.modules.get("torch")
    compiler = getattr(torch, "compiler", None)  # another thread may be importing it
    if compiler is not None and compiler.is_dynamo_compiling():
        # TorchDynamo can neither watch a table of types nor read what array-api-compat does below.
        engine = _of_torch() if isinstance(array, torch.Tensor) else None
    else:
        engine = BY_TYPE.get(type(array)) or _found(array)
    return engine if engine is None or engine.regular(array) else None


def _of_torch() -> "Plain":
    from array_api_losses._engines.torch import ENGINE

    return ENGINE


def _found(array: Any) -> "Plain | None":
    # Not `is_torch_array`, which fails while PyTorch is being imported, and where it is None.
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    if tensor is not None and isinstance(array, tensor):
        return _of_torch()  # a subclass too, but without an entry of its own
    if not compat.is_array_api_obj(array) or masked(array):
        return None
    engine = _engine_for(array)
    BY_TYPE[type(array)] = engine
    return engine


def _is_strict(array: Any) -> bool:
    return compat.is_array_api_strict_namespace(compat.array_namespace(array))


_MODULES = (
    (compat.is_numpy_array, "numpy"),
    (compat.is_jax_array, "jax"),
    (compat.is_dask_array, "dask"),
    (compat.is_cupy_array, "cupy"),
    (_is_strict, "strict"),
)
"""Each imports its library, so it is imported when the first array of that library comes."""


def _engine_for(array: Any) -> "Plain":
    for is_own, module in _MODULES:
        if is_own(array):
            return import_module(f"{__name__}.{module}").ENGINE
    from array_api_losses._engines.plain import Plain

    xp = compat.array_namespace(array)
    return _BY_NAMESPACE.setdefault(xp.__name__, Plain(xp))
