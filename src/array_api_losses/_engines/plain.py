"""The plain path: the formula on whole arrays, for any library with a standard namespace.

It is also the base of the other engines, and so the list of what an engine may do its own way.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import array_api_compat as compat

from array_api_losses import _derivatives, _pipeline
from array_api_losses._arguments import FORMATS, dtype_name, rounded
from array_api_losses._arrays import check_labels
from array_api_losses._loss import Array, Call, Loss

KINDS = ("real floating", "signed integer", "unsigned integer", "bool", "complex floating")


class Plain:
    """Runs a call whose arguments agree."""

    xp: Any

    def __init__(self, xp: Any) -> None:
        self.xp = xp
        self.name: str = xp.__name__.removeprefix("array_api_compat.").partition(".")[0]
        self._kinds: dict[Any, str] = {}

    def value(self, call: Call) -> Array:
        """Return the result."""
        with self.quiet():
            return self.run(self.checked(call))

    def gradient(
        self, call: Call, wanted: tuple[bool, ...], cotangent: Array | None
    ) -> tuple[Array | None, tuple[Array | None, ...]]:
        """Return the gradient in each wanted argument for a cotangent of the result.

        Without a cotangent it is that of the sum of the result, and the result comes with it.
        """
        with self.quiet():
            call = self.checked(call)
            result = self.run(call) if cotangent is None else None
            return result, _derivatives.pullback(self.xp, call, wanted, cotangent, self.run)

    def run(self, call: Call) -> Array:
        """Return the result, labels unseen; the library's own autodiff knows its derivative."""
        return _pipeline.value(self.xp, call)

    def folded(self, call: Call) -> tuple[Array, Any]:
        """Return the sum of the weighted losses and W, labels unseen."""
        call = _pipeline.prepared(self.xp, call)
        return _pipeline.folded(self.xp, call, _pipeline.terms_of(self.xp, call))

    def checked(self, call: Call) -> Call:
        """Raise for wrong labels if they can be read here and now."""
        if not call.trusted and self.readable(call):
            check_labels(self.xp, call)
            return call.as_trusted() if call.weight is None else call
        return call

    def readable(self, call: Call) -> bool:
        """Whether the labels can be read without waiting for a device or breaking a trace."""
        return False

    def quiet(self) -> AbstractContextManager[Any]:
        """Silence warnings of what the result shows anyway: an overflow, an infinity."""
        return nullcontext()

    def compiled(self, loss: Loss) -> "Plain":
        """Return the engine that compiles a loss: this one, if there is none."""
        return self

    def traits(self, arrays: tuple[Array, ...]) -> tuple[Any, ...] | None:
        """Return dtypes and devices, where that is quick and the arrays are no tracers."""
        return None

    def kind(self, dtype: Any) -> str:
        """Return which of `KINDS` a dtype is, "other floating" if not of `FORMATS`, or "other"."""
        try:
            return self._kinds[dtype]
        except KeyError:
            found = [kind for kind in KINDS if self.xp.isdtype(dtype, kind)] or ["other"]
            if found[0] == "real floating" and dtype_name(dtype) not in FORMATS:
                found = ["other floating"]
            return self._kinds.setdefault(dtype, found[0])

    def regular(self, array: Array) -> bool:
        """Whether formulas can run on an array of the library: on dense ones, of one shape."""
        return True

    def device(self, array: Array) -> Any:
        """Return the device of an array, or None while it has none."""
        return compat.device(array)

    def number(self, name: str, argument: str, value: Any, like: Array) -> Any:
        """Round a number to the dtype of an array."""
        return rounded(name, argument, value, like.dtype)

    def strengthened(self, parameter: Array, dtype: Any) -> Array:
        """Give an array that came of a Python number, and so has no dtype of its own, this one."""
        return parameter
