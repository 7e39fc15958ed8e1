"""The pipeline as programs of few kernels, made once for each kind of call."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from array_api_losses import _derivatives, _pipeline
from array_api_losses._engines.program import TRACED, Kernels, Node, Program
from array_api_losses._loss import Array, Call, Loss

MOST_PROGRAMS = 256
"""So many are kept of each kind: norms and the like are constants in them.

What is compiled for them, libraries keep by themselves.
"""

ARRAY, NUMBER = "array", "number"
"""What an argument is; if neither, it is known when the program is made."""


class Programs:
    """Those of a library, by the type of its arrays and what makes its kernels."""

    def __init__(self, xp: Any, kind: type, kernels: Kernels) -> None:
        self.xp, self._kind, self._kernels = xp, kind, kernels
        self._widened = (xp.float16, xp.float32) if kernels.reads_float16 else None
        self._losses = lru_cache(MOST_PROGRAMS)(self.losses)
        self._gradients = lru_cache(MOST_PROGRAMS)(self.gradients)

    def forget(self) -> None:
        """Make all anew."""
        self._losses.cache_clear()
        self._gradients.cache_clear()

    def terms(self, call: Call) -> Array:
        """Return the weighted losses, in at least float32."""
        (terms,) = self.run(self._losses, (call.loss,), *self._arguments(call))
        return terms

    def by_element(
        self,
        call: Call,
        wanted: tuple[bool, ...],
        seed: tuple[Any, Array | None],
        mean: Array | None,
    ) -> Sequence[Array]:
        """Return the wanted gradients by element, as `gradients_by_element` does."""
        return self.run(self._gradients, (call.loss, wanted), *seed, mean, *self._arguments(call))

    def run(
        self, made: Callable[..., Program], kind: tuple[Any, ...], *arguments: Any
    ) -> list[Array]:
        """Run the program of this kind on arguments that may be arrays, numbers or None."""
        given = [
            ARRAY if isinstance(a, self._kind) else NUMBER if isinstance(a, float) else a
            for a in arguments
        ]
        return made(*kind, tuple(given))(arguments)

    def losses(self, loss: Loss, given: tuple[Any, ...]) -> Program:
        """Make the program of the weighted losses."""

        def losses(*arguments: Any) -> list[Node]:
            return [_pipeline.terms_of(TRACED, _pipeline.prepared(TRACED, _call(loss, arguments)))]

        return self.program(loss.name, losses, given, range(loss.rowwise * len(loss.inputs)))

    def gradients(self, loss: Loss, wanted: tuple[bool, ...], given: tuple[Any, ...]) -> Program:
        """Make the program of the gradients."""

        def gradients(factor: Any, divisor: Any, mean: Any, *arguments: Any) -> list[Node | None]:
            call = _call(loss, arguments)
            return _derivatives.gradients_by_element(TRACED, call, wanted, (factor, divisor), mean)

        rows = range(3, 3 + loss.rowwise * len(loss.inputs))
        return self.program(f"{loss.name}_gradients", gradients, given, rows)

    def program(
        self,
        name: str,
        pipeline: Callable[..., Sequence[Node | None]],
        given: tuple[Any, ...],
        entries: range = range(0),
    ) -> Program:
        """Note what a pipeline does; some of its arguments are of entries."""
        arguments = [
            Node(entries=i in entries, number=kind == NUMBER) if kind in {ARRAY, NUMBER} else kind
            for i, kind in enumerate(given)
        ]
        results = [result for result in pipeline(*arguments) if result is not None]
        return Program(self._kernels, name, arguments, results)

    def _arguments(self, call: Call) -> list[Any]:
        """Return the arguments of a call, so that kernels compute in at least float32.

        For elements it is enough that one of them has that dtype.
        """
        first, *others = call.arguments()
        wide = _pipeline.accumulator(self.xp, first.dtype)
        if call.loss.rowwise:
            others = [self._cast(other, wide) for other in others]
        return [self._cast(first, wide), *others]

    def _cast(self, argument: Any, dtype: Any) -> Any:
        is_array = isinstance(argument, self._kind)
        if not is_array or (argument.dtype, dtype) == self._widened:  # which kernels do themselves
            return argument
        return _pipeline.cast(self.xp, argument, dtype)


def _call(loss: Loss, arguments: tuple[Any, ...]) -> Call:
    return Call(loss, arguments[:-1], arguments[-1], "none", None)
