"""The registry: one row for each library, with the device and the modes it is tested in.

`NAMES`, `FEATURES` and `MODES` are literal on purpose: they are the matrix of what is tested where. A
test may be skipped on a backend only by `backend.require("...")` of a feature that it lacks by these
tables; any other skip fails the run.
"""

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import modes
import pytest

NAMES: tuple[str, ...] = ("numpy", "strict", "torch", "jax", "dask", "cupy")
"""What `nox` runs, one session each; cupy only where it is asked for."""

MORE_NAMES: tuple[str, ...] = ("torch:cuda", "jax:cuda")
"""The same libraries on another device, for `pytest --backend` by hand."""

#             reads labels: a wrong label raises; elsewhere its loss is NaN
#             float16, bfloat16, float64: the library has the dtype
#             subnormals: they are kept, not flushed to zero
#             silent: no warning of its own where float16 overflows or infinities meet
#             devices: it has more than one that a test can use
#             eager: values are computed within the call
#             large: arrays of many elements take no longer than elsewhere
#             exact quotients: the root of a square, and a quotient of equals, are exact
#             accelerator: the device works while the caller goes on; also the rows of `MORE_NAMES`
#             scalars: a scalar that the library gives back is an array like others
#             own autodiff: it differentiates by itself
FEATURES: dict[str, dict[str, bool]] = {
    "reads labels": {"numpy": True, "strict": True, "torch": True, "jax": True, "dask": False, "cupy": False},
    "float16": {"numpy": True, "strict": False, "torch": True, "jax": True, "dask": True, "cupy": True},
    "bfloat16": {"numpy": False, "strict": False, "torch": True, "jax": True, "dask": False, "cupy": False},
    "subnormals": {"numpy": True, "strict": True, "torch": True, "jax": False, "dask": True, "cupy": False},
    "silent": {"numpy": True, "strict": False, "torch": True, "jax": True, "dask": True, "cupy": True},
    "devices": {"numpy": False, "strict": True, "torch": True, "jax": False, "dask": False, "cupy": False},
    "eager": {"numpy": True, "strict": True, "torch": True, "jax": True, "dask": False, "cupy": True},
    "float64": {"numpy": True, "strict": True, "torch": True, "jax": True, "dask": True, "cupy": True},
    "large": {"numpy": True, "strict": True, "torch": True, "jax": True, "dask": True, "cupy": True},
    "scalars": {"numpy": True, "strict": True, "torch": True, "jax": True, "dask": True, "cupy": True},
    "exact quotients": {"numpy": True, "strict": True, "torch": True, "jax": False, "dask": True, "cupy": True},
    "accelerator": {"numpy": False, "strict": False, "torch": False, "jax": False, "dask": False, "cupy": True},
    "own autodiff": {"numpy": False, "strict": False, "torch": True, "jax": True, "dask": False, "cupy": False},
}  # fmt: skip

ARRAYS = ("test_values", "test_gradients", "test_mutants", "test_properties", "test_rows")
CALLS = ("test_values", "test_mutants")
FEW = ("test_modes",)

#      name: (modules of tests that run in it, features that it lacks beside those of its library)
MODES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "numpy:plain": (ARRAYS, ("reads labels", "large", "scalars")),
    "numpy:blocks": (ARRAYS, ("large",)),
    "numpy:readonly": (ARRAYS, ()),
    "numpy:strided": (ARRAYS, ()),
    "numpy:subclass": (ARRAYS, ()),
    "numpy:memmap": (ARRAYS, ()),
    "numpy:kernels": ((*ARRAYS, "test_cupy"), ("reads labels", "large")),
    "numpy:jit": (CALLS, ()),
    "strict:strictest": (ARRAYS, ("large",)),
    "strict:device1": (ARRAYS, ("large",)),
    "strict:no_float64": (FEW, ("float64",)),
    "torch:plain": (ARRAYS, ()),
    "torch:kernels": ((*ARRAYS, "test_torch"), ("reads labels",)),
    "torch:float64": (ARRAYS, ()),
    "torch:vmap": (CALLS, ("reads labels", "large")),
    "torch:compile": (FEW, ("reads labels",)),
    "jax:jit": (FEW, ("reads labels",)),
    "jax:vmap": (FEW, ("reads labels",)),
    "jax:x32": (FEW, ("float64",)),
    "dask:mismatched": (ARRAYS, ("large",)),
    "cupy:rows": (ARRAYS, ("large",)),
    "cupy:strided": (ARRAYS, ("large",)),
}

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
        """The name of the row in the registry, without device and mode."""
        return self.name.partition(":")[0]

    @cached_property
    def mode(self) -> modes.Mode:
        """How arrays lie and calls run."""
        return modes.MODES.get(self.name, modes.Mode())

    def around(self) -> AbstractContextManager[Any]:
        """Return what a test runs within."""
        return self.mode.around()

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a loss in this mode. Dask must not compute anything meanwhile."""
        meanwhile = modes.refusing() if self.library == "dask" else nullcontext()
        with meanwhile:
            return self.mode.wrap(function)(*args, **kwargs)

    def without_waiting(self, function: Callable[[], Any]) -> Any:
        """Return what a function returns; it fails if it waits for the device."""
        result = function()  # what is compiled and allocated at first may wait
        if self.library == "cupy":
            cuda = self.module.cuda
            cuda.Device().synchronize()
            with cuda.Stream(non_blocking=True) as stream:
                function()
                stream.begin_capture()  # in which waiting is an error
                result = function()
                stream.end_capture().launch(stream)
                stream.synchronize()
        elif self.library == "torch":
            try:
                self.module.cuda.set_sync_debug_mode("error")
                result = function()
            finally:
                self.module.cuda.set_sync_debug_mode("default")
        else:
            jax = importlib.import_module("jax")
            with jax.transfer_guard_device_to_host("disallow"):
                result = function()
        return result

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
        return compat.array_namespace(self.asarray([1.0], "float32"))

    def has(self, feature: str) -> bool:
        """Whether the matrix says that this library has a feature."""
        if self.name in MORE_NAMES and feature in {"reads labels", "accelerator"}:
            return feature == "accelerator"
        lacks = MODES.get(self.name, ((), ()))[1]
        return FEATURES[feature][self.library] and feature not in lacks

    def require(self, feature: str) -> None:
        """Skip the test if this backend lacks a feature."""
        if not self.has(feature):
            pytest.skip(f"by the matrix: {self.name} has no {feature}")

    def asarray(self, values: Any, dtype: str = "float64") -> Any:
        """Make an array of (nested) Python numbers, each of which `dtype` holds exactly."""
        return self.mode.lay(self._asarray(values, dtype))

    def _asarray(self, values: Any, dtype: str) -> Any:
        np, module = self.np, self.module
        if self.library == "torch":
            return module.tensor(
                np.asarray(values), dtype=getattr(module, dtype), device=self.device
            )
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
        if self.library == "strict":
            array = array.to_device(self.module.Device("CPU_DEVICE"))
        declared, array = array.dtype, self.np.asarray(array)
        if self.library == "dask":  # which knows it beforehand
            assert array.dtype == declared, (array.dtype, declared)
        return array.astype("float32") if str(array.dtype) == "bfloat16" else array

    def tolist(self, array: Any) -> list[float]:
        """Read an array as a flat list of Python numbers, exactly."""
        return list(self.tonumpy(array).reshape(-1).tolist())


def with_modes(name: str) -> list[str]:
    """Return the name of a row and those of its modes."""
    return [name, *(mode for mode in MODES if mode.startswith(f"{name}:"))]


def get(name: str) -> Backend:
    """Return a row by its name."""
    if name not in (*NAMES, *MORE_NAMES, *MODES):
        msg = f"--backend {name}: the registry has {', '.join((*NAMES, *MORE_NAMES, *MODES))}"
        raise pytest.UsageError(msg)
    return Backend(name)
