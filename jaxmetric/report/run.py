"""The content of a report: the dataclass `Run`, and `check_run`, which checks that its parts fit together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class Column(Protocol):
    """A label column, such as `jaxmetric.data.LabelColumn`. Code i means values[i]."""

    @property
    def name(self) -> str:
        """The name of the column."""

    @property
    def values(self) -> Sequence[str]:
        """The meaning of each code."""


class Images(Protocol):
    """Images by index: an array in memory, or a lazy source."""

    def __getitem__(self, index: int, /) -> Any:
        """Returns image `index`, uint8 [S, S, 3]."""


@dataclass(frozen=True)
class Run:
    """The results of a run with Q queries, G gallery images, T label columns and k neighbors.

    Args:
        name: the name of the run.
        config: the resolved configuration; may be nested.
        history: the lines of `metrics.jsonl`: `step`, and those of `loss`, `loss/<term>`,
            `validation/<column>/recall@1`, `validation/coherence`, ... recorded at that step.
        evaluation: the evaluation result; undefined numbers are None.
        baseline: the same for the network before training, or None.
        columns: the T label columns; the first is the identity.
        query_images: uint8 [Q, S, S, 3].
        query_names: Q names, shown with the images.
        query_labels: int [Q, T]; -1 is unknown.
        query_embeddings: float [Q, D].
        gallery_images: `gallery_images[i]` is uint8 [S, S, 3]; only shown neighbors are read.
        gallery_labels: int [G, T]; -1 is unknown.
        neighbors: int [Q, k], gallery rows, nearest first; -1 if there are fewer.
        neighbor_distances: float [Q, k].
        predictions: int [Q, T], the predicted codes; -1 if nothing was predicted.
        environment: versions and devices, by name.
        gallery_name: the name of the set of gallery images, as in "the nearest of the learning set".
        exclude: int [Q, E], gallery rows that a query was not compared with, such as itself; -1 for none. None if
            every query was compared with the whole gallery.
        baseline_name: what the network before training is called: "untrained" or "pretrained".
    """

    name: str
    config: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    evaluation: Mapping[str, Any]
    baseline: Mapping[str, Any] | None
    columns: Sequence[Column]
    query_images: np.ndarray
    query_names: Sequence[str]
    query_labels: np.ndarray
    query_embeddings: np.ndarray
    gallery_images: Images
    gallery_labels: np.ndarray
    neighbors: np.ndarray
    neighbor_distances: np.ndarray
    predictions: np.ndarray
    environment: Mapping[str, str]
    gallery_name: str = "the learning set"
    exclude: np.ndarray | None = None
    baseline_name: str = "untrained"


def excluded_rows(run: Run) -> np.ndarray:
    """Returns `[Q, E]` gallery rows that each query was not compared with, -1 for none."""
    return np.zeros((len(run.query_labels), 0), int) if run.exclude is None else np.asarray(run.exclude)


def compared_with(exclude: np.ndarray, gallery: int) -> str:
    """Describes the number of gallery rows compared with each query, without the excluded rows `[Q, E]`.

    Example:
      >>> compared_with(np.array([[0], [1], [2]]), 3), compared_with(np.array([[0, 1], [2, -1]]), 1049)
      ('2', '1,047 to 1,048')
    """
    offered = gallery - (exclude >= 0).sum(axis=1)
    least, most = offered.min(), offered.max()
    return f"{most:,}" if least == most else f"{least:,} to {most:,}"


def check_run(run: Run) -> None:
    """Check that the parts of a run fit together.

    Raises:
        ValueError: if they do not; the message names the field, its value and what was expected.
    """
    queries, columns, gallery = len(run.query_images), len(run.columns), len(run.gallery_labels)
    if not queries or not columns:
        raise ValueError(f"a report needs a query and a label column, got {queries} and {columns}")
    missing = [column.name for column in run.columns if column.name not in run.evaluation["columns"]]
    if missing:
        raise ValueError(f"evaluation has no column {missing[0]!r}; it has {list(run.evaluation['columns'])}")
    k = np.shape(run.neighbors)[-1] if np.ndim(run.neighbors) else 0
    excluded = excluded_rows(run)
    expected = {
        "query_names": (queries,),
        "query_labels": (queries, columns),
        "query_embeddings": (queries, np.shape(run.query_embeddings)[-1]),
        "gallery_labels": (gallery, columns),
        "neighbors": (queries, k),
        "neighbor_distances": (queries, k),
        "predictions": (queries, columns),
        "exclude": (queries, excluded.shape[-1]),
    }
    for name, shape in expected.items():
        came = np.shape(excluded if name == "exclude" else getattr(run, name))
        if came != shape:
            raise ValueError(f"{name} has shape {came}, expected {shape}")
    if np.max(run.neighbors, initial=-1) >= gallery:
        raise ValueError(f"neighbors names row {np.max(run.neighbors)} of a gallery of {gallery}")
    if np.max(excluded, initial=-1) >= gallery:
        raise ValueError(f"exclude names row {np.max(excluded)} of a gallery of {gallery}")
    found = np.asarray(run.neighbor_distances)[np.asarray(run.neighbors) >= 0]
    for name, numbers in (("query_embeddings", run.query_embeddings), ("neighbor_distances", found)):
        if not np.isfinite(numbers).all():
            raise ValueError(f"{name} has values that are not finite")
    sizes = [len(column.values) for column in run.columns]
    for name in ("query_labels", "gallery_labels", "predictions"):
        largest = np.max(getattr(run, name), axis=0, initial=-1)
        for column, code, size in zip(run.columns, largest, sizes, strict=True):
            if code >= size:
                raise ValueError(f"{name} has code {code} in column {column.name!r} of {size} values")
