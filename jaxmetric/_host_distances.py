"""Computes float64 distances on the host, to decide which row is nearest where float32 cannot.

Distances from differences (`pair_distances`) are accurate to a few roundings, but read D coordinates per pair. A
matrix product is faster but loses the leading digits that two rows share, even for centered rows. Therefore
`approximate_distances` uses a product, `error_bound` bounds its error, and callers replace undecided entries by
`listed_distances`.

Both metrics are squared Euclidean distances between coordinates. For "squared_euclidean" these are the rows; for
"cosine" they are the rows scaled to norm `sqrt(1 / 2)`, whose squared distance is 1 - cosine.
"""

from typing import NamedTuple

import numpy as np

METRICS = ("squared_euclidean", "cosine")
_NUMBERS_AT_A_TIME = 2**20
_CENTER_ROWS = 1000
_NEARLY_PARALLEL = 1e-6


class DistinctRows(NamedTuple):
    """A gallery without repeated rows.

    Attributes:
      metric: one of `METRICS`.
      rows: `[U, D]` distinct rows.
      positions: `[G]` index of the distinct row for each gallery row.
      coordinates: `[U, C]` float64 coordinates minus the center.
      center: `[C]` common offset.
    """

    metric: str
    rows: np.ndarray
    positions: np.ndarray
    coordinates: np.ndarray
    center: np.ndarray


def distinct_rows(gallery: np.ndarray, metric: str) -> DistinctRows:
    """Return the distinct rows of a gallery `[G, D]` with at least one row."""
    # Adding 0 turns -0 into 0, so that equal rows have equal bytes.
    whole = np.ascontiguousarray(gallery + 0).view(np.dtype((np.void, gallery.dtype.itemsize * gallery.shape[1])))
    _, first, positions = np.unique(whole[:, 0], return_index=True, return_inverse=True)
    if len(first) == len(gallery):
        rows, positions = gallery, np.arange(len(gallery))
    else:
        rows = gallery[first]
    center = common_offset(rows, metric).astype(float)
    return DistinctRows(metric, rows, positions, coordinates(rows, metric, "gallery") - center, center)


def coordinates(rows: np.ndarray, metric: str, side: str) -> np.ndarray:
    """Return `[N, C]` coordinates whose squared distances are the metric, for rows from `rows_for`.

    For "cosine" there are two more columns, in which zero rows of "queries" and "gallery" differ from all others.
    """
    if metric == "squared_euclidean":
        return rows
    lengths = np.sqrt(np.square(rows, dtype=float).sum(axis=1))
    empty = lengths == 0
    result = np.zeros((len(rows), rows.shape[1] + 2))
    np.divide(rows, np.where(empty, 1, np.sqrt(2) * lengths)[:, None], out=result[:, :-2])
    result[empty, -2 if side == "queries" else -1] = np.sqrt(0.5)
    return result


def rows_for(metric: str, rows: np.ndarray) -> np.ndarray:
    """Scale rows, without changing the metric, so that squares neither overflow nor underflow in float64."""
    if metric == "squared_euclidean" or rows.dtype == np.float32:
        return rows
    exponents = np.frexp(np.max(np.abs(rows), axis=1, keepdims=True, initial=0))[1]
    return np.ldexp(rows, -exponents)


def common_offset(gallery: np.ndarray, metric: str) -> np.ndarray:
    """Return the median coordinates `[C]` of a sample of rows. A median is robust to a single distant row."""
    sample = coordinates(gallery[:: max(1, len(gallery) // _CENTER_ROWS)], metric, "gallery")
    return np.median(sample, axis=0).astype(sample.dtype)


def pair_distances(metric: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Compute `[...]` float64 distances of rows `[..., D]` from their differences."""
    if metric == "squared_euclidean":
        difference = np.subtract(x, y, dtype=float)
        return np.square(difference, out=difference).sum(axis=-1)
    x, y = np.broadcast_arrays(x.astype(float), y.astype(float))
    x_length, y_length = (np.sqrt(np.einsum("...d,...d->...", each, each)) for each in (x, y))
    lengths = x_length * y_length
    cosines = np.divide(np.einsum("...d,...d->...", x, y), lengths, out=np.zeros(lengths.shape), where=lengths > 0)
    distances = np.maximum(1 - cosines, 0)
    # 1 - cosine cancels for nearly parallel rows, for which differences are accurate.
    close = (distances < _NEARLY_PARALLEL) & (lengths > 0)
    difference = x[close] / x_length[close][:, None] - y[close] / y_length[close][:, None]
    squared = np.einsum("nd,nd->n", difference, difference)
    distances[close] = np.where(squared <= 16 * np.finfo(float).eps ** 2, 0, squared / 2)
    return distances


def approximate_distances(queries: np.ndarray, gallery: DistinctRows) -> tuple[np.ndarray, np.ndarray]:
    """Compute `[q, G]` float64 distances by a matrix product, and the squared norms `[q]` of the centered queries."""
    x = coordinates(queries, gallery.metric, "queries") - gallery.center
    lengths = np.einsum("qc,qc->q", x, x)
    products = (-2 * x) @ gallery.coordinates.T
    products += lengths[:, None]
    products += np.einsum("uc,uc->u", gallery.coordinates, gallery.coordinates)
    distances = np.maximum(products, 0, out=products)
    repeated = len(gallery.rows) < len(gallery.positions)
    return (distances[:, gallery.positions] if repeated else distances), lengths


def error_bound(lengths: np.ndarray, distances: np.ndarray, num_coordinates: int, dtype: type) -> np.ndarray:
    """Bound the error of distances up to `distances` from a matrix product.

    Args:
      lengths: squared norms of centered queries.
      distances: squared distances from them, with a shape that broadcasts with `lengths`.
      num_coordinates: D, the number of terms in each sum.
      dtype: the dtype of the product.
    """
    rounding = (2 * num_coordinates + 64) * np.finfo(dtype).eps / 2
    underflow = 16.0 * num_coordinates * np.finfo(dtype).tiny
    # The norm of a row at most that far away is at most the sum of the two square roots.
    return rounding * (lengths + np.square(np.sqrt(lengths) + np.sqrt(distances))) + underflow


def listed_distances(queries: np.ndarray, gallery: DistinctRows, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Compute `[n]` distances between the queries `rows` and the gallery rows `columns`, from differences."""
    size = len(gallery.rows)
    pairs, places = np.unique(rows.astype(np.int64) * size + gallery.positions[columns], return_inverse=True)
    found = np.empty(len(pairs))
    step = max(1, _NUMBERS_AT_A_TIME // queries.shape[1])
    for start in range(0, len(pairs), step):
        some = pairs[start : start + step]
        found[start : start + step] = pair_distances(gallery.metric, queries[some // size], gallery.rows[some % size])
    return found[places]


def all_distances(rows: np.ndarray) -> np.ndarray:
    """Compute `[N, N]` float64 squared Euclidean distances of rows `[N, D]`, N >= 1, to a relative error of 1e-7."""
    distinct = distinct_rows(rows, "squared_euclidean")
    distances, lengths = approximate_distances(rows, distinct)
    wrong = np.nonzero(error_bound(lengths[:, None], distances, rows.shape[1], float) > 1e-7 * distances)
    distances[wrong] = listed_distances(rows, distinct, *wrong)
    return distances


def nearest_by_differences(
    metric: str, queries: np.ndarray, gallery: np.ndarray, candidates: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return distances and rows `[q, k]` of the nearest among `candidates` `[q, K]`; -1 means no candidate."""
    candidates = np.sort(candidates, axis=1)
    distances = np.empty(candidates.shape)
    step = max(1, _NUMBERS_AT_A_TIME // (candidates.shape[1] * queries.shape[1]))
    for start in range(0, len(queries), step):
        some = slice(start, start + step)
        distances[some] = pair_distances(metric, queries[some, None, :], gallery[candidates[some]])
    return _first_k(np.where(candidates >= 0, distances, np.inf), candidates, k)


def nearest_of_all(
    queries: np.ndarray, gallery: DistinctRows, exclude: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return distances and rows `[q, k]` of the nearest rows of the whole gallery that are not excluded."""
    distances, lengths = offered_distances(queries, gallery, exclude)
    num_coordinates = gallery.coordinates.shape[1]
    kth = np.partition(distances, k - 1, axis=1)[:, k - 1]
    error = error_bound(lengths, kth, num_coordinates, float)
    width = int((distances <= (kth + 4 * error)[:, None]).sum(axis=1).max())
    if width < distances.shape[1]:
        columns = np.sort(np.argpartition(distances, width - 1, axis=1)[:, :width], axis=1)
        distances = np.take_along_axis(distances, columns, axis=1)
    else:
        columns = np.broadcast_to(np.arange(width), distances.shape)
    order = np.argsort(distances, axis=1, kind="stable")
    ascending = np.take_along_axis(distances, order, axis=1)
    rows, places = np.nonzero(_undecided(ascending, lengths, num_coordinates))
    if len(rows):
        places = order[rows, places]
        distances[rows, places] = listed_distances(queries, gallery, rows, columns[rows, places])
        order = np.argsort(distances, axis=1, kind="stable")
    return _first_k(distances, columns, k, order)


def offered_distances(queries: np.ndarray, gallery: DistinctRows, exclude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute `approximate_distances`, with infinity for the rows in `exclude` `[q, E]`."""
    distances, lengths = approximate_distances(queries, gallery)
    rows, columns = np.nonzero(exclude >= 0)
    distances[rows, exclude[rows, columns]] = np.inf
    return distances, lengths


def _undecided(ascending: np.ndarray, lengths: np.ndarray, num_coordinates: int) -> np.ndarray:
    """Mark the ascending distances `[q, K]` that have wrong digits or whose order is uncertain."""
    with np.errstate(invalid="ignore"):
        error = error_bound(lengths[:, None], ascending, num_coordinates, float)
        close = np.diff(ascending, axis=1) <= 4 * error[:, 1:]
    undecided = ascending * 1e-9 < error
    undecided[:, 1:] |= close
    undecided[:, :-1] |= close
    return undecided & np.isfinite(ascending)


def _first_k(
    distances: np.ndarray, columns: np.ndarray, k: int, order: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k smallest distances of each row and their columns, the first of equal ones, -1 for none."""
    order = np.argsort(distances, axis=1, kind="stable") if order is None else order
    order = order[:, :k]
    nearest = np.take_along_axis(distances, order, axis=1)
    return nearest, np.where(np.isfinite(nearest), np.take_along_axis(columns, order, axis=1), -1)
