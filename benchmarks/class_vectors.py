"""Compares class-vector losses with pytorch-metric-learning, and times SoftTriple with 100,000 classes, in chunks.

`python -m benchmarks.class_vectors`
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxmetric
from benchmarks.measure import HAVE_PEERS, Candidate, compare, compiled, print_environment, torch_step

DIM = 128
# Batch and classes: 8 images of each class, and many more classes than images.
SMALL, LARGE = ((256, 32), (1024, 128)), ((128, 1000), (128, 11_318))


class Rival(NamedTuple):
    """A loss and its counterpart in PML: name, options, and the attribute with the class vectors."""

    loss: Callable[..., Any]
    name: str
    options: dict[str, Any]
    vectors: str = "W"
    num_centers: int | None = None
    factor: Callable[[int], float] = lambda num_classes: 1.0  # PML's value divided by ours


RIVALS = (
    Rival(
        partial(jaxmetric.soft_triple_loss, tau=0.0),
        "SoftTripleLoss",
        {"centers_per_class": 10, "la": 20, "gamma": 0.1, "margin": 0.01},
        vectors="fc",
        num_centers=10,
    ),
    Rival(jaxmetric.proxy_anchor_loss, "ProxyAnchorLoss", {"margin": 0.1, "alpha": 32}, vectors="proxies"),
    Rival(partial(jaxmetric.arcface_loss, margin=math.radians(28.6)), "ArcFaceLoss", {"margin": 28.6, "scale": 64}),
    Rival(
        partial(jaxmetric.sub_center_arcface_loss, margin=math.radians(28.6)),
        "SubCenterArcFaceLoss",
        {"margin": 28.6, "scale": 64, "sub_centers": 3},
        num_centers=3,
    ),
    Rival(jaxmetric.cosface_loss, "CosFaceLoss", {"margin": 0.35, "scale": 64}),
    Rival(jaxmetric.sphereface_loss, "SphereFaceLoss", {"margin": 4, "scale": 1}),
    Rival(jaxmetric.large_margin_softmax_loss, "LargeMarginSoftmaxLoss", {"margin": 4, "scale": 1}),
    Rival(jaxmetric.normalized_softmax_loss, "NormalizedSoftmaxLoss", {"temperature": 0.05}),
    Rival(
        partial(jaxmetric.proxy_nca_loss, positive_in_denominator=True),
        "ProxyNCALoss",
        {"softmax_scale": 1},
        vectors="proxies",
    ),
    Rival(jaxmetric.p2sgrad_loss, "P2SGradLoss", {}, vectors="weight", factor=lambda num_classes: 2 / num_classes),
)


def example(batch: int, num_classes: int, num_centers: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(batch, DIM))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    vectors = np.asarray(jaxmetric.init_centers(jax.random.key(0), num_classes, num_centers or 1, DIM))
    # Of norm 1, as one of the losses expects.
    vectors = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    labels = np.arange(batch) // 8 if batch == 8 * num_classes else rng.integers(0, num_classes, batch)
    return embeddings.astype(np.float32), labels.astype(np.int32), vectors if num_centers else vectors[:, 0]


def in_torch(
    rival: Rival, embeddings: np.ndarray, labels: np.ndarray, vectors: np.ndarray, regularizer: float = 0.0
) -> Candidate:
    import torch
    from pytorch_metric_learning import losses, regularizers

    num_classes = vectors.shape[0]
    options = dict(rival.options)
    if regularizer:
        options["weight_regularizer"] = regularizers.SparseCentersRegularizer(num_classes, rival.num_centers)
        options["weight_reg_weight"] = regularizer
    size = {"descriptors_dim" if rival.name == "P2SGradLoss" else "embedding_size": DIM}
    loss = getattr(losses, rival.name)(num_classes=num_classes, **size, **options)
    rows = torch.tensor(vectors.reshape(-1, DIM))
    parameter = getattr(loss, rival.vectors)
    parameter.data = rows if rival.vectors == "proxies" else rows.T.contiguous()
    x, y = torch.tensor(embeddings, requires_grad=True), torch.tensor(labels, dtype=torch.int64)
    return torch_step(f"pytorch-metric-learning, {rival.name}", lambda: loss(x, y), [x, parameter])


def beside_the_peer(rival: Rival, batch: int, num_classes: int, tau: float | None = None) -> None:
    arguments = example(batch, num_classes, rival.num_centers)
    loss = rival.loss if tau is None else partial(rival.loss, tau=tau)
    name = getattr(loss, "func", loss).__name__
    candidates = [compiled(name, jax.value_and_grad(loss, argnums=(0, 2)), *arguments)]
    if HAVE_PEERS:
        candidates.append(in_torch(rival, *arguments, regularizer=tau or 0.0))
        ours, theirs = (candidate.run() for candidate in candidates)
        # Check that the values are equal before timing.
        np.testing.assert_allclose(rival.factor(num_classes) * ours[0], theirs, rtol=1e-4)
    centers = f", K = {rival.num_centers}" if rival.num_centers else ""
    regularizer = "" if tau is None else f", tau = {tau:g}"
    compare(f"{name}{regularizer}: B = {batch}, C = {num_classes}{centers}, D = {DIM}", candidates)


def many_classes() -> None:
    """Times SoftTriple with K = 10 centers for each of 100,000 classes: 256 MB of centers, and as many of gradients."""
    batch, num_classes, dim = 128, 100_000, 64
    keys = jax.random.split(jax.random.key(0), 3)
    centers = jaxmetric.init_centers(keys[0], num_classes, 10, dim)
    embeddings = jax.random.normal(keys[1], (batch, dim))
    embeddings /= jax.numpy.linalg.norm(embeddings, axis=1, keepdims=True)
    labels = jax.random.randint(keys[2], (batch,), 0, num_classes)
    candidates = []
    for tau in (0.0, 0.2):
        loss = jax.value_and_grad(partial(jaxmetric.soft_triple_loss, tau=tau), argnums=(0, 2))
        candidates.append(compiled(f"soft_triple_loss, tau = {tau:g}", loss, embeddings, labels, centers))
    compare(f"SoftTriple, {centers.nbytes / 1e6:.0f} MB of centers: B = 128, C = 100000, K = 10, D = 64", candidates)


def main() -> None:
    soft_triple = RIVALS[0]
    beside_the_peer(soft_triple, *LARGE[0], tau=0.2)
    for rival in RIVALS[:3]:
        for sizes in LARGE:
            beside_the_peer(rival, *sizes)
    for rival in RIVALS:
        for sizes in SMALL:
            beside_the_peer(rival, *sizes)
    many_classes()


if __name__ == "__main__":
    print_environment()
    main()
