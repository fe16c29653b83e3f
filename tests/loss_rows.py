"""Every exported loss in one form, one row each: what the conformance suite and the tests on many devices run."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

import jaxmetric

B, T, D, C, K = 10, 2, 4, 3, 2


class Row(NamedTuple):
    """A loss as `call(parameters, embeddings [B, D], labels [B, T], **options)`."""

    loss: Callable[..., Any]
    call: Callable[..., Any]
    parameters: tuple[int, ...] | None = None  # shape of what it learns beside the embeddings
    class_vectors: bool = False  # whether labels index its parameters
    empty: tuple[str, ...] = ("one class", "all distinct")  # batches in which it has nothing to compare
    unreduced: bool = True  # whether it has reduction="none"
    tolerance: float = 1e-5  # of a sampled loss, relative: two draws of the same expectation
    constants_inside: bool = False  # whether its definition takes weights made of the embeddings for constants


def of_columns(loss: Callable[..., Any], *, empty=("one class", "all distinct"), **fixed: Any) -> Row:
    """A loss over `[B, T]` labels."""

    def call(parameters, embeddings, labels, **options):
        return loss(embeddings, labels, **(fixed | options))

    return Row(loss, call, empty=empty)


def of_one_column(loss: Callable[..., Any], *, empty=("one class", "all distinct"), **fixed: Any) -> Row:

    def call(parameters, embeddings, labels, **options):
        return loss(embeddings, labels[:, 0], **(fixed | options))

    return Row(loss, call, empty=empty)


def of_class_vectors(loss: Callable[..., Any], *parameters: int, **fixed: Any) -> Row:
    def call(parameters, embeddings, labels, **options):
        return loss(embeddings, labels[:, 0], parameters, **(fixed | options))

    return Row(loss, call, parameters, class_vectors=True, empty=())


ROWS = {
    "quadruplet": of_columns(jaxmetric.quadruplet_loss)._replace(unreduced=False),
    "sampled quadruplet": Row(
        jaxmetric.sampled_quadruplet_loss,
        lambda parameters, embeddings, labels, **options: jaxmetric.sampled_quadruplet_loss(
            jax.random.key(0), embeddings, labels, num_quadruplets=20_000, **options
        ),
        tolerance=0.05,
    ),
    "anchored quadruplet": Row(
        jaxmetric.anchored_quadruplet_loss,
        lambda parameters, embeddings, labels, **options: jaxmetric.anchored_quadruplet_loss(
            jax.random.key(0), embeddings, labels, num_anchors=max(2, len(embeddings)), **options
        ),
        unreduced=False,
    ),
    "triplet, all": of_one_column(jaxmetric.triplet_loss),
    "triplet, semi-hard": of_one_column(jaxmetric.triplet_loss, mining="semi-hard"),
    "triplet, hard": of_one_column(jaxmetric.triplet_loss, mining="hard"),
    "triplet, soft margin": of_one_column(jaxmetric.triplet_loss, soft_margin=True),
    "triplet, swap": of_one_column(jaxmetric.triplet_loss, swap=True, margin=1.0),
    "angular": of_one_column(jaxmetric.angular_loss),
    "quadruplet of Chen": of_one_column(jaxmetric.chen_quadruplet_loss)._replace(unreduced=False),
    "centroid triplet": of_one_column(jaxmetric.centroid_triplet_loss),
    "dynamic soft margin": of_one_column(jaxmetric.dynamic_soft_margin_loss)._replace(constants_inside=True),
    "contrastive": of_columns(jaxmetric.contrastive_loss, empty=()),
    "SNR contrastive": of_columns(jaxmetric.snr_contrastive_loss, empty=()),
    "sigmoid": of_columns(jaxmetric.siglip_loss, empty=()),
    "margin": Row(
        jaxmetric.margin_loss,
        lambda beta, embeddings, labels, **options: jaxmetric.margin_loss(embeddings, labels[:, 0], beta, **options),
        parameters=(C,),
        class_vectors=True,
        empty=(),
    ),
    "binomial deviance": of_one_column(jaxmetric.binomial_deviance_loss, empty=()),
    "intra-pair variance": of_one_column(jaxmetric.intra_pair_variance_loss, empty=()),
    "threshold-consistent margin": of_one_column(jaxmetric.threshold_consistent_margin_loss, empty=()),
    "ranked list": of_one_column(jaxmetric.ranked_list_loss, empty=())._replace(constants_inside=True),
    "NT-Xent": of_columns(jaxmetric.ntxent_loss),
    "supervised contrastive": of_columns(jaxmetric.supcon_loss),
    "N pairs": of_one_column(jaxmetric.n_pairs_loss),
    "NCA": of_one_column(jaxmetric.nca_loss),
    "instance": of_one_column(jaxmetric.instance_loss, gamma=1.0, empty=("one class",)),
    "tuplet margin": of_one_column(jaxmetric.tuplet_margin_loss),
    "multi-similarity": of_columns(jaxmetric.multi_similarity_loss),
    "circle": of_one_column(jaxmetric.circle_loss)._replace(constants_inside=True),
    "lifted structure": of_one_column(jaxmetric.lifted_structure_loss),
    "generalized lifted structure": of_one_column(jaxmetric.generalized_lifted_structure_loss),
    "smooth AP": of_one_column(jaxmetric.smooth_ap_loss),
    "PNP": of_one_column(jaxmetric.pnp_loss),
    "recall at k": of_one_column(jaxmetric.recall_at_k_loss),
    "fast AP": of_one_column(jaxmetric.fast_ap_loss),
    "histogram": of_one_column(jaxmetric.histogram_loss),
    "hard triple": of_class_vectors(jaxmetric.hard_triple_loss, C, K, D),
    "proxy NCA": of_class_vectors(jaxmetric.proxy_nca_loss, C, D),
    "proxy NCA++": of_class_vectors(jaxmetric.proxy_nca_loss, C, D, positive_in_denominator=True),
    "proxy anchor": of_class_vectors(jaxmetric.proxy_anchor_loss, C, D)._replace(unreduced=False),
    "ArcFace": of_class_vectors(jaxmetric.arcface_loss, C, D),
    "sub-center ArcFace": of_class_vectors(jaxmetric.sub_center_arcface_loss, C, K, D),
    "CosFace": of_class_vectors(jaxmetric.cosface_loss, C, D),
    "SphereFace": of_class_vectors(jaxmetric.sphereface_loss, C, D),
    "large-margin softmax": of_class_vectors(jaxmetric.large_margin_softmax_loss, C, D),
    "P2SGrad": of_class_vectors(jaxmetric.p2sgrad_loss, C, D),
    "center": of_class_vectors(jaxmetric.center_loss, C, D),
    "manifold": of_class_vectors(jaxmetric.manifold_loss, C, D),
    "VICReg": Row(
        jaxmetric.vicreg_loss,
        lambda parameters, embeddings, labels, **options: jaxmetric.vicreg_loss(
            embeddings, -2 * embeddings[..., ::-1], **options
        ),
        empty=(),
        unreduced=False,
    ),
    "soft triple": of_class_vectors(jaxmetric.soft_triple_loss, C, K, D),
    "normalized softmax": of_class_vectors(jaxmetric.normalized_softmax_loss, C, D),
}


# A loss of each engine: what runs for these by default, runs for all in the slow suite.
ONE_OF_EACH_ENGINE = (
    "quadruplet",
    "anchored quadruplet",
    "triplet, swap",
    "smooth AP",
    "contrastive",
    "multi-similarity",
    "supervised contrastive",
    "supervised contrastive, not normalized",
    "proxy anchor",
    "ArcFace",
    "soft triple",
)


def slow_but_for_one_of_each_engine(names: Iterable[str]) -> list[Any]:
    """Parameters of a test, marked slow unless they are in `ONE_OF_EACH_ENGINE`."""
    return [name if name in ONE_OF_EACH_ENGINE else pytest.param(name, marks=pytest.mark.slow) for name in names]


def takes(row: Row, argument: str) -> bool:
    """Whether a loss has this argument."""
    return argument in inspect.signature(row.loss).parameters


def example(name: str, seed: int = 0, batch: int = B) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parameters (an empty array for a loss without), embeddings and labels: `[B, T]` with values below C."""
    rng = np.random.default_rng(seed)
    parameters = rng.normal(size=ROWS[name].parameters or (0,)).astype(np.float32)
    return parameters, rng.normal(size=(batch, D)).astype(np.float32), rng.integers(0, C, (batch, T))
