"""PyTorch's DTensor over two processes: the mean, and its gradient, are those of the whole."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import multiprocessing
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh

import array_api_losses as xpl

SIZES = (8, 7)  # of which the second is cut unevenly


def _process(rank: int, path: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for check in CHECKS:  # one after another, since a process takes ten seconds to start
        check(mesh)
    dist.barrier()  # or the faster process closes connections that the other still reads
    dist.destroy_process_group()
    os._exit(0)  # all is checked; at an ordinary exit threads of PyTorch's own may still abort it


def _spread(mesh: Any, tensor: Any, axis: int = 0) -> Any:
    return distribute_tensor(tensor, mesh, [Shard(axis)])


def _arguments(n: int) -> dict[str, Any]:
    rng = np.random.default_rng(n)
    arrays = {"input": rng.normal(size=n), "label": rng.choice([-1.0, 1.0], n)}
    arrays |= {"margin": rng.uniform(size=n), "weight": rng.uniform(size=n)}
    return {name: torch.asarray(array) for name, array in arrays.items()}


def _vectors(n: int) -> list[Any]:
    return list(torch.asarray(np.random.default_rng(n).normal(size=(3, n, 5))))


def _close(actual: Any, expected: Any) -> None:
    assert isinstance(actual, DTensor)
    torch.testing.assert_close(actual.full_tensor(), expected, rtol=1e-12, atol=1e-15)


def _check(call: Callable[..., Any], tensors: dict[str, Any], spread: dict[str, Any]) -> None:
    """Compare a call on tensors that are spread with the same on whole ones, and `backward`."""
    results = []
    for arguments in (tensors, spread):
        leaves = {name: a.detach().clone() for name, a in arguments.items()}
        wanted = [leaf.requires_grad_() for name, leaf in leaves.items() if name != "label"]
        value = call(**leaves)
        value.sum().backward()
        results.append((value.detach(), *[leaf.grad for leaf in wanted]))
    for expected, actual in zip(*results, strict=True):
        _close(actual, expected)


def check_hinge(mesh: Any) -> None:
    for n, reduction, weighted in itertools.product(SIZES, ("none", "sum", "mean"), (False, True)):
        tensors = _arguments(n)
        if not weighted:
            del tensors["weight"]
        spread = {name: _spread(mesh, tensor) for name, tensor in tensors.items()}
        _check(lambda r=reduction, **a: xpl.hinge_embedding_loss(**a, reduction=r), tensors, spread)


def check_value_and_grad(mesh: Any) -> None:
    for n in SIZES:
        tensors = _arguments(n)
        both = xpl.value_and_grad(xpl.hinge_embedding_loss, ("input", "margin", "weight"))
        expected, slopes = both(**tensors)
        value, gradients = both(**{name: _spread(mesh, t) for name, t in tensors.items()})
        _close(value, expected)
        for gradient, slope in zip(gradients, slopes, strict=True):
            _close(gradient, slope)


def check_rows(mesh: Any) -> None:
    for n, axis in itertools.product(SIZES, (0, 1)):  # also vectors that are cut
        names = "input", "positive", "negative"
        tensors = dict(zip(names, _vectors(n), strict=True))
        spread = {name: _spread(mesh, tensor, axis) for name, tensor in tensors.items()}
        _check(xpl.triplet_margin_loss, tensors, spread)
        tensors = {"input1": tensors["input"], "input2": tensors["positive"]}
        spread = {name: _spread(mesh, tensor, axis) for name, tensor in tensors.items()}
        tensors["label"] = _arguments(n)["label"]
        spread["label"] = _spread(mesh, tensors["label"])
        _check(xpl.cosine_embedding_loss, tensors, spread)


def check_a_margin_for_all(mesh: Any) -> None:
    for n in SIZES:
        tensors = _arguments(n)
        spread = {name: _spread(mesh, tensor) for name, tensor in tensors.items()}
        tensors["margin"] = torch.asarray(0.75, dtype=torch.float64)
        spread["margin"] = distribute_tensor(tensors["margin"], mesh, [Replicate()])
        _check(xpl.hinge_embedding_loss, tensors, spread)


def check_wrong_labels(mesh: Any) -> None:
    """None is read, for a process sees its own alone: the loss is NaN for all of them."""
    tensors = _arguments(8)
    tensors["label"][7] = 0
    spread = {name: _spread(mesh, tensor) for name, tensor in tensors.items()}
    assert xpl.hinge_embedding_loss(**spread).full_tensor().isnan()
    losses = xpl.hinge_embedding_loss(**spread, reduction="none").full_tensor()
    assert losses.isnan().tolist() == [False] * 7 + [True]


CHECKS = check_hinge, check_value_and_grad, check_rows, check_a_margin_for_all, check_wrong_labels


def test_two_processes(tmp_path: Path) -> None:
    # As daemons they end with pytest, if the test is given up because one waits for the other.
    multiprocessing.spawn(_process, (str(tmp_path / "store"),), nprocs=2, daemon=True)
