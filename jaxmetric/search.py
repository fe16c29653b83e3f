"""Exact nearest neighbors of embeddings, in blocks.

`nearest_neighbors` processes blocks of queries. For each, a compiled function (`_nearest_candidates`) scans blocks of
the gallery and merges their distances into the best candidates so far, in float32. Only one block of distances exists
at a time. It returns a few more candidates than requested. The host recomputes their distances by differences in
float64. The last candidate shows whether rounding may have hidden a neighbor; for such queries, the host compares all
rows (`jaxmetric._host_distances`). The other functions make blocks and check arguments, also for `jaxmetric.metrics`.
"""

from collections import deque
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmetric._host_distances import (
    METRICS,
    common_offset,
    coordinates,
    distinct_rows,
    error_bound,
    nearest_by_differences,
    nearest_of_all,
    rows_for,
)

# If more than this share of the gallery is requested, sorting costs more than the product, and the host is faster.
_LONG_LIST = 1 / 64
_DISTANCES_AT_A_TIME = 2**22
_ROWS_AT_A_TIME = 512


def nearest_neighbors(
    queries: jax.Array | np.ndarray,
    gallery: jax.Array | np.ndarray,
    k: int,
    *,
    metric: str = "squared_euclidean",
    exclude: jax.Array | np.ndarray | None = None,
    block_size: int = 2048,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k gallery rows nearest to each query, exactly.

    The order is that of distances computed in float64 from differences of rows, regardless of a common offset and of
    the norms of the rows. If distances are equal, the lower index comes first.

    Args:
      queries: `[Q, D]` embeddings, float64 or a dtype that converts to float64 exactly.
      gallery: `[G, D]` embeddings.
      k: number of neighbors, at most the number of rows that are not excluded for any query.
      metric: "squared_euclidean", or "cosine" for 1 - cosine similarity.
      exclude: `[Q]` or `[Q, E]` integers, the gallery rows that each query must not find (such as itself), or -1
        for none; see `same_group_rows`.
      block_size: largest number of query rows and of gallery rows to compare at a time.

    Returns:
      Distances `[Q, k]` float32, ascending, and their gallery rows `[Q, k]` int32, on the host.

    Raises:
      ValueError: if shapes do not fit, an embedding is not finite, k is too large or the metric is unknown.
      TypeError: if embeddings are not real numbers, `k` or `exclude` is not integer, or an array is traced by JAX.

    Example:
      >>> import numpy as np
      >>> gallery = np.array([[0.0], [1.0], [3.0], [3.0]])
      >>> distances, indices = nearest_neighbors(np.array([[2.5]]), gallery, 3)
      >>> distances.tolist(), indices.tolist()
      ([[0.25, 0.25, 2.25]], [[2, 3, 1]])
      >>> nearest_neighbors(gallery, gallery, 1, exclude=np.arange(4))[1].ravel().tolist()
      [1, 0, 3, 2]
    """
    queries, gallery, exclude = check_pair(queries, gallery, exclude)
    if not isinstance(metric, str) or metric not in METRICS:
        raise ValueError(f"metric is {metric!r}, expected one of {', '.join(METRICS)}")
    block_size = check_count("block_size", block_size)
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)):
        raise TypeError(f"k is {k!r}, expected an integer")
    offered = int(offered_rows(exclude, len(gallery)).min(initial=len(gallery)))
    if not 1 <= k <= offered:
        raise ValueError(f"k is {k}, expected 1 to {offered}, the rows which the gallery offers every query")
    k = int(k)
    distances = np.empty((len(queries), k), np.float32)
    indices = np.empty((len(queries), k), np.int32)
    for rows, *found in nearest_rows(
        queries, gallery, exclude, k, metric=metric, query_block=block_size, gallery_block=block_size
    ):
        distances[rows], indices[rows] = found
    return distances, indices


def same_group_rows(query_groups: jax.Array | np.ndarray, gallery_groups: jax.Array | np.ndarray) -> np.ndarray:
    """Return the gallery rows in the group of each query, to `exclude` them.

    For example, re-identification excludes gallery images with the identity and the camera of the query:
    `same_group_rows(np.stack([identities, cameras], axis=1), np.stack([gallery_identities, gallery_cameras], axis=1))`.

    Args:
      query_groups: `[Q]` or `[Q, T]` integers. Two rows are in the same group if all T numbers agree. A row with a
        negative number is in no group.
      gallery_groups: `[G]` or `[G, T]` integers.

    Returns:
      `[Q, E]` int32 gallery rows, ascending and padded with -1; E is the size of the largest group found.

    Raises:
      ValueError: if shapes do not fit.
      TypeError: if groups are not integers.

    Example:
      >>> same_group_rows(np.array([7, 9, -1]), np.array([7, 8, 7])).tolist()
      [[0, 2], [-1, -1], [-1, -1]]
    """
    query_groups, gallery_groups = (
        _check_groups(name, groups)
        for name, groups in (("query_groups", query_groups), ("gallery_groups", gallery_groups))
    )
    if query_groups.shape[1] != gallery_groups.shape[1]:
        raise ValueError(
            f"query_groups has {query_groups.shape[1]} columns, gallery_groups has {gallery_groups.shape[1]}"
        )
    num_queries = len(query_groups)
    codes = np.unique(np.concatenate([query_groups, gallery_groups]), axis=0, return_inverse=True)[1].reshape(-1)
    query_codes = np.where((query_groups < 0).any(axis=1), -1, codes[:num_queries])
    order = np.argsort(codes[num_queries:], kind="stable")
    ordered = codes[num_queries:][order]
    first, last = np.searchsorted(ordered, query_codes), np.searchsorted(ordered, query_codes, side="right")
    steps = np.arange(int((last - first).max(initial=0)))
    positions = first[:, None] + steps[None, :]
    found = positions < last[:, None]
    return np.where(found, order[np.where(found, positions, 0)] if len(order) else -1, -1).astype(np.int32)


def _check_groups(name: str, groups: jax.Array | np.ndarray) -> np.ndarray:
    groups = host_integers(name, groups)
    if groups.ndim not in (1, 2) or groups.shape[1:] == (0,):
        raise ValueError(f"{name} has shape {groups.shape}, expected [N] or [N, T] with T >= 1")
    return groups if groups.ndim == 2 else groups[:, None]


def nearest_rows(
    queries: np.ndarray,
    gallery: np.ndarray,
    exclude: np.ndarray,
    k: int,
    *,
    metric: str = "squared_euclidean",
    query_block: int = 2048,
    gallery_block: int = 2048,
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yield slices of the queries with the results of `nearest_neighbors`, for checked arguments.

    A query with fewer than k rows to find gets row -1 at distance infinity for the rest.
    """
    queries, gallery = rows_for(metric, queries), rows_for(metric, gallery)
    distinct = cache(partial(distinct_rows, gallery, metric))
    exact_block = max(1, min(query_block, _DISTANCES_AT_A_TIME // max(len(gallery), 1)))
    num_candidates = min(k + k // 8 + 4, len(gallery))
    if num_candidates > _LONG_LIST * len(gallery):
        for start in range(0, len(queries), exact_block):
            rows = slice(start, start + exact_block)
            yield rows, *nearest_of_all(queries[rows], distinct(), exclude[rows], k)
        return
    x, y, scale = _float32_coordinates(queries, gallery, metric)
    # With gallery blocks smaller than k, every merge would mostly sort the previous candidates again.
    gallery_blocks = stack_blocks(y, max(gallery_block, num_candidates))

    def launch(rows: slice) -> tuple[jax.Array, jax.Array]:
        return _nearest_candidates(x[rows], gallery_blocks, len(gallery), exclude[rows], k=num_candidates)

    blocks = query_blocks(len(queries), query_block)
    # The device searches the next block while the host checks this one.
    launched = deque(map(launch, blocks[:1]))
    done = 0
    for number, block in enumerate(blocks, start=1):
        launched.extend(map(launch, blocks[number : number + 1]))
        last, candidates = (np.asarray(each)[done - block.start :] for each in launched.popleft())
        rows, done = slice(done, block.stop), block.stop
        distances, indices = nearest_by_differences(metric, queries[rows], gallery, candidates, k)
        unsure = np.flatnonzero(~_is_complete(x[rows], last, distances[:, -1] * scale**2))
        for start in range(0, len(unsure), exact_block):
            some = unsure[start : start + exact_block]
            distances[some], indices[some] = nearest_of_all(queries[rows][some], distinct(), exclude[rows][some], k)
        yield rows, distances, indices


def _float32_coordinates(queries: np.ndarray, gallery: np.ndarray, metric: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Return float32 coordinates of both, minus the common offset and multiplied by a scale, and that scale."""
    center = common_offset(gallery, metric)
    largest = max(each.max(initial=0) - min(each.min(initial=0), 0) for each in (queries, gallery))
    scale = 1.0 if metric == "cosine" else 2.0 ** -max(int(np.frexp(largest)[1]), -120)
    results = []
    for rows, side in ((queries, "queries"), (gallery, "gallery")):
        result = np.empty((len(rows), len(center)), np.float32)
        for start in range(0, len(rows), _ROWS_AT_A_TIME):
            some = coordinates(rows[start : start + _ROWS_AT_A_TIME], metric, side) - center
            np.multiply(some, some.dtype.type(scale), out=result[start : start + len(some)], casting="same_kind")
        results.append(result)
    x, y = results
    if metric == "cosine" and not (x[:, -2:].any() or y[:, -2:].any()):
        x, y = x[:, :-2], y[:, :-2]
    return x, y, scale


def _is_complete(queries: np.ndarray, last: np.ndarray, kth: np.ndarray) -> np.ndarray:
    """Return whether the candidates of each query, `[q]`, certainly include all k nearest rows.

    Args:
      queries: `[q, C]` coordinates as used on the device.
      last: `[q]` device distances of the last candidates, a lower bound for all other rows on the device.
      kth: `[q]` exact distances of the k-th candidates.
    """
    lengths = np.square(queries, dtype=float).sum(axis=1)
    error = error_bound(lengths, kth, queries.shape[1], np.float32)
    # Zeros are exact, and among rows at equal distances the candidates are the first ones.
    exact = (lengths == 0) & (kth == 0)
    return np.isinf(last) | exact | (last > kth + error)


@partial(jax.jit, static_argnames="k")
def _nearest_candidates(
    queries: jax.Array, gallery_blocks: jax.Array, gallery_size: int, exclude: jax.Array, *, k: int
) -> tuple[jax.Array, jax.Array]:
    """Return the distances `[q]` of the last candidates, and the candidates `[q, k]`, with -1 if there are fewer."""

    def merge(
        best: tuple[jax.Array, jax.Array], block: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        distances, indices = _offered_distances(queries, *block, gallery_size, exclude)
        # top_k prefers lower positions among equal values, so earlier blocks, with lower indices, come first.
        closeness = jnp.concatenate([best[0], -distances], axis=1)
        candidates = jnp.concatenate([best[1], jnp.broadcast_to(indices, distances.shape)], axis=1)
        closeness, positions = jax.lax.top_k(closeness, k)
        return (closeness, jnp.take_along_axis(candidates, positions, axis=1)), None

    nothing = jnp.full((len(queries), k), -jnp.inf), jnp.full((len(queries), k), -1, jnp.int32)
    (closeness, indices), _ = jax.lax.scan(merge, nothing, number_blocks(gallery_blocks))
    return -closeness[:, -1], jnp.where(closeness == -jnp.inf, -1, indices)


def _offered_distances(
    queries: jax.Array,
    gallery_block: jax.Array,
    first_index: jax.Array,
    gallery_size: jax.Array | int,
    exclude: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Return squared distances `[q, g]` of queries to one block of the gallery and the indices `[g]` of its rows.

    Padding rows of the last block and rows in `exclude` `[q, E]` have distance infinity.
    """
    block_size = len(gallery_block)
    indices = first_index + jnp.arange(block_size, dtype=jnp.int32)
    squared = jnp.sum(jnp.square(queries), axis=1)[:, None] + jnp.sum(jnp.square(gallery_block), axis=1)[None, :]
    products = jnp.matmul(queries, gallery_block.T, precision=jax.lax.Precision.HIGHEST)
    distances = jnp.where((indices < gallery_size)[None, :], squared - 2 * products, jnp.inf)
    # A scatter drops positions beyond the block, but negative positions would count from its end.
    positions = jnp.where(exclude >= first_index, exclude - first_index, block_size)
    return distances.at[jnp.arange(len(queries))[:, None], positions].set(jnp.inf, mode="drop"), indices


def stack_blocks(gallery: np.ndarray, block_size: int) -> jax.Array:
    """Reshape `[G, D]` to `[blocks, rows, D]` with at most `block_size` rows per block, padded with zeros."""
    block_size = min(block_size, len(gallery))
    missing = -len(gallery) % block_size
    return jnp.asarray(np.pad(gallery, ((0, missing), (0, 0))).reshape(-1, block_size, gallery.shape[1]))


def number_blocks(gallery_blocks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the blocks and the index of the first row of each, for a scan."""
    blocks, block_size = gallery_blocks.shape[:2]
    return gallery_blocks, block_size * jnp.arange(blocks, dtype=jnp.int32)


def query_blocks(num_queries: int, block_size: int) -> list[slice]:
    """Return slices of equal length, for a single compiled program; the last may overlap the previous one."""
    block_size = min(block_size, num_queries)
    last = num_queries - block_size
    starts = range(0, num_queries, max(block_size, 1))
    return [slice(min(start, last), min(start, last) + block_size) for start in starts]


def host_array(name: str, values: Any) -> np.ndarray:
    """Return values as an array on the host; raise a one-line error if that is impossible."""
    if isinstance(values, jax.core.Tracer):
        raise TypeError(f"{name} is traced, expected an array: call this function outside of jit, vmap and shard_map")
    try:
        return np.asarray(values)
    except ValueError:
        raise ValueError(
            f"{name} is a {type(values).__name__} of rows of different lengths, expected an array"
        ) from None


def host_integers(name: str, labels: Any) -> np.ndarray:
    """Return labels as int64 on the host; otherwise raise a one-line error that says how to convert them."""
    labels = host_array(name, labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(
            f"{name} has dtype {labels.dtype}, expected integers; np.unique(labels, return_inverse=True)[1] numbers "
            "the labels of queries and gallery together"
        )
    if labels.size and labels.max() > np.iinfo(np.int64).max:
        raise ValueError(
            f"{name} has the value {labels.max()}, expected at most {np.iinfo(np.int64).max}; "
            "np.unique(labels, return_inverse=True)[1] numbers the labels of queries and gallery together"
        )
    return labels.astype(np.int64, copy=False)


def check_count(name: str, value: Any) -> int:
    """Return an integer of at least 1 as int."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} is {value!r}, expected an integer")
    if value < 1:
        raise ValueError(f"{name} is {value}, expected at least 1")
    return int(value)


def check_embeddings(name: str, embeddings: jax.Array | np.ndarray) -> np.ndarray:
    """Return embeddings `[N, D]` on the host, in float64 if they are float64 or integers, else in float32.

    Invalid embeddings raise a one-line error.
    """
    embeddings = host_array(name, embeddings)
    if embeddings.dtype == bool or str(embeddings.dtype) in ("bfloat16", "float16"):
        embeddings = embeddings.astype(np.float32)
    if not np.issubdtype(embeddings.dtype, np.floating) and not np.issubdtype(embeddings.dtype, np.integer):
        raise TypeError(f"{name} has dtype {embeddings.dtype}, expected real numbers")
    if embeddings.ndim != 2 or embeddings.shape[1] == 0:
        raise ValueError(f"{name} has shape {embeddings.shape}, expected [N, D] with D >= 1")
    embeddings = embeddings if embeddings.dtype == np.float32 else embeddings.astype(float)
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = embeddings.astype(np.float32, copy=False)
        # A squared distance is at most 4 times the larger squared norm.
        bad = ~np.isfinite(4 * np.einsum("nd,nd->n", narrow, narrow))
    if bad.any():
        raise ValueError(
            f"{name} has {bad.sum()} rows that are NaN, infinite or too long for float32; "
            f"the first is row {bad.argmax()}"
        )
    return embeddings


def check_pair(
    queries: jax.Array | np.ndarray, gallery: jax.Array | np.ndarray, exclude: jax.Array | np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Check queries, gallery and the gallery rows to exclude, and return them; see `check_exclude`."""
    queries, gallery = check_embeddings("queries", queries), check_embeddings("gallery", gallery)
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} dimensions, gallery has {gallery.shape[1]}")
    return queries, gallery, check_exclude(exclude, len(queries), len(gallery))


def check_exclude(exclude: jax.Array | np.ndarray | None, num_queries: int, num_gallery: int) -> np.ndarray:
    """Return the gallery rows to exclude for each query, `[Q, E]` int32; each at most once, and -1 for none."""
    if exclude is None:
        return np.zeros((num_queries, 0), np.int32)
    exclude = host_array("exclude", exclude)
    if not np.issubdtype(exclude.dtype, np.integer):
        raise TypeError(f"exclude has dtype {exclude.dtype}, expected integers")
    if exclude.ndim not in (1, 2) or len(exclude) != num_queries:
        raise ValueError(
            f"exclude has shape {exclude.shape}, expected ({num_queries},) or ({num_queries}, E), "
            "gallery rows for each query"
        )
    if exclude.size and not -1 <= exclude.min() <= exclude.max() < num_gallery:
        raise ValueError(f"exclude goes from {exclude.min()} to {exclude.max()}, expected -1 to {num_gallery - 1}")
    rows = np.sort(exclude.reshape(num_queries, -1).astype(np.int32), axis=1)
    rows[:, 1:][rows[:, 1:] == rows[:, :-1]] = -1
    return rows


def offered_rows(exclude: np.ndarray, num_gallery: int) -> np.ndarray:
    """Count the gallery rows that are not excluded for each query, `[Q]`, for a checked `exclude`."""
    return num_gallery - (exclude >= 0).sum(axis=1)
