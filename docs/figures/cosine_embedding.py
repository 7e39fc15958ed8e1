"""Cosine embedding loss and its slope, against the angle between two vectors."""

import matplotlib.pyplot as plt
import numpy as np

import array_api_losses as xpl

loss_and_gradient = xpl.value_and_grad(xpl.CosineEmbeddingLoss(margin=0.0, reduction="none"))
angle = np.linspace(0.0, 180.0, 181)
cosine, sine = np.cos(np.deg2rad(angle)).round(15), np.sin(np.deg2rad(angle))  # 0 at 90 degrees
turned, fixed = np.stack((cosine, sine), axis=1), np.asarray([[1.0, 0.0]] * len(angle))
_, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
for label, kinks, color in ((1, [], "C0"), (-1, [90.0], "C1")):
    loss, gradient = loss_and_gradient(turned, fixed, np.full_like(angle, label))
    slope = gradient[:, 1] * cosine - gradient[:, 0] * sine  # along the circle
    left.plot(angle, loss, color, label=f"label {label}")
    at = np.searchsorted(angle, kinks)
    right.plot(angle[at], slope[at], "o", color=color)
    slope[at] = np.nan  # no line across the jump
    right.plot(angle, slope, color)
left.set(xlabel="angle in degrees", ylabel="loss", title="loss with margin 0")
right.set(xlabel="angle in degrees", ylabel="slope in the angle, per radian")
right.set_title("its slope, with a dot at the kink")
left.legend()
for panel in (left, right):
    panel.set_xticks(range(0, 181, 45))
    panel.grid(alpha=0.3)
