"""The per-device training step, for any number of devices."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmetric.parallel import Step, average, gather
from jaxmetric.training.state import TrainState, standard_promotion

# (key, loss_params, memory, embeddings [B, D], labels [B, T]) -> the loss and (values to report, the new memory)
Objective = Callable[[jax.Array, Any, Any, jax.Array, jax.Array], tuple[jax.Array, tuple[Mapping[str, jax.Array], Any]]]
Preprocess = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def make_train_step(
    *,
    apply_fn: Callable[..., Any],
    objective: Objective,
    optimizer: optax.GradientTransformation,
    preprocess: Preprocess,
    seed: int,
    chunks: int = 1,
    clip_norm: float | None = None,
    class_shards: bool = False,
) -> Step:
    """Makes the training step for the drivers of `jaxmetric.parallel`.

    Randomness depends only on the seed, the step and the position of an image in the global batch, not on the number
    of devices or chunks, or on earlier steps.

    Args:
      apply_fn: a Linen module's `apply`: `(variables, images, train=True, mutable=["batch_stats"])` returns `[b, D]`
        embeddings and the updated collections. Batch norm must be synchronized over `parallel.AXIS_NAME`.
      objective: `(key, loss_params, memory, embeddings [B, D], labels [B, T])` returns the loss of the global batch and
        a pair: a dict of scalars to report, such as the terms of the loss, whose names differ from those of the metrics
        below, and the memory for the next step.
      optimizer: transforms the gradients of `state.params`.
      preprocess: `(key, positions [b], images)` returns the inputs of the encoder, from the images of a batch and
        their positions in the global batch.
      seed: seed of the run.
      chunks: number of equal parts of a device's share that go through `preprocess` and the encoder one at a time. The
        loss still uses the embeddings of the whole batch, and the backward pass recomputes each chunk. This needs
        memory for the activations of only one chunk, but one more forward pass (on a CPU much more time, as XLA is
        slow there at gradients of convolutions in a loop). Gradients equal those without chunks, except for batch norm
        in training: it normalizes one chunk at a time (over all devices) and updates its running statistics by the
        mean of the chunks' updates.
      clip_norm: largest norm of the gradient over all parameters; larger gradients are scaled down. None does not clip.
      class_shards: whether the arrays of `state.params["loss"]`, except scalars, and their optimizer state are this
        device's shards of class vectors, from which the objective makes `jaxmetric.ClassShard`s. Otherwise they are
        replicated like everything else.

    Returns:
      `step(state, batch, *, axis_name) -> (state, metrics)`, where the batch holds this device's share of `"image"` and
      `"label"`. The metrics are `"loss"` and what the objective reports with it, `"gradient_norm"` before it is
      clipped, and whether the loss and that norm are `"finite"`. All are equal on all devices. To check the new state,
      call `check_finite`.

    Raises:
      ValueError: if `chunks` is below 1 or `clip_norm` is not positive; from the step, if a device's share does not
        divide into chunks.

    References:
      L. Gao, Y. Zhang, J. Han, J. Callan, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup,
      RepL4NLP 2021.
    """
    if chunks < 1:
        raise ValueError(f"chunks is {chunks}, expected at least 1")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm is {clip_norm}, expected a positive number, or None not to clip")

    def train_step(
        state: TrainState, batch: Mapping[str, jax.Array], *, axis_name: str
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        image_key, loss_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
        share = batch["image"].shape[0]
        positions = jax.lax.axis_index(axis_name) * share + jnp.arange(share)
        labels = gather(batch["label"], axis_name)

        def loss_fn(params: dict[str, Any]) -> tuple[jax.Array, tuple[Mapping[str, jax.Array], Any, Any]]:
            variables = {"params": params["encoder"], "batch_stats": state.batch_stats}

            def embed(positions: jax.Array, images: jax.Array) -> tuple[jax.Array, Any]:
                images = preprocess(image_key, positions, images)
                with standard_promotion():
                    embeddings, updated = apply_fn(variables, images, train=True, mutable=["batch_stats"])
                return embeddings, updated.get("batch_stats", {})

            if chunks == 1:
                embeddings, batch_stats = embed(positions, batch["image"])
            else:
                embeddings, updates = _in_chunks(embed, chunks, positions, batch["image"])
                batch_stats = jax.tree.map(_mean_move, state.batch_stats, updates)
            embeddings = gather(embeddings, axis_name)
            loss, (reported, memory) = objective(loss_key, params["loss"], state.memory, embeddings, labels)
            return loss, (reported, memory, batch_stats)

        value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (reported, memory, batch_stats)), gradients = value_and_grad(state.params)
        gradients = _batch_gradient(gradients, axis_name, class_shards=class_shards)
        norm = _norm(gradients, axis_name, class_shards=class_shards)
        if clip_norm is not None:
            gradients = optax.tree.scale(jnp.minimum(1.0, clip_norm / norm), gradients)
        with standard_promotion():
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        new_state = TrainState(state.step + 1, params, batch_stats, opt_state, memory)
        metrics = {
            **reported,
            "loss": loss,
            "gradient_norm": norm,
            "finite": jnp.isfinite(loss) & jnp.isfinite(norm),
        }
        return new_state, metrics

    return train_step


def _in_chunks(
    embed: Callable[[jax.Array, jax.Array], tuple[jax.Array, Any]], chunks: int, positions: jax.Array, images: jax.Array
) -> tuple[jax.Array, Any]:
    """Computes the embeddings of a device's share, and the batch statistics after each chunk `[chunks, ...]`."""
    share = images.shape[0]
    if share % chunks:
        raise ValueError(f"a device's share of {share} images does not divide into {chunks} chunks")
    parts = jax.tree.map(lambda x: x.reshape(chunks, -1, *x.shape[1:]), (positions, images))
    # The loop keeps XLA from merging the recomputation with the forward pass, so no barrier is needed.
    embed_again = jax.checkpoint(lambda part: embed(*part), prevent_cse=False)
    embeddings, batch_stats = jax.lax.map(embed_again, parts)
    return embeddings.reshape(share, -1), batch_stats


def _mean_move(before: jax.Array, after: jax.Array) -> jax.Array:
    """Updates a statistic by the mean of the chunks' updates; a frozen statistic stays exactly the same."""
    moved = before + jnp.mean(after - before[None], axis=0)
    return jnp.where(jnp.all(after == before[None], axis=0), before, moved)


def _batch_gradient(gradients: dict[str, Any], axis_name: str, *, class_shards: bool) -> dict[str, Any]:
    """Returns the gradient of the global batch's loss from the gradients of the devices, see `jaxmetric.parallel`.

    Together, N devices differentiate the sum of their losses. Each computes a part of the gradient of a replicated
    parameter. For its shard of class vectors, which no other device has, it computes all of it: N times the gradient.
    """
    if not class_shards:
        return average(gradients, axis_name)
    num_devices = jax.lax.axis_size(axis_name)
    return {
        "encoder": average(gradients["encoder"], axis_name),
        "loss": jax.tree.map(lambda x: x / num_devices if x.ndim else average(x, axis_name), gradients["loss"]),
    }


def _norm(gradients: dict[str, Any], axis_name: str, *, class_shards: bool) -> jax.Array:
    """Returns the norm of the whole gradient: shards count on every device, replicated parameters count once."""
    of_loss = jax.tree.leaves(gradients["loss"])
    vectors, scalars = _squared_norm([x for x in of_loss if x.ndim]), _squared_norm([x for x in of_loss if not x.ndim])
    if class_shards:
        vectors = jax.lax.psum(vectors, axis_name)
    return jnp.sqrt(_squared_norm(gradients["encoder"]) + vectors + scalars)


def _squared_norm(tree: Any) -> jax.Array:
    return sum((jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)), jnp.zeros(()))
