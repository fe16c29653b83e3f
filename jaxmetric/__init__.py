"""Deep metric learning in JAX.

Losses, distances, neighbors and metrics are pure functions of arrays and need only jax and numpy. The subpackages
`encoders`, `data`, `training`, `report` and `run` need the extra `jaxmetric[train]` and are imported separately.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxmetric import memory, mining, regularizers, views
from jaxmetric.agreement import label_agreement
from jaxmetric.distances import (
    pairwise_cosine_distance,
    pairwise_cosine_similarity,
    pairwise_dot_product,
    pairwise_euclidean,
    pairwise_lp,
    pairwise_snr,
    pairwise_squared_euclidean,
)
from jaxmetric.losses import (
    ClassShard,
    DynamicMarginStats,
    LossStats,
    SampledClasses,
    anchored_quadruplet_loss,
    angular_loss,
    arcface_loss,
    binomial_deviance_loss,
    center_loss,
    centroid_triplet_loss,
    chen_quadruplet_loss,
    circle_loss,
    contrastive_loss,
    cosface_loss,
    dynamic_soft_margin_loss,
    effective_centers,
    fast_ap_loss,
    generalized_lifted_structure_loss,
    hard_triple_loss,
    histogram_loss,
    init_centers,
    instance_loss,
    intra_pair_variance_loss,
    large_margin_softmax_loss,
    lifted_structure_loss,
    manifold_loss,
    margin_loss,
    multi_similarity_loss,
    n_pairs_loss,
    nca_loss,
    normalized_softmax_loss,
    ntxent_loss,
    p2sgrad_loss,
    pnp_loss,
    proxy_anchor_loss,
    proxy_nca_loss,
    quadruplet_hinge,
    quadruplet_loss,
    ranked_list_loss,
    recall_at_k_loss,
    sample_classes,
    sampled_quadruplet_loss,
    siglip_loss,
    smooth_ap_loss,
    snr_contrastive_loss,
    soft_triple_loss,
    soft_triple_regularizer,
    sphereface_loss,
    sub_center_arcface_loss,
    supcon_loss,
    threshold_consistent_margin_loss,
    triplet_loss,
    tuplet_margin_loss,
    vicreg_loss,
)
from jaxmetric.references import References
from jaxmetric.regularizers import (
    center_invariant_regularizer,
    lp_regularizer,
    regular_face_regularizer,
    zero_mean_regularizer,
)

__version__ = "0.1.0"

# Imported on first use, such as `jaxmetric.metrics`; the last five need the extra.
_LAZY = frozenset({"metrics", "parallel", "search", "data", "encoders", "report", "run", "training"})

if TYPE_CHECKING:
    # A type checker sees the modules, and no `__getattr__`, which would make every misspelled name valid.
    from jaxmetric import data as data
    from jaxmetric import encoders as encoders
    from jaxmetric import metrics as metrics
    from jaxmetric import parallel as parallel
    from jaxmetric import report as report
    from jaxmetric import run as run
    from jaxmetric import search as search
    from jaxmetric import training as training
else:

    def __getattr__(name: str) -> Any:
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_LAZY, "__version__"})


__all__ = [
    "ClassShard",
    "DynamicMarginStats",
    "LossStats",
    "References",
    "SampledClasses",
    "anchored_quadruplet_loss",
    "angular_loss",
    "arcface_loss",
    "binomial_deviance_loss",
    "center_invariant_regularizer",
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
    "label_agreement",
    "large_margin_softmax_loss",
    "lifted_structure_loss",
    "lp_regularizer",
    "manifold_loss",
    "margin_loss",
    "memory",
    "mining",
    "multi_similarity_loss",
    "n_pairs_loss",
    "nca_loss",
    "normalized_softmax_loss",
    "ntxent_loss",
    "p2sgrad_loss",
    "pairwise_cosine_distance",
    "pairwise_cosine_similarity",
    "pairwise_dot_product",
    "pairwise_euclidean",
    "pairwise_lp",
    "pairwise_snr",
    "pairwise_squared_euclidean",
    "pnp_loss",
    "proxy_anchor_loss",
    "proxy_nca_loss",
    "quadruplet_hinge",
    "quadruplet_loss",
    "ranked_list_loss",
    "recall_at_k_loss",
    "regular_face_regularizer",
    "regularizers",
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
    "views",
    "zero_mean_regularizer",
]
