"""Metrics of embeddings: retrieval, labeling by nearest neighbors, semantic coherence.

Metrics take embeddings or neighbor lists, never an N x N matrix. `evaluate_embeddings` computes all of them.
"""

from jaxmetric.metrics.coherence import semantic_coherence, spearman
from jaxmetric.metrics.evaluation import evaluate_embeddings
from jaxmetric.metrics.labeling import LabelRanks, cumulative_match_curve, knn_labels, label_ranks
from jaxmetric.metrics.retrieval import (
    Relevance,
    Score,
    join_scores,
    map_at_r,
    precision_at_k,
    r_precision,
    recall_at_k,
    relevance,
)

__all__ = [
    "LabelRanks",
    "Relevance",
    "Score",
    "cumulative_match_curve",
    "evaluate_embeddings",
    "join_scores",
    "knn_labels",
    "label_ranks",
    "map_at_r",
    "precision_at_k",
    "r_precision",
    "recall_at_k",
    "relevance",
    "semantic_coherence",
    "spearman",
]
