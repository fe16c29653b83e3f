"""The loss of a configuration: a weighted sum of jaxmetric's losses, with their parameters."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmetric import losses, parallel
from jaxmetric.data import LabelColumn
from jaxmetric.losses import LossStats
from jaxmetric.run.config import LossConfig
from jaxmetric.training.step import Objective


def init_loss_params(key: jax.Array, loss: LossConfig, *, num_classes: int, dim: int) -> dict[str, jax.Array]:
    """The centres and class vectors that the configured terms learn."""
    params = {}
    if loss.soft_triple_weight:
        params["centers"] = losses.init_centers(jax.random.fold_in(key, 0), num_classes, loss.centers_per_class, dim)
    if loss.softmax_weight:
        params["proxies"] = losses.init_centers(jax.random.fold_in(key, 1), num_classes, 1, dim)[:, 0]
    return params


def make_objective(loss: LossConfig, columns: tuple[LabelColumn, ...], *, classes: np.ndarray) -> Objective:
    """The weighted sum of the configured terms, as `jaxmetric.training.make_train_step` takes it.

    The identity is column 0. A label of -1 is missing: the quadruplet loss leaves out that label, the others that
    picture.

    Args:
      loss: the terms.
      columns: the label columns.
      classes: the identities that are learnt, ascending; those held out are no classes of a softmax.

    Returns:
      The objective. With the loss it reports each term's value, `loss/<term>`, and how much the term found to compare
      in the batch, `valid/<term>`: see `jaxmetric.LossStats`. Where that is 0, a value of 0 is no success.
    """
    class_of_identity = np.zeros(max(len(columns[0].values), 1), np.int32)  # 1: where all are missing
    class_of_identity[classes] = np.arange(len(classes))

    def objective(
        key: jax.Array, params: Any, embeddings: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        known = labels >= 0
        identity, where = jnp.asarray(class_of_identity)[labels[:, 0]], known[:, 0]
        if params:
            identity, params = _classes_of_step(loss, jax.random.fold_in(key, 1), identity, where, params, len(classes))
        terms: dict[str, tuple[jax.Array, LossStats]] = {}
        if loss.quadruplet_weight:
            terms["quadruplet"] = _quadruplet(loss, columns, key, embeddings, labels, known)
        if loss.soft_triple_weight:
            terms["soft_triple"] = losses.soft_triple_loss(
                embeddings,
                identity,
                params["centers"],
                scale=loss.scale,
                gamma=loss.gamma,
                margin=loss.margin,
                tau=loss.tau,
                where=where,
                has_aux=True,
            )
        if loss.softmax_weight:
            terms["softmax"] = losses.normalized_softmax_loss(
                embeddings,
                identity,
                params["proxies"],
                scale=loss.scale,
                margin=loss.margin,
                where=where,
                has_aux=True,
            )
        if loss.triplet_weight:
            terms["triplet"] = losses.triplet_loss(
                embeddings,
                identity,
                margin=loss.triplet_margin,
                mining=loss.triplet_mining,
                where=where,
                has_aux=True,
            )
        total = sum((getattr(loss, f"{name}_weight") * value for name, (value, _) in terms.items()), jnp.zeros(()))
        values = {f"loss/{name}": value for name, (value, _) in terms.items()}
        return total, values | {f"valid/{name}": stats.valid for name, (_, stats) in terms.items()}

    return objective


def _classes_of_step(
    loss: LossConfig, key: jax.Array, identity: jax.Array, where: jax.Array, params: Any, num_classes: int
) -> tuple[jax.Array, Any]:
    """The labels and class vectors that the softmaxes of a step run over: all of this device's, or drawn ones."""
    axis_name = parallel.AXIS_NAME if loss.shard_classes else None
    if loss.sampled_classes:
        sampled = losses.sample_classes(
            key, identity, num_classes, loss.sampled_classes, where=where, axis_name=axis_name
        )
        identity, num_classes = sampled.labels, loss.sampled_classes
        params = {name: vectors[sampled.rows] for name, vectors in params.items()}
    if axis_name:
        params = {
            name: losses.ClassShard(vectors, axis_name=axis_name, num_classes=num_classes)
            for name, vectors in params.items()
        }
    return identity, params


def _quadruplet(
    loss: LossConfig,
    columns: tuple[LabelColumn, ...],
    key: jax.Array,
    embeddings: jax.Array,
    labels: jax.Array,
    known: jax.Array,
) -> tuple[jax.Array, LossStats]:
    if loss.quadruplet_samples:
        return losses.sampled_quadruplet_loss(
            key,
            embeddings,
            labels,
            num_quadruplets=loss.quadruplet_samples,
            margin=loss.quadruplet_margin,
            where=known.all(axis=1),
            has_aux=True,
        )
    quadruplet_loss: Callable[..., Any] = losses.quadruplet_loss
    if loss.quadruplet_anchors:
        quadruplet_loss = partial(
            losses.anchored_quadruplet_loss,
            key,
            num_anchors=loss.quadruplet_anchors,
            axis_name=parallel.AXIS_NAME,
        )
    return quadruplet_loss(
        embeddings,
        labels,
        margin=loss.quadruplet_margin,
        agreement=loss.quadruplet_agreement,
        balance=loss.quadruplet_balance,
        label_weights=loss.label_weights or None,
        ordinal=tuple(len(column.values) - 1 if column.ordinal else 0 for column in columns),
        where=known,
        has_aux=True,
    )
