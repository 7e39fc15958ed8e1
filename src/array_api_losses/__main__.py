"""Say which array libraries are here, and check the losses on each: `python -m array_api_losses`.

On every library and device that is found, losses and slopes are compared with numbers worked out by
hand, on a few elements and on many, so that each way of running them has its turn.
"""

import importlib
import sys
from collections.abc import Iterator
from itertools import product
from typing import Any

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

PAIRS = (
    # distance, label, loss and slope at margin 1
    (1.5, 1.0, 1.5, 1.0),
    (0.25, -1.0, 0.75, -1.0),
    (3.0, -1.0, 0.0, 0.0),
    (1.0, -1.0, 0.0, 0.0),
    (-2.0, 1.0, -2.0, 1.0),
    (-0.5, -1.0, 1.5, -1.0),
)
MANY = 2**17
TOLERANCE = 1e-6


def devices(name: str, module: Any) -> list[Any]:
    """Return the devices of a library; None is its only one."""
    if name == "torch":
        return ["cpu", *(f"cuda:{i}" for i in range(module.cuda.device_count()))]
    if name == "jax":
        jax = importlib.import_module("jax")
        return list(dict.fromkeys([*jax.devices("cpu")[:1], *jax.devices()]))
    return [None]


def failures(xp: Any, device: Any, dtype: Any, repeats: int) -> Iterator[str]:
    """Compare with the numbers above, each repeated."""
    columns = [xp.asarray(list(c), dtype=dtype, device=device) for c in zip(*PAIRS, strict=True)]
    shape = repeats, len(PAIRS)
    x, y, losses, slopes = (xp.reshape(xp.broadcast_to(c, shape), (-1,)) for c in columns)
    total = sum(pair[2] for pair in PAIRS) * repeats

    def unless(good: Any, what: str) -> Iterator[str]:
        if not good:
            yield what

    def differs(actual: Any, expected: Any, what: str) -> Iterator[str]:
        return unless(actual.dtype == dtype and bool(xp.all(actual == expected)), what)

    loss = xpl.hinge_embedding_loss
    yield from differs(loss(x, y, reduction="none"), losses, "losses")
    yield from differs(loss(x, y, reduction="sum"), total, "sum")
    mean = float(loss(x, y)) * len(PAIRS) * repeats / total
    yield from unless(abs(mean - 1) <= TOLERANCE, "mean")
    value, gradient = xpl.value_and_grad(loss)(x, y, reduction="sum")
    yield from differs(value, total, "sum beside the gradient")
    yield from differs(gradient, slopes, "gradient")
    try:
        noticed = bool(xp.isnan(loss(x, 0 * y)))
    except ValueError:
        noticed = True
    yield from unless(noticed, "wrong labels")


def check(name: str, module: Any) -> bool:
    """Print a line for each device of a library; return whether all is well."""
    version = getattr(module, "__version__", None) or sys.modules[name].__version__
    well = True
    for device in devices(name, module):
        array = module.asarray([1.0]) if device is None else module.asarray([1.0], device=device)
        xp, engine = compat.array_namespace(array), type(engine_of(array)).__name__
        found = []
        kinds = xp.__array_namespace_info__().dtypes(kind="real floating")
        for kind, repeats in product(sorted(kinds), (1, MANY)):
            found += [
                f"{what} of {len(PAIRS) * repeats} in {kind}"
                for what in failures(xp, device, kinds[kind], repeats)
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
