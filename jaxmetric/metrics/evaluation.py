"""Computes all metrics of an embedding: `evaluate_embeddings`.

It runs retrieval, labeling and coherence over all label columns. The formulas are in those modules.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxmetric.metrics.checks import check_labels, check_same_columns
from jaxmetric.metrics.coherence import semantic_coherence
from jaxmetric.metrics.labeling import cumulative_match_curve, knn_labels, label_ranks
from jaxmetric.metrics.retrieval import Score, join_scores, map_at_r, recall_at_k, relevance, relevant_counts
from jaxmetric.search import check_count, check_exclude, check_pair, nearest_rows, offered_rows

_NEIGHBORS_AT_A_TIME = 2**22


def evaluate_embeddings(
    query_embeddings: jax.Array | np.ndarray,
    query_labels: jax.Array | np.ndarray,
    gallery_embeddings: jax.Array | np.ndarray,
    gallery_labels: jax.Array | np.ndarray,
    column_names: Sequence[str],
    *,
    exclude_self: bool = False,
    exclude: jax.Array | np.ndarray | None = None,
    ks: Sequence[int] = (1, 2, 4, 8),
    k: int = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluate embeddings with several labels each against a labeled gallery.

    A query is undefined in a column if its label there is missing or no other gallery row has it. Undefined queries are
    counted and excluded from every mean. A mean over no queries is None.

    Args:
      query_embeddings: `[Q, D]`.
      query_labels: `[Q, T]` integers, -1 where missing.
      gallery_embeddings: `[G, D]`.
      gallery_labels: `[G, T]` integers, -1 where missing.
      column_names: T names.
      exclude_self: query i is gallery row i and must not find itself.
      exclude: `[Q]` or `[Q, E]` integers, the gallery rows that each query must not find, or -1 for none; see
        `jaxmetric.search.same_group_rows`.
      ks: the values of k for Recall@k, limited to the size of the gallery.
      k: number of neighbors that vote on the labels, with weights 1 / squared distance; limited to the gallery.
      seed: seed of the random pairs for the coherence of more than 3,000 queries.

    Returns:
      A dict:
        * "queries", "gallery": numbers of rows.
        * "columns": for each name {"recall": {"1": ..}, "map_at_r", "rank1", "cmc", "cmc_area", "knn_accuracy",
          "values": distinct values in the gallery, "queries": defined ones, "undefined"}.
        * "joint": of the queries defined in every column, {"k", "all_correct": the share with every label predicted
          right, "mean_correct": the mean share of labels predicted right, "queries"}.
        * "coherence": of the queries among themselves, see `semantic_coherence`.

    Raises:
      ValueError: if shapes or names do not fit, an embedding is not finite, or ks or k are below 1.
      TypeError: if labels, k, ks or `exclude` are not integers.

    Example:
      >>> import numpy as np
      >>> embeddings = np.array([[0.0], [0.1], [1.0], [1.1]])
      >>> labels = np.array([[0, 5], [0, 6], [1, 6], [1, 6]])
      >>> result = evaluate_embeddings(embeddings, labels, embeddings, labels, ("role", "skin"), exclude_self=True)
      >>> result["columns"]["role"]["recall"]["1"], result["columns"]["skin"]["undefined"]
      (1.0, 1)
    """
    queries, gallery, exclude = check_pair(query_embeddings, gallery_embeddings, exclude)
    if exclude_self:
        exclude = _with_itself(exclude, queries, gallery)
    query_labels = check_labels("query_labels", query_labels, len(queries))
    gallery_labels = check_labels("gallery_labels", gallery_labels, len(gallery))
    check_same_columns(query_labels, gallery_labels)
    offered = int(offered_rows(exclude, len(gallery)).max(initial=0))
    if not len(queries) or offered < 1:
        raise ValueError(f"{len(queries)} queries have {offered} gallery rows to find, expected at least 1 of each")
    if len(set(column_names)) != query_labels.shape[1] or len(column_names) != query_labels.shape[1]:
        raise ValueError(f"column_names is {tuple(column_names)}, expected {query_labels.shape[1]} distinct names")
    ks, k = [check_count("ks", each) for each in ks], check_count("k", k)
    if not ks:
        raise ValueError("ks is empty, expected at least one number")

    k = min(k, offered)
    neighbor_scores, predicted = _score_neighbors(
        queries, query_labels, gallery, gallery_labels, exclude, ks, k, offered
    )
    ranks, num_values = label_ranks(queries, gallery, query_labels, gallery_labels, exclude=exclude)
    correct = predicted == query_labels
    columns = {
        name: {
            "recall": {str(k): neighbor_scores[t][str(k)].mean for k in ks},
            "map_at_r": neighbor_scores[t]["map_at_r"].mean,
            **_match_curve(ranks[:, t], num_values[t]),
            "knn_accuracy": Score(correct[:, t], ranks[:, t] > 0).mean,
            "values": num_values[t],
            "queries": int((ranks[:, t] > 0).sum()),
            "undefined": int((ranks[:, t] == 0).sum()),
        }
        for t, name in enumerate(column_names)
    }
    defined = ranks.min(axis=1) > 0
    return {
        "queries": len(queries),
        "gallery": len(gallery),
        "columns": columns,
        "joint": {
            "k": k,
            "all_correct": Score(correct.min(axis=1), defined).mean,
            "mean_correct": Score(correct.mean(axis=1), defined).mean,
            "queries": int(defined.sum()),
        },
        "coherence": semantic_coherence(queries, query_labels, seed=seed),
    }


def _with_itself(exclude: np.ndarray, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    if queries.shape != gallery.shape:
        raise ValueError(
            f"exclude_self takes query i for gallery row i, expected equal shapes, "
            f"got {queries.shape} and {gallery.shape}"
        )
    itself = np.arange(len(queries), dtype=np.int32)[:, None]
    return check_exclude(np.concatenate([exclude, itself], axis=1), len(queries), len(gallery))


def _score_neighbors(
    queries: np.ndarray,
    query_labels: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    exclude: np.ndarray,
    ks: Sequence[int],
    k: int,
    offered: int,
) -> tuple[list[dict[str, Score]], np.ndarray]:
    """Return the scores of the neighbor lists per column, and the labels `[Q, T]` predicted by the k nearest.

    MAP@R may need lists as long as the gallery, so they are made and scored in blocks of queries.
    """
    num_columns = query_labels.shape[1]
    most_relevant = max(
        relevant_counts(query_labels[:, t], gallery_labels[:, t], exclude).max() for t in range(num_columns)
    )
    length = min(offered, max(*ks, k, most_relevant))
    rows_at_a_time = max(1, min(2048, _NEIGHBORS_AT_A_TIME // length))
    blocks: list[list[dict[str, Score]]] = []
    predicted = []
    for rows, distances, neighbors in nearest_rows(queries, gallery, exclude, length, query_block=rows_at_a_time):
        predicted.append(knn_labels(distances[:, :k], neighbors[:, :k], gallery_labels))
        found = [
            relevance(neighbors, query_labels[rows, t], gallery_labels[:, t], exclude=exclude[rows])
            for t in range(num_columns)
        ]
        blocks.append(
            [
                {str(k): recall_at_k(column, min(k, length)) for k in ks} | {"map_at_r": map_at_r(column)}
                for column in found
            ]
        )
    scores = [
        {name: join_scores([block[t][name] for block in blocks]) for name in blocks[0][t]} for t in range(num_columns)
    ]
    return scores, np.concatenate(predicted)


def _match_curve(ranks: np.ndarray, num_values: int) -> dict[str, Any]:
    curve = cumulative_match_curve(ranks, num_values)
    if curve is None:
        return {"rank1": None, "cmc": [], "cmc_area": None}
    return {"rank1": float(curve[0]), "cmc": curve.tolist(), "cmc_area": float(curve.mean())}
