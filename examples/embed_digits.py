"""Learn a two-dimensional map of handwritten digits from pairs, with any array library.

A small network sends scikit-learn's 1,797 scanned digits to points of the plane. It is only ever
told whether two scans show the same digit (label 1) or not (label -1); hinge embedding loss pulls
the points of similar scans together and pushes those of dissimilar scans a margin apart. ::

    python -m pip install ".[examples]"
    python examples/embed_digits.py
    python examples/embed_digits.py --backend torch --output digits.png

Everything between loading the scans and drawing the map is written against the Python array API
standard. PyTorch and JAX differentiate the loss themselves. The other libraries have no automatic
differentiation: there `value_and_grad` gives the gradient in the distances, and a few lines take it
back through the network.
"""

import argparse
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import array_api_compat
import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from tqdm import tqdm

import array_api_losses as xpl

Array: TypeAlias = Any
Arrays: TypeAlias = Sequence[Array]
Gradients: TypeAlias = Callable[[Arrays, Array, Array, Array], tuple[Array, Arrays]]

BACKENDS = {
    "numpy": "numpy",
    "strict": "array_api_strict",
    "cupy": "cupy",
    "torch": "torch",
    "jax": "jax.numpy",
}
HIDDEN = 128
BATCH = 128
LEARNING_RATE = 0.01
MARGIN = 4.0
SIMILAR_SHARE = 0.2  # of the weight in a batch; the dissimilar pairs have the rest


def initial_parameters(rng: np.random.Generator, features: int) -> list[np.ndarray]:
    """Return the weights and biases of the hidden and of the output layer."""
    weights_in = rng.normal(scale=features**-0.5, size=(features, HIDDEN))
    weights_out = rng.normal(scale=HIDDEN**-0.5, size=(HIDDEN, 2))
    return [weights_in, np.zeros(HIDDEN), weights_out, np.zeros(2)]


def pairs(digits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the label and the weight of every pair of a batch.

    Nine pairs in ten are dissimilar, so each kind shares a fixed weight. A scan is no pair with
    itself: its weight is zero, which leaves it out.
    """
    same = digits[:, None] == digits
    similar = same & ~np.eye(digits.size, dtype=bool)
    weight = SIMILAR_SHARE * similar / similar.sum() + (1 - SIMILAR_SHARE) * ~same / (~same).sum()
    return np.where(same, 1.0, -1.0), weight


def forward(parameters: Arrays, images: Array) -> tuple[Array, Array]:
    """Return the points to which the network sends the images, and its hidden layer."""
    xp = array_api_compat.array_namespace(images)
    weights_in, bias_in, weights_out, bias_out = parameters
    hidden = xp.tanh(images @ weights_in + bias_in)
    return hidden @ weights_out + bias_out, hidden


def distances(points: Array) -> tuple[Array, Array]:
    """Return the distances between all points, and the unit vectors along which they grow.

    The square root has no finite slope at 0, where points coincide. It never sees a 0 here, so the
    slope there is 0, by hand and by automatic differentiation alike.
    """
    xp = array_api_compat.array_namespace(points)
    offset = points[:, None, :] - points[None, :, :]
    squared = xp.sum(offset * offset, axis=-1)
    apart = squared > 0
    root = xp.sqrt(xp.where(apart, squared, xp.ones_like(squared)))
    return xp.where(apart, root, xp.zeros_like(root)), offset / root[..., None]


def loss_and_gradients(backend: str) -> Gradients:
    """Return a function that gives the loss of a batch and its gradients in the parameters."""

    def loss(parameters: Arrays, images: Array, label: Array, weight: Array) -> Array:
        distance, _ = distances(forward(parameters, images)[0])
        return xpl.hinge_embedding_loss(distance, label, MARGIN, weight=weight)

    def by_torch(parameters: Arrays, *batch: Array) -> tuple[Array, Arrays]:
        parameters = [parameter.detach().requires_grad_() for parameter in parameters]
        value = loss(parameters, *batch)
        return value.detach(), import_module("torch").autograd.grad(value, parameters)

    distance_gradient = xpl.value_and_grad(xpl.HingeEmbeddingLoss(margin=MARGIN))

    def by_hand(parameters: Arrays, images: Array, *batch: Array) -> tuple[Array, Arrays]:
        label, weight = batch
        xp = array_api_compat.array_namespace(images)
        points, hidden = forward(parameters, images)
        distance, direction = distances(points)
        value, slope = distance_gradient(distance, label, weight=weight)
        pull = slope[..., None] * direction  # on the first of each pair; the second's is opposite
        to_points = xp.sum(pull, axis=1) - xp.sum(pull, axis=0)
        to_hidden = (to_points @ parameters[2].T) * (1 - hidden * hidden)
        of_input = images.T @ to_hidden, xp.sum(to_hidden, axis=0)
        of_output = hidden.T @ to_points, xp.sum(to_points, axis=0)
        return value, of_input + of_output

    if backend == "jax":
        jax = import_module("jax")
        return jax.jit(jax.value_and_grad(loss))
    return by_torch if backend == "torch" else by_hand


def adam(state: Arrays, gradient: Array, step: int, rate: float) -> Arrays:
    """Return a parameter and the running means of its gradient and square, a step of Adam later."""
    xp = array_api_compat.array_namespace(gradient)
    parameter, mean, square = state
    mean = 0.9 * mean + 0.1 * gradient
    square = 0.999 * square + 0.001 * gradient * gradient
    scale = xp.sqrt(square / (1 - 0.999**step)) + 1e-8
    return parameter - rate * mean / (1 - 0.9**step) / scale, mean, square


def draw(points: np.ndarray, digits: np.ndarray, title: str, path: Path) -> None:
    """Draw each point as the digit that its scan shows, in the digit's colour."""
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.add_subplot(
        title=title, xlabel="first coordinate", ylabel="second coordinate", aspect="equal"
    )
    for digit in range(10):
        chosen = points[digits == digit]
        style = {"color": f"C{digit}", "marker": f"${digit}$", "s": 45, "linewidths": 0.3}
        axes.scatter(chosen[:, 0], chosen[:, 1], label=f"{len(chosen)} scans", **style)
    axes.legend(title="digit", loc="center left", bbox_to_anchor=(1, 0.5), markerscale=1.3)
    figure.savefig(path, format="png", dpi=120, bbox_inches="tight")


def main(argv: Sequence[str] | None = None) -> float:
    """Train, draw and return the accuracy on the scans held out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backend", choices=BACKENDS, default="numpy", help="array library")
    parser.add_argument("--seed", type=int, default=0, help="of the network and the batches")
    parser.add_argument("--steps", type=int, default=1000, help="of the optimiser")
    parser.add_argument("--output", type=Path, default=Path("embed_digits.png"), help="PNG file")
    options = parser.parse_args(argv)
    try:
        library = import_module(BACKENDS[options.backend])
    except ImportError as error:
        parser.error(f"the backend {options.backend!r} is not installed: {error}")

    def to_library(array: np.ndarray) -> Array:
        return library.asarray(array.astype(np.float32))

    images, digits = load_digits(return_X_y=True)
    train_images, test_images, train_digits, test_digits = train_test_split(
        images / 16, digits, test_size=0.25, stratify=digits, random_state=0
    )

    def evaluate(parameters: Arrays) -> tuple[np.ndarray, float]:
        train_points, test_points = (
            np.from_dlpack(forward(parameters, to_library(scans))[0], device="cpu")
            for scans in (train_images, test_images)
        )
        neighbours = KNeighborsClassifier(n_neighbors=5).fit(train_points, train_digits)
        return test_points, float(neighbours.score(test_points, test_digits))

    rng = np.random.default_rng(options.seed)
    parameters = [to_library(array) for array in initial_parameters(rng, images.shape[1])]
    states = [(parameter, 0 * parameter, 0 * parameter) for parameter in parameters]
    gradients_of = loss_and_gradients(options.backend)
    _, before = evaluate(parameters)
    progress = tqdm(range(options.steps), desc=options.backend, unit="step")
    for step in progress:
        batch = rng.choice(len(train_digits), size=BATCH, replace=False)
        arrays = train_images[batch], *pairs(train_digits[batch])
        value, gradients = gradients_of(parameters, *map(to_library, arrays))
        rate = LEARNING_RATE * (1 - step / options.steps)
        states = [adam(*both, step + 1, rate) for both in zip(states, gradients, strict=True)]
        parameters = [state[0] for state in states]
        if step % 50 == 0:
            progress.set_postfix(loss=f"{float(value):.3f}")

    points, after = evaluate(parameters)
    title = f"Handwritten digits held out from training\n5-nearest-neighbour accuracy {after:.1%}"
    draw(points, test_digits, title, options.output)
    print(f"Held-out 5-nearest-neighbour accuracy: {before:.3f} before training, {after:.3f} after")
    print(f"Wrote the map of {len(points)} held-out digits to {options.output}")
    return after


if __name__ == "__main__":
    main()
