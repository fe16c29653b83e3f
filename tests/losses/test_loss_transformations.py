"""All losses with all of their options inside `shard_map` and under the strict settings of JAX."""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec
from loss_options import numbers, variants
from loss_rows import ROWS, C, D, K, example, slow_but_for_one_of_each_engine

import jaxmetric
from jaxmetric import mining
from jaxmetric.losses._engine import class_chunks, class_loss
from jaxmetric.references import References

N = 4
WHOLE, SHARED = PartitionSpec(), PartitionSpec("data")

# One row of each loss: the options by which the others differ are among its variants.
LOSSES = {row.loss: name for name, row in reversed(ROWS.items())}.values()
every_loss = pytest.mark.parametrize("name", LOSSES)
every_loss_by_engine = pytest.mark.parametrize("name", slow_but_for_one_of_each_engine(LOSSES))
CLASS_LOSSES = [name for name in LOSSES if ROWS[name].class_vectors]


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

    in_specs, out_specs = (WHOLE, WHOLE, SHARED, SHARED, SHARED, WHOLE), (SHARED, (WHOLE, WHOLE, SHARED))
    return jax.jit(jax.shard_map(on_device, mesh=mesh(), in_specs=in_specs, out_specs=out_specs, check_vma=check_vma))


def mesh():
    return Mesh(jax.devices()[:N], ("data",), axis_types=(AxisType.Auto,))


def arguments(name, variant, parameters=None):
    """What a loss sees on each device, and the same of all devices together."""
    parameters = example(name)[0] if parameters is None else parameters
    shared = variants(name)[variant].shared
    hyper = {key: value for key, value in numbers(name).items() if key not in shared}
    each = [
        (parameters, hyper, *example(name, seed)[1:], variants(name, seed)[variant].of_examples, shared)
        for seed in range(N)
    ]
    together = [jax.tree.map(lambda *parts: np.concatenate(parts), *(part[i] for part in each)) for i in (2, 3, 4)]
    return each, (parameters, hyper, *together, shared)


def assert_each_device_has_its_own_loss(name, variant, *, check_vma, parameters=None):
    each, together = arguments(name, variant, parameters)
    function = partial(value_and_gradients, name, variants(name)[variant].static)
    alone = [jax.jit(function)(*one) for one in each]
    values, (d_parameters, d_hyper, d_embeddings) = on_devices(function, check_vma=check_vma)(*together)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    close(values, [value for value, _ in alone])
    close(d_embeddings, np.concatenate([gradients[2] for _, gradients in alone]))
    expected = jax.tree.map(lambda *parts: np.sum(parts, axis=0), *(gradients[:2] for _, gradients in alone))
    jax.tree.map(close, (d_parameters, d_hyper), expected)


@every_loss_by_engine
def test_it_traces_inside_shard_map_with_its_default_check(name):
    _, together = arguments(name, "everything")
    function = partial(value_and_gradients, name, variants(name)["everything"].static)
    values, _ = jax.eval_shape(on_devices(function, check_vma=True), *together)
    assert values.shape == (N,)


@pytest.mark.slow
@every_loss
def test_every_option_traces_inside_shard_map_with_its_default_check(name):
    for variant, options in variants(name).items():
        _, together = arguments(name, variant)
        try:
            jax.eval_shape(on_devices(partial(value_and_gradients, name, options.static), check_vma=True), *together)
        except Exception as error:
            raise AssertionError(f"{name}, {variant}") from error


@pytest.mark.slow
@every_loss
def test_inside_shard_map_each_device_has_its_own_loss_and_replicated_arguments_get_the_sum_of_gradients(name):
    assert_each_device_has_its_own_loss(name, "everything", check_vma=True)


@pytest.mark.slow
@every_loss
def test_gradients_per_device_are_the_same_without_the_check(name):
    assert_each_device_has_its_own_loss(name, "everything", check_vma=False)


@pytest.mark.slow
@every_loss
def test_gradients_per_device_are_the_same_with_every_flag_and_choice(name):
    for variant in variants(name):
        if "=" in variant and "distance" not in variant and "similarity" not in variant:
            assert_each_device_has_its_own_loss(name, variant, check_vma=True)


@pytest.mark.parametrize("name", slow_but_for_one_of_each_engine(CLASS_LOSSES))
def test_gradients_per_device_are_the_same_in_chunks_and_with_a_single_center(name, monkeypatch):
    if name in ("margin", "manifold"):
        pytest.skip("it takes all classes at once")
    shape = ROWS[name].parameters
    single = np.random.default_rng(0).normal(size=(C, 1, D) if len(shape) == 3 else shape).astype(np.float32)
    monkeypatch.setattr(class_chunks, "WHOLE", 1)
    monkeypatch.setattr(class_chunks, "CHUNK", 1)
    class_loss._reduced.clear_cache()  # the sizes of chunks are no argument of it
    assert_each_device_has_its_own_loss(name, "everything", check_vma=True, parameters=single)
    class_loss._reduced.clear_cache()


@pytest.mark.parametrize("name", ["supervised contrastive", "triplet, swap", "smooth AP", "soft triple"])
def test_the_average_over_devices_of_the_loss_of_the_gathered_batch_has_the_gradients_of_the_whole(name):
    parameters, embeddings, labels = example(name, batch=2 * N)

    def on_device(parameters, embeddings, labels):
        def loss(parameters, embeddings):
            batch = (jax.lax.all_gather(x, "data", tiled=True) for x in (embeddings, labels))
            return jax.lax.pmean(ROWS[name].call(parameters, *batch), "data")

        return jax.value_and_grad(loss, argnums=(0, 1))(parameters, embeddings)

    specs = {"in_specs": (WHOLE, SHARED, SHARED), "out_specs": (WHOLE, (WHOLE, SHARED))}
    actual = jax.jit(jax.shard_map(on_device, mesh=mesh(), **specs))(parameters, embeddings, labels)
    expected = jax.jit(jax.value_and_grad(ROWS[name].call, argnums=(0, 1)))(parameters, embeddings, labels)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), actual, expected)


# --- what stands beside the losses ------------------------------------------------------------------------------------


def mined(miner, **options):
    def call(embeddings, labels, vectors):
        distances = jaxmetric.pairwise_euclidean(embeddings)
        pairs = miner(distances, *mining.label_pairs(labels), **options)
        return jaxmetric.contrastive_loss(embeddings, labels, pairs=pairs)

    return call


def remembered(embeddings, labels, vectors):
    memory = jaxmetric.memory.update(jaxmetric.memory.init(16, D), embeddings, labels)
    references = jaxmetric.memory.as_references(memory, embeddings, labels)
    return jaxmetric.supcon_loss(embeddings, labels, references=references)


OTHERS = {
    "batch hard": mined(mining.batch_hard),
    "batch easy": mined(mining.batch_easy_hard),
    "easy and semi-hard": mined(mining.batch_easy_hard, positive="semi-hard", negative="hard"),
    **{kind: mined(mining.triplet_margin, kind=kind) for kind in ("all", "hard", "semi-hard", "easy")},
    "distance weighted": lambda *batch: mined(partial(mining.distance_weighted, jax.random.key(0)), dim=D)(*batch),
    "multi-similarity": mined(mining.multi_similarity),
    "pair margin": mined(mining.pair_margin),
    "hard-aware": mined(mining.hard_aware),
    "uniform": lambda *batch: mined(partial(mining.uniform_histogram, jax.random.key(0)))(*batch),
    "angles": lambda x, labels, vectors: jaxmetric.contrastive_loss(
        x, labels, pairs=mining.angular(x, *mining.label_pairs(labels))
    ),
    "memory": remembered,
    "Lp norms": lambda x, labels, vectors: jaxmetric.lp_regularizer(x, p=3) + jaxmetric.zero_mean_regularizer(x),
    "lengths": lambda x, labels, vectors: jaxmetric.center_invariant_regularizer(vectors[:, 0]),
    "nearest": lambda x, labels, vectors: jaxmetric.regular_face_regularizer(vectors[:, 0]),
    "merging": lambda x, labels, vectors: jaxmetric.soft_triple_regularizer(vectors),
    "centers": lambda x, labels, vectors: jnp.sum(x) * jnp.sum(jaxmetric.effective_centers(vectors)).astype(x.dtype),
    "columns": lambda x, labels, vectors: jaxmetric.soft_triple_loss(
        x, jnp.stack([labels, labels], axis=1), (vectors, vectors[:, :1]), class_weights=(jnp.ones(C), None)
    ),
    "sampled": lambda x, labels, vectors: jaxmetric.cosface_loss(
        x, *(lambda s: (s.labels, vectors[s.rows, 0]))(jaxmetric.sample_classes(jax.random.key(0), labels, C, C))
    ),
    "one boundary": lambda x, labels, vectors: jaxmetric.margin_loss(x, labels, vectors[0, 0, 0]),
    "matrix": lambda x, labels, vectors: jaxmetric.triplet_loss(None, labels, distance=jaxmetric.pairwise_snr(x)),
    "a gallery": lambda x, labels, vectors: jaxmetric.triplet_loss(
        x, labels, swap=True, references=References(vectors[:, 0], jnp.arange(C, dtype=jnp.int32))
    ),
}
every_other = pytest.mark.parametrize("name", OTHERS)
ONE_OF_EACH_KIND = ("batch hard", "hard", "distance weighted", "memory", "Lp norms", "nearest", "columns", "sampled")
others_by_kind = pytest.mark.parametrize(
    "name", [name if name in ONE_OF_EACH_KIND else pytest.param(name, marks=pytest.mark.slow) for name in OTHERS]
)


def beside(name):
    rng = np.random.default_rng(0)
    embeddings, vectors = rng.normal(size=(8 * N, D)), rng.normal(size=(C, K, D))
    labels = rng.integers(0, C, 8 * N).astype(np.int32)
    return jax.value_and_grad(OTHERS[name], argnums=(0, 2)), (np.float32(embeddings), labels, np.float32(vectors))


@others_by_kind
def test_miners_memories_and_regularizers_work_inside_shard_map_with_its_default_check(name):
    function, (embeddings, labels, vectors) = beside(name)

    def on_device(*batch):
        value, gradients = function(*batch)
        return jnp.broadcast_to(value, 1), gradients

    specs = {"in_specs": (SHARED, SHARED, WHOLE), "out_specs": (SHARED, (SHARED, WHOLE))}
    values, (d_embeddings, d_vectors) = jax.jit(jax.shard_map(on_device, mesh=mesh(), **specs))(
        embeddings, labels, vectors
    )
    function = jax.jit(function)
    alone = [function(*part, vectors) for part in zip(np.split(embeddings, N), np.split(labels, N), strict=True)]
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    close(values, [value for value, _ in alone])
    close(d_embeddings, np.concatenate([gradients[0] for _, gradients in alone]))
    # Alone, what does not vary is differentiated once, not once on every device.
    count = 1 if name in ("lengths", "nearest", "merging") else N
    close(d_vectors, sum(gradients[1] for _, gradients in alone[:count]))


# --- strict settings --------------------------------------------------------------------------------------------------


@every_loss_by_engine
def test_all_options_together_need_no_promotion_of_ranks_or_dtypes(name):
    assert_no_promotion(name, ["everything"])


@pytest.mark.slow
@every_loss
def test_no_option_needs_promotion_of_ranks_or_dtypes(name):
    assert_no_promotion(name, variants(name))


def assert_no_promotion(name, chosen):
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        for variant in chosen:
            options = variants(name)[variant]
            (parameters, hyper, embeddings, labels, *others), *_ = arguments(name, variant)[0]
            for dtype, traced in ((np.float32, hyper), (jnp.bfloat16, {})):
                function = partial(value_and_gradients, name, options.static)
                floats = parameters.astype(dtype), traced, embeddings.astype(dtype)
                try:
                    jax.eval_shape(function, *floats, labels.astype(np.int32), *others)
                except Exception as error:
                    raise AssertionError(f"{name}, {variant}, {np.dtype(dtype)}") from error


@every_other
def test_miners_memories_and_regularizers_need_no_promotion_of_ranks_or_dtypes(name):
    function, batch = beside(name)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(function, *batch)


@pytest.mark.slow
def test_losses_without_forward_mode_or_second_derivatives_are_those_of_the_page():
    page = (Path(__file__).parents[2] / "docs" / "pitfalls.md").read_text()
    section = page.partition("### Forward-mode and second derivatives")[2].partition("\n## ")[0]
    forward, second = (set(re.findall(r"\w+_loss", part)) for part in section.split("A second reverse derivative"))
    found = {"forward": set(), "second": set()}
    for name, row in ROWS.items():
        parameters, embeddings, labels = example(name)

        def loss(x, row=row, parameters=parameters, labels=labels):
            return jnp.sum(row.call(parameters, x, labels))

        derivatives = {
            "forward": lambda x, loss=loss: jax.jvp(loss, (x,), (x,)),
            "second": jax.grad(lambda x, loss=loss: jnp.sum(jax.grad(loss)(x) ** 2)),
        }
        for kind, derivative in derivatives.items():
            try:
                jax.jit(derivative).lower(embeddings)
            except (TypeError, ValueError):
                found[kind].add(row.loss.__name__)
    assert found == {"forward": forward, "second": second}
