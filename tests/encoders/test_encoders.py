import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxmetric.encoders import ENCODERS, POOLINGS, EmbeddingHead, LayerOptions, Preprocessing, make_encoder
from jaxmetric.encoders.layers import convolution
from jaxmetric.encoders.vision_transformer import attention, vision_transformer


def shapes_of(encoder, images_shape):
    """Returns the shapes of variables and embeddings, without computing them."""
    images = jax.ShapeDtypeStruct(images_shape, jnp.float32)
    variables = jax.eval_shape(lambda x: encoder.init(jax.random.key(0), x, train=False), images)
    return variables, jax.eval_shape(lambda v, x: encoder.apply(v, x, train=False), variables, images)


def random_images(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.fixture(scope="module")
def tiny():
    encoder = make_encoder("tiny", embedding_dim=6, stem="small")
    variables = jax.jit(lambda x: encoder.init(jax.random.key(0, impl="unsafe_rbg"), x, train=False))(
        random_images(8, 8, 8, 3)
    )
    return encoder, variables


class Convolution(nn.Module):
    features: int
    size: int
    stride: int
    padding: str
    depthwise: bool = False

    @nn.compact
    def __call__(self, x):
        options = LayerOptions(padding=self.padding)
        return convolution(
            x, self.features, self.size, self.stride, options=options, depthwise=self.depthwise, name="layer"
        )


def margins(padding, length, size, stride):
    """Zeros before and after a side, by the definitions in the documentation of torch and of TensorFlow."""
    if padding == "torch":
        return size // 2, size // 2
    total = max((-(-length // stride) - 1) * stride + size - length, 0)
    return total // 2, total - total // 2


def correlation(x, kernel, stride, padding):
    """Computes a convolution as the definition says."""
    size = kernel.shape[0]
    around = [margins(padding, length, size, stride) for length in x.shape[1:3]]
    x = np.pad(x, ((0, 0), *around, (0, 0)))
    rows, columns = ((n - size) // stride + 1 for n in x.shape[1:3])
    out = np.zeros((x.shape[0], rows, columns, kernel.shape[3]))
    for i in range(rows):
        for j in range(columns):
            patch = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
            out[:, i, j] = np.einsum("bhwc,hwcf->bf", patch, kernel)
    return out


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize("padding", ["torch", "same"])
def test_convolution_pads_and_strides_like_torch_and_like_tensorflow(size, stride, side, padding):
    x = random_images(2, side, side, 3)
    kernel = np.random.default_rng(1).normal(size=(size, size, 3, 4)).astype(np.float32)
    out = Convolution(4, size, stride, padding).apply({"params": {"layer": {"kernel": kernel}}}, x)
    np.testing.assert_allclose(out, correlation(np.asarray(x), kernel, stride, padding), rtol=1e-4, atol=1e-4)


def test_depthwise_convolution_convolves_each_channel_by_itself():
    x = random_images(2, 8, 8, 3)
    kernel = np.random.default_rng(1).normal(size=(3, 3, 1, 3)).astype(np.float32)
    variables = {"params": {"layer": {"kernel": kernel}}}
    out = Convolution(3, 3, 2, "torch", depthwise=True).apply(variables, x)
    alone = [correlation(np.asarray(x)[..., [c]], kernel[..., [c]], 2, "torch") for c in range(3)]
    np.testing.assert_allclose(out, np.concatenate(alone, axis=-1), rtol=1e-4, atol=1e-4)


# The numbers published by torchvision. Its classifier of 1000 classes is a linear layer, like the head.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032), ("resnet101", 44_549_160)],
)
def test_resnets_have_the_published_number_of_parameters(name, parameters):
    variables, _ = shapes_of(make_encoder(name, embedding_dim=1000), (1, 224, 224, 3))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == parameters


RESNETS = [name for name in ENCODERS if ENCODERS[name].options]


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {"width": 4, "stem": stem}) for name in RESNETS for stem in ("imagenet", "small")]
    + [(name, {}) for name in ENCODERS if name not in RESNETS],
)
def test_every_encoder_gives_float32_embeddings_of_the_requested_size(name, options):
    encoder = make_encoder(name, embedding_dim=17, dtype=jnp.bfloat16, **options)
    multiple = encoder.trunk.multiple
    sides = (33, 29) if multiple == 1 else (2 * multiple, 3 * multiple)
    variables, embeddings = shapes_of(encoder, (3, *sides, 3))
    assert embeddings.shape == (3, 17)
    assert embeddings.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", ["tiny", "mobilenet_v2", "bn_inception", "quadruplet_vgg", "vit_s16"])
def test_rematerialized_blocks_have_the_same_parameters(name):
    plain, remat = (shapes_of(make_encoder(name, remat=remat), (1, 32, 32, 3)) for remat in (False, True))
    assert plain == remat


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 7), ("small", 28)])
def test_the_stem_determines_the_size_of_the_feature_map(stem, side):
    trunk = ENCODERS["resnet18"].trunk(stem=stem)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    features, _ = jax.eval_shape(lambda x: trunk.init_with_output(jax.random.key(0), x, train=False), images)
    assert features.shape == (1, side, side, 512)
    assert trunk.stride == 224 // side


def test_bottleneck_strides_in_its_3x3_convolution():
    trunk = ENCODERS["resnet50"].trunk(stem="small")
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)

    def layers(x):
        _, state = trunk.init_with_output(jax.random.key(0), x, train=False, capture_intermediates=True)
        return state["intermediates"]["layer2"]["block0"]

    outputs = jax.eval_shape(layers, images)
    assert outputs["bn1"]["__call__"][0].shape == (1, 32, 32, 128)
    assert outputs["bn2"]["__call__"][0].shape == (1, 16, 16, 128)


@pytest.mark.parametrize(("side", "map_side"), [(224, 7), (230, 7), (240, 8), (32, 1), (3, 1)])
def test_bn_inception_takes_images_of_any_size(side, map_side):
    trunk = ENCODERS["bn_inception"].trunk()
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    features, _ = jax.eval_shape(lambda x: trunk.init_with_output(jax.random.key(0), x, train=False), images)
    assert features.shape == (1, map_side, map_side, 1024)


def test_bn_inception_takes_blue_green_and_red_of_0_to_255_minus_a_mean():
    red_green_blue = jnp.array([10.0, 20.0, 30.0]) / 255
    normalized = ENCODERS["bn_inception"].preprocessing(red_green_blue.reshape(1, 1, 1, 3))
    np.testing.assert_allclose(normalized.reshape(-1), [30 - 104, 20 - 117, 10 - 128], rtol=1e-5)


def test_the_network_of_the_quadruplet_code_takes_images_of_one_size():
    encoder = make_encoder("quadruplet_vgg")
    variables, _ = shapes_of(encoder, (1, 64, 64, 3))
    kernel = variables["params"]["trunk"]["fc6"]["dense"]["kernel"]
    assert kernel.shape == (8 * 8 * 512, 512)
    message = (
        "images give a feature map of 8 x 4 positions, but fc6 was made for 64 of them: it takes images of one size"
    )
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda v: encoder.apply(v, jnp.zeros((1, 64, 32, 3)), train=False), variables)


def test_the_network_of_the_quadruplet_code_divides_blue_green_and_red():
    normalized = ENCODERS["quadruplet_vgg"].preprocessing(jnp.array([[[[0.1, 0.5, 1.0]]]]))
    np.testing.assert_allclose(normalized.reshape(-1), [2, 1, 0.2], rtol=1e-6)


# `xavier_initializer` of TensorFlow 1: uniform of variance 2 / (inputs + outputs), which are the length of a vector.
def test_the_network_of_the_quadruplet_code_starts_from_xavier_s_initializer_in_its_biases_too():
    encoder = make_encoder("quadruplet_vgg")
    init = jax.jit(lambda key: encoder.init(key, jnp.zeros((1, 8, 8, 3)), train=False)["params"]["trunk"])
    params = init(jax.random.key(0, impl="unsafe_rbg"))
    kernel, bias = (params["conv3"]["conv3_3"][leaf] for leaf in ("kernel", "bias"))
    for array, variance in ((kernel, 2 / (9 * 512 + 9 * 512)), (bias, 1 / 512)):
        assert np.var(array) == pytest.approx(variance, rel=0.15)
        assert np.abs(array).max() == pytest.approx((3 * variance) ** 0.5, rel=0.02)


SMALL_VIT = {"features": 8, "heads": 2, "patch": 4, "grid": 3, "depth": 2}


@pytest.mark.parametrize("options", [{}, {"registers": 3, "layer_scale": True}])
def test_the_feature_map_of_a_vision_transformer_is_its_class_token(options):
    trunk = vision_transformer(**SMALL_VIT, **options)
    assert trunk.names == ("embed", "block0", "block1", "norm")
    images = random_images(2, 12, 16, 3)
    features, variables = trunk.init_with_output(jax.random.key(0, impl="unsafe_rbg"), images, train=False)
    assert features.shape == (2, 1, 1, 8)
    tokens = trunk.apply(variables, images, train=False, until="block1")
    assert tokens.shape == (2, 1 + options.get("registers", 0) + 3 * 4, 8)
    np.testing.assert_allclose(trunk.apply(variables, tokens[:, :1], train=False, after="block1"), features, atol=1e-6)
    assert ("scale1" in variables["params"]["block0"]) == ("layer_scale" in options)
    for pooling in POOLINGS:
        identity = {"projection": {"kernel": jnp.eye(8), "bias": jnp.zeros(8)}, "power": jnp.float32(3)}
        pooled = EmbeddingHead(8, pooling).apply({"params": identity}, features)
        np.testing.assert_allclose(pooled, EmbeddingHead(8).apply({"params": identity}, features), atol=1e-6)


def test_attention_is_that_of_the_definition_with_its_softmax_in_float32():
    query, key, value = (random_images(2, 5, 3, 4, seed=seed) for seed in range(3))
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) / 4**0.5
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(attention(query, key, value), np.einsum("bhqk,bkhd->bqhd", weights, value), atol=1e-5)
    # 64.25 is 64 in bfloat16.
    query, key = jnp.ones((1, 1, 1, 2), jnp.bfloat16), jnp.array([[64, 0], [64, 0.25]], jnp.bfloat16)
    value = jnp.array([[0, 0], [1, 1]], jnp.bfloat16)
    result = attention(query, key[None, :, None], value[None, :, None])
    assert result.dtype == jnp.bfloat16
    assert float(result[0, 0, 0, 0]) == pytest.approx(1 / (1 + np.exp(-0.25 / 2**0.5)), rel=4e-3)


def test_rematerialized_transformer_blocks_have_the_same_gradients():
    images = random_images(2, 8, 8, 3)
    trunks = [vision_transformer(LayerOptions(remat=remat), **SMALL_VIT) for remat in (False, True)]
    variables = trunks[0].init(jax.random.key(0, impl="unsafe_rbg"), images, train=False)
    plain, remat = (
        jax.jit(jax.grad(lambda v, trunk=trunk: trunk.apply(v, images, train=True)[..., 0].sum()))(variables)
        for trunk in trunks
    )
    for path, gradient in flatten_dict(plain).items():
        np.testing.assert_allclose(flatten_dict(remat)[path], gradient, atol=1e-6)
    assert any(np.abs(gradient).max() > 0.01 for gradient in jax.tree.leaves(plain))


def test_images_that_are_no_multiples_of_the_patch_are_named():
    encoder = make_encoder("vit_s14")
    with pytest.raises(ValueError, match="images are 224 x 225, expected multiples of 14"):
        shapes_of(encoder, (1, 224, 225, 3))


def test_embeddings_have_unit_length_in_bfloat16_too(tiny):
    encoder, variables = tiny
    images = random_images(8, 8, 8, 3)
    for dtype in (jnp.float32, jnp.bfloat16):
        encoder = make_encoder("tiny", embedding_dim=6, stem="small", dtype=dtype)
        embeddings = jax.jit(lambda v, x, e=encoder: e.apply(v, x, train=False))(variables, images)
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)


def test_batch_norm_synchronized_over_devices_equals_the_global_batch(tiny):
    _, variables = tiny
    images = random_images(8, 8, 8, 3) * jnp.arange(1, 9)[:, None, None, None]

    def forward(encoder):
        return lambda x: encoder.apply(variables, x, train=True, mutable=["batch_stats"])

    whole = jax.jit(forward(make_encoder("tiny", embedding_dim=6, stem="small")))(images)
    synchronized = make_encoder("tiny", embedding_dim=6, stem="small", axis_name="devices")
    shards = jax.jit(jax.vmap(forward(synchronized), axis_name="devices"))(images.reshape(4, 2, 8, 8, 3))
    np.testing.assert_allclose(shards[0].reshape(8, 6), whole[0], atol=2e-5)
    for shard, expected in zip(jax.tree.leaves(shards[1]), jax.tree.leaves(whole[1]), strict=True):
        np.testing.assert_allclose(shard, np.broadcast_to(expected, shard.shape), rtol=1e-4, atol=1e-5)


def test_a_trunk_run_in_parts_equals_the_whole(tiny):
    encoder, variables = tiny
    trunk, images = encoder.trunk, random_images(2, 8, 8, 3)
    variables = {kind: tree["trunk"] for kind, tree in variables.items()}
    assert set(trunk.names) == set(variables["params"])
    whole = trunk.apply(variables, images, train=False)
    for stage in trunk.names:
        front = trunk.apply(variables, images, train=False, until=stage)
        np.testing.assert_array_equal(trunk.apply(variables, front, train=False, after=stage), whole)
    middle = trunk.apply(variables, random_images(2, 8, 8, 8), train=False, after="stem", until="layer1")
    assert middle.shape == (2, 8, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"after": "layer9"}, "after is 'layer9', expected one of stem, layer1, layer2"),
        ({"until": "layer9"}, "until is 'layer9', expected one of stem, layer1, layer2"),
        ({"after": "layer2", "until": "stem"}, "until is 'stem', which comes before 'layer2'"),
    ],
)
def test_unknown_stages_are_named(tiny, options, message):
    encoder, variables = tiny
    variables = {kind: tree["trunk"] for kind, tree in variables.items()}
    with pytest.raises(ValueError, match=message):
        encoder.trunk.apply(variables, random_images(2, 8, 8, 3), train=False, **options)


def test_preprocessing_normalizes_each_channel_and_orders_them():
    images = random_images(2, 4, 4, 3)
    preprocessing = Preprocessing(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0))
    expected = np.stack([(images[..., c] - mean) / std for c, (mean, std) in enumerate([(0.1, 1), (0.2, 2), (0.3, 4)])])
    np.testing.assert_allclose(preprocessing(images), np.moveaxis(expected, 0, -1), rtol=1e-5, atol=1e-6)
    blue_first = Preprocessing(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0), channels="BGR")
    np.testing.assert_array_equal(blue_first(images), preprocessing(images)[..., ::-1])


def test_an_encoder_normalizes_its_images(tiny):
    encoder, variables = tiny
    images = random_images(2, 8, 8, 3)
    embeddings = encoder.apply(variables, images, train=False)
    raw = encoder.clone(preprocessing=Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3))
    np.testing.assert_allclose(raw.apply(variables, 2 * images - 1, train=False), embeddings, atol=1e-6)


@pytest.mark.parametrize("freeze", [False, True])
def test_batch_statistics_move_in_training_unless_frozen(tiny, freeze):
    _, variables = tiny
    encoder = make_encoder("tiny", embedding_dim=6, stem="small", freeze_batch_norm=freeze)
    images = random_images(8, 8, 8, 3)
    trained, state = encoder.apply(variables, images, train=True, mutable=["batch_stats"])
    same = jax.tree.map(lambda new, old: bool((new == old).all()), state["batch_stats"], variables["batch_stats"])
    assert all(jax.tree.leaves(same)) == freeze
    evaluated = encoder.apply(variables, images, train=False)
    assert bool(jnp.allclose(trained, evaluated, atol=1e-6)) == freeze


def test_pooling_of_a_worked_example():
    # One image, two positions, two channels: channel 0 holds 1 and 3, channel 1 holds 0 and 2.
    features = jnp.array([[[[1.0, 0.0], [3.0, 2.0]]]])
    identity = {"projection": {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}, "power": jnp.float32(3)}
    expected = {
        "average": [2, 1],
        "max": [3, 2],
        "average+max": [5, 3],
        "gem": [((1**3 + 3**3) / 2) ** (1 / 3), ((0**3 + 2**3) / 2) ** (1 / 3)],
    }
    assert set(expected) == set(POOLINGS)
    for pooling, value in expected.items():
        pooled = EmbeddingHead(2, pooling, normalize=False).apply({"params": identity}, features)
        np.testing.assert_allclose(pooled, [value], rtol=1e-5)


def test_gem_of_zero_features_has_finite_gradients():
    head = EmbeddingHead(2, "gem")
    features = jnp.zeros((1, 2, 2, 3))
    variables = head.init(jax.random.key(0, impl="unsafe_rbg"), features)
    gradients = jax.grad(lambda v, x: head.apply(v, x).sum(), argnums=(0, 1))(variables, features)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_head_leaves_a_zero_vector_zero_with_a_finite_gradient():
    head = EmbeddingHead(2)
    features = jnp.zeros((1, 2, 2, 3))
    variables = head.init(jax.random.key(0, impl="unsafe_rbg"), features)
    np.testing.assert_array_equal(head.apply(variables, features), np.zeros((1, 2)))
    gradient = jax.grad(lambda x: head.apply(variables, x).sum())(features)
    np.testing.assert_array_equal(gradient, np.zeros_like(features))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet19"}, "encoder is 'resnet19', expected one of tiny, resnet10, resnet18, "),
        ({"name": "tiny", "stem": "big"}, "stem is 'big', expected one of imagenet, small"),
        ({"name": "tiny", "pooling": "sum"}, "pooling is 'sum', expected one of average, max, gem, average"),
        ({"name": "tiny", "embedding_dim": 0}, "embedding_dim is 0, expected at least 1"),
        ({"name": "tiny", "width": 0}, "width is 0, expected at least 1"),
        ({"name": "mobilenet_v2", "width": 8}, "width is given, but mobilenet_v2 has no such option"),
        ({"name": "efficientnet_lite0", "stem": "small"}, "stem is given, but efficientnet_lite0 has no such option"),
    ],
)
def test_unknown_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make_encoder(**options)


def test_images_of_wrong_shape_or_dtype_are_named():
    encoder = make_encoder("tiny")
    with pytest.raises(ValueError, match=r"images has shape \(8, 8, 3\), expected \[B, H, W, 3\]"):
        encoder.init(jax.random.key(0), jnp.zeros((8, 8, 3)), train=False)
    with pytest.raises(TypeError, match="images has dtype uint8, expected floating point"):
        encoder.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3), jnp.uint8), train=False)
