r"""Hinge embedding loss.

For a distance :math:`x` between the two members of a pair, and a label :math:`y` that says whether
they are similar (1) or dissimilar (-1),

.. math::

    \ell(x, y) = \begin{cases} x & y = 1 \\ \max(0, m - x) & y = -1 \end{cases}

A similar pair is pulled together; a dissimilar one is pushed apart until it reaches the margin
:math:`m`, where it is at rest: the slope at :math:`x = m` is 0, the subgradient of least norm.
"""

from typing import Any

from array_api_losses._loss import Array, Call, Loss, LossInstance, loss_class, loss_function
from array_api_losses._primitives import select, steep, zero


def _value(xp: Any, x: Array, y: Array, margin: Array) -> Array:
    return select(xp, y, x, xp.maximum(margin - x, zero(xp, y)))


def _slopes(
    xp: Any, wanted: tuple[bool, ...], x: Array, y: Array, margin: Array
) -> tuple[Array | None, ...]:
    nil = zero(xp, y)
    return (
        xp.maximum(y, xp.minimum(steep(xp, x - margin), nil)) if wanted[0] else None,
        None,
        xp.minimum(xp.maximum(-y, nil), xp.maximum(steep(xp, margin - x), nil))
        if wanted[2]
        else None,
    )


HINGE_EMBEDDING = Loss(
    "hinge_embedding_loss",
    value=_value,
    slopes=_slopes,
    inputs=("input",),
    label="label",
    parameters=("margin",),
)


@loss_function
def hinge_embedding_loss(
    input: Array,
    label: Array,
    margin: Array | float = 1.0,
    reduction: str = "mean",
    name: str | None = None,
    *,
    weight: Array | None = None,
) -> Call:
    """Pull similar pairs together and push dissimilar pairs apart, up to a margin.

    The loss of an element is ``x`` where the label is 1 and ``max(0, margin - x)`` where it is -1.

    Parameters
    ----------
    input : array, shape (...), real floating
        Distances between the members of the pairs, of any shape, also 0-d or of size 0. Their sign
        is not restricted: -2 with label 1 costs -2.
    label : array, shape of `input`, signed integer or real floating
        Exactly 1 (similar) or -1 (dissimilar), in the library and on the device of `input`.
    margin : float or array, default 1.0
        The distance at which a dissimilar pair costs nothing: a finite number, which is rounded to
        the dtype of `input`, or an array of that dtype that broadcasts to the shape of `input`.
        It may be negative. A NaN or infinite element of an array makes the loss there NaN.
    reduction : {"mean", "sum", "none"}, default "mean"
        "none" gives the loss of each element.
    name : str, optional
        Names this operation at the head of its error messages.
    weight : array, optional
        Weights that multiply the loss of each element: an array of the dtype of `input`, or a bool
        mask (True keeps), that broadcasts to the shape of `input`. A weight of zero leaves the
        element out, whatever stands there. "mean" is then the weighted average,
        ``sum(weight * loss) / sum(weight)``.

    Returns
    -------
    array, dtype of `input`
        Of the same library and on the same device. Its shape is that of `input` for "none", else
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
        the loss of such an element is NaN.

    Notes
    -----
    Arguments never broadcast beyond the shape of `input`, and `input` and `label` not at all. The
    slope at ``x == margin`` with label -1 is 0 in every library. float16 and bfloat16 are computed
    in float32. On size 0 "sum" is 0 and "mean" is NaN, as it is where the weights sum to 0. Lazy
    arrays stay lazy.

    The order and meaning of the arguments are those of
    ``paddle.nn.functional.hinge_embedding_loss``. In PyTorch `label` is called `target`, and
    `reduction` stands behind two deprecated arguments; name it when you come from there. In error
    messages, ``xp`` is ``array_api_compat.array_namespace(input)``.

    The loss stems from Hadsell, Chopra and LeCun, "Dimensionality reduction by learning an
    invariant mapping", CVPR 2006, which squares both branches.

    Examples
    --------
    >>> import numpy as np
    >>> import array_api_losses as xpl
    >>> distance = np.asarray([1.5, 0.25, 3.0])
    >>> label = np.asarray([1, -1, -1])
    >>> xpl.hinge_embedding_loss(distance, label, reduction="none")
    array([1.5 , 0.75, 0.  ])
    >>> float(xpl.hinge_embedding_loss(distance, label))
    0.75
    """
    return Call(HINGE_EMBEDDING, (input, label, margin), weight, reduction, name)


@loss_class
class HingeEmbeddingLoss(LossInstance):
    """`hinge_embedding_loss` with its margin, reduction and name chosen beforehand.

    Parameters
    ----------
    margin : float, default 1.0
        A finite number. (For a margin that is an array, call the function.)
    reduction : {"mean", "sum", "none"}, default "mean"
        As in the function.
    name : str, optional
        Stands at the head of error messages.

    Raises
    ------
    TypeError
        If `margin` is not a number.
    ValueError
        If `margin` is not finite or `reduction` is none of the three.

    Notes
    -----
    Instances are immutable, hashable, comparable and can be pickled. The arguments are those of
    ``paddle.nn.HingeEmbeddingLoss``.

    Examples
    --------
    >>> import numpy as np
    >>> import array_api_losses as xpl
    >>> loss = xpl.HingeEmbeddingLoss(margin=2.0, reduction="sum")
    >>> float(loss(np.asarray([1.5, 0.25]), np.asarray([1, -1])))
    3.25
    """

    margin: float = 1.0
    reduction: str = "mean"
    name: str | None = None

    def loss(self, name: str) -> Loss:
        """Return the loss of which this is an instance."""
        return HINGE_EMBEDDING

    @loss_function
    def __call__(self, input: Array, label: Array, *, weight: Array | None = None) -> Call:
        """Return the loss; arguments, result and errors are those of `hinge_embedding_loss`."""
        return self.call(input, label, weight=weight)

    forward = __call__
