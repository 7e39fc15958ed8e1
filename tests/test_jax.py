"""What JAX alone has: traced margins, nested transforms, the absence of 64 bits."""

import itertools
from typing import Any

import pytest
from backends import Backend

import array_api_losses as xpl

loss = xpl.hinge_embedding_loss
pytestmark = pytest.mark.library("jax")


@pytest.fixture
def arguments(backend: Backend) -> dict[str, Any]:
    return {
        "input": backend.asarray([0.3, -0.4, 1.8, 2.5, 0.1]),
        "margin": backend.asarray([1.0, 0.5, 1.5, 1.0, 2.0]),
        "weight": backend.asarray([0.5, 2.0, 1.0, 3.0, 0.25]),
    }


@pytest.fixture
def label(backend: Backend) -> Any:
    return backend.asarray([1, -1, -1, 1, -1], "int32")


def test_hessian(backend: Backend, arguments: dict[str, Any], label: Any) -> None:
    """Zero in input and margin; not so between input and weight. All nestings agree."""
    import jax

    def call(a: dict[str, Any]) -> Any:
        return loss(a["input"], label, a["margin"], weight=a["weight"])

    both = (jax.jacrev, jax.jacfwd)
    nested = [jax.jit(f(g(call)))(arguments) for f, g in itertools.product(both, both)]
    nested.append(jax.hessian(call)(arguments))
    for one in nested:
        assert not one["input"]["input"].any()
        assert not one["margin"]["input"].any()
        assert one["input"]["weight"].any()
        for a, b in itertools.product(one, one):
            backend.np.testing.assert_allclose(one[a][b], nested[0][a][b], atol=1e-12)
            backend.np.testing.assert_allclose(one[a][b], one[b][a].T, atol=1e-12)


def test_a_number_traced_as_margin(backend: Backend, label: Any) -> None:
    import jax

    for dtype in ("float64", "float32", "float16", "bfloat16"):
        x = backend.asarray([0.25, -0.5, 1.75, 2.5, 0.125], dtype)
        for margin in (1.0, 0.5):
            traced = jax.jit(loss)(x, label, margin)
            assert traced.dtype == x.dtype
            assert traced == loss(x, label, margin)
        slope = jax.grad(loss, 2)(x, label, 1.0)
        assert abs(float(slope) - 2 / 5) < 1e-3


def test_grad_of_an_instance(backend: Backend, label: Any) -> None:
    import jax

    x = backend.asarray([0.25, -0.5, 1.75, 2.5, 0.125])  # of which every sum is exact
    instance = xpl.HingeEmbeddingLoss(reduction="sum")
    assert jax.grad(instance)(x, label).tolist() == [1, -1, 0, 1, -1]
    value, gradient = jax.value_and_grad(jax.jit(instance))(x, label)
    assert gradient.tolist() == [1, -1, 0, 1, -1]
    assert value == instance(x, label)


def test_transforms_inside_of_jit(backend: Backend, arguments: dict[str, Any], label: Any) -> None:
    import jax

    x = arguments["input"]
    inside = jax.jit(xpl.value_and_grad(loss))(x, label)
    outside = xpl.value_and_grad(loss)(x, label)
    for a, b in zip(inside, outside, strict=True):
        assert a.tolist() == b.tolist()


def test_wrong_labels_in_a_trace(backend: Backend) -> None:
    backend.require("reads labels")
    import jax

    x, y = backend.asarray([1.0, 2.0]), backend.asarray([1, 0], "int8")
    assert backend.np.isnan(jax.jit(loss)(x, y))
    assert jax.jit(loss, static_argnames="reduction")(x, y, reduction="none")[0] == 1
    for transformed in (
        lambda: jax.grad(loss)(x, y),
        lambda: jax.jit(lambda x: loss(x, y))(x),
        lambda: jax.jit(lambda x: xpl.value_and_grad(loss)(x, y))(x),
    ):
        with pytest.raises(ValueError, match="1 element that is neither 1 nor -1"):
            transformed()


def test_labels_have_slope_zero(backend: Backend) -> None:
    import jax

    x, y = backend.asarray([1.0, 0.5]), backend.asarray([1.0, -1.0])
    assert jax.grad(loss, 1)(x, y).tolist() == [0, 0]
    assert jax.grad(loss, (0, 1))(x, y)[0].tolist() == [0.5, -0.5]


def test_vmap_over_everything(backend: Backend) -> None:
    import jax

    x = backend.asarray([[1.0, 2.0], [0.25, 4.0]])
    y = backend.asarray([[1, 1], [-1, 1]], "int8")
    margin = backend.asarray([1.0, 0.5])
    assert jax.vmap(loss)(x, y, margin).tolist() == [1.5, 2.125]
    assert jax.vmap(loss, (0, None, 0))(x, y[1], margin).tolist() == [1.0, 2.125]


def test_without_64_bits(backend: Backend) -> None:
    import jax

    with jax.enable_x64(False):
        x = backend.asarray([0.25, 0.25, 3.0], "float32")
        y = jax.numpy.asarray([1, -1, -1])
        value, gradient = xpl.value_and_grad(loss)(x, y, 0.5, "sum")
        assert value.dtype == gradient.dtype == "float32"
        assert value == 0.5
        assert gradient.tolist() == [1, -1, 0]


def test_sizes_beyond_an_integer_of_32_bits(backend: Backend) -> None:
    import jax

    x, y, one = (
        jax.ShapeDtypeStruct((size,), backend.asarray(0, dtype).dtype)
        for size, dtype in ((2**31, "float32"), (2**31, "int8"), (1, "float32"))
    )
    with jax.enable_x64(False):
        for gradient in (jax.grad(loss), lambda *a, **k: xpl.value_and_grad(loss)(*a, **k)[1]):
            assert jax.eval_shape(gradient, x, y).shape == x.shape
            assert jax.eval_shape(gradient, x, y, weight=one).shape == x.shape


def test_a_random_key_is_no_input(backend: Backend, label: Any) -> None:
    import jax

    x, key = backend.asarray([0.3, -0.4, 1.8, 2.5, 0.1]), jax.random.split(jax.random.key(0), 5)
    for arguments, text in (
        ((key, label), "`input` has dtype key<fry>; it must be real floating"),
        ((x, key), "`label` has dtype key<fry>; it must"),
        ((x, label, key), "`margin` has dtype key<fry> but `input` has dtype float64; it must"),
    ):
        with pytest.raises(TypeError, match=f"^hinge_embedding_loss: {text}"):
            loss(*arguments)


def test_bfloat16_in_numpy(backend: Backend, label: Any) -> None:
    x = backend.np.asarray(backend.asarray([0.5] * 5, "bfloat16"))
    text = "`input` has dtype bfloat16; it must be float16, float32 or float64."
    with pytest.raises(TypeError) as caught:
        loss(x, backend.np.asarray(label))
    assert str(caught.value) == f"hinge_embedding_loss: {text}"


def test_export_of_any_batch(backend: Backend) -> None:
    """With weights, too."""
    import jax
    from jax import export

    (batch,) = export.symbolic_shape("batch")
    function = jax.jit(lambda x, y, weight: loss(x, y, weight=weight))
    arrays = [
        backend.asarray([[1.5, 0.25, 1.0], [0.5, 0.5, 0.5]], "float32"),
        backend.asarray([[1, -1, 1], [-1, -1, -1]], "int32"),
    ]
    for weight in ([[1.0, 1.0, 2.0], [0.0, 0.0, 0.0]], [[1.0], [3.0]], [1.0, 1.0, 2.0]):
        calls = [*arrays, backend.asarray(weight, "float32")]
        shapes = [
            jax.ShapeDtypeStruct((batch, *a.shape[1:]) if a.ndim == 2 else a.shape, a.dtype)
            for a in calls
        ]
        found = export.export(function)(*shapes).call(*calls)
        assert found.item() == pytest.approx(function(*calls).item(), rel=1e-6)
