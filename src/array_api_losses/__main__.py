"""Say which array libraries are here, and check the losses on each: `python -m array_api_losses`.

On every library and device that is found, losses and slopes are compared with numbers worked out by
hand, on a few elements and on many, so that each way of running them has its turn.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import array_api_compat as compat

import array_api_losses as xpl
from array_api_losses._engines import engine_of

LIBRARIES = {
    "numpy": "numpy",
    "array_api_strict": "array_api_strict",
    "torch": "torch",
    "jax": "jax.numpy",
    "dask": "dask.array",
    "cupy": "cupy",
}


class Check(NamedTuple):
    """A few calls in one, worked out by hand."""

    loss: Callable[..., Any]
    inputs: tuple[list[Any], ...]
    label: list[float] | None
    options: dict[str, Any]
    losses: list[float]
    slopes: list[Any]
    """In the first input."""


CHECKS = (
    Check(
        xpl.hinge_embedding_loss,
        ([1.5, 0.25, 3.0, 1.0, -2.0, -0.5],),
        [1, -1, -1, -1, 1, -1],
        {},
        losses=[1.5, 0.75, 0, 0, -2, 1.5],
        slopes=[1, -1, 0, 0, 1, -1],
    ),
    Check(
        xpl.margin_ranking_loss,
        ([2.0, 0.5, 1.0, 0.0], [1.0, 1.0, 3.0, 0.5]),
        [1, 1, -1, 1],
        {"margin": 0.25},
        losses=[0, 0.75, 0, 0.75],
        slopes=[0, -1, 0, -1],
    ),
    Check(
        xpl.cosine_embedding_loss,
        ([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 0.0]], [[0.0, 2.0], [4.0, 0.0]] * 2),
        [1, -1, -1, 1],
        {"margin": 0.5},
        losses=[1, 0.5, 0, 1],
        slopes=[[0, -0.5], [0, 0], [0, 0], [0, 0]],
    ),
    Check(
        xpl.triplet_margin_loss,
        ([[0.0, 0.0]] * 3, [[4.0, 0.0], [0.0, 0.0], [0.0, 1.0]], [[0.0, 2.0]] * 3),
        None,
        {"epsilon": 0.0},
        losses=[3, 0, 0],
        slopes=[[-1, 1], [0, 0], [0, 0]],
    ),
)
MANY = 2**17
TOLERANCE = 1e-6


def devices(name: str, module: Any) -> list[Any]:
    """Return the devices of a library, if any; None is its only one."""
    if name == "torch":
        return ["cpu", *(f"cuda:{i}" for i in range(module.cuda.device_count()))]
    if name == "jax":
        jax = importlib.import_module("jax")
        return list(dict.fromkeys([*jax.devices("cpu")[:1], *jax.devices()]))
    if name == "cupy" and not module.cuda.is_available():
        return []
    return [None]


def failures(xp: Any, device: Any, dtype: Any, repeats: int, check: Check) -> Iterator[str]:
    """Compare with the numbers of a check, each repeated."""

    def repeated(column: list[Any]) -> Any:
        array = xp.asarray(column, dtype=dtype, device=device)
        shape = repeats, *array.shape
        return xp.reshape(xp.broadcast_to(array, shape), (-1, *array.shape[1:]))

    labels = () if check.label is None else (repeated(check.label),)
    arguments = (*map(repeated, check.inputs), *labels)
    losses, slopes = repeated(check.losses), repeated(check.slopes)
    total = sum(check.losses) * repeats

    def unless(good: Any, what: str) -> Iterator[str]:
        if not good:
            yield what

    def differs(actual: Any, expected: Any, what: str) -> Iterator[str]:
        return unless(actual.dtype == dtype and bool(xp.all(actual == expected)), what)

    loss = partial(check.loss, **check.options)
    yield from differs(loss(*arguments, reduction="none"), losses, "losses")
    yield from differs(loss(*arguments, reduction="sum"), total, "sum")
    mean = float(loss(*arguments)) * len(check.losses) * repeats / total
    yield from unless(abs(mean - 1) <= TOLERANCE, "mean")
    both = partial(xpl.value_and_grad(check.loss), **check.options)
    value, gradient = both(*arguments, reduction="sum")
    yield from differs(value, total, "sum beside the gradient")
    yield from differs(gradient, slopes, "gradient")
    for label in labels:
        try:
            noticed = bool(xp.isnan(loss(*arguments[:-1], 0 * label)))
        except ValueError:
            noticed = True
        yield from unless(noticed, "wrong labels")


def check(name: str, module: Any) -> bool:
    """Print a line for each device of a library, if it has any; return whether all is well."""
    version = getattr(module, "__version__", None) or sys.modules[name].__version__
    present = devices(name, module)
    if not present:
        print(f"{name:<18}{version:<14}no device")
    well = True
    for device in present:
        array = module.asarray([1.0]) if device is None else module.asarray([1.0], device=device)
        xp, engine = compat.array_namespace(array), type(engine_of(array)).__name__
        found = []
        kinds = xp.__array_namespace_info__().dtypes(kind="real floating")
        for kind, repeats, one in product(sorted(kinds), (1, MANY), CHECKS):
            found += [
                f"{one.loss.__name__}: {what} of {len(one.losses) * repeats} in {kind}"
                for what in failures(xp, device, kinds[kind], repeats, one)
            ]
        verdict = f"WRONG: {', '.join(found)}" if found else "ok"
        print(f"{name:<18}{version:<14}{device or 'default'!s:<10}{engine:<8}{verdict}")
        well = well and not found
    return well


def main() -> int:
    """Check all; return 1 if anything is wrong."""
    print(f"array-api-losses {xpl.__version__}, array-api-compat {compat.__version__}")
    wrong = False
    for name, path in LIBRARIES.items():
        try:
            module = importlib.import_module(path)
        except ImportError:
            print(f"{name:<18}not installed")
            continue
        wrong = not check(name, module) or wrong
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
