r"""Margin ranking loss.

For two scores :math:`a` and :math:`b`, and a label :math:`y` that says which of them is to be the
higher, the first (1) or the second (-1),

.. math::

    \ell(a, b, y) = \max(0, m - y (a - b))

A pair whose scores differ by the margin :math:`m` in the right direction is at rest: the slope
there is 0, the subgradient of least norm.
"""

from typing import Any

from array_api_losses._loss import Array, Call, Loss, LossInstance, loss_class, loss_function
from array_api_losses._primitives import steep, zero


def _value(xp: Any, a: Array, b: Array, y: Array, margin: Array) -> Array:
    return xp.maximum(margin - y * (a - b), zero(xp, y))


def _slopes(
    xp: Any, wanted: tuple[bool, ...], a: Array, b: Array, y: Array, margin: Array
) -> tuple[Array | None, ...]:
    one = y * y
    active = xp.minimum(xp.maximum(steep(xp, margin - y * (a - b)), zero(xp, y)), one)
    return (
        -y * active if wanted[0] else None,
        y * active if wanted[1] else None,
        None,
        active if wanted[3] else None,
    )


MARGIN_RANKING = Loss(
    "margin_ranking_loss",
    value=_value,
    slopes=_slopes,
    inputs=("input", "other"),
    label="label",
    parameters=("margin",),
)


@loss_function
def margin_ranking_loss(
    input: Array,
    other: Array,
    label: Array,
    margin: Array | float = 0.0,
    reduction: str = "mean",
    name: str | None = None,
    *,
    weight: Array | None = None,
) -> Call:
    """Put the scores of pairs in order, at least a margin apart.

    The loss of an element is ``max(0, -label * (input - other) + margin)``.

    Parameters
    ----------
    input : array, shape (...), real floating
        The first score of each pair, of any shape, also 0-d or of size 0.
    other : array, shape and dtype of `input`
        The second score of each pair.
    label : array, shape of `input`, signed integer or real floating
        Exactly 1 (`input` is to be higher) or -1 (`other` is), in the library and on the device of
        `input`.
    margin : float or array, default 0.0
        How far apart the scores are to be: a finite number, which is rounded to the dtype of
        `input`, or an array of that dtype that broadcasts to the shape of `input`. It may be
        negative. A NaN or infinite element of an array makes the loss there NaN.
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
    `input`, `other` and `label` never broadcast. The slope is 0 in every library where the scores
    are exactly the margin apart, and so, with the margin 0, where they are equal. float16 and
    bfloat16 are computed in float32. On size 0 "sum" is 0 and "mean" is NaN, as it is where the
    weights sum to 0. Lazy arrays stay lazy.

    The order and meaning of the arguments are those of
    ``paddle.nn.functional.margin_ranking_loss``, whose slope at the kink is 0 too. PyTorch calls
    `input` and `other` ``input1`` and ``input2`` and `label` ``target``, has two deprecated
    arguments before `reduction`, and its slope at the kink is, before PyTorch 2.14, that of the
    side where the loss is positive. Both take any label, 0 and 2 too, and broadcast; here that is
    an error.

    Examples
    --------
    >>> import numpy as np
    >>> import array_api_losses as xpl
    >>> score, other = np.asarray([2.0, 0.5, 1.0]), np.asarray([1.0, 1.0, 3.0])
    >>> label = np.asarray([1, 1, -1])
    >>> xpl.margin_ranking_loss(score, other, label, margin=0.25, reduction="none")
    array([0.  , 0.75, 0.  ])
    """
    return Call(MARGIN_RANKING, (input, other, label, margin), weight, reduction, name)


@loss_class
class MarginRankingLoss(LossInstance):
    """`margin_ranking_loss` with its margin, reduction and name chosen beforehand.

    Parameters
    ----------
    margin : float, default 0.0
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
    ``paddle.nn.MarginRankingLoss``.

    Examples
    --------
    >>> import numpy as np
    >>> import array_api_losses as xpl
    >>> loss = xpl.MarginRankingLoss(margin=1.0, reduction="sum")
    >>> float(loss(np.asarray([2.0, 0.5]), np.asarray([1.5, 1.0]), np.asarray([1, -1])))
    1.0
    """

    margin: float = 0.0
    reduction: str = "mean"
    name: str | None = None

    def loss(self, name: str) -> Loss:
        """Return the loss of which this is an instance."""
        return MARGIN_RANKING

    @loss_function
    def __call__(
        self, input: Array, other: Array, label: Array, *, weight: Array | None = None
    ) -> Call:
        """Return the loss; arguments, result and errors are those of `margin_ranking_loss`."""
        return self.call(input, other, label, weight=weight)

    forward = __call__
