"""The oracle: every loss again, from its definition, in rational arithmetic.

It shares no code with the package and does not round, but for roots and powers, which mpmath takes
to hundreds of digits. Numbers come in as floats, each of which is a rational; lists are flat, and
broadcasting has been done by hand.

Beside each number stands the size of what it was computed from: an error is to be within a few
roundings of that.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import starmap
from typing import Any

from mpmath import mp, mpf, workprec

Term = tuple[Fraction, Fraction]
Row = tuple[Term, dict[str, list[Term]]]
"""A loss, and its slopes: one for each entry of a vector, else one."""

NIL = Fraction(0)


def hinge_embedding_loss(x: float, y: float, margin: float) -> Row:
    """l = x for y = 1, max(0, margin - x) for y = -1; at rest where x has reached the margin."""
    distance, wall = Fraction(x), Fraction(margin)
    if y == 1:
        return _elementwise(distance, abs(distance), input=1, margin=0)
    if distance < wall:
        return _elementwise(wall - distance, wall - distance, input=-1, margin=1)
    return _elementwise(NIL, NIL, input=0, margin=0)


def margin_ranking_loss(a: float, b: float, y: float, margin: float) -> Row:
    """l = max(0, margin - y (a - b)); at rest where the scores are the margin apart."""
    loss = Fraction(margin) - int(y) * (Fraction(a) - Fraction(b))
    size = abs(Fraction(a)) + abs(Fraction(b)) + abs(Fraction(margin))
    if loss > 0:
        return _elementwise(loss, size, input=-int(y), other=int(y), margin=1)
    return _elementwise(NIL, size, input=0, other=0, margin=0)


def cosine_embedding_loss(a: Sequence[float], b: Sequence[float], y: float, margin: float) -> Row:
    """l = 1 - cos for y = 1, max(0, cos - margin) for y = -1; a zero vector has cosine 0."""
    u, v, m = [*map(Fraction, a)], [*map(Fraction, b)], Fraction(margin)
    uu, vv = sum(x * x for x in u), sum(x * x for x in v)
    norms = _power(uu * vv, 0.5)
    cosine, size = NIL, NIL
    if norms:
        cosine = sum((x * z for x, z in zip(u, v, strict=True)), NIL) / norms
        size = sum((abs(x * z) for x, z in zip(u, v, strict=True)), NIL) / norms
    turn = -1 if y == 1 else int(cosine > m)

    def slopes(own: list[Fraction], other: list[Fraction], square: Fraction) -> list[Term]:
        if not norms:
            return [(NIL, NIL)] * len(own)
        return [
            (turn * (z / norms - cosine * x / square), abs(z) / norms + size * abs(x) / square)
            for x, z in zip(own, other, strict=True)
        ]

    loss = 1 - cosine if y == 1 else max(NIL, cosine - m)
    in_margin = Fraction(-(turn == 1))
    return (loss, 1 + size + abs(m)), {
        "input1": slopes(u, v, uu),
        "input2": slopes(v, u, vv),
        "margin": [(in_margin, abs(in_margin))],
    }


def triplet_margin_loss(
    a: Sequence[float],
    b: Sequence[float],
    c: Sequence[float],
    margin: float,
    *,
    p: float = 2.0,
    epsilon: float = 1e-6,
    swap: bool = False,
) -> Row:
    """l = max(0, d(a, b) - d(a, c) + margin); each slope of least norm where there are several."""

    def pair(
        left: Sequence[float], right: Sequence[float]
    ) -> tuple[Fraction, list[Term], Fraction]:
        return _distance([*map(Fraction, left)], [*map(Fraction, right)], p, Fraction(epsilon))

    near, in_ab, size_ab = pair(a, b)
    far, in_ac, size_ac = pair(a, c)
    other, in_bc, size_bc = pair(b, c)
    share = Fraction(1)  # of a and c, beside b and c
    if swap:
        share = Fraction(1 + (far < other) - (other < far), 2)
        far = min(far, other)
    loss = near - far + Fraction(margin)
    active = int(loss > 0)

    def joined(*parts: tuple[Fraction | int, list[Term]]) -> list[Term]:
        return [
            (
                sum((active * factor * slope for factor, (slope, _) in entries), NIL),
                sum((abs(factor) * size for factor, (_, size) in entries), NIL),
            )
            for entries in zip(*([(f, term) for term in terms] for f, terms in parts), strict=True)
        ]

    return (max(NIL, loss), size_ab + size_ac + size_bc + abs(Fraction(margin))), {
        "input": joined((1, in_ab), (-share, in_ac)),
        "positive": joined((-1, in_ab), (share - 1, in_bc)),
        "negative": joined((share, in_ac), (1 - share, in_bc)),
        "margin": [(Fraction(active), NIL)],
    }


def _elementwise(loss: Fraction, size: Fraction, **slopes: int) -> Row:
    return (loss, size), {name: [(Fraction(s), NIL)] for name, s in slopes.items()}


def _distance(
    left: list[Fraction], right: list[Fraction], p: float, epsilon: Fraction
) -> tuple[Fraction, list[Term], Fraction]:
    """Return the p-norm of left - right + epsilon, its slopes, and the size of its terms."""
    d = [x - z + epsilon for x, z in zip(left, right, strict=True)]
    size = sum((abs(x) + abs(z) + abs(epsilon) for x, z in zip(left, right, strict=True)), NIL)
    signs = [Fraction((x > 0) - (x < 0)) for x in d]
    if p == 1:
        norm, slopes = sum(map(abs, d), NIL), signs
    elif p == float("inf"):
        norm = max(map(abs, d), default=NIL)
        count = sum(abs(x) == norm for x in d)
        slopes = [s / count if abs(x) == norm else NIL for s, x in zip(signs, d, strict=True)]
    else:
        alone = sum(x != 0 for x in d) == 1  # its power and the root of that cancel, exactly
        powers = sum((_power(abs(x), p) for x in d), NIL)
        norm = sum(map(abs, d), NIL) if alone else _power(powers, 1 / mpf(p))
        slopes = [s * _power(abs(x) / norm, p - 1) if norm else NIL
                  for s, x in zip(signs, d, strict=True)]  # fmt: skip
    relative = 1 + size / norm if norm else NIL
    return norm, [(s, 4 * relative * abs(s)) for s in slopes], size


def _power(number: Fraction, exponent: Any) -> Fraction:
    """Return a power: exact if it has few digits, else to 400 bits."""
    if number == 0:
        return NIL
    with workprec(400):
        power = mp.power(mpf(number.numerator) / number.denominator, exponent)
        man, exp = power.man_exp
    return Fraction(int(man)) * Fraction(2) ** exp


@dataclass(frozen=True)
class Spec:
    """What the suite has to know of a loss, beside its arguments."""

    oracle: Callable[..., Row]
    inputs: tuple[str, ...]
    tie: Callable[..., Sequence[list[float]] | None]
    """From the margin, first rows and options: such rows exactly at the margin, if there can be.

    None if not, as in a loss without a kink.
    """
    label: bool = True
    rowwise: bool = False
    roundings: int = 0
    """How many roundings (2**-24 in float32) of the size that stands beside a loss or a slope an
    element of it may be off, beside one unit in its last place.
    """
    margin: float | None = 0.75
    """A margin to test with; None if the loss has none."""
    margins: int | None = None
    """The largest margin, in 64ths, where there is one."""
    tied_margin: float | None = None
    """The one margin that rows can be put at exactly, where it is not any."""
    options: tuple[dict[str, Any], ...] = ({},)


def _at_right_angles(margin: float, a: list[float], b: list[float]) -> Sequence[list[float]] | None:
    """Of one entry, a zero vector, whose cosine is 0 too."""
    width = len(a)
    return ([3.0, *[0.0] * (width - 1)], [0.0, *[2.0] * (width - 1)]) if margin == 0 else None


def _on_a_line(
    margin: float, a: list[float], b: list[float], c: list[float], *, epsilon: float, **_: Any
) -> Sequence[list[float]] | None:
    """The first two coincide, so that a distance is 0 as well."""
    return (a, a, [a[0] + abs(margin), *a[1:]]) if epsilon == 0 else None


LOSSES = {
    "hinge_embedding_loss": Spec(hinge_embedding_loss, ("input",), lambda margin, x: ([margin],)),
    "margin_ranking_loss": Spec(
        margin_ranking_loss,
        ("input", "other"),
        lambda margin, a, b: ([0.0], [margin]),
        roundings=2,
    ),
    "cosine_embedding_loss": Spec(
        cosine_embedding_loss,
        ("input1", "input2"),
        _at_right_angles,
        rowwise=True,
        roundings=24,
        margin=0.25,
        margins=64,
        tied_margin=0.0,
    ),
    "triplet_margin_loss": Spec(
        triplet_margin_loss,
        ("input", "positive", "negative"),
        _on_a_line,
        label=False,
        rowwise=True,
        roundings=24,
        options=(
            {"epsilon": 2.0**-10},
            {"p": 1.0, "epsilon": 0.0},
            {"p": float("inf"), "epsilon": 0.0, "swap": True},
            {"p": 3.0, "epsilon": 2.0**-10},
            {"epsilon": 2.0**-10, "swap": True},
            {"p": 1.5, "epsilon": 0.0},
        ),
    ),
}


@dataclass(frozen=True)
class Answer:
    """An exact result, and beside each number the sum of the absolute terms it was added from."""

    value: list[Term]
    gradients: dict[str, list[Term]]


def answer(
    formula: Callable[..., Row],
    rows: Sequence[tuple[Any, ...]],
    weights: Sequence[float],
    reduction: str,
    cotangent: Sequence[float],
) -> Answer:
    """Weigh, reduce and differentiate: one row of operands and one weight for each element.

    The gradients stand for each element and are not yet summed over axes that were broadcast.
    """
    w = [Fraction(weight) for weight in weights]
    c = [Fraction(number) for number in cotangent]
    found = list(starmap(formula, rows))
    losses = [(loss, max(abs(loss), size)) for (loss, size), _ in found]
    terms = [(a * loss, abs(a) * size) for a, (loss, size) in zip(w, losses, strict=True)]
    divisor = sum(w, NIL) if reduction == "mean" else Fraction(1)
    total, size = (sum(column, NIL) for column in zip(*terms, strict=True))
    seeds = c if reduction == "none" else [c[0] / divisor] * len(w)
    mean, spread = (total / divisor, size / divisor) if reduction == "mean" else (NIL, NIL)
    gradients = {
        name: [
            (s * a * slope, abs(s * a) * max(abs(slope), own))
            for s, a, (_, slopes) in zip(seeds, w, found, strict=True)
            for slope, own in slopes[name]
        ]
        for name in found[0][1]
    }
    gradients["weight"] = [
        (s * (loss - mean), abs(s) * (own + spread))
        for s, (loss, own) in zip(seeds, losses, strict=True)
    ]
    value = terms if reduction == "none" else [(total / divisor, abs(size / divisor))]
    return Answer(value, gradients)
