"""Retrieval metrics of neighbor lists: Recall@k, Precision@k, R-precision, MAP@R.

`relevance` marks, for one label column, the neighbors that have the query's label, and counts such rows in the gallery.
Each metric computes a `Score` from it, with one value per query. A query whose label is missing, or not in the gallery,
is undefined. Undefined queries are counted and excluded from the mean.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxmetric.metrics.checks import check_label_column, check_neighbors
from jaxmetric.search import check_count, check_exclude, host_array


class Relevance(NamedTuple):
    """The relevance of neighbors to queries.

    Attributes:
      hits: `[Q, K]` booleans, nearest neighbor first.
      counts: `[Q]` numbers of relevant rows in the whole gallery; a query with 0 is undefined.
    """

    hits: np.ndarray
    counts: np.ndarray


class Score(NamedTuple):
    """One value per query.

    Attributes:
      values: `[Q]` floats; 0 if undefined.
      defined: `[Q]` booleans.
    """

    values: np.ndarray
    defined: np.ndarray

    @property
    def mean(self) -> float | None:
        """The mean over the defined queries; None if there are none."""
        return float(self.values[self.defined].mean()) if self.defined.any() else None

    @property
    def queries(self) -> int:
        """The number of defined queries."""
        return int(self.defined.sum())

    @property
    def undefined(self) -> int:
        """The number of undefined queries."""
        return len(self.defined) - self.queries


def join_scores(scores: Sequence[Score]) -> Score:
    """Concatenate the scores of several blocks of queries."""
    return Score(*(np.concatenate(parts) for parts in zip(*scores, strict=True)))


def relevance(
    neighbors: np.ndarray,
    query_labels: np.ndarray,
    gallery_labels: np.ndarray,
    *,
    exclude: jax.Array | np.ndarray | None = None,
) -> Relevance:
    """Mark the neighbors that have the query's label.

    Args:
      neighbors: `[Q, K]` gallery rows, nearest first; -1 means no neighbor and is irrelevant.
      query_labels: `[Q]` integers, -1 where missing.
      gallery_labels: `[G]` integers, -1 where missing.
      exclude: `[Q]` or `[Q, E]`, the gallery rows that the search excluded for each query, or -1 for none.

    Returns:
      A `Relevance`.

    Raises:
      ValueError: if shapes do not fit or a label is below -1.
      TypeError: if labels are not integers.

    Example:
      >>> import numpy as np
      >>> found = relevance(np.array([[2, 0, 1], [0, 1, 2]]), np.array([5, 9]), np.array([5, 5, 7]))
      >>> found.hits.tolist(), found.counts.tolist()
      ([[False, True, True], [False, False, False]], [2, 0])
      >>> recall = recall_at_k(found, 2)
      >>> recall.mean, recall.queries, recall.undefined
      (1.0, 1, 1)
    """
    gallery_labels = check_label_column("gallery_labels", gallery_labels)
    neighbors = check_neighbors(neighbors, len(gallery_labels))
    query_labels = check_label_column("query_labels", query_labels, len(neighbors))
    exclude = check_exclude(exclude, len(neighbors), len(gallery_labels))
    counts = relevant_counts(query_labels, gallery_labels, exclude)
    known = (query_labels >= 0)[:, None] & (neighbors >= 0)
    found = gallery_labels[neighbors] if len(gallery_labels) else neighbors
    return Relevance(known & (found == query_labels[:, None]), counts)


def relevant_counts(query_labels: np.ndarray, gallery_labels: np.ndarray, exclude: np.ndarray) -> np.ndarray:
    """Count the gallery rows `[Q]` that are not excluded and have the query's label; 0 if the label is missing."""
    known = query_labels >= 0
    values, inverse = np.unique(np.concatenate([gallery_labels, query_labels]), return_inverse=True)
    totals = np.bincount(inverse[: len(gallery_labels)], minlength=len(values))
    counts = np.where(known, totals[inverse[len(gallery_labels) :]], 0)
    left_out = known[:, None] & (exclude >= 0) & (gallery_labels[exclude] == query_labels[:, None])
    return counts - left_out.sum(axis=1)


def recall_at_k(relevance: Relevance, k: int) -> Score:
    """Compute Recall@k: 1 if any of the k nearest neighbors is relevant, else 0."""
    return _score(relevance, lambda hits, counts: hits.max(axis=1), k)


def precision_at_k(relevance: Relevance, k: int) -> Score:
    """Compute Precision@k: the share of relevant rows among the k nearest neighbors."""
    return _score(relevance, lambda hits, counts: hits.mean(axis=1), k)


def r_precision(relevance: Relevance) -> Score:
    """Compute R-precision: the share of relevant rows among the R nearest, for R relevant rows in the gallery."""
    return _score(relevance, lambda hits, counts: _first(hits, counts).sum(axis=1) / counts)


def map_at_r(relevance: Relevance) -> Score:
    """Compute MAP@R: `1/R sum_{i <= R} rel(i) precision(i)`, for R relevant rows in the gallery.

    References:
      K. Musgrave, S. Belongie, S.-N. Lim, A Metric Learning Reality Check, ECCV 2020.
    """

    def average_precision(hits: np.ndarray, counts: np.ndarray) -> np.ndarray:
        hits = _first(hits, counts)
        precision = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
        return (precision * hits).sum(axis=1) / counts

    return _score(relevance, average_precision)


def _first(hits: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Keep the hits among each query's first `counts` neighbors."""
    return hits & (np.arange(hits.shape[1]) < counts[:, None])


def _score(
    relevance: Relevance, formula: Callable[[np.ndarray, np.ndarray], np.ndarray], k: int | None = None
) -> Score:
    """Apply a formula of (hits, counts) to the first k (or R) neighbors of the defined queries."""
    hits, counts = host_array("hits", relevance.hits), host_array("counts", relevance.counts)
    defined = counts > 0
    wanted = int(counts.max(initial=0)) if k is None else check_count("k", k)
    if wanted > hits.shape[1]:
        raise ValueError(f"neighbor lists have {hits.shape[1]} entries, {'R' if k is None else 'k'} is {wanted}")
    values = np.zeros(len(hits))
    values[defined] = formula(hits[defined, :wanted], counts[defined])
    return Score(values, defined)
