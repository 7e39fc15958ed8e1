"""Hinge embedding loss and its slope, against the distance."""

import matplotlib.pyplot as plt
import numpy as np

import array_api_losses as xpl

loss_and_slope = xpl.value_and_grad(xpl.HingeEmbeddingLoss(margin=1.0, reduction="none"))
distance = np.linspace(0.0, 2.0, 257)
_, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
for label, kinks, color in ((1, [], "C0"), (-1, [1.0], "C1")):
    loss, slope = loss_and_slope(distance, np.full_like(distance, label))
    left.plot(distance, loss, color, label=f"label {label}")
    at = np.searchsorted(distance, kinks)
    right.plot(distance[at], slope[at], "o", color=color)
    slope[at] = np.nan  # no line across the jump
    right.plot(distance, slope, color)
left.set(xlabel="distance x", ylabel="loss", title="loss with margin 1")
right.set(xlabel="distance x", ylabel="slope in x", title="its slope, with a dot at the kink")
left.legend()
for panel in (left, right):
    panel.grid(alpha=0.3)
