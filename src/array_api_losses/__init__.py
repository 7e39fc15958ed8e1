"""Embedding and margin losses for any array library."""

from array_api_losses._transforms import jit, value_and_grad, vjp
from array_api_losses.losses.cosine_embedding import CosineEmbeddingLoss, cosine_embedding_loss
from array_api_losses.losses.hinge_embedding import HingeEmbeddingLoss, hinge_embedding_loss
from array_api_losses.losses.margin_ranking import MarginRankingLoss, margin_ranking_loss
from array_api_losses.losses.triplet_margin import TripletMarginLoss, triplet_margin_loss

__all__ = [
    "CosineEmbeddingLoss",
    "HingeEmbeddingLoss",
    "MarginRankingLoss",
    "TripletMarginLoss",
    "cosine_embedding_loss",
    "hinge_embedding_loss",
    "jit",
    "margin_ranking_loss",
    "triplet_margin_loss",
    "value_and_grad",
    "vjp",
]
__version__ = "0.1.0.dev0"
