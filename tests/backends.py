"""The registry: one row for each library, with the device and the mode it is tested in.

`NAMES` and `FEATURES` are literal on purpose: they are the matrix of what is tested where. A test may
be skipped on a backend only by `backend.require("...")` of a feature that says False here; any other
skip fails the run.
"""

import importlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest

NAMES: tuple[str, ...] = ("numpy", "strict", "torch", "jax", "dask", "cupy")
"""What `nox` runs, one session each; cupy only where it is asked for."""

MORE_NAMES: tuple[str, ...] = ("torch:cuda", "jax:cuda")
"""The same libraries on another device, for `pytest --backend` by hand."""

#             reads labels: a wrong label raises; elsewhere its loss is NaN
#             half, bfloat16: the library has the dtype
#             subnormals: they are kept, not flushed to zero
#             scalar arrays: a reduction gives an array, not a NumPy scalar
#             silent: no warning of its own where float16 overflows or infinities meet
#             devices: it has more than one that a test can use
#             eager: values are computed within the call
FEATURES: dict[str, dict[str, bool]] = {
    "reads labels": {"numpy": True, "strict": True, "torch": True, "jax": True, "dask": False, "cupy": False},
    "float16": {"numpy": True, "strict": False, "torch": True, "jax": True, "dask": True, "cupy": True},
    "bfloat16": {"numpy": False, "strict": False, "torch": True, "jax": True, "dask": False, "cupy": False},
    "subnormals": {"numpy": True, "strict": True, "torch": True, "jax": False, "dask": True, "cupy": True},
    "silent": {"numpy": True, "strict": False, "torch": True, "jax": True, "dask": True, "cupy": True},
    "devices": {"numpy": False, "strict": True, "torch": True, "jax": False, "dask": False, "cupy": False},
    "eager": {"numpy": True, "strict": True, "torch": True, "jax": True, "dask": False, "cupy": True},
    "own autodiff": {"numpy": False, "strict": False, "torch": True, "jax": True, "dask": False, "cupy": False},
}  # fmt: skip

_MODULES = {
    "numpy": "numpy",
    "strict": "array_api_strict",
    "torch": "torch",
    "jax": "jax.numpy",
    "dask": "dask.array",
    "cupy": "cupy",
}


@dataclass(frozen=True)
class Backend:
    """One library on one device: how to make its arrays and how to read them."""

    name: str

    @property
    def library(self) -> str:
        """The name of the row in the registry, without the device."""
        return self.name.partition(":")[0]

    @cached_property
    def np(self) -> Any:
        """NumPy, in which inputs are made and outputs are read."""
        return importlib.import_module("numpy")

    @cached_property
    def module(self) -> Any:
        """The library itself; an ImportError, or no device, where it is not there."""
        module = importlib.import_module(_MODULES[self.library])
        if self.library == "cupy":
            module.cuda.Device().use()
        if self.name == "torch:cuda" and not module.cuda.is_available():
            msg = "torch finds no CUDA device"
            raise ImportError(msg)
        if self.name == "jax:cuda":
            importlib.import_module("jax").devices("cuda")
        return module

    @cached_property
    def xp(self) -> Any:
        """The standard namespace, as array-api-compat gives it."""
        compat = importlib.import_module("array_api_compat")
        return compat.array_namespace(self.asarray([1.0]))

    def has(self, feature: str) -> bool:
        """Whether the matrix says that this library has a feature."""
        on_gpu = self.name.endswith(":cuda")
        return FEATURES[feature][self.library] and not (on_gpu and feature == "reads labels")

    def require(self, feature: str) -> None:
        """Skip the test if this backend lacks a feature."""
        if not self.has(feature):
            pytest.skip(f"by the matrix: {self.library} has no {feature}")

    def asarray(self, values: Any, dtype: str = "float64") -> Any:
        """Make an array of (nested) Python numbers, each of which `dtype` holds exactly."""
        np, module = self.np, self.module
        if self.library == "torch":
            return module.asarray(
                np.asarray(values).tolist(), dtype=getattr(module, dtype), device=self.device
            ).reshape(np.shape(values))
        if dtype == "bfloat16":
            return module.asarray(np.asarray(values), dtype=module.bfloat16)
        values = np.asarray(values, dtype=dtype)
        if self.library == "dask":
            return module.from_array(values, chunks=tuple(max(3, n // 4) for n in values.shape))
        if self.library == "strict":
            return module.asarray(values.copy())
        return module.asarray(values)

    @property
    def device(self) -> str:
        """Where torch puts what it makes."""
        return "cuda" if self.name == "torch:cuda" else "cpu"

    def tonumpy(self, array: Any) -> Any:
        """Read an array; halves come as float32, which holds them exactly."""
        if self.library == "torch":
            array = array.detach().cpu()
            array = array.float() if array.dtype == self.module.bfloat16 else array
        if self.library == "cupy":
            array = array.get()
        array = self.np.asarray(array)
        return array.astype("float32") if str(array.dtype) == "bfloat16" else array

    def tolist(self, array: Any) -> list[float]:
        """Read an array as a flat list of Python numbers, exactly."""
        return list(self.tonumpy(array).reshape(-1).tolist())


def get(name: str) -> Backend:
    """Return a row by its name."""
    if name not in NAMES + MORE_NAMES:
        msg = f"--backend {name}: the registry has {', '.join(NAMES + MORE_NAMES)}"
        raise pytest.UsageError(msg)
    return Backend(name)
