"""JAX arrays over eight devices, or two processes: mean and gradient are those of the whole."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import array_api_losses as xpl

HINGE, TRIPLET = xpl.hinge_embedding_loss, xpl.triplet_margin_loss
N = 800


@pytest.fixture(params=[AxisType.Auto, AxisType.Explicit], ids=str)
def mesh(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = jax.make_mesh((8,), ("i",), axis_types=(request.param,))
    with jax.set_mesh(made):
        yield made


def _arguments(n: int = N) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    arrays = {"input": rng.normal(size=n), "label": rng.choice([-1, 1], n)}
    return {**arrays, "margin": rng.uniform(size=n), "weight": rng.uniform(size=n)}


def _spread(mesh: Any, arrays: dict[str, Any], *spec: Any) -> dict[str, Any]:
    sharding = NamedSharding(mesh, P(*(spec or ("i",))))
    return {name: jax.device_put(array, sharding) for name, array in arrays.items()}


def _close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=1e-12, atol=1e-15)


def test_there_are_eight_devices() -> None:
    assert len(jax.devices()) == 8


@pytest.mark.parametrize("wanted", ["input", "margin", "weight"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_hinge(mesh: Any, reduction: str, wanted: str) -> None:
    arrays = _arguments()
    spread, both = _spread(mesh, arrays), xpl.value_and_grad(HINGE, wanted)
    expected, slope = both(**arrays, reduction=reduction)
    for function in (both, xpl.jit(both)):
        value, gradient = function(**spread, reduction=reduction)
        _close(value, expected)
        _close(gradient, slope)
        assert gradient.sharding == spread["input"].sharding
    rest = {name: array for name, array in spread.items() if name != wanted}
    alone = lambda one: HINGE(**{wanted: one}, **rest, reduction=reduction).sum()
    for function in (jax.grad(alone), jax.jit(jax.grad(alone))):
        gradient = function(spread[wanted])
        _close(gradient, slope)
        assert gradient.sharding == spread["input"].sharding


def test_rows(mesh: Any) -> None:
    rng = np.random.default_rng(4)
    arrays = dict(zip(("input", "positive", "negative"), rng.normal(size=(3, 80, 5)), strict=True))
    both, weight = xpl.value_and_grad(TRIPLET, (0, 1, 2)), rng.uniform(size=80)
    expected, slopes = both(**arrays, weight=weight)
    spread, (weight,) = _spread(mesh, arrays), _spread(mesh, {"weight": weight}).values()
    value, gradients = both(**spread, weight=weight)
    _close(value, expected)
    for gradient, slope in zip(gradients, slopes, strict=True):
        _close(gradient, slope)


def test_rows_that_are_cut() -> None:
    """Over a mesh of two axes, of which one cuts the vectors."""
    mesh = jax.make_mesh((4, 2), ("i", "j"), axis_types=(AxisType.Auto,) * 2)
    a, b, c = np.random.default_rng(4).normal(size=(3, 80, 6))
    expected, slope = xpl.value_and_grad(TRIPLET)(a, b, c)
    value, gradient = xpl.value_and_grad(TRIPLET)(
        *_spread(mesh, {"a": a, "b": b, "c": c}, "i", "j").values()
    )
    _close(value, expected)
    _close(gradient, slope)


def test_uneven_shards() -> None:
    """Within `jit` JAX pads them; the mean is that of the 797."""
    mesh = jax.make_mesh((8,), ("i",), axis_types=(AxisType.Auto,))
    sharding, arrays = NamedSharding(mesh, P("i")), _arguments(797)
    both = xpl.value_and_grad(HINGE, ("input", "weight"))

    @jax.jit
    def call(arrays: dict[str, Any]) -> Any:
        return both(**jax.lax.with_sharding_constraint(arrays, sharding))

    expected, slopes = both(**arrays)
    value, gradients = call(arrays)
    _close(value, expected)
    for gradient, slope in zip(gradients, slopes, strict=True):
        _close(gradient, slope)


def test_padding_of_weight_zero() -> None:
    """What `device_put` needs, for it refuses uneven shards."""
    mesh = jax.make_mesh((8,), ("i",), axis_types=(AxisType.Auto,))
    arrays = _arguments(797)
    padded = {name: np.pad(array, (0, 3)) for name, array in arrays.items()}
    expected, slope = xpl.value_and_grad(HINGE)(**arrays)
    value, gradient = xpl.value_and_grad(HINGE)(**_spread(mesh, padded))
    _close(value, expected)
    _close(gradient[:797], slope)
    assert not gradient[797:].any()


def test_within_shard_map(mesh: Any) -> None:
    """There a loss sees its shard alone: add up sums, and divide by the number of all."""
    arrays = {name: array for name, array in _arguments().items() if name in {"input", "label"}}

    @jax.shard_map(in_specs=(P("i"), P("i")), out_specs=P())
    def mean(input: Any, label: Any) -> Any:
        return jax.lax.psum(HINGE(input, label, reduction="sum"), "i") / N

    expected, slope = xpl.value_and_grad(HINGE)(**arrays)
    value, gradient = jax.value_and_grad(mean)(*_spread(mesh, arrays).values())
    _close(value, expected)
    _close(gradient, slope)


def test_what_is_not_committed_goes_along(mesh: Any) -> None:
    arrays = _arguments()
    spread = _spread(mesh, arrays)
    margin = jnp.asarray(1.0)
    _close(HINGE(spread["input"], spread["label"], margin), HINGE(arrays["input"], arrays["label"]))


def test_other_devices_are_refused() -> None:
    """Also after calls that differ in nothing but where the label lies, and whether it was put."""
    arrays = _arguments()
    one, other = (SingleDeviceSharding(device) for device in jax.devices()[:2])
    x, y = jax.device_put(arrays["input"], other), jax.device_put(arrays["label"], one)
    expected = HINGE(arrays["input"], arrays["label"])
    _close(HINGE(x, jnp.asarray(arrays["label"])), expected)
    _close(HINGE(x, jax.device_put(arrays["label"], other)), expected)
    text = f"`input` is on device {x.device} but `label` is on device {y.device}. Nothing is copied"
    with pytest.raises(ValueError, match=text):
        HINGE(x, y)


def test_wrong_labels(mesh: Any) -> None:
    arrays = _arguments()
    arrays["label"][500] = 0
    with pytest.raises(ValueError, match=r"1 element that is neither .* is 0 at index \(500,\)"):
        HINGE(**_spread(mesh, arrays))


PROCESS = """
import sys
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
import array_api_losses as xpl

rank, address = int(sys.argv[1]), sys.argv[2]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(address, num_processes=2, process_id=rank)
sharding = NamedSharding(jax.make_mesh((2,), ("i",)), PartitionSpec("i"))
spread = lambda *parts: jax.make_array_from_process_local_data(sharding, np.asarray(parts[rank]))
x, y = spread([1.5, 0.25], [3.0, 1.0]), spread([1, -1], [-1, -1])
value, gradient = xpl.value_and_grad(xpl.hinge_embedding_loss)(x, y)
assert value == 0.5625
assert gradient.addressable_shards[0].data.tolist() == [[0.25, -0.25], [0, 0]][rank]
wrong = spread([1, 0], [-1, -1])
assert np.isnan(xpl.hinge_embedding_loss(x, wrong))
losses = xpl.hinge_embedding_loss(x, wrong, reduction="none").addressable_shards[0].data
assert np.isnan(losses).tolist() == [[False, True], [False, False]][rank]
"""


def test_labels_of_other_processes_are_not_read() -> None:
    """Each sees its own alone: the loss of a wrong one is NaN for all of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-c", PROCESS]
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    processes = [subprocess.Popen([*command, rank, address], env=env) for rank in "01"]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
