"""The modes: how arrays lie in memory, what calls run within, and how they are wrapped."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from inspect import signature
from numbers import Real
from typing import Any
from unittest import mock

import pytest


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Mode:
    """By default, nothing special."""

    lay: Callable[[Any], Any] = _same
    """Lays an array."""
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    """What a test runs within."""
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = _same
    """Wraps a loss."""


def refusing() -> AbstractContextManager[Any]:
    """Let Dask compute nothing."""
    import dask

    def refuse(*_: Any, **__: Any) -> None:
        msg = "something was computed inside of a call"
        raise AssertionError(msg)

    return dask.config.set(scheduler=refuse)


@contextmanager
def _numpy_plain() -> Iterator[None]:
    import array_api_compat.numpy as xp

    from array_api_losses import _arrays, _engines
    from array_api_losses._engines import numpy
    from array_api_losses._engines.plain import Plain
    from array_api_losses._primitives import FASTER

    assert numpy.ENGINE  # whose primitives are there, and left out
    with ExitStack() as stack:
        stack.enter_context(xp.errstate(all="ignore"))  # which only the engine does
        stack.enter_context(mock.patch.dict(_engines.BY_TYPE, {xp.ndarray: Plain(xp)}))
        stack.enter_context(mock.patch.dict(_arrays._AGREED, clear=True))
        for primitive in FASTER.values():
            stack.enter_context(mock.patch.dict(primitive, clear=True))
        yield


@contextmanager
def _numpy_blocks() -> Iterator[None]:
    from array_api_losses._engines import blocks

    few = {"SMALL": 8, "AT_ONCE": 1, "BLOCK": 3, "BIG_BLOCK": 3, "ROWS": 4}
    with mock.patch.multiple(blocks, **few, allowed=lambda elements: 2 if elements >= 6 else 1):
        yield


def _readonly(array: Any) -> Any:
    array.flags.writeable = False
    return array


def _strided(array: Any) -> Any:
    """Lay it backwards, with gaps."""
    if array.ndim == 0:
        return array
    return array[..., ::-1].repeat(2, axis=-1)[..., ::-2]


def _subclass(array: Any) -> Any:
    import numpy as np

    class Mine(np.ndarray):
        pass

    return array.view(Mine)


def _memmap(array: Any) -> Any:
    import numpy as np

    if array.size == 0:
        return array
    with tempfile.TemporaryFile() as file:
        mapped = np.memmap(file, array.dtype, "w+", shape=array.shape)
    mapped[...] = array
    return mapped


def _strictest() -> AbstractContextManager[Any]:
    from array_api_strict import ArrayAPIStrictFlags

    return ArrayAPIStrictFlags(
        boolean_indexing=False, data_dependent_shapes=False, enabled_extensions=()
    )


def _on(device: str) -> Callable[[Any], Any]:
    def lay(array: Any) -> Any:
        from array_api_strict import Device

        return array.to_device(Device(device))

    return lay


def _torch_plain() -> AbstractContextManager[Any]:
    from array_api_losses._engines import torch as engine

    return mock.patch.object(engine, "NUMPY", None)


def _never(*_: Any) -> bool:
    return False


@contextmanager
def _torch_kernels() -> Iterator[None]:
    """Run on the CPU what CUDA runs: kernels of the jiterator, and labels unread."""
    import standin_torch

    from array_api_losses._engines import jiterator
    from array_api_losses._engines import torch as engine

    with ExitStack() as stack:
        stack.enter_context(_torch_plain())
        stack.enter_context(mock.patch.object(jiterator, "compiled", standin_torch.compiled))
        stack.enter_context(mock.patch.object(jiterator.Jiterator, "devices", {"cpu"}))
        stack.enter_context(mock.patch.object(engine.Torch, "readable", _never))
        for forget in (jiterator.PROGRAMS.forget, jiterator._works.cache_clear):
            forget()
            stack.callback(forget)
        yield


@contextmanager
def _numpy_kernels() -> Iterator[None]:
    """Run on arrays of NumPy what CuPy runs: its engine, and its kernels."""
    import standin_cupy
    from numpy import errstate

    from array_api_losses import _engines

    with ExitStack() as stack:
        stack.enter_context(errstate(all="ignore"))  # of which CuPy says nothing
        engine = stack.enter_context(standin_cupy.in_place())
        stack.enter_context(mock.patch.dict(_engines.BY_TYPE, {standin_cupy.Array: engine}))
        stack.enter_context(_cupy_rows())
        less = {"BLOCK": 64, "EACH": 3}  # to compile, and to run
        stack.enter_context(mock.patch.multiple(cupy_kernels(), **less))
        yield


def _own(array: Any) -> Any:
    import standin_cupy

    return array.view(standin_cupy.Array)


@contextmanager
def _torch_float64() -> Iterator[None]:
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def noted(programs: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note which programs run, and of how many kernels each is."""
    names: list[str] = []
    run = programs.run

    def run_noted(made: Any, kind: Any, *arguments: Any, **how: Any) -> Any:
        def made_now(*key: Any, **how: Any) -> Any:
            program = made(*key, **how)
            names.append(f"{made.__name__} {program.kernels}")
            return program

        return run(made_now, kind, *arguments, **how)

    monkeypatch.setattr(programs, "run", run_noted)
    return names


@contextmanager
def _cupy_rows() -> Iterator[None]:
    few = {"FEW": 2, "ADDING": 64, "MOST": 2, "LONG": 2, "WIDE": 64}
    engine = import_module("array_api_losses._engines.cupy")
    with mock.patch.multiple(cupy_kernels(), **few), mock.patch.object(engine, "PART", 2):
        yield


def cupy_kernels() -> Any:
    """Return the module that is in place now."""
    return import_module("array_api_losses._engines.cupy_kernels")


def _split(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[dict[str, Any], Callable[..., Any]]:
    """Return the arrays among the arguments, and the function of them alone."""
    arguments = signature(function).bind(*args, **kwargs).arguments
    arrays = {
        name: value
        for name, value in arguments.items()
        if hasattr(value, "dtype") and not isinstance(value, Real)
    }
    rest = {name: value for name, value in arguments.items() if name not in arrays}
    return arrays, lambda arrays: function(**arrays, **rest)


def _jitted(function: Callable[..., Any]) -> Callable[..., Any]:
    import array_api_losses as xpl

    return xpl.jit(function)


def _torch_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    import torch

    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def _jax_jitted(function: Callable[..., Any]) -> Callable[..., Any]:
    import jax

    def call(*args: Any, **kwargs: Any) -> Any:
        arrays, alone = _split(function, args, kwargs)
        return jax.jit(alone)(arrays)

    return call


def _mapped(library: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Map over two rows, of which the second is the call."""

    def call(*args: Any, **kwargs: Any) -> Any:
        arrays, alone = _split(function, args, kwargs)
        if library == "torch":
            from torch import stack, vmap
        else:
            from jax import vmap
            from jax.numpy import stack
        twice = {name: stack([array, array][::-1]) for name, array in arrays.items()}
        return vmap(alone)(twice)[1]

    return call


def _x32() -> AbstractContextManager[Any]:
    import jax

    return jax.enable_x64(False)


_chunks = [0]


def _mismatched(array: Any) -> Any:
    """Cut each array in another way than the one before."""
    _chunks[0] += 1
    return array.rechunk(2 + _chunks[0] % 3)


MODES: dict[str, Mode] = {
    "numpy:plain": Mode(around=_numpy_plain),
    "numpy:blocks": Mode(around=_numpy_blocks),
    "numpy:readonly": Mode(lay=_readonly),
    "numpy:strided": Mode(lay=_strided),
    "numpy:subclass": Mode(lay=_subclass),
    "numpy:memmap": Mode(lay=_memmap),
    "numpy:kernels": Mode(lay=_own, around=_numpy_kernels),
    "numpy:jit": Mode(wrap=_jitted),
    "strict:strictest": Mode(around=_strictest),
    "strict:device1": Mode(lay=_on("device1")),
    "strict:no_float64": Mode(lay=_on("no_float64")),
    "torch:plain": Mode(around=_torch_plain),
    "torch:kernels": Mode(around=_torch_kernels),
    "torch:float64": Mode(around=_torch_float64),
    "torch:vmap": Mode(wrap=partial(_mapped, "torch")),
    "torch:compile": Mode(wrap=_torch_compiled),
    "jax:jit": Mode(wrap=_jax_jitted),
    "jax:vmap": Mode(wrap=partial(_mapped, "jax")),
    "jax:x32": Mode(around=_x32),
    "dask:mismatched": Mode(lay=_mismatched),
    "cupy:rows": Mode(around=_cupy_rows),
    "cupy:strided": Mode(lay=_strided, around=_cupy_rows),
}
