"""Self-supervision: several views of the same images instead of labels.

Two views are positives of each other if they show the same image. `self_supervised` converts any loss over pairs or
triplets to a loss over views, with the labels of `view_labels`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmetric import _checks as checks
from jaxmetric.references import References


def view_labels(batch: int, num_views: int) -> jax.Array:
    """Returns `[num_views * batch]` labels of stacked views: the index of the image.

    Example:
      >>> view_labels(3, 2).tolist()
      [0, 1, 2, 0, 1, 2]
    """
    batch = checks.check_static_integer("batch", batch, least=0)
    num_views = checks.check_static_integer("num_views", num_views, least=1)
    return jnp.tile(jnp.arange(batch), num_views)


def self_supervised(loss: Callable[..., Any], *, symmetric: bool = True) -> Callable[..., Any]:
    """Converts a loss of embeddings and labels to a loss of two or more views of the same images.

    In the symmetric form, every view is an anchor and is compared with all other views of all images. In the asymmetric
    form, only the embeddings of the first view are anchors, and they are compared only with the other views, not with
    each other.

    Args:
      loss: a loss `(embeddings, labels, ...)`; if not symmetric, one that takes `references`.
      symmetric: whether to use the symmetric form.

    Returns:
      A function `(first, second, ..., where=None, weights=None, **hyper_parameters)` of `[B, D]` views, whose rows show
      the same images in the same order. `where` and `weights` are per image, `[B]`. With `reduction="none"` it returns
      one value for each anchor, view after view.

    Raises:
      ValueError: (the returned function) if there are fewer than two views or their shapes differ.

    Example:
      >>> import jax.numpy as jnp, jaxmetric
      >>> first, second = jnp.array([[0.0], [3.0]]), jnp.array([[1.0], [3.0]])
      >>> loss = self_supervised(jaxmetric.triplet_loss)(first, second, margin=4.0)
      >>> float(loss)  # of the 8 triplets, only (1', 0) against (1', 3) and (1', 3') violate the margin, by 1 each
      0.25

    References:
      T. Chen, S. Kornblith, M. Norouzi, G. Hinton, A Simple Framework for Contrastive Learning of Visual
      Representations, ICML 2020 (symmetric, with `ntxent_loss`).
    """
    checks.check_flag("symmetric", symmetric)

    def loss_of_views(*views: jax.Array, where: Any = None, weights: Any = None, **options: Any) -> Any:
        views = _check_views(views)
        batch, image_options = views[0].shape[0], {}
        if where is not None:
            image_options["where"] = checks.check_booleans("where", where)
        if weights is not None:
            image_options["weights"] = checks.check_array("weights", weights, "numbers")
        if symmetric:
            repeated = {name: jnp.tile(each, len(views)) for name, each in image_options.items()}
            return loss(jnp.concatenate(views), view_labels(batch, len(views)), **repeated, **options)
        first, *others = views
        repeated = {name: jnp.tile(each, len(others)) for name, each in image_options.items()}
        references = References(jnp.concatenate(others), view_labels(batch, len(others)), **repeated)
        return loss(first, view_labels(batch, 1), references=references, **image_options, **options)

    return loss_of_views


def _check_views(views: tuple[Any, ...]) -> tuple[jax.Array, ...]:
    arrays = tuple(checks.check_floats(f"view {i}", view) for i, view in enumerate(views))
    shapes = [view.shape for view in arrays]
    if len(arrays) < 2 or len(shapes[0]) != 2 or len(set(shapes)) > 1:
        raise ValueError(f"views have shapes {shapes}, expected two or more of one shape [B, D]")
    return arrays
