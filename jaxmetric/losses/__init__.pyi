# Written by `python -m tests.write_stub` from the signatures in this folder.

from collections.abc import Sequence
from typing import Annotated, Literal, overload

import jax
from jax.typing import ArrayLike

from jaxmetric.losses._engine.class_sampling import SampledClasses as SampledClasses
from jaxmetric.losses._engine.class_sampling import sample_classes as sample_classes
from jaxmetric.losses._engine.class_shard import ClassShard as ClassShard
from jaxmetric.losses._engine.reduction import LossStats as LossStats
from jaxmetric.losses._engine.types import (
    Agreement,
    Balance,
    ClassCenters,
    ClassLabels,
    ClassProxies,
    ClassScalars,
    ClassWeights,
    Distance,
    DistanceName,
    LabelColumns,
    LimitedScalar,
    PairwiseFunction,
    PositiveScalar,
    Reduction,
    ReductionToScalar,
    ScalarLike,
    Similarity,
)
from jaxmetric.losses.quadruplets import quadruplet_hinge as quadruplet_hinge
from jaxmetric.losses.rankings import PnpVariant
from jaxmetric.losses.soft_triple import effective_centers as effective_centers
from jaxmetric.losses.soft_triple import init_centers as init_centers
from jaxmetric.losses.soft_triple import soft_triple_regularizer as soft_triple_regularizer
from jaxmetric.losses.triplets import DynamicMarginStats as DynamicMarginStats
from jaxmetric.losses.triplets import HardOrAll, Mining
from jaxmetric.references import PairMasks, References

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

@overload
def arcface_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: ClassProxies,
    *,
    scale: PositiveScalar = 64.0,
    margin: LimitedScalar = 0.5,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def arcface_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: ClassProxies,
    *,
    scale: PositiveScalar = 64.0,
    margin: LimitedScalar = 0.5,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def arcface_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: ClassProxies,
    *,
    scale: PositiveScalar = 64.0,
    margin: LimitedScalar = 0.5,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def cosface_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: ClassProxies,
    *,
    scale: PositiveScalar = 64.0,
    margin: ScalarLike = 0.35,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def cosface_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: ClassProxies,
    *,
    scale: PositiveScalar = 64.0,
    margin: ScalarLike = 0.35,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def cosface_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: ClassProxies,
    *,
    scale: PositiveScalar = 64.0,
    margin: ScalarLike = 0.35,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def large_margin_softmax_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: ClassProxies,
    *,
    scale: PositiveScalar = 1.0,
    margin: int = 4,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def large_margin_softmax_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: ClassProxies,
    *,
    scale: PositiveScalar = 1.0,
    margin: int = 4,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def large_margin_softmax_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: ClassProxies,
    *,
    scale: PositiveScalar = 1.0,
    margin: int = 4,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def p2sgrad_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: ClassProxies,
    *,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def p2sgrad_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: ClassProxies,
    *,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def p2sgrad_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: ClassProxies,
    *,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def sphereface_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: ClassProxies,
    *,
    scale: PositiveScalar = 1.0,
    margin: int = 4,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def sphereface_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: ClassProxies,
    *,
    scale: PositiveScalar = 1.0,
    margin: int = 4,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def sphereface_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: ClassProxies,
    *,
    scale: PositiveScalar = 1.0,
    margin: int = 4,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def sub_center_arcface_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    centers: ClassCenters,
    *,
    scale: PositiveScalar = 64.0,
    margin: LimitedScalar = 0.5,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def sub_center_arcface_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    centers: ClassCenters,
    *,
    scale: PositiveScalar = 64.0,
    margin: LimitedScalar = 0.5,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def sub_center_arcface_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    centers: ClassCenters,
    *,
    scale: PositiveScalar = 64.0,
    margin: LimitedScalar = 0.5,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def circle_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    margin: ScalarLike = 0.4,
    gamma: PositiveScalar = 80.0,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def circle_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    margin: ScalarLike = 0.4,
    gamma: PositiveScalar = 80.0,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def circle_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    margin: ScalarLike = 0.4,
    gamma: PositiveScalar = 80.0,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def generalized_lifted_structure_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    margin: ScalarLike = 1.0,
    distance: Distance = "euclidean",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def generalized_lifted_structure_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    margin: ScalarLike = 1.0,
    distance: Distance = "euclidean",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def generalized_lifted_structure_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    margin: ScalarLike = 1.0,
    distance: Distance = "euclidean",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def instance_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    gamma: PositiveScalar = 64.0,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def instance_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    gamma: PositiveScalar = 64.0,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def instance_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    gamma: PositiveScalar = 64.0,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def lifted_structure_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    margin: ScalarLike = 1.0,
    distance: Distance = "euclidean",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def lifted_structure_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    margin: ScalarLike = 1.0,
    distance: Distance = "euclidean",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def lifted_structure_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    margin: ScalarLike = 1.0,
    distance: Distance = "euclidean",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def multi_similarity_loss(
    embeddings: ArrayLike | None,
    labels: LabelColumns | None,
    *,
    alpha: PositiveScalar = 2.0,
    beta: PositiveScalar = 50.0,
    base: ScalarLike = 0.5,
    similarity: Similarity = "cosine",
    label_weights: Sequence[float] | None = None,
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def multi_similarity_loss(
    embeddings: ArrayLike | None,
    labels: LabelColumns | None,
    *,
    alpha: PositiveScalar = 2.0,
    beta: PositiveScalar = 50.0,
    base: ScalarLike = 0.5,
    similarity: Similarity = "cosine",
    label_weights: Sequence[float] | None = None,
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def multi_similarity_loss(
    embeddings: ArrayLike | None,
    labels: LabelColumns | None,
    *,
    alpha: PositiveScalar = 2.0,
    beta: PositiveScalar = 50.0,
    base: ScalarLike = 0.5,
    similarity: Similarity = "cosine",
    label_weights: Sequence[float] | None = None,
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def n_pairs_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    similarity: Similarity = "dot",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def n_pairs_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    similarity: Similarity = "dot",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def n_pairs_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    similarity: Similarity = "dot",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def nca_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    softmax_scale: PositiveScalar = 1.0,
    distance: Distance = "squared_euclidean",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def nca_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    softmax_scale: PositiveScalar = 1.0,
    distance: Distance = "squared_euclidean",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def nca_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    softmax_scale: PositiveScalar = 1.0,
    distance: Distance = "squared_euclidean",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def ntxent_loss(
    embeddings: ArrayLike | None,
    labels: LabelColumns | None,
    *,
    temperature: PositiveScalar = 0.07,
    similarity: Similarity = "cosine",
    label_weights: Sequence[float] | None = None,
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def ntxent_loss(
    embeddings: ArrayLike | None,
    labels: LabelColumns | None,
    *,
    temperature: PositiveScalar = 0.07,
    similarity: Similarity = "cosine",
    label_weights: Sequence[float] | None = None,
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def ntxent_loss(
    embeddings: ArrayLike | None,
    labels: LabelColumns | None,
    *,
    temperature: PositiveScalar = 0.07,
    similarity: Similarity = "cosine",
    label_weights: Sequence[float] | None = None,
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def supcon_loss(
    embeddings: ArrayLike | None,
    labels: LabelColumns | None,
    *,
    temperature: PositiveScalar = 0.1,
    similarity: Similarity = "cosine",
    label_weights: Sequence[float] | None = None,
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def supcon_loss(
    embeddings: ArrayLike | None,
    labels: LabelColumns | None,
    *,
    temperature: PositiveScalar = 0.1,
    similarity: Similarity = "cosine",
    label_weights: Sequence[float] | None = None,
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def supcon_loss(
    embeddings: ArrayLike | None,
    labels: LabelColumns | None,
    *,
    temperature: PositiveScalar = 0.1,
    similarity: Similarity = "cosine",
    label_weights: Sequence[float] | None = None,
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def tuplet_margin_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    margin: LimitedScalar = 0.1,
    scale: PositiveScalar = 64.0,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def tuplet_margin_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    margin: LimitedScalar = 0.1,
    scale: PositiveScalar = 64.0,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def tuplet_margin_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    margin: LimitedScalar = 0.1,
    scale: PositiveScalar = 64.0,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def binomial_deviance_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    alpha: PositiveScalar = 2.0,
    beta: ScalarLike = 0.5,
    neg_cost: PositiveScalar = 25.0,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def binomial_deviance_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    alpha: PositiveScalar = 2.0,
    beta: ScalarLike = 0.5,
    neg_cost: PositiveScalar = 25.0,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def binomial_deviance_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    alpha: PositiveScalar = 2.0,
    beta: ScalarLike = 0.5,
    neg_cost: PositiveScalar = 25.0,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def contrastive_loss(
    embeddings: ArrayLike | None,
    labels: LabelColumns | None,
    *,
    pos_margin: ScalarLike = 0.0,
    neg_margin: ScalarLike = 1.0,
    power: Literal[1, 2] = 2,
    distance: Distance = "euclidean",
    label_weights: Sequence[float] | None = None,
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def contrastive_loss(
    embeddings: ArrayLike | None,
    labels: LabelColumns | None,
    *,
    pos_margin: ScalarLike = 0.0,
    neg_margin: ScalarLike = 1.0,
    power: Literal[1, 2] = 2,
    distance: Distance = "euclidean",
    label_weights: Sequence[float] | None = None,
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def contrastive_loss(
    embeddings: ArrayLike | None,
    labels: LabelColumns | None,
    *,
    pos_margin: ScalarLike = 0.0,
    neg_margin: ScalarLike = 1.0,
    power: Literal[1, 2] = 2,
    distance: Distance = "euclidean",
    label_weights: Sequence[float] | None = None,
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def intra_pair_variance_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    pos_eps: LimitedScalar = 0.01,
    neg_eps: LimitedScalar = 0.01,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def intra_pair_variance_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    pos_eps: LimitedScalar = 0.01,
    neg_eps: LimitedScalar = 0.01,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def intra_pair_variance_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    pos_eps: LimitedScalar = 0.01,
    neg_eps: LimitedScalar = 0.01,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def margin_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    beta: ClassScalars = 1.2,
    *,
    margin: LimitedScalar = 0.2,
    nu: LimitedScalar = 0.0,
    distance: Distance = "euclidean",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def margin_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    beta: ClassScalars = 1.2,
    *,
    margin: LimitedScalar = 0.2,
    nu: LimitedScalar = 0.0,
    distance: Distance = "euclidean",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def margin_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    beta: ClassScalars = 1.2,
    *,
    margin: LimitedScalar = 0.2,
    nu: LimitedScalar = 0.0,
    distance: Distance = "euclidean",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def ranked_list_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    margin: LimitedScalar = 0.4,
    alpha: ScalarLike | None = None,
    pos_temperature: LimitedScalar = 0.0,
    neg_temperature: LimitedScalar = 10.0,
    neg_weight: LimitedScalar = 0.5,
    distance: Distance = "euclidean",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def ranked_list_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    margin: LimitedScalar = 0.4,
    alpha: ScalarLike | None = None,
    pos_temperature: LimitedScalar = 0.0,
    neg_temperature: LimitedScalar = 10.0,
    neg_weight: LimitedScalar = 0.5,
    distance: Distance = "euclidean",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def ranked_list_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    margin: LimitedScalar = 0.4,
    alpha: ScalarLike | None = None,
    pos_temperature: LimitedScalar = 0.0,
    neg_temperature: LimitedScalar = 10.0,
    neg_weight: LimitedScalar = 0.5,
    distance: Distance = "euclidean",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def siglip_loss(
    embeddings: ArrayLike | None,
    labels: LabelColumns | None,
    *,
    scale: PositiveScalar = 10.0,
    bias: ScalarLike = -10.0,
    similarity: Similarity = "cosine",
    label_weights: Sequence[float] | None = None,
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def siglip_loss(
    embeddings: ArrayLike | None,
    labels: LabelColumns | None,
    *,
    scale: PositiveScalar = 10.0,
    bias: ScalarLike = -10.0,
    similarity: Similarity = "cosine",
    label_weights: Sequence[float] | None = None,
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def siglip_loss(
    embeddings: ArrayLike | None,
    labels: LabelColumns | None,
    *,
    scale: PositiveScalar = 10.0,
    bias: ScalarLike = -10.0,
    similarity: Similarity = "cosine",
    label_weights: Sequence[float] | None = None,
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def snr_contrastive_loss(
    embeddings: ArrayLike,
    labels: LabelColumns | None,
    *,
    pos_margin: ScalarLike = 0.0,
    neg_margin: ScalarLike = 1.0,
    zero_mean: LimitedScalar = 0.0,
    label_weights: Sequence[float] | None = None,
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def snr_contrastive_loss(
    embeddings: ArrayLike,
    labels: LabelColumns | None,
    *,
    pos_margin: ScalarLike = 0.0,
    neg_margin: ScalarLike = 1.0,
    zero_mean: LimitedScalar = 0.0,
    label_weights: Sequence[float] | None = None,
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def snr_contrastive_loss(
    embeddings: ArrayLike,
    labels: LabelColumns | None,
    *,
    pos_margin: ScalarLike = 0.0,
    neg_margin: ScalarLike = 1.0,
    zero_mean: LimitedScalar = 0.0,
    label_weights: Sequence[float] | None = None,
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def threshold_consistent_margin_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    pos_margin: ScalarLike = 0.9,
    neg_margin: ScalarLike = 0.5,
    pos_weight: LimitedScalar = 1.0,
    neg_weight: LimitedScalar = 1.0,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def threshold_consistent_margin_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    pos_margin: ScalarLike = 0.9,
    neg_margin: ScalarLike = 0.5,
    pos_weight: LimitedScalar = 1.0,
    neg_weight: LimitedScalar = 1.0,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def threshold_consistent_margin_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    pos_margin: ScalarLike = 0.9,
    neg_margin: ScalarLike = 0.5,
    pos_weight: LimitedScalar = 1.0,
    neg_weight: LimitedScalar = 1.0,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def center_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    centers: ClassProxies,
    *,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def center_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    centers: ClassProxies,
    *,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def center_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    centers: ClassProxies,
    *,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def manifold_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: Annotated[ArrayLike, "[C, D]"],
    *,
    context_weight: LimitedScalar = 1.0,
    alpha: LimitedScalar = 0.8,
    margin: ScalarLike = 0.0005,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def manifold_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: Annotated[ArrayLike, "[C, D]"],
    *,
    context_weight: LimitedScalar = 1.0,
    alpha: LimitedScalar = 0.8,
    margin: ScalarLike = 0.0005,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def manifold_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: Annotated[ArrayLike, "[C, D]"],
    *,
    context_weight: LimitedScalar = 1.0,
    alpha: LimitedScalar = 0.8,
    margin: ScalarLike = 0.0005,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def normalized_softmax_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: ClassProxies,
    *,
    scale: PositiveScalar = 20.0,
    margin: ScalarLike = 0.0,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def normalized_softmax_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: ClassProxies,
    *,
    scale: PositiveScalar = 20.0,
    margin: ScalarLike = 0.0,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def normalized_softmax_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: ClassProxies,
    *,
    scale: PositiveScalar = 20.0,
    margin: ScalarLike = 0.0,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def proxy_anchor_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: ClassProxies,
    *,
    scale: PositiveScalar = 32.0,
    margin: ScalarLike = 0.1,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: ReductionToScalar = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def proxy_anchor_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: ClassProxies,
    *,
    scale: PositiveScalar = 32.0,
    margin: ScalarLike = 0.1,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: ReductionToScalar = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def proxy_anchor_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: ClassProxies,
    *,
    scale: PositiveScalar = 32.0,
    margin: ScalarLike = 0.1,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: ReductionToScalar = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def proxy_nca_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: ClassProxies,
    *,
    temperature: PositiveScalar = 1.0,
    positive_in_denominator: bool = False,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def proxy_nca_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: ClassProxies,
    *,
    temperature: PositiveScalar = 1.0,
    positive_in_denominator: bool = False,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def proxy_nca_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: ClassProxies,
    *,
    temperature: PositiveScalar = 1.0,
    positive_in_denominator: bool = False,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def anchored_quadruplet_loss(
    key: jax.Array,
    embeddings: ArrayLike,
    labels: LabelColumns,
    *,
    num_anchors: int,
    margin: ScalarLike = 0.1,
    agreement: Agreement = "count",
    balance: Balance = "quadruplets",
    label_weights: Sequence[float] | None = None,
    ordinal: Sequence[int | None] | None = None,
    axis_name: str | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: ReductionToScalar = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def anchored_quadruplet_loss(
    key: jax.Array,
    embeddings: ArrayLike,
    labels: LabelColumns,
    *,
    num_anchors: int,
    margin: ScalarLike = 0.1,
    agreement: Agreement = "count",
    balance: Balance = "quadruplets",
    label_weights: Sequence[float] | None = None,
    ordinal: Sequence[int | None] | None = None,
    axis_name: str | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: ReductionToScalar = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def anchored_quadruplet_loss(
    key: jax.Array,
    embeddings: ArrayLike,
    labels: LabelColumns,
    *,
    num_anchors: int,
    margin: ScalarLike = 0.1,
    agreement: Agreement = "count",
    balance: Balance = "quadruplets",
    label_weights: Sequence[float] | None = None,
    ordinal: Sequence[int | None] | None = None,
    axis_name: str | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: ReductionToScalar = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def quadruplet_loss(
    embeddings: ArrayLike,
    labels: LabelColumns,
    *,
    margin: ScalarLike = 0.1,
    agreement: Agreement = "count",
    self_pairs: bool = False,
    balance: Balance = "quadruplets",
    label_weights: Sequence[float] | None = None,
    ordinal: Sequence[int | None] | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: ReductionToScalar = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def quadruplet_loss(
    embeddings: ArrayLike,
    labels: LabelColumns,
    *,
    margin: ScalarLike = 0.1,
    agreement: Agreement = "count",
    self_pairs: bool = False,
    balance: Balance = "quadruplets",
    label_weights: Sequence[float] | None = None,
    ordinal: Sequence[int | None] | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: ReductionToScalar = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def quadruplet_loss(
    embeddings: ArrayLike,
    labels: LabelColumns,
    *,
    margin: ScalarLike = 0.1,
    agreement: Agreement = "count",
    self_pairs: bool = False,
    balance: Balance = "quadruplets",
    label_weights: Sequence[float] | None = None,
    ordinal: Sequence[int | None] | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: ReductionToScalar = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def sampled_quadruplet_loss(
    key: jax.Array,
    embeddings: ArrayLike,
    labels: LabelColumns,
    *,
    num_quadruplets: int,
    margin: ScalarLike = 0.1,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def sampled_quadruplet_loss(
    key: jax.Array,
    embeddings: ArrayLike,
    labels: LabelColumns,
    *,
    num_quadruplets: int,
    margin: ScalarLike = 0.1,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def sampled_quadruplet_loss(
    key: jax.Array,
    embeddings: ArrayLike,
    labels: LabelColumns,
    *,
    num_quadruplets: int,
    margin: ScalarLike = 0.1,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def fast_ap_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    num_bins: int = 10,
    distance: Distance = "squared_euclidean",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def fast_ap_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    num_bins: int = 10,
    distance: Distance = "squared_euclidean",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def fast_ap_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    num_bins: int = 10,
    distance: Distance = "squared_euclidean",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def histogram_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    num_bins: int = 100,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def histogram_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    num_bins: int = 100,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def histogram_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    num_bins: int = 100,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def pnp_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    variant: PnpVariant = "O",
    alpha: PositiveScalar = 1.0,
    b: PositiveScalar = 2.0,
    temperature: PositiveScalar = 0.01,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def pnp_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    variant: PnpVariant = "O",
    alpha: PositiveScalar = 1.0,
    b: PositiveScalar = 2.0,
    temperature: PositiveScalar = 0.01,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def pnp_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    variant: PnpVariant = "O",
    alpha: PositiveScalar = 1.0,
    b: PositiveScalar = 2.0,
    temperature: PositiveScalar = 0.01,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def recall_at_k_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    ks: Sequence[int] = (1, 2, 4, 8, 16),
    temperature: PositiveScalar = 0.01,
    rank_temperature: PositiveScalar = 1.0,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def recall_at_k_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    ks: Sequence[int] = (1, 2, 4, 8, 16),
    temperature: PositiveScalar = 0.01,
    rank_temperature: PositiveScalar = 1.0,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def recall_at_k_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    ks: Sequence[int] = (1, 2, 4, 8, 16),
    temperature: PositiveScalar = 0.01,
    rank_temperature: PositiveScalar = 1.0,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def smooth_ap_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    temperature: PositiveScalar = 0.01,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def smooth_ap_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    temperature: PositiveScalar = 0.01,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def smooth_ap_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    temperature: PositiveScalar = 0.01,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def hard_triple_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    centers: ClassCenters,
    *,
    scale: PositiveScalar = 20.0,
    margin: ScalarLike = 0.01,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def hard_triple_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    centers: ClassCenters,
    *,
    scale: PositiveScalar = 20.0,
    margin: ScalarLike = 0.01,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def hard_triple_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    centers: ClassCenters,
    *,
    scale: PositiveScalar = 20.0,
    margin: ScalarLike = 0.01,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def soft_triple_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    centers: ClassCenters,
    *,
    scale: PositiveScalar = 20.0,
    gamma: PositiveScalar = 0.1,
    margin: ScalarLike = 0.01,
    tau: LimitedScalar = 0.2,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def soft_triple_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    centers: ClassCenters,
    *,
    scale: PositiveScalar = 20.0,
    gamma: PositiveScalar = 0.1,
    margin: ScalarLike = 0.01,
    tau: LimitedScalar = 0.2,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def soft_triple_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    centers: ClassCenters,
    *,
    scale: PositiveScalar = 20.0,
    gamma: PositiveScalar = 0.1,
    margin: ScalarLike = 0.01,
    tau: LimitedScalar = 0.2,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def angular_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    angle: LimitedScalar = ...,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def angular_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    angle: LimitedScalar = ...,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def angular_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    angle: LimitedScalar = ...,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def centroid_triplet_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    *,
    margin: ScalarLike = 0.5,
    mining: HardOrAll = "hard",
    distance: DistanceName | PairwiseFunction = "squared_euclidean",
    references: References | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def centroid_triplet_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    *,
    margin: ScalarLike = 0.5,
    mining: HardOrAll = "hard",
    distance: DistanceName | PairwiseFunction = "squared_euclidean",
    references: References | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def centroid_triplet_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    *,
    margin: ScalarLike = 0.5,
    mining: HardOrAll = "hard",
    distance: DistanceName | PairwiseFunction = "squared_euclidean",
    references: References | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def chen_quadruplet_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels,
    *,
    margin: ScalarLike = 1.0,
    second_margin: ScalarLike = 0.5,
    distance: Distance = "squared_euclidean",
    references: References | None = None,
    pairs: jax.Array | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: ReductionToScalar = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def chen_quadruplet_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels,
    *,
    margin: ScalarLike = 1.0,
    second_margin: ScalarLike = 0.5,
    distance: Distance = "squared_euclidean",
    references: References | None = None,
    pairs: jax.Array | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: ReductionToScalar = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def chen_quadruplet_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels,
    *,
    margin: ScalarLike = 1.0,
    second_margin: ScalarLike = 0.5,
    distance: Distance = "squared_euclidean",
    references: References | None = None,
    pairs: jax.Array | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: ReductionToScalar = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def dynamic_soft_margin_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    histogram: ArrayLike | None = None,
    momentum: LimitedScalar = 0.01,
    num_bins: int = 512,
    largest: PositiveScalar = 2.0,
    mining: HardOrAll = "hard",
    distance: Distance = "euclidean",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def dynamic_soft_margin_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    histogram: ArrayLike | None = None,
    momentum: LimitedScalar = 0.01,
    num_bins: int = 512,
    largest: PositiveScalar = 2.0,
    mining: HardOrAll = "hard",
    distance: Distance = "euclidean",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, DynamicMarginStats]: ...
@overload
def dynamic_soft_margin_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    histogram: ArrayLike | None = None,
    momentum: LimitedScalar = 0.01,
    num_bins: int = 512,
    largest: PositiveScalar = 2.0,
    mining: HardOrAll = "hard",
    distance: Distance = "euclidean",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, DynamicMarginStats]: ...
@overload
def triplet_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    margin: ScalarLike = 0.2,
    mining: Mining = "all",
    soft_margin: bool = False,
    swap: bool = False,
    distance: Distance = "squared_euclidean",
    references: References | None = None,
    triplets: ArrayLike | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def triplet_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    margin: ScalarLike = 0.2,
    mining: Mining = "all",
    soft_margin: bool = False,
    swap: bool = False,
    distance: Distance = "squared_euclidean",
    references: References | None = None,
    triplets: ArrayLike | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def triplet_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    margin: ScalarLike = 0.2,
    mining: Mining = "all",
    soft_margin: bool = False,
    swap: bool = False,
    distance: Distance = "squared_euclidean",
    references: References | None = None,
    triplets: ArrayLike | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
@overload
def vicreg_loss(
    embeddings: ArrayLike,
    other: ArrayLike,
    *,
    invariance: LimitedScalar = 25.0,
    variance: LimitedScalar = 25.0,
    covariance: LimitedScalar = 1.0,
    eps: LimitedScalar = 0.0001,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: ReductionToScalar = "mean",
    has_aux: Literal[False] = False,
) -> jax.Array: ...
@overload
def vicreg_loss(
    embeddings: ArrayLike,
    other: ArrayLike,
    *,
    invariance: LimitedScalar = 25.0,
    variance: LimitedScalar = 25.0,
    covariance: LimitedScalar = 1.0,
    eps: LimitedScalar = 0.0001,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: ReductionToScalar = "mean",
    has_aux: Literal[True],
) -> tuple[jax.Array, LossStats]: ...
@overload
def vicreg_loss(
    embeddings: ArrayLike,
    other: ArrayLike,
    *,
    invariance: LimitedScalar = 25.0,
    variance: LimitedScalar = 25.0,
    covariance: LimitedScalar = 1.0,
    eps: LimitedScalar = 0.0001,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: ReductionToScalar = "mean",
    has_aux: bool,
) -> jax.Array | tuple[jax.Array, LossStats]: ...
