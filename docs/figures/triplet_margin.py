"""Triplet margin loss and its slope, against the distance of the negative from the anchor."""

import matplotlib.pyplot as plt
import numpy as np

import array_api_losses as xpl

distance, direction = np.linspace(0.0, 6.0, 385), np.asarray([0.6, 0.8])
negative = distance[:, None] * direction  # a ray from the anchor, which is at (0, 0)
anchor, positive = np.zeros_like(negative), np.zeros_like(negative) + np.asarray([3.0, 0.0])
_, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
for swap, jumps, style in ((False, [0.0, 4.0], "C0"), (True, [0.0, 2.5, 5.0], "C1--")):
    triplet = xpl.TripletMarginLoss(margin=1.0, epsilon=0.0, swap=swap, reduction="none")
    loss, gradient = xpl.value_and_grad(triplet, "negative")(anchor, positive, negative)
    slope = gradient @ direction
    left.plot(distance, loss, style, label=f"swap={swap}")
    at = np.searchsorted(distance, jumps)
    right.plot(distance[at], slope[at], "o", color=style[:2], markersize=4 if swap else 7)
    slope[at] = np.nan  # no line across a jump
    right.plot(distance, slope, style)
left.set(xlabel="distance of the negative", ylabel="loss", title="loss with margin 1")
right.set(xlabel="distance of the negative", ylabel="slope in this distance")
right.set_title("its slope, with a dot at each jump")
left.legend()
for panel in (left, right):
    panel.grid(alpha=0.3)
