"""What the metrics ask of their labels, said in one line before work starts."""

import jax
import numpy as np


def check_labels(name: str, labels: jax.Array | np.ndarray, num_rows: int) -> np.ndarray:
    """Return labels `[num_rows, T]`, -1 where missing, as integers on the host."""
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"{name} has dtype {labels.dtype}, expected integers")
    if labels.ndim != 2 or labels.shape[0] != num_rows or labels.shape[1] == 0:
        raise ValueError(f"{name} has shape {labels.shape}, expected ({num_rows}, T) with T >= 1")
    if labels.size and labels.min() < -1:
        raise ValueError(f"{name} has the value {labels.min()}, expected values from 0, or -1 where missing")
    return labels


def check_same_columns(query_labels: np.ndarray, gallery_labels: np.ndarray) -> None:
    """Raise if queries and gallery have different numbers of label columns."""
    if query_labels.shape[1] != gallery_labels.shape[1]:
        raise ValueError(
            f"query_labels has {query_labels.shape[1]} columns, gallery_labels has {gallery_labels.shape[1]}"
        )


def check_neighbors(neighbors: np.ndarray, num_gallery: int) -> None:
    """Raise unless `neighbors` are rows of the gallery, or -1 for none."""
    if not np.issubdtype(neighbors.dtype, np.integer):
        raise TypeError(f"neighbors has dtype {neighbors.dtype}, expected integers")
    if neighbors.size and not -1 <= neighbors.min() <= neighbors.max() < num_gallery:
        raise ValueError(f"neighbors go from {neighbors.min()} to {neighbors.max()}, expected -1 to {num_gallery - 1}")
