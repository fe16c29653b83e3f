"""Compares all losses over the pairs of a batch with those of pytorch-metric-learning, value and gradient.

`python -m benchmarks.losses [name ...]`
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxmetric
from benchmarks.measure import HAVE_PEERS, Candidate, compiled, measure, megabytes, print_environment, torch_step

DIM, PER_CLASS, BATCHES = 128, 8, (256, 1024)
MOST_MEMORY = 12e9  # bytes; PML losses that need more are skipped


class Entry(NamedTuple):
    """A loss and its counterpart in PML.

    Attributes:
      ours: `(embeddings, labels, class vectors)` to a scalar; most ignore class vectors.
      theirs: makes PML's loss, `(embeddings, labels)` to a scalar, from its module `losses` and the number of
        classes; None if there is no counterpart.
    """

    ours: Callable[[jax.Array, jax.Array, jax.Array], Any]
    theirs: Callable[[Any, int], Any] | None


def of(loss: Callable[..., Any], theirs: str | None, **hyper_parameters: Any) -> Entry:
    """Makes an entry of a loss of embeddings and labels and a PML loss without arguments."""
    return Entry(
        lambda x, y, vectors: loss(x, y, **hyper_parameters),
        None if theirs is None else lambda losses, classes: getattr(losses, theirs)(),
    )


def example(batch: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    centers = np.repeat(rng.normal(size=(batch // PER_CLASS, DIM)), PER_CLASS, axis=0)
    embeddings = centers + 1.5 * rng.normal(size=(batch, DIM))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings.astype(np.float32), np.repeat(np.arange(batch // PER_CLASS, dtype=np.int32), PER_CLASS)


def in_a_batch(loss: Any) -> Callable[[Any, Any], Any]:
    """Makes a PML loss that takes no labels."""
    return lambda x, y: loss(x)


def candidates(name: str, entry: Entry, batch: int) -> list[Candidate]:
    embeddings, labels = example(batch)
    vectors = np.random.default_rng(1).normal(size=(batch // PER_CLASS, DIM)).astype(np.float32)
    found = [compiled(name, jax.value_and_grad(entry.ours, argnums=(0, 2)), embeddings, labels, vectors)]
    if HAVE_PEERS and entry.theirs is not None:
        found.append(in_torch(name, batch))
    return found


def in_torch(name: str, batch: int) -> Candidate:
    """Returns the PML loss of an entry, on the default device of PyTorch."""
    import torch
    from pytorch_metric_learning import losses

    theirs = ENTRIES[name].theirs
    assert theirs
    loss = theirs(losses, batch // PER_CLASS)
    x, y = (torch.tensor(array) for array in example(batch))
    x.requires_grad_()
    learned = loss.parameters() if isinstance(loss, torch.nn.Module) else ()
    return torch_step(f"pytorch-metric-learning, {name}", lambda: loss(x, y), [x, *learned])


def main(names: Sequence[str] = ()) -> None:
    print(f"\nLosses over pairs, value and gradient, D = {DIM}, {PER_CLASS} images a class, and their namesakes in PML")
    columns = f"{'temporary':>12}{'/ 4 B^2':>9}{'PML memory':>12}{'compile':>9}"
    print(f"{'':36}{'B':>5}{'ours':>11}{'PML':>12}{'ratio':>9}{columns}")
    for name, entry in ENTRIES.items():
        if names and name not in names:
            continue
        peer_memory = 0
        for batch in BATCHES:
            both = candidates(name, entry, batch)
            # A PML loss that enumerates triplets needs up to 4^3 times as much memory for a batch 4 times as large.
            too_large = peer_memory * (BATCHES[1] / BATCHES[0]) ** 3 > MOST_MEMORY
            measured = measure(both[:1] if too_large else both, rounds=7, seconds=6)
            peer_memory = (measured[-1].resident or 0) if len(measured) > 1 else 0
            _print_row(name, batch, both[0], measured, too_large)


def _print_row(name: str, batch: int, ours: Candidate, measured: list[Any], too_large: bool) -> None:
    medians = [float(np.median(each.seconds)) for each in measured]
    theirs = f"{1e3 * medians[1]:>9.1f} ms" if len(medians) > 1 else f"{'too large' if too_large else 'none':>12}"
    ratio = f"{medians[1] / medians[0]:>8.1f}x" if len(medians) > 1 else f"{'':>9}"
    resident = megabytes(measured[1].resident) if len(medians) > 1 else ""
    temporary = ours.temporary or 0
    print(
        f"  {name:34}{batch:>5}{1e3 * medians[0]:>8.1f} ms{theirs}{ratio}{megabytes(temporary):>12}"
        f"{temporary / (4 * batch**2):>9.1f}{resident:>12}{ours.compilation or 0:>7.1f} s",
        flush=True,
    )


ENTRIES = {
    "contrastive_loss": of(jaxmetric.contrastive_loss, "ContrastiveLoss", power=1),
    "snr_contrastive_loss": of(jaxmetric.snr_contrastive_loss, "SignalToNoiseRatioContrastiveLoss"),
    "margin_loss": Entry(
        lambda x, y, vectors: jaxmetric.margin_loss(x, y, 1.2), lambda losses, classes: losses.MarginLoss(beta=1.2)
    ),
    "intra_pair_variance_loss": of(jaxmetric.intra_pair_variance_loss, "IntraPairVarianceLoss"),
    "threshold_consistent_margin_loss": of(jaxmetric.threshold_consistent_margin_loss, "ThresholdConsistentMarginLoss"),
    "ranked_list_loss": Entry(
        lambda x, y, vectors: jaxmetric.ranked_list_loss(x, y),
        lambda losses, classes: losses.RankedListLoss(margin=0.4, Tn=5),
    ),
    "siglip_loss": of(jaxmetric.siglip_loss, None),
    "binomial_deviance_loss": of(jaxmetric.binomial_deviance_loss, None),
    "triplet_loss": of(jaxmetric.triplet_loss, "TripletMarginLoss"),
    "triplet_loss, soft_margin": Entry(
        lambda x, y, vectors: jaxmetric.triplet_loss(x, y, soft_margin=True),
        lambda losses, classes: losses.TripletMarginLoss(smooth_loss=True),
    ),
    "triplet_loss, swap": Entry(
        lambda x, y, vectors: jaxmetric.triplet_loss(x, y, swap=True),
        lambda losses, classes: losses.TripletMarginLoss(swap=True),
    ),
    "angular_loss": of(jaxmetric.angular_loss, "AngularLoss"),
    "chen_quadruplet_loss": of(jaxmetric.chen_quadruplet_loss, None),
    "centroid_triplet_loss": of(jaxmetric.centroid_triplet_loss, None),
    # PML's loss differentiates past batches as well, so an object supports only one backward pass.
    "dynamic_soft_margin_loss": Entry(
        lambda x, y, vectors: jaxmetric.dynamic_soft_margin_loss(x, y, mining="all"),
        lambda losses, classes: lambda x, y: losses.DynamicSoftMarginLoss()(x, y),
    ),
    "ntxent_loss": of(jaxmetric.ntxent_loss, "NTXentLoss"),
    "supcon_loss": of(jaxmetric.supcon_loss, "SupConLoss"),
    "n_pairs_loss": of(jaxmetric.n_pairs_loss, "NPairsLoss"),
    "nca_loss": of(jaxmetric.nca_loss, "NCALoss"),
    "instance_loss": of(jaxmetric.instance_loss, "InstanceLoss"),
    "tuplet_margin_loss": of(jaxmetric.tuplet_margin_loss, "TupletMarginLoss"),
    "multi_similarity_loss": of(jaxmetric.multi_similarity_loss, "MultiSimilarityLoss"),
    "circle_loss": of(jaxmetric.circle_loss, "CircleLoss"),
    "lifted_structure_loss": of(jaxmetric.lifted_structure_loss, "LiftedStructureLoss"),
    "generalized_lifted_structure_loss": of(
        jaxmetric.generalized_lifted_structure_loss, "GeneralizedLiftedStructureLoss"
    ),
    "smooth_ap_loss": of(jaxmetric.smooth_ap_loss, "SmoothAPLoss"),
    "pnp_loss": of(jaxmetric.pnp_loss, "PNPLoss"),
    "recall_at_k_loss": of(jaxmetric.recall_at_k_loss, None),
    "fast_ap_loss": of(jaxmetric.fast_ap_loss, "FastAPLoss"),
    "histogram_loss": Entry(
        lambda x, y, vectors: jaxmetric.histogram_loss(x, y),
        lambda losses, classes: losses.HistogramLoss(n_bins=100),
    ),
    "vicreg_loss": Entry(
        lambda x, y, vectors: jaxmetric.vicreg_loss(x, x[::-1]),
        lambda losses, classes: lambda x, y: losses.VICRegLoss()(x, ref_emb=x.flip(0)),
    ),
    "manifold_loss": Entry(
        lambda x, y, vectors: jaxmetric.manifold_loss(x, y, vectors),
        lambda losses, classes: in_a_batch(losses.ManifoldLoss(l=DIM, K=classes)),
    ),
}


if __name__ == "__main__":
    print_environment()
    main(sys.argv[1:])
