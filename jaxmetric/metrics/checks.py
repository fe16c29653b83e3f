"""Checks the labels and neighbors passed to metrics, with one-line errors."""

from typing import Any

import numpy as np

from jaxmetric.search import host_array, host_integers


def check_labels(name: str, labels: Any, num_rows: int) -> np.ndarray:
    """Return labels `[num_rows, T]`, -1 where missing, as int64 on the host."""
    labels = host_integers(name, labels)
    if labels.ndim != 2 or labels.shape[0] != num_rows or labels.shape[1] == 0:
        raise ValueError(f"{name} has shape {labels.shape}, expected ({num_rows}, T) with T >= 1")
    if labels.size and labels.min() < -1:
        raise ValueError(f"{name} has the value {labels.min()}, expected values from 0, or -1 where missing")
    return labels


def check_label_column(name: str, labels: Any, num_rows: int | None = None) -> np.ndarray:
    """Return labels `[num_rows]`, of any length if None, -1 where missing, as int64 on the host."""
    labels = host_integers(name, labels)
    if labels.ndim != 1 or num_rows not in (None, len(labels)):
        raise ValueError(f"{name} has shape {labels.shape}, expected ({'N' if num_rows is None else num_rows},)")
    return check_labels(name, labels[:, None], len(labels))[:, 0]


def check_same_columns(query_labels: np.ndarray, gallery_labels: np.ndarray) -> None:
    """Raise if queries and gallery have different numbers of label columns."""
    if query_labels.shape[1] != gallery_labels.shape[1]:
        raise ValueError(
            f"query_labels has {query_labels.shape[1]} columns, gallery_labels has {gallery_labels.shape[1]}"
        )


def check_neighbors(neighbors: Any, num_gallery: int) -> np.ndarray:
    """Return neighbors `[Q, K]`, gallery rows or -1 for none, on the host."""
    neighbors = host_array("neighbors", neighbors)
    if neighbors.ndim != 2:
        raise ValueError(f"neighbors has shape {neighbors.shape}, expected [Q, K]")
    if not np.issubdtype(neighbors.dtype, np.integer):
        raise TypeError(f"neighbors has dtype {neighbors.dtype}, expected integers")
    if neighbors.size and not -1 <= neighbors.min() <= neighbors.max() < num_gallery:
        raise ValueError(f"neighbors go from {neighbors.min()} to {neighbors.max()}, expected -1 to {num_gallery - 1}")
    return neighbors
