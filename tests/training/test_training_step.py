"""The training step is the same with all memory options and on any number of devices."""

from contextlib import ExitStack
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import jaxmetric
from jaxmetric.data import augment, image_keys
from jaxmetric.encoders import make_encoder
from jaxmetric.parallel import AXIS_NAME, compile_shard_map, drive_shard_map
from jaxmetric.training import (
    NonFiniteLossError,
    TrainState,
    check_finite,
    create_state,
    make_optimizer,
    make_schedule,
    make_train_step,
)
from jaxmetric.training.step import _mean_move

B, SIDE, CLASSES, DIM, CHUNKS, STEPS = 12, 8, 3, 4, 3, 2
OPTIMIZER = optax.sgd(0.1, momentum=0.9)


def soft_triple(key, centers, memory, embeddings, labels):
    return jaxmetric.soft_triple_loss(embeddings, labels, centers), ({}, memory)


def with_noise(key, positions, images):
    return images + jax.vmap(lambda key: 0.1 * jax.random.normal(key, images.shape[1:]))(image_keys(key, positions))


def unchanged(key, positions, images):
    return images


def tiny_encoder(**options):
    return make_encoder("tiny", embedding_dim=DIM, width=4, stem="small", axis_name=AXIS_NAME, **options)


def encoder_step(encoder, *, preprocess=unchanged, **options):
    return make_train_step(
        apply_fn=encoder.apply,
        objective=soft_triple,
        optimizer=OPTIMIZER,
        preprocess=preprocess,
        seed=0,
        **options,
    )


def start(encoder):
    """Makes a state whose batch statistics differ from those of a new network."""
    centers = jaxmetric.init_centers(jax.random.key(1), CLASSES, 2, DIM)
    key = jax.random.key(0, impl="unsafe_rbg")
    state = create_state(key, encoder, image_size=SIDE, loss_params=centers, optimizer=OPTIMIZER)
    rng = np.random.default_rng(0)
    moved = jax.tree.map(lambda x: np.float32(x + rng.random(x.shape)), state.batch_stats)
    return jax.device_get(state.replace(batch_stats=moved))


def batches():
    rng = np.random.default_rng(1)
    for _ in range(STEPS):
        images = rng.normal(size=(B, SIDE, SIDE, 3)).astype(np.float32)
        yield {"image": images, "label": np.arange(B, dtype=np.int32) % CLASSES}


def run(step, state, *, count=1):
    """Returns the metrics and the state after each step; the momentum in the state holds the gradients."""
    driven = drive_shard_map(step, devices=jax.devices()[:count])
    history, state = [], driven.place_state(state)  # one that lies elsewhere at first is compiled for twice
    for batch in batches():
        state, metrics = driven(state, batch)
        history.append(jax.device_get((metrics, state)))
    return history


def assert_equal_to_rounding(actual, expected, tolerance=1e-5):
    """Asserts that every array differs by at most this share of its norm."""

    def check(a, b):
        a, b = np.float64(a), np.float64(b)
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)

    jax.tree.map(check, actual, expected)


@cache
def plain_run(**options):
    encoder = tiny_encoder(**options)
    return run(encoder_step(encoder, preprocess=with_noise), start(encoder))


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_with_frozen_batch_norm_chunks_equal_the_whole_batch(count):
    encoder = tiny_encoder(freeze_batch_norm=True)
    step = encoder_step(encoder, preprocess=with_noise, chunks=CHUNKS)
    actual = run(step, start(encoder), count=count)
    assert_equal_to_rounding(actual, plain_run(freeze_batch_norm=True))
    jax.tree.map(np.testing.assert_array_equal, actual[-1][1].batch_stats, start(encoder).batch_stats)


def test_statistics_that_no_chunk_changes_keep_every_bit():
    before = np.array([-0.0, 5.6e-45, 1e-3, 3.0], np.float32)
    after = jax.jit(_mean_move)(before, np.stack([before] * 3))
    assert np.asarray(after).tobytes() == before.tobytes()


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_batch_norm_normalizes_a_chunk_of_all_devices_at_a_time(count):
    encoder = tiny_encoder()
    alone = make_encoder("tiny", embedding_dim=DIM, width=4, stem="small")
    # Images in the order of the devices; each device processes one chunk of its own at a time.
    places = np.arange(B).reshape(count, CHUNKS, -1).swapaxes(0, 1).reshape(CHUNKS, -1)
    order = np.argsort(places.ravel())
    state = start(encoder)

    @jax.jit
    def expected(params, batch_stats, images, labels):
        def loss_fn(params):
            variables = {"params": params["encoder"], "batch_stats": batch_stats}
            parts = [alone.apply(variables, images[place], train=True, mutable=["batch_stats"]) for place in places]
            embeddings = jnp.concatenate([embeddings for embeddings, _ in parts])[order]
            mean = jax.tree.map(lambda *x: sum(x) / CHUNKS, *[updated["batch_stats"] for _, updated in parts])
            return jaxmetric.soft_triple_loss(embeddings, labels, params["loss"]), mean

        return jax.value_and_grad(loss_fn, has_aux=True)(params)

    actual = run(encoder_step(encoder, chunks=CHUNKS), state, count=count)
    momentum = jax.tree.map(np.zeros_like, state.params)
    for batch, (metrics, new_state) in zip(batches(), actual, strict=True):
        (loss, batch_stats), gradients = expected(state.params, state.batch_stats, batch["image"], batch["label"])
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradients)
        params = jax.tree.map(lambda p, m: p - 0.1 * m, state.params, momentum)
        assert_equal_to_rounding(
            (metrics["loss"], new_state.params, new_state.batch_stats, new_state.opt_state[0].trace),
            (loss, params, batch_stats, momentum),
            tolerance=1e-4,  # variances are differences of means
        )
        state = new_state


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_random_changes_and_the_key_of_the_loss_are_the_same_in_chunks(count):
    def images_as_embeddings(variables, images, *, train, mutable):
        return variables["params"] * images.reshape(len(images), -1), {}

    def tell(key, loss_params, memory, embeddings, labels):
        return embeddings.sum(), ({"images": embeddings, "draw": jax.random.uniform(key)}, memory)

    def seen(chunks, count):
        step = make_train_step(
            apply_fn=images_as_embeddings,
            objective=tell,
            optimizer=OPTIMIZER,
            preprocess=lambda key, positions, images: augment(
                image_keys(key, positions), images, image_size=SIDE, mean=0.0, std=1.0
            ),
            seed=0,
            chunks=chunks,
        )
        params = {"encoder": jnp.ones(()), "loss": {}}
        state = TrainState(np.zeros((), np.int32), params, {}, OPTIMIZER.init(params))
        batch = {"image": np.random.default_rng(0).integers(0, 256, (B, 6, 6, 3), np.uint8), "label": np.arange(B)}
        _, metrics = drive_shard_map(step, devices=jax.devices()[:count])(state, batch)
        return jax.device_get((metrics["images"], metrics["draw"]))

    (images, draw), (expected_images, expected_draw) = seen(CHUNKS, count), seen(1, 1)
    np.testing.assert_allclose(images, expected_images, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(draw, expected_draw)


STRICT = [{"numpy_rank_promotion": "raise"}, {"numpy_dtype_promotion": "strict"}]


@pytest.mark.parametrize(
    "options", [*(pytest.param(each, marks=pytest.mark.slow) for each in STRICT), STRICT[0] | STRICT[1]], ids=str
)
@pytest.mark.parametrize(
    ("name", "schedule", "dtype", "clip_norm"),
    [("adamw", "cosine", "bfloat16", None), ("adam", "step", "float32", 1.0), ("sgd", "constant", "float32", None)],
)
def test_a_step_needs_no_implicit_promotion(name, schedule, dtype, clip_norm, options):
    """Tracing is enough to raise an error."""
    optimizer = make_optimizer(name, make_schedule(schedule, peak=0.1, steps=9, warmup=2), weight_decay=1e-4)
    encoder = tiny_encoder(dtype=jnp.dtype(dtype))
    centers = jax.ShapeDtypeStruct((CLASSES, 2, DIM), jnp.float32)
    batch = {"image": jax.ShapeDtypeStruct((B, SIDE, SIDE, 3), jnp.float32)}
    batch["label"] = jax.ShapeDtypeStruct((B,), jnp.int32)
    step = make_train_step(
        apply_fn=encoder.apply,
        objective=soft_triple,
        optimizer=optimizer,
        preprocess=with_noise,
        seed=0,
        chunks=CHUNKS,
        clip_norm=clip_norm,
    )
    with ExitStack() as stack:
        for option, value in options.items():
            stack.enter_context(getattr(jax, option)(value))
        create = partial(create_state, encoder=encoder, image_size=SIDE, optimizer=optimizer)
        state = jax.eval_shape(lambda centers: create(jax.random.key(0), loss_params=centers), centers)
        mapped = jax.vmap(partial(step, axis_name=AXIS_NAME), in_axes=(None, 0), axis_name=AXIS_NAME, axis_size=1)
        batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), batch)
        state, metrics = jax.eval_shape(mapped, state, batch)
    assert metrics["loss"].shape == (1,)


def test_a_share_that_does_not_divide_into_chunks_is_refused():
    encoder = tiny_encoder()
    driven = drive_shard_map(encoder_step(encoder, chunks=2), devices=jax.devices()[:4])
    with pytest.raises(ValueError, match=r"^a device's share of 3 images does not divide into 2 chunks"):
        driven(start(encoder), next(batches()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunks": 0}, "chunks is 0, expected at least 1"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0, expected a positive number, or None not to clip"),
        ({"clip_norm": float("nan")}, "clip_norm is nan, expected a positive number, or None not to clip"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        encoder_step(tiny_encoder(), **options)


def test_rematerialized_blocks_give_the_same_step():
    encoder = tiny_encoder(remat=True)
    state, plain = start(encoder), start(tiny_encoder())
    assert jax.tree.structure(state) == jax.tree.structure(plain)
    jax.tree.map(np.testing.assert_array_equal, state, plain)
    assert_equal_to_rounding(run(encoder_step(encoder, preprocess=with_noise), state), plain_run())


@pytest.mark.slow
def test_rematerialized_blocks_in_chunks_give_the_same_step():
    encoder = tiny_encoder(remat=True, freeze_batch_norm=True)
    step = encoder_step(encoder, preprocess=with_noise, chunks=CHUNKS)
    assert_equal_to_rounding(run(step, start(encoder), count=4), plain_run(freeze_batch_norm=True))


def kept_by_forward(encoder, images):
    """Returns the shapes of the activations kept for the backward pass."""
    variables = jax.eval_shape(lambda x: encoder.init(jax.random.key(0), x, train=False), images)

    def residuals(variables, images):
        def forward(params):
            whole = {"params": params, "batch_stats": variables["batch_stats"]}
            return encoder.apply(whole, images, train=True, mutable=["batch_stats"])

        return jax.vjp(forward, variables["params"], has_aux=True)[1]

    return [x.shape for x in jax.tree.leaves(jax.eval_shape(residuals, variables, images)) if x.shape[:1] == (5,)]


@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_only_the_input_of_a_rematerialized_block_is_kept(name):
    # XLA for CPUs drops the barriers between forward pass and recomputation, so its memory cannot be used here.
    images = jax.ShapeDtypeStruct((5, 64, 64, 3), jnp.float32)
    make = partial(make_encoder, name, width=8)
    plain, remat = kept_by_forward(make(), images), kept_by_forward(make(remat=True), images)
    maps = [shape for shape in remat if len(shape) == 4 and shape[1] <= 16]  # after the stem
    expansion = {"resnet18": 1, "resnet50": 4}[name]
    blocks = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}[name]
    outputs = [(5, 16 >> s, 16 >> s, expansion * 8 << s) for s, count in enumerate(blocks) for _ in range(count)]
    assert set(maps) == {(5, 16, 16, 8), *outputs[:-1]}  # the stem's output is the input of the first block
    assert sum(map(np.prod, remat)) < 0.5 * sum(map(np.prod, plain))


def test_bfloat16_gives_nearly_the_same_step_and_keeps_a_float32_state():
    encoder = tiny_encoder(dtype=jnp.bfloat16)
    metrics, state = run(encoder_step(encoder, preprocess=with_noise), start(encoder))[0]
    expected_metrics, expected_state = plain_run()[0]
    assert {x.dtype for x in jax.tree.leaves(state) if x.dtype.kind != "i"} == {jnp.dtype("float32")}
    assert metrics["loss"].dtype == jnp.float32
    # bfloat16 rounds by at most 2**-9. Through 5 convolutions, their norms and back, there are 20 roundings in
    # sequence: 4 % if all have the same direction.
    gradient, expected = (
        np.concatenate([x.ravel() for x in jax.tree.leaves(s.opt_state[0].trace)]) for s in (state, expected_state)
    )
    assert metrics["loss"] == pytest.approx(expected_metrics["loss"], rel=0.01)
    assert 0.001 < np.linalg.norm(gradient - expected) / np.linalg.norm(expected) < 0.04
    assert gradient @ expected > 0.999 * np.linalg.norm(gradient) * np.linalg.norm(expected)


def test_chunks_need_the_memory_of_one_chunk():
    encoder = tiny_encoder()
    state = jax.eval_shape(
        lambda: create_state(
            jax.random.key(0), encoder, image_size=32, loss_params=jnp.zeros((CLASSES, 2, DIM)), optimizer=OPTIMIZER
        )
    )
    batch = {"image": jax.ShapeDtypeStruct((64, 32, 32, 3), jnp.uint8), "label": jax.ShapeDtypeStruct((64,), jnp.int32)}

    def temporary(chunks):
        step = encoder_step(encoder, preprocess=lambda key, positions, images: images / 255, chunks=chunks)
        program = compile_shard_map(step, state, batch, devices=jax.devices()[:1])
        return program.memory_analysis().temp_size_in_bytes

    assert temporary(chunks=8) < 0.25 * temporary(chunks=1)


def linear(variables, features, *, train, mutable):
    return jnp.tanh(features @ variables["params"]), {}


def linear_state(optimizer, centers):
    kernel = np.random.default_rng(0).normal(size=(5, DIM)).astype(np.float32)
    params = {"encoder": kernel, "loss": centers}
    return TrainState(np.zeros((), np.int32), params, {}, optimizer.init(params))


def linear_step(optimizer, objective, **options):
    return make_train_step(
        apply_fn=linear, objective=objective, optimizer=optimizer, preprocess=unchanged, seed=0, **options
    )


def linear_batch(num_classes):
    features = np.random.default_rng(1).normal(size=(8, 5)).astype(np.float32)
    return {"image": features, "label": np.arange(8, dtype=np.int32) % num_classes}


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_clipping_scales_down_larger_gradients(share):
    optimizer = optax.sgd(1.0)
    state = linear_state(optimizer, np.asarray(jaxmetric.init_centers(jax.random.key(0), CLASSES, 2, DIM)))

    def gradient(**options):
        step = drive_shard_map(linear_step(optimizer, soft_triple, **options), devices=jax.devices()[:2])
        new_state, metrics = step(state, linear_batch(CLASSES))
        return jax.tree.map(lambda old, new: old - np.asarray(new), state.params, new_state.params), metrics

    whole, _ = gradient()
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in whole.values()))
    clipped, metrics = gradient(clip_norm=float(share * norm))
    for name, expected in whole.items():
        np.testing.assert_allclose(clipped[name], min(1, share) * expected, rtol=1e-4, atol=1e-6)
    assert float(metrics["gradient_norm"]) == pytest.approx(norm, rel=1e-5)


NUM_CLASSES, SHARDS = 6, 4
ADAM = optax.adam(0.05)


def sharded_soft_triple(key, centers, memory, embeddings, labels):
    shard = jaxmetric.ClassShard(centers, axis_name=AXIS_NAME, num_classes=NUM_CLASSES)
    return jaxmetric.soft_triple_loss(embeddings, labels, shard), ({}, memory)


def sharded_state():
    """Returns centers of 6 classes and 2 rows of padding."""
    centers = np.asarray(jaxmetric.init_centers(jax.random.key(0), NUM_CLASSES, 2, DIM))
    return linear_state(ADAM, np.concatenate([centers, np.ones_like(centers[:2])])), centers


def drive_sharded(state, objective=sharded_soft_triple, **options):
    rows = state.params["loss"].shape
    specs = jax.tree.map(lambda x: PartitionSpec(AXIS_NAME) if x.shape == rows else PartitionSpec(), state)
    step = linear_step(ADAM, objective, class_shards=True, **options)
    return drive_shard_map(step, devices=jax.devices()[:SHARDS], state_specs=specs)


def test_shards_of_class_vectors_give_the_step_of_one_device():
    state, centers = sharded_state()
    expected_state = linear_state(ADAM, centers)
    whole = drive_shard_map(linear_step(ADAM, soft_triple, clip_norm=0.1), devices=jax.devices()[:1])
    shards = drive_sharded(state, clip_norm=0.1)
    batch = linear_batch(NUM_CLASSES)
    for _ in range(3):
        expected_state, expected = whole(expected_state, batch)
        state, metrics = shards(state, batch)
        assert metrics["gradient_norm"] > 0.2
        for name in ("loss", "gradient_norm"):
            assert float(metrics[name]) == pytest.approx(float(expected[name]), rel=1e-5)
        assert metrics["finite"]
    actual = jax.tree.map(lambda x, y: np.asarray(x)[: len(y)] if np.ndim(y) == 3 else x, state, expected_state)
    assert_equal_to_rounding(actual, expected_state, tolerance=1e-4)


def test_every_device_detects_a_shard_gradient_that_is_not_finite():
    def objective(key, centers, memory, embeddings, labels):
        loss, rest = sharded_soft_triple(key, centers, memory, embeddings, labels)
        cusp = jax.lax.cond(
            jax.lax.axis_index(AXIS_NAME) == 2, lambda x: jnp.sqrt(jnp.sum(0 * x)), lambda x: 0.0, centers
        )
        return loss + cusp, rest

    state, _ = sharded_state()
    _, metrics = drive_sharded(state, objective)(state, linear_batch(NUM_CLASSES))
    assert np.isfinite(metrics["loss"])
    assert not metrics["finite"]


def test_every_device_detects_a_shard_that_is_not_finite():
    state, _ = sharded_state()
    mean = np.zeros_like(state.params["loss"])
    mean[-3] = np.nan  # a moment of class 5, on device 2, which does not affect the loss of this step
    adam, rest = state.opt_state
    state = state.replace(opt_state=(adam._replace(mu={**adam.mu, "loss": mean}), rest))
    state, metrics = drive_sharded(state)(state, linear_batch(NUM_CLASSES))
    assert metrics["finite"]
    with pytest.raises(NonFiniteLossError, match=r"after step 1$"):
        check_finite(state)
