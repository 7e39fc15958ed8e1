"""The pipeline, fused into kernels: base of the engines that can do that.

An engine traces the pipeline, in a namespace of its own whose functions write down what they are
called for, and so has no formula of its own.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from array_api_losses import _derivatives, _pipeline
from array_api_losses._engines.plain import Plain
from array_api_losses._loss import Array, Call


def identifier(name: str) -> str:
    """Turn a name into one that a kernel can have."""
    return re.sub(r"\W", "_", name)


class Fused(Plain):
    """Kernels for the losses, and kernels for all gradients at once."""

    by_element: Callable[..., Sequence[Array]]
    """Returns the wanted gradients by element, as `gradients_by_element` does."""

    def gradient(
        self, call: Call, wanted: tuple[bool, ...], cotangent: Array | None
    ) -> tuple[Array | None, tuple[Array | None, ...]]:
        label = len(call.loss.inputs)
        if call.loss.label is not None and wanted[label]:  # it has no gradient
            wanted = (*wanted[:label], False, *wanted[label + 1 :])
        seed = self._seed(call, cotangent)
        value = mean = None
        dtype = call.operands[0].dtype
        if call.reduction == "mean" and wanted[-1]:
            wide = _pipeline.accumulator(self.xp, dtype)  # in which it meets the losses
            mean = _pipeline.finished(self.xp, *self.folded(call), wide)
            value = _pipeline.cast(self.xp, mean, dtype)
        elif cotangent is None:
            value = self.run(call)
        found = iter(self.by_element(call, wanted, seed, mean) if any(wanted) else ())
        gradients = tuple(
            _derivatives.summed_to(self.xp, next(found), a.shape, a.dtype) if want else None
            for want, a in zip(wanted, call.arguments(), strict=True)
        )
        return value if cotangent is None else None, gradients

    def _seed(self, call: Call, cotangent: Array | None) -> tuple[Any, Any]:
        """As `seed_of`, but the kernels divide by W too: by itself, that would be one more."""
        weights = self.weights(call)
        if type(weights) is not int:
            return _derivatives.seed_of(self.xp, call, cotangent, weights)
        factor, _ = _derivatives.seed_of(self.xp, call._replace(reduction="sum"), cotangent, None)
        return factor, float(weights or math.nan)

    def weights(self, call: Call) -> Any:
        """Return W of a mean."""
        if call.reduction != "mean":
            return None
        dtype = _pipeline.accumulator(self.xp, call.operands[0].dtype)
        return _pipeline.weight_sum(self.xp, call, dtype)
