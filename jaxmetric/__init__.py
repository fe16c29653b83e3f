"""Deep metric learning in JAX.

Losses, distances, neighbours and metrics are pure functions of arrays and need jax and numpy alone; the subpackages
`encoders`, `data`, `training` and `report` need the extra `jaxmetric[experiments]` and are imported on their own.
"""

from jaxmetric.agreement import label_agreement
from jaxmetric.distances import pairwise_cosine_similarity, pairwise_dot_product, pairwise_squared_euclidean
from jaxmetric.losses import (
    LossStats,
    effective_centers,
    init_centers,
    normalized_softmax_loss,
    quadruplet_hinge,
    quadruplet_loss,
    sampled_quadruplet_loss,
    soft_triple_loss,
    soft_triple_regularizer,
    triplet_loss,
)

__version__ = "0.1.0"

__all__ = [
    "LossStats",
    "effective_centers",
    "init_centers",
    "label_agreement",
    "normalized_softmax_loss",
    "pairwise_cosine_similarity",
    "pairwise_dot_product",
    "pairwise_squared_euclidean",
    "quadruplet_hinge",
    "quadruplet_loss",
    "sampled_quadruplet_loss",
    "soft_triple_loss",
    "soft_triple_regularizer",
    "triplet_loss",
]
