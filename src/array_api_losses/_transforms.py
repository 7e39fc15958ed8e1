"""Functions of losses: `value_and_grad`, `vjp` and `jit`, for every library.

They follow those of JAX in name and spirit, and take any loss of this package, function or
instance. They use the slopes that stand beside the formula, so the library needs no automatic
differentiation.
"""

import inspect
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, ParamSpec, TypeAlias, TypeVar

from array_api_losses._arguments import is_real
from array_api_losses._arrays import check_cotangent
from array_api_losses._engines import engine_of
from array_api_losses._loss import Array, Call, LossInstance, loss_function
from array_api_losses._messages import elsewhere, explainer

Argnums: TypeAlias = int | str | tuple[int | str, ...]
P = ParamSpec("P")
T = TypeVar("T")


def _explaining(transform: Callable[P, T]) -> Callable[P, T]:
    """Say more than Python does to those who give the arrays to the transform itself."""
    explained = explainer(transform)

    @wraps(transform)
    def explaining(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return transform(*args, **kwargs)
        except (TypeError, ValueError) as error:
            if len(args) > 1 and not is_real(args[1]) and engine_of(args[1]) is not None:
                name = transform.__name__
                msg = f"{name}: the arrays go to the function that it returns: `{name}(loss)(...)`."
                raise TypeError(msg) from None
            if isinstance(error, TypeError):
                raise explained(args, kwargs, error) from None
            raise

    return explaining


@_explaining
def value_and_grad(loss: Callable[..., Array], argnums: Argnums = 0) -> Callable[..., Any]:
    """Return a function that gives a loss and its gradient, in one pass where the engine can.

    Parameters
    ----------
    loss : function or instance of this package
    argnums : int, str or tuple of these, default 0
        The argument to differentiate in: its position or its name, such as "input",
        "margin" or "weight".

    Returns
    -------
    function
        With the parameters of `loss`. It returns ``(value, gradient)``. The gradient has the shape,
        dtype, library and device of the argument; it is a tuple if `argnums` is one. With
        ``reduction="none"`` it is the gradient of the sum of the losses.

    Raises
    ------
    TypeError
        If `loss` is not of this package, or an argument cannot be differentiated in: a label, a
        mask, a number.
    ValueError
        If `loss` has no such argument.

    Notes
    -----
    Where a loss has no derivative, at the kink of a hinge and the like, the gradient is the
    subgradient of least norm. An element of weight zero has gradient zero in the inputs and the
    margin. What it returns cannot be pickled: pickle the loss.

    Examples
    --------
    >>> import numpy as np
    >>> import array_api_losses as xpl
    >>> distance = np.asarray([1.5, 0.25, 3.0, 1.0])
    >>> label = np.asarray([1, -1, -1, -1])
    >>> value, gradient = xpl.value_and_grad(xpl.hinge_embedding_loss)(distance, label)
    >>> gradient
    array([ 0.25, -0.25,  0.  ,  0.  ])
    """
    agreed = _within("value_and_grad", loss, "agreed")
    names = _names("value_and_grad", loss, argnums)

    def function(*args: Any, **kwargs: Any) -> tuple[Array, Any]:
        engine, call = agreed(*args, **kwargs)
        value, gradients = engine.gradient(call, _wanted("value_and_grad", call, names), None)
        return value, _shaped(call, names, gradients, argnums)

    function.__dict__["of_compiled"] = lambda: value_and_grad(jit(loss), argnums)
    function.__dict__["__signature__"] = inspect.signature(loss)
    function.__doc__ = f"Return the loss and its gradient in {', '.join(names)}."
    return function


def vjp(
    loss: Callable[..., Array], *args: Any, argnums: Argnums = 0, **kwargs: Any
) -> tuple[Array, Callable[[Array], Any]]:
    """Return a loss and its pullback, which takes a cotangent to the gradient.

    Parameters
    ----------
    loss : function or instance of this package
    *args, **kwargs
        The arguments of `loss`.
    argnums : int, str or tuple of these, default 0
        As in `value_and_grad`.

    Returns
    -------
    value : array
        What `loss` gives.
    pullback : function
        Takes a cotangent, an array of the shape and dtype of `value`, and returns the gradient of
        ``sum(cotangent * value)``: one array, or a tuple if `argnums` is one. It holds the
        arguments, and computes anew.

    Raises
    ------
    TypeError, ValueError
        As `value_and_grad`; the pullback, if the cotangent does not fit the value.

    Examples
    --------
    >>> import numpy as np
    >>> import array_api_losses as xpl
    >>> distance, label = np.asarray([1.5, 0.25]), np.asarray([1, -1])
    >>> value, pullback = xpl.vjp(xpl.HingeEmbeddingLoss(reduction="none"), distance, label)
    >>> pullback(np.asarray([10.0, 100.0]))
    array([  10., -100.])
    """
    agreed = _within("vjp", loss, "agreed")
    names = _names("vjp", loss, argnums)
    engine, call = agreed(*args, **kwargs)
    wanted = _wanted("vjp", call, names)
    value = engine.value(call)

    def pullback(cotangent: Array) -> Any:
        check_cotangent(engine, value, cotangent)
        return _shaped(call, names, engine.gradient(call, wanted, cotangent)[1], argnums)

    return value, pullback


@_explaining
def jit(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same function, compiled for the arrays that it is called with.

    Parameters
    ----------
    loss : function or instance of this package, or what `value_and_grad` returned

    Returns
    -------
    function
        With the parameters and results of `loss`. It compiles at the first call for a kind of
        array: with Numba for NumPy (elementwise losses of float32 or float64, without weights and
        with one margin; others run as without `jit`), with `torch.compile` for PyTorch, with
        `jax.jit` for JAX, for Dask the losses as its chunks are, and not at all for other
        libraries.

    Raises
    ------
    TypeError
        If `loss` is not of this package.
    ImportError
        At a call of an elementwise loss with arrays of NumPy, if Numba is not installed.

    Notes
    -----
    Labels of PyTorch are not read: the loss of a wrong one is NaN. In other libraries they are, as
    without `jit`. What it returns cannot be pickled: pickle the loss, and compile where it is used.

    Examples
    --------
    >>> import numpy as np
    >>> import array_api_losses as xpl
    >>> loss = xpl.jit(xpl.hinge_embedding_loss)
    >>> float(loss(np.asarray([1.5, 0.25, 3.0]), np.asarray([1, -1, -1])))
    0.75
    """
    of_compiled = getattr(loss, "of_compiled", None)
    if of_compiled is not None:
        function: Callable[..., Any] = of_compiled()
        return function
    bind = _within("jit", loss, "bind")
    if isinstance(bind, partial) and not hasattr(bind, "__wrapped__"):  # of an instance
        bind = wraps(loss if hasattr(loss, "__name__") else type(loss).__call__)(bind)
        bind.__dict__["__signature__"] = inspect.signature(loss)
    return loss_function(bind, compiled=True)


def _within(transform: str, loss: Any, name: str) -> Callable[..., Any]:
    """Return one of the functions that `loss_function` leaves in a loss."""
    if isinstance(loss, type) and issubclass(loss, LossInstance):
        msg = f"{transform}: {loss.__name__} is a class; pass an instance, `{loss.__name__}(...)`."
        raise TypeError(msg)
    function: Any = loss
    instance: Any = None
    if isinstance(loss, LossInstance):
        function, instance = type(loss).__call__, loss  # which a subclass may have overridden
    elif inspect.ismethod(loss):
        function, instance = loss.__func__, loss.__self__  # of `instance.forward`
    within: Callable[..., Any] | None = getattr(function, name, None)
    if within is None and engine_of(loss) is not None:
        msg = f"{transform}: an array is no loss; pass the function, not its result."
        raise TypeError(msg)
    if within is None:
        who = getattr(function, "__name__", repr(function))
        who = who if instance is None else f"{type(instance).__name__}.{who}"
        msg = (
            f"{transform}: {who} is not a loss of array_api_losses. For other functions use the"
            f" transform of your framework, e.g. `jax.{transform}` or `{_IN_TORCH[transform]}`."
        )
        raise TypeError(msg)
    return within if instance is None else partial(within, instance)


_IN_TORCH = {
    "value_and_grad": "torch.func.grad_and_value",
    "vjp": "torch.func.vjp",
    "jit": "torch.compile",
}


def _names(transform: str, loss: Any, argnums: Argnums) -> tuple[str, ...]:
    """Resolve positions and names to names of arguments."""
    import numbers  # here, as in `is_real`

    parameters = tuple(inspect.signature(loss).parameters)
    chosen = []
    for argnum in argnums if isinstance(argnums, tuple) else (argnums,):
        at = len(parameters)
        if isinstance(argnum, numbers.Integral) and not isinstance(argnum, bool):
            at = int(argnum)
        if -len(parameters) <= at < len(parameters):
            chosen.append(parameters[at])
        elif isinstance(argnum, str) and argnum in parameters:
            chosen.append(argnum)
        else:
            who = getattr(loss, "__name__", type(loss).__name__)
            msg = (
                f"{transform}: `argnums` is {argnum!r}, but the arguments of {who} are"
                f" {', '.join(parameters)}. It is a position, a name or a tuple of these."
                f"{elsewhere(argnum, parameters) if isinstance(argnum, str) else ''}"
            )
            raise ValueError(msg)
    return tuple(chosen)


def _wanted(transform: str, call: Call, names: tuple[str, ...]) -> tuple[bool, ...]:
    """Return which of the arguments of a call to differentiate in."""
    arguments = dict(zip((*call.loss.operands, "weight"), call.arguments(), strict=True))
    dtype = call.operands[0].dtype
    for name in names:
        found: Any = arguments.get(name)
        # Not `getattr(..., None)`: NumPy holds the dtype None to be its float64.
        if name == call.loss.label or not hasattr(found, "dtype") or found.dtype != dtype:
            what = (
                "a label"
                if name == call.loss.label
                else "a bool mask"
                if hasattr(found, "dtype")
                else "an option"
                if name not in arguments
                else f"{found!r}, not an array"
            )
            msg = f"{transform}: {call.title()} has no gradient in `{name}`, which is {what}."
            raise TypeError(msg)
    return tuple(name in names for name in arguments)


def _shaped(
    call: Call, names: tuple[str, ...], gradients: tuple[Array | None, ...], argnums: Argnums
) -> Any:
    """Give the gradients the shape of `argnums`: one array, or a tuple."""
    by_name = dict(zip((*call.loss.operands, "weight"), gradients, strict=True))
    chosen = tuple(by_name[name] for name in names)
    return chosen if isinstance(argnums, tuple) else chosen[0]
