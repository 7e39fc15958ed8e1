"""What PyTorch does on CUDA: kernels of its jiterator. On the CPU a compiler stands in for that."""

import itertools
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any
from unittest import mock

import pytest
from backends import Backend
from compare import Case, check_value, fixed_cases, some_cases
from modes import MODES, noted
from reference import LOSSES

import array_api_losses as xpl

pytestmark = pytest.mark.library("torch")


@pytest.fixture
def launched(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What runs by kernels, and how many there are."""
    from array_api_losses._engines.jiterator import PROGRAMS

    names = noted(PROGRAMS, monkeypatch)
    with nullcontext() if backend.has("accelerator") else MODES["torch:kernels"].around():
        yield names


def _elementwise(dtype: str) -> list[Case]:
    return [case for case in some_cases(dtype) if not LOSSES[case.loss].rowwise]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_one_kernel_for_the_losses_and_one_for_all_gradients(
    backend: Backend, launched: list[str], dtype: str
) -> None:
    cases = _elementwise(dtype)
    assert {case.reduction for case in cases} == {"none", "sum", "mean"}
    for case in cases:
        arrays = case.arrays(backend)
        launched.clear()
        for name in case.differentiable:
            arrays[name].requires_grad_()
        value = case.function(**arrays, **case.keywords)
        assert launched == ["losses 1"]
        value.sum().backward()
        in_average = case.reduction == "mean" and "weight" in case.differentiable
        assert launched[1:] == ["losses 1"] * in_average + ["gradients 1"]


@pytest.mark.parametrize(
    ("name", "losses", "gradients"),
    [("cosine_embedding_loss", 7, 8), ("triplet_margin_loss", 7, 8)],
)
def test_few_kernels_for_rows(
    backend: Backend, launched: list[str], name: str, losses: int, gradients: int
) -> None:
    """Sums along rows are kernels too; and a mean is one more."""
    case = next(c for c in fixed_cases(loss=name) if c.weight is None)
    arrays = {k: v for k, v in case.arrays(backend).items() if k != "margin"}
    for argument in LOSSES[name].inputs:
        arrays[argument].requires_grad_()
    case.function(**arrays).backward()
    assert launched == [f"losses {losses}", f"gradients {gradients}"]


@pytest.mark.parametrize(
    ("name", "kernels"), [("cosine_embedding_loss", 9), ("triplet_margin_loss", 8)]
)
def test_nothing_is_computed_twice(
    backend: Backend, launched: list[str], name: str, kernels: int
) -> None:
    """A gradient in weights is of the losses, whose lengths are those of the slopes."""
    case = next(c for c in fixed_cases(loss=name) if "weight" in c.differentiable)
    arrays = {k: v for k, v in case.arrays(backend).items() if k != "margin"}
    wanted = (*LOSSES[name].inputs, "weight")
    xpl.value_and_grad(case.function, wanted)(**arrays, reduction="sum")
    assert launched[-1] == f"gradients {kernels}"


def test_what_nobody_needs_any_more_is_let_go(
    backend: Backend, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from array_api_losses._engines import program
    from array_api_losses._engines.jiterator import PROGRAMS

    launch, results, living = program._launch, [], []

    def noting(*arguments: Any) -> Any:
        found = launch(*arguments)
        results.extend(map(weakref.ref, found))
        living.append(sum(result() is not None for result in results))
        return found

    PROGRAMS.forget()  # those that launch otherwise
    monkeypatch.setattr(program, "_launch", noting)
    for case in fixed_cases(loss="triplet_margin_loss"):
        arrays = case.arrays(backend)
        value, pullback = xpl.vjp(case.function, **arrays, **case.keywords)
        results.clear()
        launched.clear()
        pullback(value)
        assert len(launched) == 1  # program, of several kernels
        assert living[-1] < len(results)
    PROGRAMS.forget()


@pytest.mark.parametrize(("dtype", "gradients"), [("float16", 2), ("float32", 1)])
@pytest.mark.parametrize("name", [name for name, spec in LOSSES.items() if spec.rowwise])
def test_blocks_of_rows_are_as_all_at_once(
    backend: Backend,
    launched: list[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    dtype: str,
    gradients: int,
) -> None:
    """Gradients in float32 are not cut: to join them would take longer."""
    from array_api_losses._engines import programs

    torch = backend.module
    for case in fixed_cases(dtype, name):
        arrays = case.arrays(backend)
        leaves = [arrays[argument].requires_grad_() for argument in case.differentiable]
        found = []
        for rows, times in [(99, (1, 1)), (6, (2, gradients))]:
            monkeypatch.setattr(programs, "BLOCK", rows * case.width)
            launched.clear()
            value = case.function(**arrays, **case.keywords)
            assert len(launched) == times[0]
            launched.clear()
            cotangent = torch.linspace(1, 2, value.numel()).to(value).reshape(value.shape)
            found.append([value, *torch.autograd.grad(value, leaves, cotangent)])
            assert sum(name.startswith("gradients") for name in launched) == times[1]
        torch.testing.assert_close(*found, rtol=0, atol=0)


def test_programs_of_many_arguments_and_results(backend: Backend, launched: list[str]) -> None:
    """More than a function can take or give: then there are several."""
    from array_api_losses._engines.jiterator import PROGRAMS
    from array_api_losses._engines.program import TRACED
    from array_api_losses._engines.programs import ARRAY

    def pipeline(*rows: Any) -> list[Any]:
        products = [a * b for a, b in itertools.pairwise(rows)]
        return [*products, sum(products), TRACED.max(sum(products[1:], products[0]), axis=-1)]

    torch, generator = backend.module, backend.np.random.default_rng(5)
    rows = [backend.asarray(generator.integers(-9, 9, (4, 3)) / 2) for _ in range(12)]
    *products, total, largest = PROGRAMS.program("many", pipeline, (ARRAY,) * 12, range(12))(rows)
    for product, (a, b) in zip(products, itertools.pairwise(rows), strict=True):
        assert torch.equal(product, a * b)
    assert torch.equal(total, sum(products))
    assert torch.equal(largest, total.amax(-1))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["exp", "expm1", "log", "log1p", "sqrt"])
def test_functions_of_the_standard(
    backend: Backend, launched: list[str], name: str, dtype: str
) -> None:
    """Those that formulas of losses may call, beside what they are made of now."""
    from array_api_losses._engines.jiterator import PROGRAMS
    from array_api_losses._engines.program import TRACED
    from array_api_losses._engines.programs import ARRAY

    values = backend.asarray([0.25, 1.0, 7.5], dtype)
    program = PROGRAMS.program(name, lambda v: [getattr(TRACED, name)(v)], (ARRAY,))
    (found,) = program([values])
    assert found.dtype == values.dtype
    backend.module.testing.assert_close(found, getattr(backend.xp, name)(values))
    assert not launched


def _wide_label(torch: Any, x: Any, y: Any) -> tuple[Any, Any]:
    return x, y.to(torch.float64)


def _label_of_eight_bits(torch: Any, x: Any, y: Any) -> tuple[Any, Any]:
    return x, y.to(torch.float8_e5m2)


def _negated_lazily(torch: Any, x: Any, y: Any) -> tuple[Any, Any]:
    return torch.complex(x, -x).conj().imag, y


def _subclass(torch: Any, x: Any, y: Any) -> tuple[Any, Any]:
    class Mine(torch.Tensor):
        pass

    return x.as_subclass(Mine), y


@pytest.mark.parametrize("changed", [_wide_label, _label_of_eight_bits, _negated_lazily, _subclass])
def test_what_a_kernel_cannot_see_takes_the_plain_path(
    backend: Backend, launched: list[str], changed: Callable[..., tuple[Any, Any]]
) -> None:
    for case in _elementwise("float32"):
        arrays = case.arrays(backend)
        name = LOSSES[case.loss].inputs[0]
        arrays[name], arrays["label"] = changed(backend.module, arrays[name], arrays["label"])
        value = case.function(**arrays, **case.keywords)
        assert not launched
        if changed is not _subclass:
            check_value(backend, case, lambda value=value, **_: value)


def test_where_nothing_can_be_compiled(
    backend: Backend, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from array_api_losses._engines import jiterator

    def refuse(*_: Any, **__: Any) -> None:
        msg = "no compiler"
        raise RuntimeError(msg)

    monkeypatch.setattr(jiterator, "compiled", refuse)
    jiterator._works.cache_clear()
    try:
        for case in _elementwise("float32"):
            check_value(backend, case)
        assert not launched
    finally:
        jiterator._works.cache_clear()


def test_no_memory_is_no_lack_of_a_compiler(
    backend: Backend, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver tells of it in words only; the error of PyTorch has them too."""
    from array_api_losses._engines import jiterator

    error = RuntimeError("CUDA driver error: out of memory")
    x, y = backend.asarray([0.5, 0.25], "float32"), backend.asarray([1, -1], "int8")
    jiterator._works.cache_clear()
    with monkeypatch.context() as within, pytest.raises(RuntimeError, match="out of memory"):
        within.setattr(jiterator, "compiled", mock.Mock(side_effect=error))
        xpl.hinge_embedding_loss(x, y)
    xpl.hinge_embedding_loss(x, y)
    assert launched == ["losses 1"]


def test_a_mean_of_halves_is_not_rounded_for_the_gradient(
    backend: Backend, launched: list[str]
) -> None:
    """Of one element the gradient in its weight is 0."""
    x, other, w = (backend.asarray([v], "float16") for v in (37760.0, 1.5, 0.25))
    gradient = xpl.value_and_grad(xpl.margin_ranking_loss, "weight")
    _, slope = gradient(x, other, backend.asarray([-1], "int8"), weight=w)
    assert slope.tolist() == [0]
    assert launched


def test_labels_are_not_read(backend: Backend, launched: list[str]) -> None:
    x = backend.asarray([0.5, 0.25], "float32").requires_grad_()
    for wrong in (0, 2, float("nan")):
        y = backend.asarray([1, wrong], "float32")
        value = xpl.hinge_embedding_loss(x, y, reduction="none")
        assert value.isnan().tolist() == [False, True]
        (gradient,) = backend.module.autograd.grad(value.sum(), x)
        assert gradient.isnan().tolist() == [False, True]
    assert launched
