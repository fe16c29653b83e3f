"""Exact nearest neighbours of embeddings, in blocks.

`nearest_neighbors` walks over blocks of queries; for each, one compiled function (`_search_block`) walks over
blocks of the gallery and merges every block's distances into the k best so far. Only one block of distances
exists at a time. The rest of the module cuts, checks and masks; `jaxmetric.metrics` uses it too.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxmetric.distances import pairwise_cosine_similarity, pairwise_squared_euclidean


def _cosine_distance(queries: jax.Array, gallery: jax.Array) -> jax.Array:
    return jax.nn.relu(1 - pairwise_cosine_similarity(queries, gallery))


METRICS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "squared_euclidean": pairwise_squared_euclidean,
    "cosine": _cosine_distance,
}


def nearest_neighbors(
    queries: jax.Array | np.ndarray,
    gallery: jax.Array | np.ndarray,
    k: int,
    *,
    metric: str = "squared_euclidean",
    exclude: jax.Array | np.ndarray | None = None,
    block_size: int = 2048,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k rows of the gallery nearest to each query, exactly.

    Of equally near rows the one with the lower index comes first.

    Args:
      queries: `[Q, D]` embeddings.
      gallery: `[G, D]` embeddings.
      k: how many neighbours, at most as many as the gallery has rows to offer every query.
      metric: "squared_euclidean", or "cosine" for 1 - cosine similarity.
      exclude: `[Q]` or `[Q, E]` integers, the rows of the gallery that each query must not find (itself, say), or -1
        for none; see `same_group_rows`.
      block_size: rows of queries and of the gallery that are compared at a time.

    Returns:
      Distances `[Q, k]` float32, ascending, and the gallery rows they belong to, `[Q, k]` int32; on the host.

    Raises:
      ValueError: if shapes do not fit, an embedding is not finite, k is too large or the metric is unknown.
      TypeError: if `exclude` is not integer.

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
    if metric not in METRICS:
        raise ValueError(f"metric is {metric!r}, expected one of {', '.join(METRICS)}")
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}, expected at least 1")
    offered = int(offered_rows(exclude, len(gallery)).min(initial=len(gallery)))
    if not 1 <= k <= offered:
        raise ValueError(f"k is {k}, expected 1 to {offered}, the rows which the gallery offers every query")
    return nearest_rows(queries, gallery, exclude, k, metric=metric, block_size=block_size)


def same_group_rows(query_groups: jax.Array | np.ndarray, gallery_groups: jax.Array | np.ndarray) -> np.ndarray:
    """Return the gallery rows in the group of each query, to `exclude` them.

    Re-identification, for example, leaves out the gallery images of the query's identity taken by the query's camera:
    `same_group_rows(np.stack([identities, cameras], axis=1), np.stack([gallery_identities, gallery_cameras], axis=1))`.

    Args:
      query_groups: `[Q]` or `[Q, T]` integers. Two rows are in one group if all T numbers agree; a row with a negative
        number is in none.
      gallery_groups: `[G]` or `[G, T]` integers.

    Returns:
      `[Q, E]` int32 rows of the gallery, ascending and filled up with -1; E is the size of the largest group found.

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
    groups = np.asarray(groups)
    if not np.issubdtype(groups.dtype, np.integer):
        raise TypeError(f"{name} has dtype {groups.dtype}, expected integers")
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
    block_size: int = 2048,
) -> tuple[np.ndarray, np.ndarray]:
    """Return what `nearest_neighbors` does, for checked arguments.

    A query that is offered fewer than k rows gets row -1 at distance infinity in their place.
    """
    # A gallery block below k would make every merge sort mostly what was sorted before.
    gallery_blocks = stack_blocks(gallery, max(block_size, k))
    distances = np.empty((len(queries), k), np.float32)
    indices = np.empty((len(queries), k), np.int32)
    for rows in query_blocks(len(queries), block_size):
        distances[rows], indices[rows] = _search_block(
            queries[rows], gallery_blocks, len(gallery), exclude[rows], k=k, metric=metric
        )
    return distances, indices


@partial(jax.jit, static_argnames=("k", "metric"))
def _search_block(
    queries: jax.Array,
    gallery_blocks: jax.Array,
    gallery_size: int,
    exclude: jax.Array,
    *,
    k: int,
    metric: str,
) -> tuple[jax.Array, jax.Array]:
    def merge(best: tuple[jax.Array, jax.Array], block: tuple[jax.Array, jax.Array]) -> tuple:
        distances, indices = masked_distances(queries, *block, gallery_size, exclude, metric)
        # top_k prefers the lower position among equals: earlier blocks, hence lower indices, stand first.
        closeness = jnp.concatenate([best[0], -distances], axis=1)
        candidates = jnp.concatenate([best[1], jnp.broadcast_to(indices, distances.shape)], axis=1)
        closeness, positions = jax.lax.top_k(closeness, k)
        return (closeness, jnp.take_along_axis(candidates, positions, axis=1)), None

    nothing = jnp.full((len(queries), k), -jnp.inf), jnp.full((len(queries), k), -1, jnp.int32)
    (closeness, indices), _ = jax.lax.scan(merge, nothing, number_blocks(gallery_blocks))
    return -closeness, jnp.where(closeness == -jnp.inf, -1, indices)


def masked_distances(
    queries: jax.Array,
    gallery_block: jax.Array,
    first_index: jax.Array,
    gallery_size: jax.Array | int,
    exclude: jax.Array,
    metric: str,
) -> tuple[jax.Array, jax.Array]:
    """Return distances `[q, g]` of queries to one block of the gallery and the indices `[g]` of its rows.

    Rows which only fill up the last block, and those to `exclude` `[q, E]`, are infinitely far.
    """
    block_size = len(gallery_block)
    indices = first_index + jnp.arange(block_size, dtype=jnp.int32)
    distances = jnp.where((indices < gallery_size)[None, :], METRICS[metric](queries, gallery_block), jnp.inf)
    # A scatter drops positions past the block, but counts negative ones from its end.
    positions = jnp.where(exclude >= first_index, exclude - first_index, block_size)
    return distances.at[jnp.arange(len(queries))[:, None], positions].set(jnp.inf, mode="drop"), indices


def stack_blocks(gallery: np.ndarray, block_size: int) -> jax.Array:
    """Return `[G, D]` as `[blocks, rows, D]` of at most `block_size` rows, filled up with zeros."""
    block_size = min(block_size, len(gallery))
    missing = -len(gallery) % block_size
    return jnp.asarray(np.pad(gallery, ((0, missing), (0, 0))).reshape(-1, block_size, gallery.shape[1]))


def number_blocks(gallery_blocks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the blocks and the index of the first row of each, to scan over."""
    blocks, block_size = gallery_blocks.shape[:2]
    return gallery_blocks, block_size * jnp.arange(blocks, dtype=jnp.int32)


def query_blocks(num_queries: int, block_size: int) -> list[slice]:
    """Return slices of one length, which one compiled program serves; the last may overlap the one before."""
    block_size = min(block_size, num_queries)
    last = num_queries - block_size
    starts = range(0, num_queries, max(block_size, 1))
    return [slice(min(start, last), min(start, last) + block_size) for start in starts]


def check_embeddings(name: str, embeddings: jax.Array | np.ndarray) -> np.ndarray:
    """Return embeddings `[N, D]` in float32 on the host, or say in one line what is wrong with them."""
    embeddings = np.asarray(embeddings)
    if embeddings.ndim != 2 or embeddings.shape[1] == 0:
        raise ValueError(f"{name} has shape {embeddings.shape}, expected [N, D] with D >= 1")
    with np.errstate(over="ignore", invalid="ignore"):
        embeddings = embeddings.astype(np.float32)
        # A squared distance is at most 4 times the larger squared length.
        bad = ~np.isfinite(4 * np.einsum("nd,nd->n", embeddings, embeddings))
    if bad.any():
        raise ValueError(
            f"{name} has {bad.sum()} rows that are NaN, infinite or too long for float32; "
            f"the first is row {bad.argmax()}"
        )
    return embeddings


def check_pair(
    queries: jax.Array | np.ndarray, gallery: jax.Array | np.ndarray, exclude: jax.Array | np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return queries, gallery and the gallery rows each query leaves out, as `check_exclude` does."""
    queries, gallery = check_embeddings("queries", queries), check_embeddings("gallery", gallery)
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} dimensions, gallery has {gallery.shape[1]}")
    return queries, gallery, check_exclude(exclude, len(queries), len(gallery))


def check_exclude(exclude: jax.Array | np.ndarray | None, num_queries: int, num_gallery: int) -> np.ndarray:
    """Return the gallery rows that each query leaves out, `[Q, E]` int32; each once, and -1 for none."""
    if exclude is None:
        return np.zeros((num_queries, 0), np.int32)
    exclude = np.asarray(exclude)
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
    """Return `[Q]`: how many rows the gallery offers each query, for a checked `exclude`."""
    return num_gallery - (exclude >= 0).sum(axis=1)
