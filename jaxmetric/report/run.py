"""What a report is made of: the dataclass `Run`, and `check_run`, which refuses one that does not fit together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class Column(Protocol):
    """A label column: code i means values[i]; `jaxmetric.data.LabelColumn` is one."""

    @property
    def name(self) -> str:
        """What the column is called."""

    @property
    def values(self) -> Sequence[str]:
        """What each code means."""


class Images(Protocol):
    """Images by index: an array in memory, or a source that reads them when asked."""

    def __getitem__(self, index: int, /) -> Any:
        """Image `index`, uint8 [S, S, 3]."""


@dataclass(frozen=True)
class Run:
    """Everything the report shows of one run. Q queries, G gallery images, T label columns, k neighbors.

    Args:
        name: what the run is called.
        config: the resolved configuration; may be nested.
        history: the lines of `metrics.jsonl`: `step`, and whichever of `loss`, `loss/<term>`,
            `validation/<column>/recall@1`, `validation/coherence`, ... was recorded at that step.
        evaluation: the evaluation result; numbers that are undefined are None.
        baseline: the same for the untrained network, or None.
        columns: the T label columns; the first is the identity.
        query_images: uint8 [Q, S, S, 3].
        query_names: Q names, shown with the images.
        query_labels: int [Q, T]; -1 is unknown.
        query_embeddings: float [Q, D].
        gallery_images: `gallery_images[i]` is uint8 [S, S, 3]; only shown neighbors are read.
        gallery_labels: int [G, T]; -1 is unknown.
        neighbors: int [Q, k], nearest first: rows of the gallery; -1 where there is none.
        neighbor_distances: float [Q, k].
        predictions: int [Q, T], the predicted codes; -1 where nothing was predicted.
        environment: versions and devices, by name.
        gallery_name: what the gallery images are, as in "the nearest of the learning set".
        exclude: int [Q, E], rows of the gallery that a query was not compared with, such as itself; -1 for none. None
            if all were compared with all.
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


def excluded_rows(run: Run) -> np.ndarray:
    """`[Q, E]` rows of the gallery that each query was not compared with, -1 for none."""
    return np.zeros((len(run.query_labels), 0), int) if run.exclude is None else np.asarray(run.exclude)


def compared_with(exclude: np.ndarray, gallery: int) -> str:
    """How many of the gallery's rows the queries are compared with, where they leave out the rows `[Q, E]`.

    Example:
      >>> compared_with(np.array([[0], [1], [2]]), 3), compared_with(np.array([[0, 1], [2, -1]]), 1049)
      ('2', '1,047 to 1,048')
    """
    offered = gallery - (exclude >= 0).sum(axis=1)
    least, most = offered.min(), offered.max()
    return f"{most:,}" if least == most else f"{least:,} to {most:,}"


def check_run(run: Run) -> None:
    """Refuse a run whose parts do not fit together.

    Raises:
        ValueError: naming the field, what came and what was expected.
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
