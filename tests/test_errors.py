"""Bad input as a table: what is passed, the exception, the whole text, on every backend."""

import inspect
import re
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import array_api_compat as compat
import pytest
from backends import Backend

import array_api_losses as xpl
from array_api_losses import _messages

loss = xpl.hinge_embedding_loss
NAME = "hinge_embedding_loss: "
NUMBER = " it must be real floating. Convert it, e.g. `input = xp.astype(input, xp.float32)`."
LABELS = " it must hold 1 and -1 in a signed integer or real floating dtype."
SIGNS = "convert: `label = 2 * xp.astype(label, xp.int8) - 1`."
CLASSES = ("HingeEmbeddingLoss", "MarginRankingLoss", "CosineEmbeddingLoss", "TripletMarginLoss")
DEPRECATED = " In PyTorch two deprecated arguments precede it: name it, `reduction=`."
FORMS = " It is a position, a name or a tuple of these."

Make = Callable[[Backend], dict[str, Any]]


def _x(b: Backend, n: int = 4) -> Any:
    return b.asarray([0.5 * i for i in range(n)], "float32")


def _y(b: Backend, n: int = 4) -> Any:
    return b.asarray([1 if i % 2 else -1 for i in range(n)], "float32")


def _call(**changes: Callable[[Backend], Any]) -> Make:
    """Return a good call in which some arguments are replaced."""
    return lambda b: {"input": _x(b), "label": _y(b), **{k: v(b) for k, v in changes.items()}}


def _of(values: Any, dtype: str) -> Callable[[Backend], Any]:
    return lambda b: b.asarray(values, dtype)


BAD: dict[str, tuple[Make, type[Exception], str]] = {
    "input is a list": (
        _call(input=lambda b: [1.0, 2.0]),
        TypeError,
        "`input` is a list, not an array. Make it one of the library you work in, e.g."
        " `input = xp.asarray(input)`.",
    ),
    "label is a number": (
        _call(label=lambda b: 1),
        TypeError,
        "`label` is an int, not an array. Make it one of the library you work in, e.g."
        " `label = xp.full_like(input, label)`.",
    ),
    "label is a list": (
        _call(label=lambda b: [1, -1, 1, 1]),
        TypeError,
        "`label` is a list, not an array. Make it one of the library you work in, e.g."
        " `label = xp.asarray(label)`.",
    ),
    "label is None": (
        _call(label=lambda b: None),
        TypeError,
        "`label` is None; an array is needed.",
    ),
    "weight is a list": (
        _call(weight=lambda b: [1.0] * 4),
        TypeError,
        "`weight` is a list, not an array. Make it one of the library you work in, e.g."
        " `weight = xp.asarray(weight, dtype=input.dtype)`.",
    ),
    "int input": (
        _call(input=_of([1, 2, 3, 4], "int64")),
        TypeError,
        "`input` has dtype int64;" + NUMBER,
    ),
    "bool input": (
        _call(input=_of([True] * 4, "bool")),
        TypeError,
        "`input` has dtype bool;" + NUMBER,
    ),
    "complex input": (
        _call(input=_of([1j] * 4, "complex64")),
        TypeError,
        "`input` has dtype complex64; it must be real floating. Take what you mean, e.g."
        " `input = xp.abs(input)`.",
    ),
    "bool label": (
        _call(label=_of([True, False, True, True], "bool")),
        TypeError,
        "`label` has dtype bool;" + LABELS + " If True stands for 1 and False for -1, " + SIGNS,
    ),
    "unsigned label": (
        _call(label=_of([1, 0, 1, 1], "uint8")),
        TypeError,
        "`label` has dtype uint8;" + LABELS + " If 0 stands for -1, " + SIGNS,
    ),
    "complex label": (
        _call(label=_of([1j] * 4, "complex64")),
        TypeError,
        "`label` has dtype complex64;" + LABELS,
    ),
    "column of labels": (
        _call(label=lambda b: b.asarray([[1.0], [-1.0], [1.0], [1.0]], "float32")),
        ValueError,
        "`input` has shape (4,) but `label` has shape (4, 1). Broadcasting would compare 16 pairs,"
        " not 4. Reshape one of them, e.g. `label = xp.reshape(label, input.shape)`.",
    ),
    "transposed labels": (
        lambda b: {
            "input": b.asarray([[[0.5] * 4] * 3] * 2, "float32"),
            "label": b.asarray([[[1.0] * 2] * 4] * 3, "float32"),
        },
        ValueError,
        "`input` has shape (2, 3, 4) but `label` has shape (3, 4, 2). If its axes are in another"
        " order, change it: `label = xp.permute_dims(label, (2, 0, 1))`.",
    ),
    "as many labels": (
        lambda b: {
            "input": b.asarray([[0.5] * 4] * 3, "float32"),
            "label": b.asarray([[1.0] * 2] * 6, "float32"),
        },
        ValueError,
        "`input` has shape (3, 4) but `label` has shape (6, 2). They must be the same.",
    ),
    "flat labels": (
        lambda b: {"input": b.asarray([[0.5] * 4] * 3, "float32"), "label": _y(b, 12)},
        ValueError,
        "`input` has shape (3, 4) but `label` has shape (12,). Reshape one of them, e.g."
        " `label = xp.reshape(label, input.shape)`.",
    ),
    "one label": (
        _call(label=_of([1.0], "float32")),
        ValueError,
        "`input` has shape (4,) but `label` has shape (1,). If that is meant, say so:"
        " `label = xp.broadcast_to(label, input.shape)`.",
    ),
    "three labels": (
        _call(label=lambda b: _y(b, 3)),
        ValueError,
        "`input` has shape (4,) but `label` has shape (3,). They must be the same.",
    ),
    "many labels": (
        _call(label=_of([[1.0] * 4] * 2, "float32")),
        ValueError,
        "`input` has shape (4,) but `label` has shape (2, 4). Broadcasting would compare 8 pairs,"
        " not 4. If that is meant, say so: `input = xp.broadcast_to(input, label.shape)`.",
    ),
    "labels of the last axis": (
        lambda b: {
            "input": b.asarray([[1.0] * 4] * 2, "float32"),
            "label": b.asarray([1.0] * 4, "float32"),
        },
        ValueError,
        "`input` has shape (2, 4) but `label` has shape (4,). If that is meant, say so:"
        " `label = xp.broadcast_to(label, input.shape)`.",
    ),
    "margin is a string": (
        _call(margin=lambda b: "1"),
        TypeError,
        "`margin` is a str; a finite real number or an array of the dtype of the input is needed.",
    ),
    "margin is a bool": (
        _call(margin=lambda b: True),
        TypeError,
        "`margin` is a bool; a finite real number or an array of the dtype of the input is needed.",
    ),
    "margin is NaN": (
        _call(margin=lambda b: float("nan")),
        ValueError,
        "`margin` is nan; a finite number is needed.",
    ),
    "margin is infinite": (
        _call(margin=lambda b: -float("inf")),
        ValueError,
        "`margin` is -inf; a finite number is needed.",
    ),
    "margin is beyond the dtype": (
        _call(margin=lambda b: 1e39),
        ValueError,
        "`margin` is 1e+39, beyond the largest float32, 3.4028234663852886e+38.",
    ),
    "margin is beyond every float": (
        _call(margin=lambda b: 10**400),
        ValueError,
        "`margin` is too large for a float; a finite number is needed.",
    ),
    "margin is an infinite scalar of NumPy": (
        _call(margin=lambda b: b.np.float64("inf")),
        ValueError,
        "`margin` is inf; a finite number is needed.",
    ),
    "margin has another dtype": (
        _call(margin=_of([1.0] * 4, "float64")),
        TypeError,
        "`margin` has dtype float64 but `input` has dtype float32; it must have the same. Convert"
        " it, e.g. `margin = xp.astype(margin, input.dtype)`.",
    ),
    "margin is too long": (
        _call(margin=_of([1.0] * 3, "float32")),
        ValueError,
        "`margin` has shape (3,), which does not broadcast to the shape (4,) of `input`.",
    ),
    "margin has too many axes": (
        _call(margin=_of([[1.0]] * 4, "float32")),
        ValueError,
        "`margin` has shape (4, 1), which does not broadcast to the shape (4,) of `input`.",
    ),
    "weight has another dtype": (
        _call(weight=_of([1] * 4, "int64")),
        TypeError,
        "`weight` has dtype int64 but `input` has dtype float32; it must have the same (or be"
        " bool). Convert it, e.g. `weight = xp.astype(weight, input.dtype)`.",
    ),
    "weight is too long": (
        _call(weight=_of([1.0] * 5, "float32")),
        ValueError,
        "`weight` has shape (5,), which does not broadcast to the shape (4,) of `input`.",
    ),
    "unknown reduction": (
        _call(reduction=lambda b: "avg"),
        ValueError,
        "`reduction` is 'avg'; it must be 'none', 'sum' or 'mean'.",
    ),
    "object input": (
        _call(input=lambda b: b.np.asarray([1.0, None], dtype=object)),
        TypeError,
        "`input` has dtype object; it must be real floating.",
    ),
    "string label": (
        _call(
            input=lambda b: b.np.ones(2, "float32"), label=lambda b: b.np.asarray(["same", "other"])
        ),
        TypeError,
        "`label` has dtype str160;" + LABELS,
    ),
    "margin is a list": (
        _call(margin=lambda b: [1.0] * 4),
        TypeError,
        "`margin` is a list, not an array. Make it one of the library you work in, e.g."
        " `margin = xp.asarray(margin, dtype=input.dtype)`.",
    ),
    "margin is complex": (
        _call(margin=lambda b: 1j),
        TypeError,
        "`margin` is a complex; a finite real number or an array of the dtype of the input is"
        " needed.",
    ),
    "int margin array": (
        _call(margin=_of([1] * 4, "int64")),
        TypeError,
        "`margin` has dtype int64 but `input` has dtype float32; it must have the same. Convert"
        " it, e.g. `margin = xp.astype(margin, input.dtype)`.",
    ),
    "weight is a number": (
        _call(weight=lambda b: 2.0),
        TypeError,
        "`weight` is a float, not an array. Make it one of the library you work in, e.g."
        " `weight = xp.asarray(weight, dtype=input.dtype)`.",
    ),
    "weight has too many axes": (
        _call(weight=_of([[1.0] * 4] * 2, "float32")),
        ValueError,
        "`weight` has shape (2, 4), which does not broadcast to the shape (4,) of `input`.",
    ),
    "reduction is a number": (
        _call(reduction=lambda b: 1),
        TypeError,
        "`reduction` is an int; it must be 'none', 'sum' or 'mean'.",
    ),
    "reduction is in capitals": (
        _call(reduction=lambda b: "Mean"),
        ValueError,
        "`reduction` is 'Mean'; it must be 'none', 'sum' or 'mean'.",
    ),
    "reduction is None": (
        _call(reduction=lambda b: None),
        TypeError,
        "`reduction` is None; it must be 'none', 'sum' or 'mean'." + DEPRECATED,
    ),
}
OF_NUMPY = ("object input", "string label")
"""No other library has such arrays."""

WRONG_LABELS: dict[str, tuple[Make, str]] = {
    "zeros": (
        _call(label=_of([1, 0, 0, 1], "int8")),
        "`label` has 2 elements that are neither 1 nor -1; the first is 0 at index (1,). If 0"
        " stands for -1, " + SIGNS,
    ),
    "one float beside 1": (
        _call(label=_of([1, -1, -1, 1 + 2**-23], "float32")),
        "`label` has 1 element that is neither 1 nor -1; the first is 1.0000001192092896 at index"
        " (3,).",
    ),
    "NaN": (
        _call(label=_of([float("nan"), -1, -1, 1], "float32")),
        "`label` has 1 element that is neither 1 nor -1; the first is nan at index (0,).",
    ),
    "in two dimensions": (
        lambda b: {
            "input": b.asarray([[1.0, 2.0, 3.0]] * 2),
            "label": b.asarray([[1, 1, -1], [1, 2, 127]], "int8"),
        },
        "`label` has 2 elements that are neither 1 nor -1; the first is 2 at index (1, 1).",
    ),
    "in three dimensions": (
        lambda b: {
            "input": b.asarray([[[1.0, 2.0, 3.0]] * 2] * 2),
            "label": b.asarray([[[1, 1, -1], [1, -1, 1]], [[1, 1, 1], [1, 3, 1]]], "int8"),
        },
        "`label` has 1 element that is neither 1 nor -1; the first is 3 at index (1, 1, 1).",
    ),
    "at the edge of three dimensions": (
        lambda b: {
            "input": b.asarray([[[1.0, 2.0, 3.0]] * 2] * 2),
            "label": b.asarray([[[1, 1, -1], [1, -1, 7]], [[1, 1, 1], [1, 3, 1]]], "int8"),
        },
        "`label` has 2 elements that are neither 1 nor -1; the first is 7 at index (0, 1, 2).",
    ),
    "in no dimension": (
        lambda b: {"input": b.asarray(1.0), "label": b.asarray(-2, "int64")},
        "`label` has 1 element that is neither 1 nor -1; the first is -2 at index ().",
    ),
    "with a weight": (
        _call(label=_of([3, 5, -1, 3], "int8"), weight=_of([0.0, 1.0, 1.0, 1.0], "float32")),
        "`label` has 2 elements that are neither 1 nor -1; the first is 5 at index (1,).",
    ),
    "with a mask": (
        _call(label=_of([3, 5, -1, 3], "int8"), weight=_of([False, True, True, False], "bool")),
        "`label` has 1 element that is neither 1 nor -1; the first is 5 at index (1,).",
    ),
}


def _rows(b: Backend, width: int = 3) -> Any:
    return b.asarray([[0.5 * i - j for j in range(width)] for i in range(4)], "float32")


def _scores(**changes: Callable[[Backend], Any]) -> Make:
    good = {"input": _x, "other": _y, "label": _y}
    return lambda b: {name: make(b) for name, make in {**good, **changes}.items()}


def _vectors(**changes: Callable[[Backend], Any]) -> Make:
    good = {"input1": _rows, "input2": _rows, "label": _y}
    return lambda b: {name: make(b) for name, make in {**good, **changes}.items()}


def _triplets(**changes: Callable[[Backend], Any]) -> Make:
    good = {"input": _rows, "positive": _rows, "negative": _rows}
    return lambda b: {name: make(b) for name, make in {**good, **changes}.items()}


BAD_OF_OTHERS: dict[str, dict[str, tuple[Make, type[Exception], str]]] = {
    "margin_ranking_loss": {
        "column of scores": (
            _scores(other=_of([[1.0]] * 4, "float32")),
            ValueError,
            "`input` has shape (4,) but `other` has shape (4, 1). Broadcasting would compare 16"
            " pairs, not 4. Reshape one of them, e.g. `other = xp.reshape(other, input.shape)`.",
        ),
        "another dtype": (
            _scores(other=_of([1.0] * 4, "float64")),
            TypeError,
            "`other` has dtype float64 but `input` has dtype float32; it must have the same."
            " Convert it, e.g. `other = xp.astype(other, input.dtype)`.",
        ),
        "int scores": (
            _scores(other=_of([1] * 4, "int64")),
            TypeError,
            "`other` has dtype int64; it must be real floating. Convert it, e.g."
            " `other = xp.astype(other, xp.float32)`.",
        ),
    },
    "cosine_embedding_loss": {
        "column of labels": (
            _vectors(label=_of([[1.0]] * 4, "float32")),
            ValueError,
            "`input1` has shape (4, 3), rows of shape (4,), but `label` has shape (4, 1)."
            " Broadcasting would compare 16 pairs, not 4. Reshape one of them, e.g."
            " `label = xp.reshape(label, input1.shape[:-1])`.",
        ),
        "one label": (
            _vectors(label=_of([1.0], "float32")),
            ValueError,
            "`input1` has shape (4, 3), rows of shape (4,), but `label` has shape (1,). If that"
            " is meant, say so:"
            " `label = xp.broadcast_to(label, input1.shape[:-1])`.",
        ),
        "a label for each entry": (
            _vectors(label=_of([[1.0] * 3] * 4, "float32")),
            ValueError,
            "`input1` has shape (4, 3), rows of shape (4,), but `label` has shape (4, 3). It must"
            " be that of the rows.",
        ),
        "other vectors": (
            _vectors(input2=lambda b: _rows(b, 2)),
            ValueError,
            "`input1` has shape (4, 3) but `input2` has shape (4, 2). They must be the same.",
        ),
        "one vector for all": (
            _vectors(input2=_of([1.0, 2.0, 3.0], "float32")),
            ValueError,
            "`input1` has shape (4, 3) but `input2` has shape (3,). If that is meant, say so:"
            " `input2 = xp.broadcast_to(input2, input1.shape)`.",
        ),
        "one vector among the first": (
            _vectors(input1=_of([1.0, 2.0, 3.0], "float32")),
            ValueError,
            "`input1` has shape (3,) but `input2` has shape (4, 3). Broadcasting would compare 4"
            " pairs, not 1. If that is meant, say so:"
            " `input1 = xp.broadcast_to(input1, input2.shape)`.",
        ),
        "rows and columns of vectors": (
            _vectors(
                input1=_of([[[1.0, 2.0, 3.0]]] * 4, "float32"),
                input2=_of([[[1.0, 2.0, 3.0]] * 5], "float32"),
            ),
            ValueError,
            "`input1` has shape (4, 1, 3) but `input2` has shape (1, 5, 3). Broadcasting would"
            " compare 20 pairs, not 4. If that is meant, say so:"
            " `input1, input2 = xp.broadcast_arrays(input1, input2)`.",
        ),
        "a number": (
            _vectors(input1=_of(1.0, "float32")),
            ValueError,
            "`input1` has shape (); a last axis is needed, along which the entries of a vector"
            " stand. If each number is a vector, say so: `input1 = xp.reshape(input1, (1,))`.",
        ),
        "margin above 1": (
            _vectors(margin=lambda b: 1.5),
            ValueError,
            "`margin` is 1.5; it must be between -1 and 1.",
        ),
        "margin below -1": (
            _vectors(margin=lambda b: -2),
            ValueError,
            "`margin` is -2.0; it must be between -1 and 1.",
        ),
        "a margin for each entry": (
            _vectors(margin=_of([[0.5] * 3] * 4, "float32")),
            ValueError,
            "`margin` has shape (4, 3), which does not broadcast to the shape (4,) of the rows of"
            " `input1`.",
        ),
        "a weight for each entry": (
            _vectors(weight=_of([[True] * 3] * 4, "bool")),
            ValueError,
            "`weight` has shape (4, 3), which does not broadcast to the shape (4,) of the rows of"
            " `input1`.",
        ),
        "bool label": (
            _vectors(label=_of([True] * 4, "bool")),
            TypeError,
            "`label` has dtype bool;" + LABELS + " If True stands for 1 and False for -1, " + SIGNS,
        ),
    },
    "triplet_margin_loss": {
        "other positives": (
            _triplets(positive=lambda b: _rows(b, 2)),
            ValueError,
            "`input` has shape (4, 3) but `positive` has shape (4, 2). They must be the same.",
        ),
        "negatives are a list": (
            _triplets(negative=lambda b: [[1.0]]),
            TypeError,
            "`negative` is a list, not an array. Make it one of the library you work in, e.g."
            " `negative = xp.asarray(negative, dtype=input.dtype)`.",
        ),
        "negatives are a number": (
            _triplets(negative=lambda b: 1.0),
            TypeError,
            "`negative` is a float, not an array. Make it one of the library you work in, e.g."
            " `negative = xp.full_like(input, negative)`.",
        ),
        "margin is NaN": (
            _triplets(margin=lambda b: float("nan")),
            ValueError,
            "`margin` is nan; a finite number is needed.",
        ),
        "a label": (
            _triplets(margin=_of([1, -1, 1, -1], "int64")),
            TypeError,
            "`margin` has dtype int64 but `input` has dtype float32; it must have the same (there"
            " is no label). Convert it, e.g. `margin = xp.astype(margin, input.dtype)`.",
        ),
        "p below 1": (
            _triplets(p=lambda b: 0.5),
            ValueError,
            "`p` is 0.5; it must be at least 1.",
        ),
        "p is NaN": (
            _triplets(p=lambda b: float("nan")),
            ValueError,
            "`p` is nan; it must be at least 1.",
        ),
        "p is beyond every float": (
            _triplets(p=lambda b: 10**400),
            ValueError,
            "`p` is too large for a float; it must be at least 1.",
        ),
        "p is a string": (
            _triplets(p=lambda b: "2"),
            TypeError,
            "`p` is a str; a finite real number is needed.",
        ),
        "p is an array": (
            _triplets(p=_of([2.0, 2.0], "float32")),
            TypeError,
            "`p` is {array}; a finite real number is needed.",
        ),
        "epsilon is beyond float32": (
            _triplets(epsilon=lambda b: 1e39),
            ValueError,
            "`epsilon` is 1e+39; it must be between -1e+38 and 1e+38.",
        ),
        "swap is a number": (
            _triplets(swap=lambda b: 1),
            TypeError,
            "`swap` is 1; it must be True or False.",
        ),
    },
}


def _check(call: Callable[..., Any], arguments: dict[str, Any], text: str, kind: Any) -> None:
    with pytest.raises(kind) as caught:
        call(**arguments)
    assert type(caught.value) is kind
    said = re.sub(r", device=\w+\.device\)`", ")`", str(caught.value))  # a test of its own
    assert said == text


@pytest.mark.parametrize("row", BAD)
def test_bad_input(backend: Backend, row: str) -> None:
    make, kind, text = BAD[row]
    if row in OF_NUMPY and backend.library != "numpy":
        return
    arguments, before = make(backend), make(backend)
    _check(loss, arguments, NAME + text, kind)
    _check(loss, {**arguments, "name": "pairs"}, "pairs: " + text, kind)
    for name, argument in arguments.items():
        if hasattr(argument, "dtype"):
            assert str(argument) == str(before[name])
    assert backend.tolist(loss(_x(backend), _y(backend))) == [0.75]


@pytest.mark.parametrize(
    ("name", "row"), [(name, row) for name, rows in BAD_OF_OTHERS.items() for row in rows]
)
def test_bad_input_of_others(backend: Backend, name: str, row: str) -> None:
    make, kind, text = BAD_OF_OTHERS[name][row]
    function, arguments = getattr(xpl, name), make(backend)
    array = type(_x(backend)).__name__  # "Array" and "ArrayImpl" take "an"
    text = text.replace("{array}", f"an {array}" if array[0] == "A" else f"a {array}")
    _check(function, arguments, f"{name}: {text}", kind)
    _check(function, arguments, f"{name}: {text}", kind)  # also when looked up
    _check(xpl.value_and_grad(function), arguments, f"{name}: {text}", kind)
    _check(function, {**arguments, "name": "mine"}, f"mine: {text}", kind)


def test_bad_shapes_after_a_good_call(backend: Backend) -> None:
    """What has agreed once is looked up, but not its shapes."""
    a, y = _rows(backend), _y(backend)
    name, one = "cosine_embedding_loss", backend.asarray(1.0, "float32")
    xpl.cosine_embedding_loss(a, a, y)
    with pytest.raises(ValueError, match="`input2` has shape"):
        xpl.cosine_embedding_loss(a, _rows(backend, 2), y)
    with pytest.raises(ValueError, match="`label` has shape"):
        xpl.cosine_embedding_loss(a, a, a)
    with pytest.raises(ValueError, match=f"{name}: `input1` has shape \\(\\); a last axis"):
        xpl.cosine_embedding_loss(one, one, one)


def test_wrong_labels_of_rows(backend: Backend) -> None:
    backend.require("reads labels")
    arguments = _vectors(label=_of([1, -1, 0, 2], "int8"))(backend)
    text = "`label` has 2 elements that are neither 1 nor -1; the first is 0 at index (2,). If 0"
    text = f"cosine_embedding_loss: {text} stands for -1, {SIGNS}"
    _check(xpl.cosine_embedding_loss, arguments, text, ValueError)
    _check(xpl.value_and_grad(xpl.cosine_embedding_loss), arguments, text, ValueError)


def test_suggested_conversions_of_rows(backend: Backend) -> None:
    xp, a = backend.xp, _rows(backend)
    column = backend.asarray([[1.0], [-1.0], [1.0], [1.0]], "float32")
    xpl.cosine_embedding_loss(a, a, xp.reshape(column, a.shape[:-1]))
    one = backend.asarray([1.0], "float32")
    xpl.cosine_embedding_loss(a, a, xp.broadcast_to(one, a.shape[:-1]))
    row = backend.asarray([1.0, 2.0, 3.0], "float32")
    xpl.cosine_embedding_loss(a, xp.broadcast_to(row, a.shape), _y(backend))
    xpl.cosine_embedding_loss(a, a, xp.full_like(a[..., 0], -1))
    xpl.triplet_margin_loss(a, a, xp.full_like(a, 2))
    xpl.triplet_margin_loss(xp.broadcast_to(row, a.shape), a, a)
    left, right = xp.broadcast_arrays(xp.reshape(a, (4, 1, 3)), xp.reshape(a, (1, 4, 3)))
    xpl.triplet_margin_loss(left, right, right)
    number = xp.reshape(backend.asarray(1.0, "float32"), (1,))
    assert backend.tolist(xpl.triplet_margin_loss(number, number, number)) == [1]


def test_names_of_other_libraries(backend: Backend) -> None:
    a = _rows(backend)
    for function, keyword, ours in [
        (xpl.triplet_margin_loss, "anchor", "input"),
        (xpl.triplet_margin_loss, "eps", "epsilon"),
        (xpl.margin_ranking_loss, "input1", "input"),
        (xpl.margin_ranking_loss, "input2", "other"),
        (xpl.cosine_embedding_loss, "target", "label"),
        (xpl.cosine_embedding_loss, "mask", "weight"),
        (xpl.cosine_embedding_loss, "other", "input2"),
    ]:
        with pytest.raises(TypeError, match=f"What is `{keyword}` elsewhere is `{ours}` here"):
            function(**{keyword: a})
    with pytest.raises(TypeError, match="What is `eps` elsewhere is `epsilon` here"):
        xpl.TripletMarginLoss(eps=1.0)
    for function in (xpl.HingeEmbeddingLoss, loss):
        with pytest.raises(TypeError, match='`size_average=False` is `reduction="sum"`'):
            function(size_average=False)


def test_unknown_keywords(backend: Backend) -> None:
    """`target` and what else people bring along from PyTorch."""
    x, y = _x(backend), _y(backend)
    known = "the arguments are input, label, margin, reduction, name, weight."
    target = NAME + "there is no argument `target`; " + known
    target += " What is `target` elsewhere is `label` here."
    for call in (loss, xpl.value_and_grad(loss), xpl.jit(loss)):
        _check(call, {"input": x, "target": y}, target, TypeError)
    text = NAME + "there is no argument `gamma`; " + known
    _check(loss, {"input": x, "label": y, "gamma": True}, text, TypeError)
    text = "HingeEmbeddingLoss: there is no argument `gamma`; the arguments are margin, reduction,"
    _check(xpl.HingeEmbeddingLoss, {"gamma": True}, text + " name.", TypeError)
    text = "HingeEmbeddingLoss: there is no argument `target`; the arguments are input, label,"
    text += " weight. What is `target` elsewhere is `label` here."
    _check(xpl.HingeEmbeddingLoss(), {"input": x, "target": y}, text, TypeError)
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'label'"):
        loss(x)


def test_too_many_arguments(backend: Backend) -> None:
    """As people pass them who come from PyTorch."""
    x, y = _x(backend), _y(backend)
    hint = " In PyTorch two deprecated arguments precede `reduction`: name it, `reduction=`."
    places = "6 arguments are given by position, where there are 5: input, label, margin,"
    for call in (loss, xpl.value_and_grad(loss), xpl.jit(loss)):
        with pytest.raises(TypeError) as caught:
            call(x, y, 1.0, None, None, "mean")
        named = "reduction, name. `weight` is given by name."
        assert str(caught.value) == f"{NAME}{places} {named}{hint}"
    places = "5 arguments are given by position, where there are 3: margin, reduction, name."
    with pytest.raises(TypeError) as caught:
        xpl.HingeEmbeddingLoss(1.0, None, None, "mean", "a")
    assert str(caught.value) == f"HingeEmbeddingLoss: {places}{hint}"
    places = "3 arguments are given by position, where there are 2: input, label."
    for call in (xpl.HingeEmbeddingLoss(), xpl.jit(xpl.HingeEmbeddingLoss())):
        with pytest.raises(TypeError) as caught:
            call(x, y, x)
        assert str(caught.value) == f"HingeEmbeddingLoss: {places} `weight` is given by name."


def test_names_are_texts(backend: Backend) -> None:
    text = ": `name` is an int; it must be a text."
    _check(loss, {**_call()(backend), "name": 3}, NAME[:-2] + text, TypeError)
    triplets = {**_triplets()(backend), "name": 3}
    _check(xpl.triplet_margin_loss, triplets, "triplet_margin_loss" + text, TypeError)
    with pytest.raises(TypeError, match=r"`name` is an? .*; it must be a text"):
        xpl.triplet_margin_loss(**{**triplets, "name": _x(backend)})
    for name in CLASSES:
        _check(getattr(xpl, name), {"name": 3}, name + text, TypeError)


@pytest.mark.library("numpy")
def test_the_other_byte_order_has_another_name(backend: Backend) -> None:
    np = backend.np
    x, other = np.ones(3, "<f8"), np.ones(3, ">f8")
    text = (
        "`weight` has dtype >f8 but `input` has dtype <f8; it must have the same (or be bool)."
        " Convert it, e.g. `weight = xp.astype(weight, input.dtype)`."
    )
    _check(loss, {"input": x, "label": x, "weight": other}, NAME + text, TypeError)
    assert loss(x, x, weight=np.astype(other, x.dtype)) == 1


@pytest.mark.parametrize("row", WRONG_LABELS)
def test_wrong_labels(backend: Backend, row: str) -> None:
    make, text = WRONG_LABELS[row]
    backend.require("reads labels")
    _check(loss, make(backend), NAME + text, ValueError)
    _check(xpl.value_and_grad(loss), make(backend), NAME + text, ValueError)


class _Other:
    """An array of a library that is nowhere else."""

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return ModuleType("other")


def test_another_library(backend: Backend) -> None:
    if backend.library == "numpy":
        other, theirs = _Other(), "other"
    else:
        other, theirs = backend.np.ones(4, "float32"), "numpy"
    ours = {"strict": "array_api_strict"}.get(backend.library, backend.library)
    for argument in ("label", "margin", "weight"):
        text = (
            f"`input` is an array of {ours} but `{argument}` is an array of {theirs}. Nothing is"
            f" moved between libraries; convert one, e.g. `{argument} = xp.asarray({argument},"
            " dtype=input.dtype)` with the xp of `input`."
        )
        arguments = _call(**{argument: lambda b: other})(backend)
        _check(loss, arguments, NAME + text, TypeError)


def test_pytorch_takes_arrays_of_jax_by_way_of_numpy() -> None:
    """By itself it takes their bytes for numbers of the dtype that it is told."""
    text = re.escape("`label = xp.asarray(np.asarray(label), dtype=input.dtype)` with the xp")
    with pytest.raises(TypeError, match=text):
        _messages.fail_library("name", "input", "torch", "label", "jax", ", dtype=input.dtype")


def test_another_device(backend: Backend) -> None:
    backend.require("devices")
    x, there = _x(backend), _another_device(backend)
    y, here = compat.to_device(_y(backend), there), compat.device(x)
    text = (
        f"`input` is on device {here} but `label` is on device {there}. Nothing is copied between"
        " devices; move one, e.g. `label = array_api_compat.to_device(label, input.device)`."
    )
    _check(loss, {"input": x, "label": y}, NAME + text, ValueError)


@pytest.mark.parametrize("device", ["", ", device=input.device"])
def test_advice_names_a_device_that_is_not_the_default(backend: Backend, device: str) -> None:
    backend.require("devices")
    there = _another_device(backend) if device else compat.device(backend.xp.asarray([1.0]))
    arguments = {"input": compat.to_device(_x(backend), there), "label": [1.0] * 4}
    with pytest.raises(TypeError, match=re.escape(f"`label = xp.asarray(label{device})`")):
        loss(**arguments)
    arguments["label"] = compat.to_device(_y(backend), there)
    for argument in ("margin", "weight"):
        text = f"`{argument} = xp.asarray({argument}, dtype=input.dtype{device})`"
        with pytest.raises(TypeError, match=re.escape(text)):
            loss(**arguments, **{argument: [1.0] * 4})
        with pytest.raises(TypeError, match=re.escape(text)):
            loss(**arguments, **{argument: backend.np.ones(4, "float32")})


def _another_device(backend: Backend) -> Any:
    return backend.module.Device("device1") if backend.library == "strict" else "meta"


def test_suggested_conversions(backend: Backend) -> None:
    """Everything that an error tells people to write works on this backend."""
    xp = backend.xp
    # Where this is the default, there is no need to say it.
    asarray = partial(xp.asarray, device=compat.device(backend.asarray([1.0])))
    label = backend.asarray([1, 0, 1, 1], "uint8")
    label = 2 * xp.astype(label, xp.int8) - 1
    assert backend.tolist(label) == [1, -1, 1, 1]
    label = backend.asarray([True, False, True, True], "bool")
    label = 2 * xp.astype(label, xp.int8) - 1
    assert backend.tolist(label) == [1, -1, 1, 1]
    x = xp.astype(backend.asarray([1, 2, 3, 4], "int64"), xp.float32)
    assert backend.tolist(loss(x, label)) == [2.0]
    x = xp.abs(backend.asarray([1j, 2, 3, 4], "complex64"))
    assert backend.tolist(loss(x, label)) == [2.0]
    column = xp.reshape(label, (4, 1))
    assert backend.tolist(loss(x, xp.reshape(column, x.shape))) == [2.0]
    turned = xp.permute_dims(xp.broadcast_to(label, (2, 3, 4)), (1, 2, 0))
    assert xp.permute_dims(turned, (2, 0, 1)).shape == (2, 3, 4)
    one = backend.asarray([1], "int8")
    assert backend.tolist(loss(x, xp.broadcast_to(one, x.shape))) == [2.5]
    weight = xp.astype(backend.asarray([1, 1, 1, 0], "int64"), x.dtype)
    assert backend.tolist(loss(x, label, weight=weight)) == [float(backend.np.float32(4 / 3))]
    assert backend.tolist(loss(x, asarray(backend.np.asarray([1, -1, 1, 1])))) == [2.0]
    assert backend.tolist(loss(x, asarray([1, -1, 1, 1]))) == [2.0]
    assert backend.tolist(loss(x, xp.full_like(x, 1))) == [2.5]
    for weight in ([1, 1, 1, 0], [1.0, 1.0, 1.0, 0.0]):
        weighted = loss(x, label, weight=asarray(weight, dtype=x.dtype))
        assert backend.tolist(weighted) == [float(backend.np.float32(4 / 3))]
    assert backend.tolist(loss(x, label, weight=asarray(2, dtype=x.dtype))) == [2.0]
    assert backend.tolist(loss(x, label, asarray([4.0] * 4, dtype=x.dtype))) == [2.5]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_transforms_refuse(backend: Backend, dtype: str) -> None:
    x, y = backend.asarray([0.0, 0.5, 1.0, 1.5], dtype), _y(backend)
    call = {"input": x, "label": y}
    rows: list[tuple[Any, Any, Any, type[Exception], str]] = [
        (loss, ["input"], {}, ValueError, "`argnums` is ['input'], but the arguments of"
         " hinge_embedding_loss are input, label, margin, reduction, name, weight." + FORMS),
        (loss, True, {}, ValueError, "`argnums` is True, but the arguments of"
         " hinge_embedding_loss are input, label, margin, reduction, name, weight." + FORMS),
        (loss, "label", {}, TypeError, NAME[:-2]
         + " has no gradient in `label`, which is a label."),
        (loss, 1, {}, TypeError, NAME[:-2] + " has no gradient in `label`, which is a label."),
        (loss, "margin", {}, TypeError, NAME[:-2]
         + " has no gradient in `margin`, which is 1.0, not an array."),
        (loss, "weight", {}, TypeError, NAME[:-2]
         + " has no gradient in `weight`, which is None, not an array."),
        (loss, "weight", {"weight": backend.asarray([True] * 4, "bool")}, TypeError, NAME[:-2]
         + " has no gradient in `weight`, which is a bool mask."),
        (loss, "reduction", {}, TypeError, NAME[:-2]
         + " has no gradient in `reduction`, which is an option."),
        (loss, "anchor", {}, ValueError, "`argnums` is 'anchor', but the arguments of"
         " hinge_embedding_loss are input, label, margin, reduction, name, weight." + FORMS
         + " What is `anchor` elsewhere is `input` here."),
        (loss, 6, {}, ValueError, "`argnums` is 6, but the arguments of"
         " hinge_embedding_loss are input, label, margin, reduction, name, weight." + FORMS),
        (xpl.HingeEmbeddingLoss(), "margin", {}, ValueError, "`argnums` is 'margin', but the"
         " arguments of HingeEmbeddingLoss are input, label, weight." + FORMS),
    ]  # fmt: skip
    for which, argnums, more, kind, text in rows:
        with pytest.raises(kind) as caught:
            xpl.value_and_grad(which, argnums)(**call, **more)
        assert str(caught.value) == "value_and_grad: " + text
        with pytest.raises(kind) as caught:
            xpl.vjp(which, **call, **more, argnums=argnums)
        assert str(caught.value) == "vjp: " + text
    for transform in (xpl.value_and_grad, xpl.jit):
        name = transform.__name__
        text = f"{name}: the arrays go to the function that it returns: `{name}(loss)(...)`."
        for arrays in ((x,), (x, y)):
            with pytest.raises(TypeError) as caught:
                transform(loss, *arrays)
            assert str(caught.value) == text
    with pytest.raises(TypeError) as caught:
        xpl.value_and_grad(loss, 0, 1)
    text = "value_and_grad: 3 arguments are given by position, where there are 2: loss, argnums."
    assert str(caught.value) == text
    text = "value_and_grad: an array is no loss; pass the function, not its result."
    with pytest.raises(TypeError) as caught:
        xpl.value_and_grad(loss(x, y))
    assert str(caught.value) == text


@pytest.mark.parametrize("function", [lambda x: x, "abc"])
def test_transforms_refuse_other_functions(function: Any) -> None:
    name = getattr(function, "__name__", repr(function))
    _check(
        xpl.value_and_grad,
        {"loss": function},
        f"value_and_grad: {name} is not a loss of array_api_losses. For other functions use the"
        " transform of your framework, e.g. `jax.value_and_grad` or `torch.func.grad_and_value`.",
        TypeError,
    )


def test_transforms_refuse_what_a_subclass_adds() -> None:
    """They know the slope of the loss alone, and not of what is made of it."""

    class Twice(xpl.HingeEmbeddingLoss):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return 2 * self.forward(*args, **kwargs)

        def squared(self, *args: Any, **kwargs: Any) -> Any:
            return self.forward(*args, **kwargs) ** 2

    for function, name in ((Twice(), "__call__"), (Twice().squared, "squared")):
        text = (
            f": Twice.{name} is not a loss of array_api_losses. For other functions use the"
            " transform of your framework, e.g. "
        )
        for transform, examples in (
            (xpl.vjp, "`jax.vjp` or `torch.func.vjp`."),
            (xpl.jit, "`jax.jit` or `torch.compile`."),
        ):
            whole = transform.__name__ + text + examples
            _check(transform, {"loss": function}, whole, TypeError)


def test_transforms_take_what_a_subclass_inherits(backend: Backend) -> None:
    class Mine(xpl.HingeEmbeddingLoss):
        pass

    class Twice(Mine):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return 2 * self.forward(*args, **kwargs)

    x, y = _x(backend), _y(backend)
    assert backend.tolist(Twice(2.0)(x, y)) == [2 * n for n in backend.tolist(loss(x, y, 2.0))]
    expected = xpl.value_and_grad(loss)(x, y, 2.0)
    for function in (Mine(2.0), Mine(2.0).forward, Twice(2.0).forward):
        for result, right in zip(xpl.value_and_grad(function)(x, y), expected, strict=True):
            assert backend.tolist(result) == backend.tolist(right)


def test_transforms_refuse_a_class() -> None:
    text = "vjp: HingeEmbeddingLoss is a class; pass an instance, `HingeEmbeddingLoss(...)`."
    _check(xpl.vjp, {"loss": xpl.HingeEmbeddingLoss}, text, TypeError)


def test_a_reduction_that_is_an_array(backend: Backend) -> None:
    x, y = _x(backend), _y(backend)
    with pytest.raises(
        TypeError, match=r"`reduction` is an? \w+; it must be 'none', 'sum' or 'mean'"
    ):
        loss(x, y, 1.0, x)


def test_a_cotangent_must_fit(backend: Backend) -> None:
    x, y = _x(backend), _y(backend)
    _, pullback = xpl.vjp(loss, x, y, reduction="none")
    ours = {"strict": "array_api_strict"}.get(backend.library, backend.library)
    rows: list[tuple[Any, type[Exception], str]] = [
        (backend.asarray(1.0, "float32"), ValueError,
         "`cotangent` has shape (), but the value has shape (4,); they must be the same."),
        (backend.asarray([1.0] * 4), TypeError,
         "`cotangent` has dtype float64 but `value` has dtype float32; it must have the same."
         " Convert it, e.g. `cotangent = xp.astype(cotangent, value.dtype)`."),
        (1.0, TypeError,
         "`cotangent` is a float, not an array. Make it one of the library you work in, e.g."
         " `cotangent = xp.asarray(cotangent, dtype=value.dtype)`."),
    ]  # fmt: skip
    if backend.library != "numpy":
        rows.append((backend.np.ones(4, "float32"), TypeError,
         f"`value` is an array of {ours} but `cotangent` is an array of numpy. Nothing is moved"
         " between libraries; convert one, e.g. `cotangent = xp.asarray(cotangent,"
         " dtype=value.dtype)` with the xp of `value`."))  # fmt: skip
    for cotangent, kind, text in rows:
        _check(pullback, {"cotangent": cotangent}, "pullback: " + text, kind)


def test_instances_check_their_parameters() -> None:
    hinge, cosine, triplet = (
        xpl.HingeEmbeddingLoss,
        xpl.CosineEmbeddingLoss,
        xpl.TripletMarginLoss,
    )
    rows: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (hinge, {"margin": "1"}, TypeError, "`margin` is a str; a finite real number is needed."),
        (
            hinge,
            {"margin": float("inf")},
            ValueError,
            "`margin` is inf; a finite number is needed.",
        ),
        (
            hinge,
            {"reduction": "max"},
            ValueError,
            "`reduction` is 'max'; it must be 'none', 'sum' or 'mean'.",
        ),
        (cosine, {"margin": 2}, ValueError, "`margin` is 2.0; it must be between -1 and 1."),
        (triplet, {"p": 0.5}, ValueError, "`p` is 0.5; it must be at least 1."),
        (triplet, {"swap": None}, TypeError, "`swap` is None; it must be True or False."),
        (
            xpl.MarginRankingLoss,
            {"margin": None},
            TypeError,
            "`margin` is None; a finite real number is needed.",
        ),
    ]
    for which, arguments, kind, text in rows:
        _check(which, arguments, f"{which.__name__}: {text}", kind)
        _check(which, {**arguments, "name": "a"}, "a: " + text, kind)


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_is_given_no_arrays(backend: Backend, name: str) -> None:
    """What people write who forget to make an instance first."""
    first = next(iter(inspect.signature(getattr(xpl, name)).parameters))
    text = (
        f"{name}: `{first}` is an array. This is the class of the loss: inputs go to an instance of"
        f" it, `{name}()(...)`, and a margin that is an array to the function."
    )
    with pytest.raises(TypeError) as caught:
        getattr(xpl, name)(_rows(backend), _y(backend))
    assert str(caught.value) == text
    with pytest.raises(TypeError) as caught:
        getattr(xpl, name)(pairs=_rows(backend))
    assert str(caught.value) == text.replace(f"`{first}`", "`pairs`")


@pytest.mark.library("numpy", "torch")
def test_floats_that_are_too_long_or_too_short(backend: Backend) -> None:
    if backend.library == "numpy":
        x, found = backend.np.ones(4, "longdouble"), backend.np.dtype("longdouble").name
    else:
        x, found = _x(backend).to(backend.module.float8_e4m3fn), "float8_e4m3fn"
    text = f"`input` has dtype {found}; it must be float16, bfloat16, float32 or float64."
    _check(loss, {"input": x, "label": _y(backend)}, NAME + text, TypeError)


@pytest.mark.library("numpy")
def test_a_dtype_of_which_numpy_does_not_know_the_kind(backend: Backend) -> None:
    text = backend.np.asarray(["1", "-1"], backend.np.dtypes.StringDType())
    with pytest.raises(TypeError, match=r"^hinge_embedding_loss: `input` has dtype String.*; it"):
        loss(text, _y(backend, 2))
    with pytest.raises(TypeError, match=r"^hinge_embedding_loss: `label` has dtype String.*; it"):
        loss(_x(backend, 2), text)


def test_the_largest_number_is_finite(backend: Backend) -> None:
    backend.require("float64")
    most = int(sys.float_info.max)
    x, y = backend.asarray([0.0]), backend.asarray([-1], "int8")
    assert backend.tolist(loss(x, y, most)) == [most]


def test_instances_are_named_in_errors(backend: Backend) -> None:
    arguments = {"input": _x(backend), "label": _y(backend, 3)}
    text = ": `input` has shape (4,) but `label` has shape (3,). They must be the same."
    _check(xpl.HingeEmbeddingLoss(), arguments, "HingeEmbeddingLoss" + text, ValueError)
    _check(xpl.HingeEmbeddingLoss(name="faces"), arguments, "faces" + text, ValueError)
