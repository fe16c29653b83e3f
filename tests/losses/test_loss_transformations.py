"""All losses with all of their options inside `shard_map` and under the strict settings of JAX."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec
from loss_options import Options, numbers, variants
from loss_rows import ROWS, example

N = 4
WHOLE, SHARED = PartitionSpec(), PartitionSpec("data")

# One row of each loss: variants go through the options by which the others differ.
LOSSES = {row.loss: name for name, row in reversed(ROWS.items())}.values()
every_loss = pytest.mark.parametrize("name", LOSSES)


def value_and_gradients(name, static, parameters, hyper, embeddings, labels, of_examples, shared):
    """The loss and its gradients in the parameters, the hyper-parameters and the embeddings."""

    def loss(parameters, hyper, embeddings):
        options = {**hyper, **static, **of_examples, **shared}
        result = ROWS[name].call(parameters, embeddings, labels, **options)
        return jnp.sum(result[0] if static.get("has_aux") else result)

    return jax.value_and_grad(loss, argnums=(0, 1, 2))(parameters, hyper, embeddings)


def on_devices(function, *, check_vma):
    """Each device's own value, its gradient in its embeddings, and the sum of all gradients in what all share."""

    def on_device(*arguments):
        value, (d_parameters, d_hyper, d_embeddings) = function(*arguments)
        if not check_vma:  # the sum, which the check inserts, is then the caller's
            d_parameters, d_hyper = jax.lax.psum((d_parameters, d_hyper), "data")
        return value[None], (d_parameters, d_hyper, d_embeddings)

    mesh = Mesh(jax.devices()[:N], ("data",), axis_types=(AxisType.Auto,))
    in_specs, out_specs = (WHOLE, WHOLE, SHARED, SHARED, SHARED, WHOLE), (SHARED, (WHOLE, WHOLE, SHARED))
    return jax.jit(jax.shard_map(on_device, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=check_vma))


def arguments(name, variant):
    """What a loss sees on each device, and the same of all devices together."""
    parameters, hyper = example(name)[0], numbers(name)
    each = []
    for seed in range(N):
        options = variants(name, seed)[variant]
        known = {key: value for key, value in hyper.items() if key not in options.shared}
        each.append((parameters, known, *example(name, seed)[1:], options.of_examples, variants(name)[variant].shared))
    together = [jax.tree.map(lambda *parts: np.concatenate(parts), *(part[i] for part in each)) for i in (2, 3, 4)]
    return each, (parameters, each[0][1], *together, each[0][5])


@every_loss
def test_every_option_traces_inside_shard_map_with_its_default_check(name):
    for variant, options in variants(name).items():
        _, together = arguments(name, variant)
        function = partial(value_and_gradients, name, options.static)
        try:
            jax.eval_shape(on_devices(function, check_vma=True), *together)
        except Exception as error:
            raise AssertionError(f"{name}, {variant}") from error


@every_loss
@pytest.mark.parametrize("check_vma", [True, False])
def test_inside_shard_map_each_device_has_its_own_loss_and_shared_parameters_the_sum(name, check_vma):
    for variant, options in variants(name).items():
        if not variant in (next(iter(variants(name))), "everything"):
            continue
        each, together = arguments(name, variant)
        function = partial(value_and_gradients, name, options.static)
        alone = [jax.jit(function)(*one) for one in each]
        values, (d_parameters, d_hyper, d_embeddings) = on_devices(function, check_vma=check_vma)(*together)
        close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
        close(values, [value for value, _ in alone])
        close(d_embeddings, np.concatenate([gradients[2] for _, gradients in alone]))
        expected = jax.tree.map(lambda *parts: np.sum(parts, axis=0), *(gradients[:2] for _, gradients in alone))
        jax.tree.map(close, (d_parameters, d_hyper), expected)
