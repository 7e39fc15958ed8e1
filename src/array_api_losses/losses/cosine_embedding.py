r"""Cosine embedding loss.

For two vectors :math:`a` and :math:`b`, and a label :math:`y` that says whether they are similar
(1) or dissimilar (-1),

.. math::

    \ell(a, b, y) = \begin{cases} 1 - c & y = 1 \\ \max(0, c - m) & y = -1 \end{cases}
    \qquad c = \cos(a, b) = \frac{a \cdot b}{\sqrt{(a \cdot a)(b \cdot b)}}

Similar vectors are turned towards each other; dissimilar ones are turned apart until the cosine is
down to the margin :math:`m`, where they are at rest. A zero vector has cosine 0 with every vector,
and slope 0. The slope of the cosine in :math:`a` is

.. math::

    \frac{\partial c}{\partial a} = \frac{b}{\sqrt{(a \cdot a)(b \cdot b)}} - \frac{c\,a}{a \cdot a}
"""

import math
from typing import Any, TypeAlias

from array_api_losses._loss import Array, Call, Loss, LossInstance, loss_class, loss_function
from array_api_losses._primitives import (
    dot,
    except_where,
    moderate,
    once,
    root,
    rows_divided,
    select,
    steep,
    zero,
)

Pair: TypeAlias = tuple[Array, Array]


def _cosine(xp: Any, a: Array, b: Array) -> tuple[Array, Array, Pair, Pair, Pair]:
    """The cosine of each pair of rows, and what its slopes need, all of rows of moderate size.

    These are the product of both norms, infinite beside a zero vector, and of both vectors the
    rows, the sizes that they have been divided by and the sums of squares.
    """
    (a, size_a, square_a), (b, size_b, square_b) = moderate(xp, a), moderate(xp, b)
    # One root of the product: so the cosine of a vector with itself is exactly 1.
    norms = _divisor(xp, root(xp, square_a * square_b, 2)[0])
    cosine = dot(xp, a, b) / norms
    return cosine, norms, (a, b), (size_a, size_b), (square_a, square_b)


def _divisor(xp: Any, values: Array) -> Array:
    """Infinity for 0, so that quotients, and their derivatives, are 0 there."""
    return except_where(xp, values == 0, math.inf, values)


def _value(xp: Any, a: Array, b: Array, y: Array, margin: Array) -> Array:
    cosine, nil = _cosine(xp, a, b)[0], zero(xp, y)
    return select(xp, y, xp.maximum(1 - cosine, nil), xp.maximum(cosine - margin, nil))


def _slopes(
    xp: Any, wanted: tuple[bool, ...], factor: Any, a: Array, b: Array, y: Array, margin: Array
) -> tuple[Array | None, ...]:
    cosine, norms, vectors, sizes, squares = _cosine(xp, a, b)
    nil = zero(xp, y)
    active = xp.minimum(xp.maximum(-y, nil), xp.maximum(steep(xp, cosine - margin), nil))
    turn = (active - xp.maximum(y, nil)) * factor  # the slope in the cosine

    def in_vector(i: int) -> Array:
        own, other = vectors[i], vectors[1 - i]
        square = _divisor(xp, squares[i])
        # 0 where the vector is so short that the dtype cannot hold its gradient.
        own_turn = except_where(xp, xp.isinf(turn / (sizes[i] * xp.sqrt(square))), 0, turn)
        # In one order of operations, so that the two are the same where the vectors are.
        towards, along = once(xp, own_turn / norms, own_turn * cosine / square)
        gradient = towards[..., None] * other - along[..., None] * own
        return rows_divided(xp, gradient, sizes[i])  # earlier, a step in between could overflow

    return (
        in_vector(0) if wanted[0] else None,
        in_vector(1) if wanted[1] else None,
        None,
        -active * factor if wanted[3] else None,
    )


COSINE_EMBEDDING = Loss(
    "cosine_embedding_loss",
    value=_value,
    slopes=_slopes,
    inputs=("input1", "input2"),
    label="label",
    parameters=("margin",),
    rowwise=True,
    bounds=(-1, 1),
)


@loss_function
def cosine_embedding_loss(
    input1: Array,
    input2: Array,
    label: Array,
    margin: Array | float = 0.0,
    reduction: str = "mean",
    name: str | None = None,
    *,
    weight: Array | None = None,
) -> Call:
    """Turn similar vectors towards each other and dissimilar ones apart, up to a margin.

    With the cosine c of the two vectors, the loss of a pair is ``1 - c`` where the label is 1 and
    ``max(0, c - margin)`` where it is -1.

    Parameters
    ----------
    input1 : array, shape (..., D), real floating
        The first vector of each pair, along the last axis. D may be 0 or 1.
    input2 : array, shape and dtype of `input1`
        The second vector of each pair.
    label : array, shape (...), signed integer or real floating
        Exactly 1 (similar) or -1 (dissimilar), in the library and on the device of `input1`.
    margin : float or array, default 0.0
        The cosine at which a dissimilar pair costs nothing: a number between -1 and 1, which is
        rounded to the dtype of `input1`, or an array of that dtype that broadcasts to the shape of
        `label`. An element of an array that is not between -1 and 1 makes the loss there NaN.
    reduction : {"mean", "sum", "none"}, default "mean"
        "none" gives the loss of each pair.
    name : str, optional
        Names this operation at the head of its error messages.
    weight : array, optional
        Weights that multiply the loss of each pair: an array of the dtype of `input1`, or a bool
        mask (True keeps), that broadcasts to the shape of `label`. A weight of zero leaves the pair
        out, whatever stands there. "mean" is then the weighted average,
        ``sum(weight * loss) / sum(weight)``.

    Returns
    -------
    array, dtype of `input1`
        Of the same library and on the same device. Its shape is that of `label` for "none", else
        ``()``.

    Raises
    ------
    TypeError
        If an argument is no array where one is needed, is of another library, or has a dtype that
        is not allowed.
    ValueError
        If shapes, devices, `reduction` or `margin` do not fit, or if a label is neither 1 nor -1.
        Labels are read only if they lie in host memory and have values at the time of the call
        (NumPy, PyTorch and JAX on a CPU). Elsewhere (compiled or traced code, Dask, accelerators)
        the loss of such a pair is NaN.

    Notes
    -----
    Vectors of any length have a cosine, also those whose squares the dtype cannot hold; a zero
    vector has cosine 0 with every vector, and gradient 0. (JAX, and CuPy in float32, take subnormal
    numbers for 0; and a vector so short that the dtype cannot hold its gradient has gradient 0 too.
    What float32 holds and half precision does not is infinite.) No loss is negative, and that of a
    similar pair of equal vectors is 0; within a rounding in JAX, and where the two lie differently
    in memory. The gradient is 0 in every library where the cosine of a dissimilar pair, as
    computed, is the margin. float16 and bfloat16 are computed in float32. On size 0 "sum" is 0 and
    "mean" is NaN, as it is where the weights sum to 0. Lazy arrays stay lazy.

    The order and meaning of the arguments are those of
    ``paddle.nn.functional.cosine_embedding_loss``. PyTorch calls `label` ``target`` and has two
    deprecated arguments before `reduction`. Paddle adds 1e-11 to each sum of squares and PyTorch
    1e-12, so that vectors shorter than some 1e-5 have too small a cosine there, and gradients at a
    zero vector are 3e5 and 1e6 long; here nothing is added. Paddle's slope at the kink, and
    PyTorch's before 2.14, is that of the side where the loss is positive. In both the loss of any
    other label is 0, here that is an error. Both take at most two axes.

    Examples
    --------
    >>> import numpy as np
    >>> import array_api_losses as xpl
    >>> a, b = np.asarray([[3.0, 4.0], [1.0, 0.0]]), np.asarray([[4.0, 3.0], [2.0, 0.0]])
    >>> xpl.cosine_embedding_loss(a, b, np.asarray([1, -1]), reduction="none")
    array([0.04, 1.  ])
    """
    return Call(COSINE_EMBEDDING, (input1, input2, label, margin), weight, reduction, name)


@loss_class
class CosineEmbeddingLoss(LossInstance):
    """`cosine_embedding_loss` with its margin, reduction and name chosen beforehand.

    Parameters
    ----------
    margin : float, default 0.0
        A number between -1 and 1. (For a margin that is an array, call the function.)
    reduction : {"mean", "sum", "none"}, default "mean"
        As in the function.
    name : str, optional
        Stands at the head of error messages.

    Raises
    ------
    TypeError
        If `margin` is not a number.
    ValueError
        If `margin` is not between -1 and 1 or `reduction` is none of the three.

    Notes
    -----
    Instances are immutable, hashable, comparable and can be pickled. The arguments are those of
    ``paddle.nn.CosineEmbeddingLoss``.

    Examples
    --------
    >>> import numpy as np
    >>> import array_api_losses as xpl
    >>> loss = xpl.CosineEmbeddingLoss(margin=0.5)
    >>> float(loss(np.asarray([1.0, 0.0]), np.asarray([3.0, 0.0]), np.asarray(-1)))
    0.5
    """

    margin: float = 0.0
    reduction: str = "mean"
    name: str | None = None

    def loss(self, name: str) -> Loss:
        """Return the loss of which this is an instance."""
        return COSINE_EMBEDDING

    @loss_function
    def __call__(
        self, input1: Array, input2: Array, label: Array, *, weight: Array | None = None
    ) -> Call:
        """Return the loss; arguments, result and errors are those of `cosine_embedding_loss`."""
        return self.call(input1, input2, label, weight=weight)

    forward = __call__
