"""The arguments of a loss over several columns of labels, checked, and how the labels of two examples are compared."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmetric import _checks as checks
from jaxmetric.agreement import column_scale, known_labels


class LabelledBatch(NamedTuple):
    """Examples whose arguments were checked."""

    embeddings: jax.Array  # [B, D], zeros where the weight is 0
    labels: jax.Array  # [B, T]
    known: jax.Array  # [B, T] booleans
    weights: jax.Array  # [B], 0 for an example without any known label

    @property
    def size(self) -> int:
        """B."""
        return self.embeddings.shape[0]


class Disagreement(NamedTuple):
    """How labels are compared: the static options of `disagreement_levels`."""

    agreement: str = "count"
    label_weights: tuple[float, ...] | None = None
    ordinal: tuple[int | None, ...] | None = None


def labelled_batch(
    embeddings: jax.Array, labels: jax.Array, where: jax.Array | None, weights: jax.Array | None
) -> LabelledBatch:
    """Checks the arrays of a loss over `[B, T]` labels."""
    embeddings = checks.check_embeddings(embeddings)
    labels = checks.check_labels("labels", labels)
    checks.check_rows(embeddings, labels=labels)
    labels, known = known_labels(labels, where)
    weights = checks.example_weights(embeddings, jnp.any(known, axis=1), weights)
    return LabelledBatch(checks.leave_out(embeddings, weights), labels, known, weights)


def check_disagreement(
    batch: LabelledBatch,
    agreement: str,
    label_weights: Sequence[float] | None,
    ordinal: Sequence[int | None] | None,
) -> Disagreement:
    """Checks how a loss was asked to compare labels."""
    checks.check_choice("agreement", agreement, ("count", "any"))
    column_scale(batch.labels.shape[1], label_weights, ordinal)  # raises what is wrong with them
    return Disagreement(
        agreement, None if label_weights is None else tuple(label_weights), None if ordinal is None else tuple(ordinal)
    )
