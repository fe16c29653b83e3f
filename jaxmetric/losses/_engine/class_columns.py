"""The arguments of a class-vector loss, checked and taken apart into columns of labels."""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmetric import _checks as checks
from jaxmetric.losses._engine.class_shard import ClassVectors, check_class_vectors, count_classes, held, of_labels


class Column(NamedTuple):
    """One column of labels with the vectors of its classes.

    Attributes:
      labels: `[B]` integers; 0 for examples that are left out.
      vectors: `[C, D]` or `[C, K, D]`, or a shard of them.
      weights: `[B]` weights of the examples, 0 for those left out.
      class_weights: `[C]`, or None for 1.
    """

    labels: jax.Array
    vectors: ClassVectors
    weights: jax.Array
    class_weights: jax.Array | None

    def is_class(self) -> jax.Array:
        """`[B]`: whether each label is one of the classes."""
        return (self.labels >= 0) & (self.labels < count_classes(self.vectors))

    def of_labels(self, per_class: ClassVectors) -> jax.Array:
        """`[B, ...]`: of `[C, ...]` what belongs to the class of each example; anything where that is no class."""
        return of_labels(per_class, self.labels)


class Options(NamedTuple):
    """The optional arguments that have a part for each class or example."""

    class_weights: Any
    where: Any
    weights: Any


def check_columns(
    embeddings: jax.Array, labels: Any, vectors: Any, options: Options, name: str, num_axes: int
) -> list[Column]:
    """Returns the columns of `labels`, one for each of a tuple of class vectors."""
    if not isinstance(vectors, (tuple, list)):
        return [_check_column(embeddings, labels, vectors, options, name, num_axes)]
    shape, class_weights = (embeddings.shape[0], len(vectors)), options.class_weights
    labels, where = _concrete(labels, checks.check_labels("labels", labels)), options.where
    if not vectors or labels.shape != shape:
        raise ValueError(f"labels has shape {labels.shape}, expected {shape}: a column for each of the {name}")
    if class_weights is None:
        class_weights = [None] * len(vectors)
    if not isinstance(class_weights, (tuple, list)) or len(class_weights) != len(vectors):
        raise ValueError(f"class_weights is {_describe(class_weights)}, expected a tuple of {len(vectors)}, as {name}")
    where = None if where is None else _concrete(where, checks.check_booleans("where", where))
    if where is not None and where.ndim == 2 and where.shape != shape:
        raise ValueError(f"where has shape {where.shape}, expected {shape} as labels")
    columns = []
    for t, (of_class, weight) in enumerate(zip(vectors, class_weights, strict=True)):
        known = where if where is None or where.ndim < 2 else where[:, t]
        of_column = options._replace(class_weights=weight, where=known)
        columns.append(_check_column(embeddings, labels[:, t], of_class, of_column, f"{name}[{t}]", num_axes))
    return columns


def _concrete(given: Any, checked: jax.Array) -> Any:
    """NumPy arrays as they are: what is made of them inside `jit` is traced, and its range could not be checked."""
    return given if isinstance(given, np.ndarray) else checked


def _check_column(
    embeddings: jax.Array, labels: Any, vectors: Any, options: Options, name: str, num_axes: int
) -> Column:
    shape = checks.check_labels("labels", labels).shape
    if len(shape) == 2 and shape[1] > 1:
        raise ValueError(f"labels has shape {shape}, expected one column, or {name} as a tuple of {shape[1]} arrays")
    column = checks.check_class_labels(embeddings, labels)
    weights = checks.example_weights(embeddings, options.where, options.weights)
    vectors, class_weights = check_class_vectors(name, vectors, num_axes), options.class_weights
    shape, num_classes = held(vectors).shape, count_classes(vectors)
    if shape[-1] != embeddings.shape[1]:
        raise ValueError(f"{name} has shape {shape}, expected last axis {embeddings.shape[1]} as embeddings")
    _check_range(labels, options, num_classes, name)
    if class_weights is not None:
        if np.shape(class_weights) != (num_classes,):
            raise ValueError(f"class_weights is {_describe(class_weights)}, expected {(num_classes,)}, as {name}")
        class_weights = checks.check_numbers("class_weights", class_weights, embeddings.dtype)
        class_weights = checks.check_weights("class_weights", class_weights)
    return Column(column, vectors, weights, class_weights)


def _check_range(labels: Any, options: Options, num_classes: int, name: str) -> None:
    """Raises for concrete labels that are no classes, unless their examples are left out."""
    if any(isinstance(array, jax.core.Tracer) for array in (labels, options.where, options.weights)):
        return
    labels = np.asarray(labels).reshape(-1)
    counted = np.ones(labels.shape, bool) if options.where is None else np.array(options.where).reshape(-1)
    if options.weights is not None:
        counted &= np.asarray(options.weights).reshape(-1) > 0
    checks.check_class_range(labels, counted, num_classes, name)


def _describe(class_weights: Any) -> str:
    tuple_of = isinstance(class_weights, (tuple, list))
    return f"a tuple of {len(class_weights)}" if tuple_of else f"of shape {np.shape(class_weights)}"
