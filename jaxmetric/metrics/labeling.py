"""Labeling by nearest neighbors: predicts the labels of queries from a labeled gallery.

`label_ranks` counts, per column, the values that are at least as near as the true one; `cumulative_match_curve`
summarizes the ranks. `knn_labels` predicts all columns by the vote of the nearest neighbors. Missing gallery labels
are ignored. A query whose label is missing, or not in the gallery, is undefined.

References:
  H. Proença, E. Yaghoubi, P. Alirezazadeh, A Quadruplet Loss for Enforcing Semantically Coherent Embeddings in
  Multi-output Classification Problems, 2020.
"""

from typing import NamedTuple

import jax
import numpy as np

from jaxmetric._host_distances import DistinctRows, distinct_rows, error_bound, listed_distances, offered_distances
from jaxmetric.metrics.checks import check_labels, check_neighbors, check_same_columns
from jaxmetric.search import check_count, check_pair, host_array

_DISTANCES_AT_A_TIME = 2**22
WEIGHTINGS = ("distance", "uniform")


class LabelRanks(NamedTuple):
    """The rank of the true value of each label.

    Attributes:
      ranks: `[Q, T]` from 1 (the true value is nearest) to `num_values[t]`; 0 if undefined.
      num_values: the number of distinct gallery values in each of the T columns.
    """

    ranks: np.ndarray
    num_values: tuple[int, ...]


def label_ranks(
    queries: jax.Array | np.ndarray,
    gallery: jax.Array | np.ndarray,
    query_labels: jax.Array | np.ndarray,
    gallery_labels: jax.Array | np.ndarray,
    *,
    exclude: jax.Array | np.ndarray | None = None,
    block_size: int = 2048,
) -> LabelRanks:
    """Rank the true value of each label column among all values, by their nearest gallery rows.

    The distance of a value is that of the nearest gallery row with this value. The rank is 1 + the number of other
    values that are as near as the true one or nearer, so ties count as errors.

    Args:
      queries: `[Q, D]` embeddings.
      gallery: `[G, D]` embeddings.
      query_labels: `[Q, T]` integers, -1 where missing.
      gallery_labels: `[G, T]` integers, -1 where missing.
      exclude: `[Q]` or `[Q, E]` integers, the gallery rows that each query must not use (such as itself), or -1.
      block_size: largest number of queries to compare with the gallery at a time.

    Returns:
      A `LabelRanks`.

    Raises:
      ValueError: if shapes do not fit, an embedding is not finite or a label is below -1.
      TypeError: if labels or `exclude` are not integers.

    Example:
      >>> import numpy as np
      >>> gallery, labels = np.array([[0.0], [1.0], [5.0]]), np.array([[7], [7], [3]])
      >>> found = label_ranks(np.array([[4.0], [4.0], [4.0]]), gallery, np.array([[3], [7], [8]]), labels)
      >>> found.ranks.ravel().tolist(), found.num_values
      ([1, 2, 0], (2,))
    """
    queries, gallery, exclude = check_pair(queries, gallery, exclude)
    query_labels = check_labels("query_labels", query_labels, len(queries))
    gallery_labels = check_labels("gallery_labels", gallery_labels, len(gallery))
    check_same_columns(query_labels, gallery_labels)
    block_size = check_count("block_size", block_size)
    ranks = np.zeros(query_labels.shape, np.int32)
    values = [np.unique(column[column >= 0]) for column in gallery_labels.T]
    num_values = tuple(map(len, values))
    if not any(num_values):
        return LabelRanks(ranks, num_values)
    query_codes, gallery_codes = (
        np.stack([_codes(column, known) for column, known in zip(labels.T, values, strict=True)], axis=1)
        for labels in (query_labels, gallery_labels)
    )
    distinct = distinct_rows(gallery, "squared_euclidean")
    step = max(1, min(block_size, _DISTANCES_AT_A_TIME // len(gallery)))
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        distances, lengths = offered_distances(queries[rows], distinct, exclude[rows])
        for t, num in enumerate(num_values):
            ranks[rows, t] = _ranks(
                queries[rows], query_codes[rows, t], distinct, gallery_codes[:, t], num, distances, lengths
            )
    return LabelRanks(ranks, num_values)


def _codes(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the positions of labels in the sorted values, or `len(values)` for other labels."""
    codes = np.searchsorted(values, labels)
    found = np.isin(labels, values)
    return np.where(found, codes, len(values)).astype(np.int32)


def _ranks(
    queries: np.ndarray,
    query_codes: np.ndarray,
    gallery: DistinctRows,
    gallery_codes: np.ndarray,
    num_values: int,
    distances: np.ndarray,
    lengths: np.ndarray,
) -> np.ndarray:
    """Return the ranks `[q]` of one column from approximate `distances` `[q, G]`."""
    order = np.argsort(gallery_codes, kind="stable")
    starts = np.searchsorted(gallery_codes[order], np.arange(num_values))
    order = order[: np.searchsorted(gallery_codes[order], num_values)]
    known = query_codes < num_values
    if not num_values:
        return np.zeros(len(queries), np.int32)

    def nearest(distances: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the distances of the nearest row of each value, `[rows, V]`, and of the true value, `[rows]`."""
        value_distances = np.minimum.reduceat(np.take(distances, order, axis=1), starts, axis=1)
        own = np.take_along_axis(value_distances, np.where(known[rows], query_codes[rows], 0)[:, None], axis=1)[:, 0]
        return value_distances, np.where(known[rows], own, np.inf)

    value_distances, own = nearest(distances, np.arange(len(queries)))
    window = 4 * error_bound(lengths, own, gallery.coordinates.shape[1], float)
    defined = np.isfinite(own)
    within = np.abs(value_distances - np.where(defined, own, -np.inf)[:, None]) <= window[:, None]
    # The true value is always within the window; the rank is in doubt if another value is too.
    doubtful = np.flatnonzero(defined & (within.sum(axis=1) > 1))
    if len(doubtful):
        some = distances[doubtful]
        rows, columns = np.nonzero(np.abs(some - own[doubtful, None]) <= window[doubtful, None])
        some[rows, columns] = listed_distances(queries[doubtful], gallery, rows, columns)
        value_distances[doubtful], own[doubtful] = nearest(some, doubtful)
    return np.where(defined, (value_distances <= own[:, None]).sum(axis=1), 0)


def cumulative_match_curve(ranks: np.ndarray, num_values: int) -> np.ndarray | None:
    """Return the shares of defined queries whose true value has rank 1, at most 2, ..., at most `num_values`.

    The first entry is the rank-1 accuracy, and the mean is the area under the curve.

    Args:
      ranks: `[Q]` ranks of one column from `label_ranks`; 0 is undefined.
      num_values: the number of ranked values.

    Returns:
      The curve, or None if no query is defined.

    Example:
      >>> cumulative_match_curve(np.array([1, 3, 0, 1]), 3).round(2).tolist()
      [0.67, 0.67, 1.0]
    """
    ranks = host_array("ranks", ranks)
    if ranks.ndim != 1 or not np.issubdtype(ranks.dtype, np.integer):
        raise TypeError(f"ranks has shape {ranks.shape} and dtype {ranks.dtype}, expected [Q] integers")
    if ranks.size and not 0 <= ranks.min() <= ranks.max() <= num_values:
        raise ValueError(f"ranks go from {ranks.min()} to {ranks.max()}, expected 0 to num_values, {num_values}")
    ranks = ranks[ranks > 0]
    if not len(ranks):
        return None
    return np.bincount(ranks - 1, minlength=num_values).cumsum() / len(ranks)


def knn_labels(
    distances: np.ndarray, neighbors: np.ndarray, gallery_labels: np.ndarray, *, weighting: str = "distance"
) -> np.ndarray:
    """Predict every label column of each query by the vote of its neighbors.

    If values have equal votes, the one with the nearest voter wins.

    Args:
      distances: `[Q, k]`, ascending.
      neighbors: `[Q, k]` gallery rows; -1 means no neighbor and does not vote.
      gallery_labels: `[G, T]` integers; -1 means missing and does not vote.
      weighting: "distance" weights votes by 1 / distance, so that neighbors at distance 0 outvote all others;
        "uniform" gives each neighbor one vote.

    Returns:
      `[Q, T]` predicted labels, -1 where no neighbor's label is known.

    Raises:
      ValueError: if shapes do not fit or the weighting is unknown.

    Example:
      >>> import numpy as np
      >>> labels = np.array([[0, 4], [1, 4], [1, -1]])
      >>> knn_labels(np.array([[1.0, 3.0, 4.0]]), np.array([[0, 1, 2]]), labels).tolist()
      [[0, 4]]
      >>> knn_labels(np.array([[1.0, 3.0, 4.0]]), np.array([[0, 1, 2]]), labels, weighting="uniform").tolist()
      [[1, 4]]
    """
    distances, neighbors = host_array("distances", distances), host_array("neighbors", neighbors)
    if neighbors.ndim != 2 or neighbors.shape[1] == 0 or distances.shape != neighbors.shape:
        raise ValueError(
            f"distances and neighbors have shapes {distances.shape} and {neighbors.shape}, expected both [Q, k]"
        )
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting is {weighting!r}, expected one of {', '.join(WEIGHTINGS)}")
    if np.isnan(distances).any() or distances.min(initial=0) < 0:
        raise ValueError("distances has NaN or negative values, expected numbers from 0")
    gallery_labels = check_labels("gallery_labels", gallery_labels, len(host_array("gallery_labels", gallery_labels)))
    neighbors = check_neighbors(neighbors, len(gallery_labels))
    labels = np.where(neighbors[..., None] >= 0, gallery_labels[neighbors], -1)
    columns = [_vote(distances, labels[..., t], weighting) for t in range(labels.shape[2])]
    return np.stack(columns, axis=1)


def _vote(distances: np.ndarray, labels: np.ndarray, weighting: str) -> np.ndarray:
    voting = labels >= 0
    weights = voting.astype(float)
    if weighting == "distance":
        # Dividing by the weight of the nearest voter keeps all weights finite and does not change the winner.
        nearest = np.min(distances, axis=1, initial=np.inf, where=voting)[:, None]
        at_zero = weights * (distances == 0)
        weights = np.divide(nearest, distances, out=at_zero, where=voting & (distances > 0))
    votes = np.zeros(labels.shape)
    for voter in range(labels.shape[1]):
        votes += weights[:, voter, None] * (labels == labels[:, voter, None])
    return np.take_along_axis(labels, votes.argmax(axis=1)[:, None], axis=1)[:, 0]
