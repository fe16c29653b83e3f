"""The losses: pure functions of embeddings and labels, all with one signature.

name_loss(embeddings, labels, *, <hyper-parameters>, where=None, weights=None, reduction="mean", has_aux=False)
"""

from jaxmetric.losses._engine.class_sampling import SampledClasses, sample_classes
from jaxmetric.losses._engine.class_shard import ClassShard
from jaxmetric.losses._engine.reduction import LossStats
from jaxmetric.losses.angular_margins import (
    arcface_loss,
    cosface_loss,
    large_margin_softmax_loss,
    p2sgrad_loss,
    sphereface_loss,
    sub_center_arcface_loss,
)
from jaxmetric.losses.log_sum_exp import (
    circle_loss,
    generalized_lifted_structure_loss,
    instance_loss,
    lifted_structure_loss,
    multi_similarity_loss,
    n_pairs_loss,
    nca_loss,
    ntxent_loss,
    supcon_loss,
    tuplet_margin_loss,
)
from jaxmetric.losses.pairs import (
    binomial_deviance_loss,
    contrastive_loss,
    intra_pair_variance_loss,
    margin_loss,
    ranked_list_loss,
    siglip_loss,
    snr_contrastive_loss,
    threshold_consistent_margin_loss,
)
from jaxmetric.losses.proxies import (
    center_loss,
    manifold_loss,
    normalized_softmax_loss,
    proxy_anchor_loss,
    proxy_nca_loss,
)
from jaxmetric.losses.quadruplets import (
    anchored_quadruplet_loss,
    quadruplet_hinge,
    quadruplet_loss,
    sampled_quadruplet_loss,
)
from jaxmetric.losses.rankings import fast_ap_loss, histogram_loss, pnp_loss, recall_at_k_loss, smooth_ap_loss
from jaxmetric.losses.soft_triple import (
    effective_centers,
    hard_triple_loss,
    init_centers,
    soft_triple_loss,
    soft_triple_regularizer,
)
from jaxmetric.losses.triplets import (
    DynamicMarginStats,
    angular_loss,
    centroid_triplet_loss,
    chen_quadruplet_loss,
    dynamic_soft_margin_loss,
    triplet_loss,
)
from jaxmetric.losses.views import vicreg_loss

__all__ = [
    "ClassShard",
    "DynamicMarginStats",
    "LossStats",
    "SampledClasses",
    "anchored_quadruplet_loss",
    "angular_loss",
    "arcface_loss",
    "binomial_deviance_loss",
    "center_loss",
    "centroid_triplet_loss",
    "chen_quadruplet_loss",
    "circle_loss",
    "contrastive_loss",
    "cosface_loss",
    "dynamic_soft_margin_loss",
    "effective_centers",
    "fast_ap_loss",
    "generalized_lifted_structure_loss",
    "hard_triple_loss",
    "histogram_loss",
    "init_centers",
    "instance_loss",
    "intra_pair_variance_loss",
    "large_margin_softmax_loss",
    "lifted_structure_loss",
    "manifold_loss",
    "margin_loss",
    "multi_similarity_loss",
    "n_pairs_loss",
    "nca_loss",
    "normalized_softmax_loss",
    "ntxent_loss",
    "p2sgrad_loss",
    "pnp_loss",
    "proxy_anchor_loss",
    "proxy_nca_loss",
    "quadruplet_hinge",
    "quadruplet_loss",
    "ranked_list_loss",
    "recall_at_k_loss",
    "sample_classes",
    "sampled_quadruplet_loss",
    "siglip_loss",
    "smooth_ap_loss",
    "snr_contrastive_loss",
    "soft_triple_loss",
    "soft_triple_regularizer",
    "sphereface_loss",
    "sub_center_arcface_loss",
    "supcon_loss",
    "threshold_consistent_margin_loss",
    "triplet_loss",
    "tuplet_margin_loss",
    "vicreg_loss",
]
