"""NumPy."""

from typing import Any

import array_api_compat.numpy as xp

from array_api_losses._engines.plain import Plain
from array_api_losses._loss import Array, Call


class NumPy(Plain):
    """Silent where NumPy would warn of an overflow or an infinity that the result shows anyway."""

    def run(self, call: Call) -> Array:
        return super().run(call)[()]  # as NumPy's own `sum`: a scalar, not a 0-d array

    def quiet(self) -> Any:
        return xp.errstate(all="ignore")

    def readable(self, call: Call) -> bool:
        return True

    def number(self, name: str, argument: str, value: Any, like: Array) -> Any:
        # A NumPy scalar is a number and an array at once; one of the right dtype stays what it is.
        if getattr(value, "dtype", None) == like.dtype:
            return value
        return super().number(name, argument, value, like)

    def device(self, array: Array) -> Any:
        return "cpu"


ENGINE = NumPy(xp)
