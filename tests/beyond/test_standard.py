"""Libraries that have no module here: Cubed and sparse; and marray, whose masks would be lost."""

import re
from typing import Any

import cubed
import marray
import numpy as np
import pytest
import routes
import sparse
from backends import Backend
from compare import check_gradient, check_value, cotangents, fixed_cases
from reference import LOSSES

import array_api_losses as xpl


class _Cubed(Backend):
    def _asarray(self, values: Any, dtype: str) -> Any:
        return cubed.from_array(np.asarray(values, dtype), chunks=(3,) * np.ndim(values))

    def tonumpy(self, array: Any) -> Any:
        return array.compute()


class _Sparse(Backend):
    def _asarray(self, values: Any, dtype: str) -> Any:
        return sparse.COO.from_numpy(np.asarray(values, dtype))

    def tonumpy(self, array: Any) -> Any:
        return array.todense()


@pytest.fixture(params=[_Cubed("cubed"), _Sparse("sparse")], ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize("name", LOSSES)
def test_values(row: Backend, name: str) -> None:
    for case in fixed_cases(loss=name)[::5]:
        check_value(row, case)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(row: Backend, name: str) -> None:
    for case in fixed_cases(loss=name)[::11]:
        for argument in case.differentiable:
            check_gradient(row, case, routes.ROUTES["vjp"], argument, cotangents(case))


def test_a_wrong_label_gives_nan(row: Backend) -> None:
    x, y = row.asarray([1.0, 2.0, 3.0]), row.asarray([1, 2, -1], "int64")
    losses = xpl.hinge_embedding_loss(x, y, reduction="none")
    np.testing.assert_array_equal(row.tonumpy(losses), [1, np.nan, 0])


def test_nothing_is_computed_within_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("something was computed inside of a call")

    row = _Cubed("cubed")
    x, y = row.asarray([1.5, 0.25, 3.0]), row.asarray([1, -1, -1], "int64")
    with monkeypatch.context() as patch:
        patch.setattr(cubed.Array, "compute", refuse)
        value, gradient = xpl.value_and_grad(xpl.hinge_embedding_loss)(x, y)
    assert value.compute() == 0.75
    assert (gradient.compute() * 3).tolist() == [1, -1, 0]


def test_masks_of_marray_are_refused() -> None:
    """The mean would divide by what is masked too."""
    xp = marray.masked_namespace(np)
    y = xp.asarray(np.asarray([1.0, 1.0]))
    masked = xp.asarray(np.asarray([np.nan, 2.0]), mask=np.asarray([True, False]))
    text = "`input` is a MArray, whose mask would be lost. Let a weight say what counts: `weight ="
    with pytest.raises(TypeError, match=re.escape(f"{text} ~input.mask` and `input = input.data`")):
        xpl.hinge_embedding_loss(masked, y)
    assert xpl.hinge_embedding_loss(masked.data, y.data, weight=~masked.mask) == 2  # as it says
    with pytest.raises(TypeError, match=r"`weight = xp\.where\(weight\.mask, 0, weight\.data\)`"):
        xpl.hinge_embedding_loss(y.data, y.data, weight=masked)
    weight = np.where(masked.mask, 0, masked.data)
    assert xpl.hinge_embedding_loss(y.data, y.data, weight=weight) == 1
