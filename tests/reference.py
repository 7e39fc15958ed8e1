"""The oracle: every loss again, from its definition, in exact rational arithmetic.

It shares no code with the package and does not round. Numbers come in as floats, each of which is a
rational; lists are flat, and broadcasting has been done by hand.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

Row = tuple[Fraction, dict[str, Fraction]]


def hinge_embedding_loss(x: float, y: float, margin: float) -> Row:
    """l = x for y = 1, max(0, margin - x) for y = -1; at rest where x has reached the margin."""
    distance, wall = Fraction(x), Fraction(margin)
    if y == 1:
        return distance, {"input": Fraction(1), "margin": Fraction(0)}
    if distance < wall:
        return wall - distance, {"input": Fraction(-1), "margin": Fraction(1)}
    return Fraction(0), {"input": Fraction(0), "margin": Fraction(0)}


@dataclass(frozen=True)
class Answer:
    """An exact result, and beside each number the sum of the absolute terms it was added from."""

    value: list[tuple[Fraction, Fraction]]
    gradients: dict[str, list[tuple[Fraction, Fraction]]]


def answer(
    formula: Callable[..., Row],
    rows: Sequence[tuple[float, ...]],
    weights: Sequence[float],
    reduction: str,
    cotangent: Sequence[float],
) -> Answer:
    """Weigh, reduce and differentiate: one row of operands and one weight for each element.

    The gradients stand for each element and are not yet summed over axes that were broadcast.
    """
    w = [Fraction(weight) for weight in weights]
    c = [Fraction(number) for number in cotangent]
    losses, slopes = [], []
    for row in rows:
        loss, slope = formula(*row)
        losses.append(loss)
        slopes.append(slope)
    terms = [a * loss for a, loss in zip(w, losses, strict=True)]
    divisor = sum(w, Fraction(0)) if reduction == "mean" else Fraction(1)
    total, size = sum(terms, Fraction(0)), sum(map(abs, terms), Fraction(0))
    seeds = c if reduction == "none" else [c[0] / divisor] * len(w)
    mean, spread = (total / divisor, size / divisor) if reduction == "mean" else (Fraction(0),) * 2
    gradients = {
        name: [
            (g, abs(g))
            for g in (s * a * slope[name] for s, a, slope in zip(seeds, w, slopes, strict=True))
        ]
        for name in slopes[0]
    }
    gradients["weight"] = [
        (s * (loss - mean), abs(s) * (abs(loss) + spread))
        for s, loss in zip(seeds, losses, strict=True)
    ]
    value = (
        [(t, abs(t)) for t in terms]
        if reduction == "none"
        else [(total / divisor, abs(size / divisor))]
    )
    return Answer(value, gradients)
