"""Margin ranking loss and its slope, against the difference of the scores."""

import matplotlib.pyplot as plt
import numpy as np

import array_api_losses as xpl

loss_and_slope = xpl.value_and_grad(xpl.MarginRankingLoss(margin=0.5, reduction="none"))
score = np.linspace(-2.0, 2.0, 257)
_, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
for label, kink, color in ((1, 0.5, "C0"), (-1, -0.5, "C1")):
    loss, slope = loss_and_slope(score, np.zeros_like(score), np.full_like(score, label))
    left.plot(score, loss, color, label=f"label {label}")
    at = np.searchsorted(score, kink)
    right.plot(score[at], slope[at], "o", color=color)
    slope[at] = np.nan  # no line across the jump
    right.plot(score, slope, color)
left.set(xlabel="input - other", ylabel="loss", title="loss with margin 0.5")
right.set(xlabel="input - other", ylabel="slope in input")
right.set_title("its slope, with a dot at each kink")
left.legend()
for panel in (left, right):
    panel.grid(alpha=0.3)
