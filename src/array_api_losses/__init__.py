"""Embedding and margin losses for any array library."""

from array_api_losses._transforms import jit, value_and_grad, vjp
from array_api_losses.losses.hinge_embedding import HingeEmbeddingLoss, hinge_embedding_loss

__all__ = [
    "HingeEmbeddingLoss",
    "hinge_embedding_loss",
    "jit",
    "value_and_grad",
    "vjp",
]
__version__ = "0.1.0.dev0"
