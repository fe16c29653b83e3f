"""The losses: pure functions of embeddings and labels, in one grammar.

name_loss(embeddings, labels, *, <hyper-parameters>, where=None, weights=None, reduction="mean", has_aux=False)
"""

from jaxmetric.losses.proxy import normalized_softmax_loss
from jaxmetric.losses.quadruplet import quadruplet_hinge, quadruplet_loss, sampled_quadruplet_loss
from jaxmetric.losses.reduction import LossStats
from jaxmetric.losses.soft_triple import (
    effective_centers,
    init_centers,
    soft_triple_loss,
    soft_triple_regularizer,
)
from jaxmetric.losses.triplet import triplet_loss

__all__ = [
    "LossStats",
    "effective_centers",
    "init_centers",
    "normalized_softmax_loss",
    "quadruplet_hinge",
    "quadruplet_loss",
    "sampled_quadruplet_loss",
    "soft_triple_loss",
    "soft_triple_regularizer",
    "triplet_loss",
]
