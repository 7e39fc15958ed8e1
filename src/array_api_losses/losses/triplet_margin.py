r"""Triplet margin loss.

For an anchor :math:`a`, a positive :math:`b` that belongs with it and a negative :math:`c` that
does not, and the distance :math:`d(u, v) = \lVert u - v + \varepsilon \rVert_p`,

.. math::

    \ell(a, b, c) = \max(0, d(a, b) - d(a, c) + m)

A triplet whose negative is farther than its positive by the margin :math:`m` is at rest: the slope
there is 0, the subgradient of least norm, as it is where a distance is 0. With the distance swap,
:math:`d(a, c)` gives way to :math:`d(b, c)` where that is smaller; where they are equal, the slope
is shared between the two.
"""

import math
from functools import partial
from types import SimpleNamespace
from typing import Any

from array_api_losses._arguments import check_flag, check_name, check_number, is_real
from array_api_losses._loss import (
    Array,
    Call,
    Loss,
    LossInstance,
    evaluated_early,
    loss_class,
    loss_function,
)
from array_api_losses._primitives import length, length_and_slope, sign, steep, zeros

_KNOWN = SimpleNamespace()
"""Losses by their options: attributes, since TorchDynamo sees a dict as it was at first."""

_MOST_KNOWN = 256
_EPSILONS = -1e38, 1e38
"""What float32 can hold, in which half precision is computed with too."""


def _value(
    p: float, epsilon: float, swap: bool, xp: Any, a: Array, b: Array, c: Array, margin: Array
) -> Array:
    near, far = length(xp, a - b + epsilon, p), length(xp, a - c + epsilon, p)
    if swap:
        far = xp.minimum(far, length(xp, b - c + epsilon, p))
    return xp.maximum(near - far + margin, zeros(xp, near))


def _slopes(
    p: float,
    epsilon: float,
    swap: bool,
    xp: Any,
    wanted: tuple[bool, ...],
    factor: Any,
    a: Array,
    b: Array,
    c: Array,
    margin: Array,
) -> tuple[Array | None, ...]:
    near, in_ab, by_ab = length_and_slope(xp, a - b + epsilon, p)
    far, in_ac, by_ac = length_and_slope(xp, a - c + epsilon, p)
    nil = zeros(xp, near)
    if swap:
        other, in_bc, by_bc = length_and_slope(xp, b - c + epsilon, p)
        share = (sign(xp, other - far) + 1) / 2
        far, by_ac, by_bc = xp.minimum(far, other), by_ac * share, by_bc * (1 - share)
    active = xp.minimum(xp.maximum(steep(xp, near - far + margin), nil), nil + 1) * factor
    in_b = in_ab = in_ab * (-active * by_ab)[..., None]
    in_c = in_ac = in_ac * (active * by_ac)[..., None]
    if swap:
        in_bc = in_bc * (active * by_bc)[..., None]
        in_b, in_c = in_ab - in_bc, in_ac + in_bc
    return (
        -(in_ab + in_ac) if wanted[0] else None,
        in_b if wanted[1] else None,
        in_c if wanted[2] else None,
        active if wanted[3] else None,
    )


def _loss(name: str, p: float, epsilon: float, swap: bool) -> Loss:
    """Return the loss of these distances, the same one each time."""
    check_number(name, "epsilon", epsilon, _EPSILONS)
    check_flag(name, "swap", swap)
    if not (is_real(p) and p == math.inf):
        check_number(name, "p", p, (1, math.inf))
    # As texts, what TorchDynamo takes for variables are constants of the graph again.
    key = float(p).hex(), float(epsilon).hex(), swap
    _see_to(*key)
    found: Loss | None = getattr(_KNOWN, _attribute(*key), None)
    return found or _loss(name, p, epsilon, swap)  # another thread may have cleared it


def _attribute(p: str, epsilon: str, swap: bool) -> str:
    """Return a name without a dot, at which TorchDynamo would stop."""
    return f"{p} {epsilon} {swap}".replace(".", "_")


@evaluated_early
def _see_to(p: str, epsilon: str, swap: bool) -> None:
    """Have the loss of these distances in `_KNOWN`."""
    known, attribute = vars(_KNOWN), _attribute(p, epsilon, swap)
    if attribute not in known:
        if len(known) >= _MOST_KNOWN:
            known.clear()
        options = float.fromhex(p), float.fromhex(epsilon), swap
        loss = Loss(
            "triplet_margin_loss",
            value=partial(_value, *options),
            slopes=partial(_slopes, *options),
            inputs=("input", "positive", "negative"),
            label=None,
            parameters=("margin",),
            rowwise=True,
        )
        known[attribute] = loss.first()


@loss_function
def triplet_margin_loss(
    input: Array,
    positive: Array,
    negative: Array,
    margin: Array | float = 1.0,
    p: float = 2.0,
    epsilon: float = 1e-6,
    swap: bool = False,
    reduction: str = "mean",
    name: str | None = None,
    *,
    weight: Array | None = None,
) -> Call:
    """Pull anchors to their positives and push them from their negatives, up to a margin.

    The loss of a triplet is ``max(0, d(input, positive) - d(input, negative) + margin)`` with the
    distance ``d(u, v)``, the `p`-norm of ``u - v + epsilon``.

    Parameters
    ----------
    input : array, shape (..., D), real floating
        The anchors: vectors along the last axis. D may be 0 or 1.
    positive : array, shape and dtype of `input`
        For each anchor a vector that belongs with it.
    negative : array, shape and dtype of `input`
        For each anchor a vector that does not.
    margin : float or array, default 1.0
        How much farther the negative is to be: a finite number, which is rounded to the dtype of
        `input`, or an array of that dtype that broadcasts to the shape (...) of the rows. It may be
        negative. A NaN or infinite element of an array makes the loss there NaN.
    p : float, default 2.0
        The norm: at least 1, and ``math.inf`` for the largest absolute value.
    epsilon : float, default 1e-6
        Added to each difference: a number between -1e38 and 1e38.
    swap : bool, default False
        Whether ``d(positive, negative)`` takes the place of ``d(input, negative)`` where it is
        smaller.
    reduction : {"mean", "sum", "none"}, default "mean"
        "none" gives the loss of each triplet.
    name : str, optional
        Names this operation at the head of its error messages.
    weight : array, optional
        Weights that multiply the loss of each triplet: an array of the dtype of `input`, or a bool
        mask (True keeps), that broadcasts to the shape (...) of the rows. A weight of zero leaves
        the triplet out, whatever stands there. "mean" is then the weighted average,
        ``sum(weight * loss) / sum(weight)``.

    Returns
    -------
    array, dtype of `input`
        Of the same library and on the same device. Its shape is (...), that of the rows, for
        "none", else ``()``.

    Raises
    ------
    TypeError
        If an argument is no array where one is needed, is of another library, or has a dtype that
        is not allowed; if `p` or `epsilon` is no number or `swap` no bool.
    ValueError
        If shapes, devices, `reduction` or `margin` do not fit, if `p` is less than 1, or `epsilon`
        out of its range.

    Notes
    -----
    Distances do not overflow or vanish where the squares of the entries would. The gradient of a
    distance that is 0 (so of equal vectors, if `epsilon` is 0) is 0 in every library; for ``p=1``
    it is 0 in differences of 0, for infinite `p` it is shared among the differences that are
    largest, and with the swap between two equal distances. Where the negative is exactly the
    margin farther the gradient is 0. float16 and bfloat16 are computed in float32. On size 0 "sum"
    is 0 and "mean" is NaN, as it is where the weights sum to 0. Lazy arrays stay lazy.

    The order and meaning of the arguments are those of
    ``paddle.nn.functional.triplet_margin_loss``. PyTorch calls `input` ``anchor`` and `epsilon`
    ``eps``, has two deprecated arguments before `reduction`, and broadcasts its inputs, which here
    is an error. PyTorch refuses a margin of 0 or less, Paddle one less than 0; here any finite one
    is allowed. At the kink Paddle's slope, and PyTorch's before 2.14, is that of the positive side.

    The distance swap stems from Balntas et al., "Learning local feature descriptors with triplets
    and shallow convolutional neural networks", BMVC 2016.

    Examples
    --------
    >>> import numpy as np
    >>> import array_api_losses as xpl
    >>> anchor = np.asarray([[0.0, 0.0], [1.0, 1.0]])
    >>> positive = np.asarray([[3.0, 4.0], [1.0, 1.0]])
    >>> negative = np.asarray([[0.0, 4.5], [5.0, 1.0]])
    >>> xpl.triplet_margin_loss(anchor, positive, negative, epsilon=0.0, reduction="none")
    array([1.5, 0. ])
    """
    check_name("triplet_margin_loss", name)
    loss = _loss(name or "triplet_margin_loss", p, epsilon, swap)
    operands = input, positive, negative, margin
    return Call(loss, operands, weight, reduction, name, trusted=True)


@loss_class
class TripletMarginLoss(LossInstance):
    """`triplet_margin_loss` with all but the arrays chosen beforehand.

    Parameters
    ----------
    margin : float, default 1.0
        A finite number. (For a margin that is an array, call the function.)
    p : float, default 2.0
        The norm: at least 1, and ``math.inf`` for the largest absolute value.
    epsilon : float, default 1e-6
        As in the function.
    swap : bool, default False
        As in the function.
    reduction : {"mean", "sum", "none"}, default "mean"
        As in the function.
    name : str, optional
        Stands at the head of error messages.

    Raises
    ------
    TypeError
        If `margin`, `p` or `epsilon` is not a number, or `swap` no bool.
    ValueError
        If `margin` is not finite, `p` or `epsilon` out of its range, or `reduction` none of the
        three.

    Notes
    -----
    Instances are immutable, hashable, comparable and can be pickled. The arguments are those of
    ``paddle.nn.TripletMarginLoss``.

    Examples
    --------
    >>> import numpy as np
    >>> import array_api_losses as xpl
    >>> loss = xpl.TripletMarginLoss(margin=2.0, p=1, epsilon=0.0)
    >>> float(loss(np.asarray([0.0, 0.0]), np.asarray([0.5, 1.0]), np.asarray([1.0, 1.0])))
    1.5
    """

    margin: float = 1.0
    p: float = 2.0
    epsilon: float = 1e-6
    swap: bool = False
    reduction: str = "mean"
    name: str | None = None

    def loss(self, name: str) -> Loss:
        """Return the loss of which this is an instance."""
        return _loss(name, self.p, self.epsilon, self.swap)

    @loss_function
    def __call__(
        self, input: Array, positive: Array, negative: Array, *, weight: Array | None = None
    ) -> Call:
        """Return the loss; arguments, result and errors are those of `triplet_margin_loss`."""
        return self.call(input, positive, negative, weight=weight)

    forward = __call__
