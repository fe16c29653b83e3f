"""The per-device training step, written once for any number of devices, and the embedding of pictures to evaluate."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmetric.parallel import Step, average, gather
from jaxmetric.training.state import TrainState

Objective = Callable[[jax.Array, Any, jax.Array, jax.Array], tuple[jax.Array, Mapping[str, jax.Array]]]
Embed = Callable[[TrainState, Sequence[np.ndarray]], np.ndarray]
Preprocess = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def make_train_step(
    *,
    apply_fn: Callable[..., Any],
    objective: Objective,
    optimizer: optax.GradientTransformation,
    preprocess: Preprocess,
    seed: int,
) -> Step:
    """The step that `jaxmetric.parallel` drives.

    Randomness depends on the seed, the step and the place of a picture in the global batch only: not on the number of
    devices, nor on what ran before.

    Args:
      apply_fn: a Linen module's `apply`: `(variables, images, train=True, mutable=["batch_stats"])` gives `[b, D]`
        embeddings and the updated collections. Batch norm must be synchronised over `parallel.AXIS_NAME`.
      objective: `(key, loss_params, embeddings [B, D], labels [B, T])` gives the loss of the global batch and a dict of
        its terms.
      optimizer: transforms the gradients of `state.params`.
      preprocess: `(key, positions [b], images)` gives what the encoder takes, from the pictures of a batch and their
        places in the global one.
      seed: of the run.

    Returns:
      `step(state, batch, *, axis_name) -> (state, metrics)`, where the batch holds this device's share of `"image"` and
      `"label"`. The metrics are the loss and its terms, the norm of the gradient, and whether the loss and the new
      state are `"finite"`.
    """

    def train_step(
        state: TrainState, batch: Mapping[str, jax.Array], *, axis_name: str
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        image_key, loss_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
        share = batch["image"].shape[0]
        positions = jax.lax.axis_index(axis_name) * share + jnp.arange(share)
        images = preprocess(image_key, positions, batch["image"])
        labels = gather(batch["label"], axis_name)

        def loss_fn(params: dict[str, Any]) -> tuple[jax.Array, tuple[Mapping[str, jax.Array], Any]]:
            variables = {"params": params["encoder"], "batch_stats": state.batch_stats}
            embeddings, updated = apply_fn(variables, images, train=True, mutable=["batch_stats"])
            loss, terms = objective(loss_key, params["loss"], gather(embeddings, axis_name), labels)
            return loss, (terms, updated.get("batch_stats", {}))

        value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (terms, batch_stats)), gradients = value_and_grad(state.params)
        gradients = average(gradients, axis_name)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new_state = TrainState(step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state)
        metrics = {
            "loss": loss,
            "gradient_norm": optax.tree.norm(gradients),
            "finite": _all_finite((loss, params, batch_stats, opt_state)),
            **{f"loss/{name}": term for name, term in terms.items()},
        }
        return new_state, metrics

    return train_step


def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def make_embed(
    apply_fn: Callable[..., Any], prepare: Callable[[jax.Array], jax.Array], *, batch_size: int = 256
) -> Embed:
    """A function `(state, images) -> [N, D]` embeddings as numpy, in batches of one compiled size.

    Args:
      apply_fn: a Linen module's `apply`.
      prepare: uint8 pictures `[B, S, S, 3]` to what the encoder takes, nothing random.
      batch_size: pictures at a time; the last batch is padded.

    Returns:
      The function; `images` is any sequence of equally large uint8 pictures.
    """

    @jax.jit
    def embed_batch(params: Any, batch_stats: Any, images: jax.Array) -> jax.Array:
        return apply_fn({"params": params, "batch_stats": batch_stats}, prepare(images), train=False)

    def embed(state: TrainState, images: Sequence[np.ndarray]) -> np.ndarray:
        count = len(images)
        parts = []
        for start in range(0, count, batch_size):
            # The last batch repeats its last picture, so that every batch has the compiled shape.
            wanted = np.minimum(np.arange(start, start + batch_size), count - 1)
            batch = np.stack([images[int(index)] for index in wanted])
            parts.append(embed_batch(state.params["encoder"], state.batch_stats, batch))
        return np.concatenate([np.asarray(part) for part in parts])[:count]

    return embed
