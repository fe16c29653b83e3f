"""Semantic coherence: how well distances between embeddings follow the number of labels on which pairs disagree.

`semantic_coherence` computes `spearman` over pairs of embeddings and over centroids of distinct label rows, and the
distribution of distances for each number of agreeing labels. Rows with a missing label are excluded, since their
disagreement with other rows is not known.
"""

from typing import Any

import jax
import numpy as np

from jaxmetric._host_distances import all_distances, pair_distances
from jaxmetric.metrics.checks import check_labels
from jaxmetric.search import check_count, check_embeddings, host_array

_PAIRS_AT_A_TIME = 4_096


def semantic_coherence(
    embeddings: jax.Array | np.ndarray,
    labels: jax.Array | np.ndarray,
    *,
    max_pairs: int = 4_500_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure how well squared Euclidean distance follows label disagreement.

    Args:
      embeddings: `[N, D]`.
      labels: `[N, T]` integers, -1 where missing.
      max_pairs: largest number of pairs (the default is enough for 3,000 rows). If there are more, this many random
        pairs are used.
      seed: seed of the random pairs.

    Returns:
      A dict:
        * "spearman": Spearman's rank correlation between the distance of two rows and the number of labels on which
          they disagree (1 is perfect coherence); None if either is constant.
        * "centroid_spearman": the same for the centroids of distinct label rows.
        * "pairs": the number of pairs in "spearman".
        * "by_agreement": for 0 to T agreeing labels, {"agreement", "pairs", "mean", "std", "p10", "p50", "p90"} of the
          squared distances; None if there are no pairs.

    Raises:
      ValueError: if shapes do not fit, an embedding is not finite or a label is below -1.
      TypeError: if labels are not integers.

    Example:
      >>> import numpy as np
      >>> labels = np.array([[0, 0], [0, 0], [0, 1], [1, 2]])
      >>> result = semantic_coherence(np.array([[0.0], [0.1], [1.0], [2.5]]), labels)
      >>> round(result["spearman"], 2), result["pairs"], [row["pairs"] for row in result["by_agreement"]]
      (0.93, 6, [3, 2, 1])
    """
    embeddings = check_embeddings("embeddings", embeddings)
    labels = check_labels("labels", labels, len(embeddings))
    max_pairs = check_count("max_pairs", max_pairs)
    complete = (labels >= 0).all(axis=1)
    embeddings, labels = embeddings[complete], labels[complete]
    distances, agreement = _pairs(embeddings, labels, max_pairs, seed)
    centroid_distances, centroid_agreement = _pairs(*_centroids(embeddings, labels), max_pairs, seed)
    return {
        "spearman": spearman(distances, -agreement),
        "centroid_spearman": spearman(centroid_distances, -centroid_agreement),
        "pairs": len(distances),
        "by_agreement": [
            {"agreement": level, **_distribution(distances[agreement == level])} for level in range(labels.shape[1] + 1)
        ],
    }


def spearman(x: np.ndarray, y: np.ndarray) -> float | None:
    """Compute Spearman's rank correlation of two vectors, in [-1, 1]. Tied values get the mean of their ranks.

    Returns None if there are fewer than two pairs or one of the vectors is constant.

    Example:
      >>> round(spearman(np.array([1.0, 2.0, 3.0]), np.array([5, 5, 9])), 3)
      0.866
    """
    x, y = host_array("x", x), host_array("y", y)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"x and y have shapes {x.shape} and {y.shape}, expected two vectors of one length")
    if len(x) < 2:
        return None
    x, y = (ranks - ranks.mean() for ranks in (_average_ranks(x), _average_ranks(y)))
    scale = np.sqrt((x @ x) * (y @ y))
    return float(np.clip((x @ y) / scale, -1, 1)) if scale > 0 else None


def _average_ranks(x: np.ndarray) -> np.ndarray:
    order = np.argsort(x)
    ordered = x[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    ties = np.diff(np.append(first, len(x)))
    ranks = np.empty(len(x))
    ranks[order] = np.repeat(first + (ties - 1) / 2, ties)
    return ranks


def _pairs(embeddings: np.ndarray, labels: np.ndarray, max_pairs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return squared distances and agreements of all pairs of distinct rows, or of `max_pairs` random ones."""
    size = len(embeddings)
    if size < 2:
        return np.zeros(0), np.zeros(0, int)
    if size * (size - 1) // 2 <= max_pairs:
        first, second = np.triu_indices(size, k=1)
        distances = all_distances(embeddings)[first, second]
    else:
        rng = np.random.default_rng(seed)
        first = rng.integers(0, size, max_pairs)
        second = (first + rng.integers(1, size, max_pairs)) % size
        distances = np.empty(max_pairs)
        for start in range(0, max_pairs, _PAIRS_AT_A_TIME):
            some = slice(start, start + _PAIRS_AT_A_TIME)
            distances[some] = pair_distances("squared_euclidean", embeddings[first[some]], embeddings[second[some]])
    agreement = sum(column[first] == column[second] for column in labels.T)
    return distances, np.asarray(agreement)


def _centroids(embeddings: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean embedding of each distinct label row, and those rows."""
    rows, inverse, counts = np.unique(labels, axis=0, return_inverse=True, return_counts=True)
    sums = np.zeros((len(rows), embeddings.shape[1]))
    np.add.at(sums, inverse, embeddings)
    return sums / counts[:, None], rows


def _distribution(distances: np.ndarray) -> dict[str, Any]:
    names = ("mean", "std", "p10", "p50", "p90")
    if not len(distances):
        return {"pairs": 0, **dict.fromkeys(names)}
    quantiles = np.quantile(distances, [0.1, 0.5, 0.9])
    numbers = (distances.mean(dtype=float), distances.std(dtype=float), *quantiles)
    return {"pairs": len(distances), **dict(zip(names, map(float, numbers), strict=True))}
