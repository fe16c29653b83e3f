"""The networks give the same activations as in torch, stage by stage, with weights by the names of each source.

Needs the extra `parity`; skipped without it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmetric.encoders import load_classifier, load_weights, make_encoder
from jaxmetric.encoders.positions import ANTIALIASED, PLAIN, resized_positions
from tests.encoders.source_arrays import folded_arrays, quadruplet_vgg_arrays

torch = pytest.importorskip("torch", reason="needs the extra `parity`")
from benchmarks import torch_networks as networks  # noqa: E402

pytestmark = pytest.mark.parity

# Rows and columns of different parity, so that every way of padding is seen.
SHAPE = (2, 65, 48, 3)


def randomized(network, seed=0):
    """The network in evaluation mode, with random weights and statistics that keep activations of size 1."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias, module.running_mean):
                tensor.data.normal_(0, 0.3, generator=generator)
        elif isinstance(module, torch.nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.data.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            if module.bias is not None:
                module.bias.data.normal_(0, 0.3, generator=generator)
        elif isinstance(module, torch.nn.LayerNorm | networks.LayerScale):
            for tensor in module.parameters():
                tensor.data.uniform_(0.5, 1.5, generator=generator)
        elif isinstance(module, networks.VisionTransformer):
            for tensor in module.parameters(recurse=False):
                tensor.data.normal_(0, 1, generator=generator)
    return network.eval()


def shapes_of(encoder, shape=SHAPE):
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(lambda x: encoder.init(jax.random.key(0), x, train=False), images)


def assert_same_activations(encoder, variables, network, *, shape=SHAPE, tolerance=1e-4):
    trunk = encoder.trunk
    variables = {kind: tree["trunk"] for kind, tree in variables.items()}
    images = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.tensor(images.transpose(0, 3, 1, 2)))
    assert len(expected) == len(trunk.names)
    features, before = images, None
    for stage, theirs in zip(trunk.names, expected, strict=True):
        features = trunk.apply(variables, features, train=False, after=before, until=stage)
        ours, theirs, before = (
            np.asarray(features),
            np.moveaxis(theirs.numpy(), 1, -1 if theirs.ndim == 4 else 1),
            stage,
        )
        assert ours.shape == theirs.shape, stage
        assert abs(theirs).max() > 0.1, stage
        assert abs(ours - theirs).max() < tolerance * abs(theirs).max(), stage


TIMM = {
    "same": {"conv": networks.same, "eps": 1e-3},
    "torch": {"conv": networks.padded, "eps": 1e-5},
}
CASES = {
    "resnet18, torchvision": ("resnet18", lambda: networks.ResNet(networks.BasicBlock, (2, 2, 2, 2), 8)),
    "resnet50, torchvision": ("resnet50", lambda: networks.ResNet(networks.Bottleneck, (3, 4, 6, 3), 4)),
    "lite0, its package": ("efficientnet_lite0", lambda: networks.Lite(networks.LITE0)),
    "lite2, its package": ("efficientnet_lite2", lambda: networks.Lite(networks.LITE2)),
    "lite0, timm": ("efficientnet_lite0", lambda: networks.Timm(networks.LITE0, **TIMM["same"])),
    "mobilenet_v2, torchvision": ("mobilenet_v2", lambda: networks.TorchvisionMobileNetV2(networks.MOBILENET_V2)),
    "mobilenet_v2, timm": ("mobilenet_v2", lambda: networks.Timm(networks.MOBILENET_V2, **TIMM["torch"])),
    "bn_inception, pretrainedmodels": ("bn_inception", networks.BNInception),
    "vit_s16, DINO": ("vit_s16", lambda: networks.VisionTransformer(384, 6, 16, 14)),
    "vit_s14, DINOv2": ("vit_s14", lambda: networks.VisionTransformer(384, 6, 14, 37, layer_scale=True)),
    "vit_s14_reg4, DINOv2": (
        "vit_s14_reg4",
        lambda: networks.VisionTransformer(384, 6, 14, 37, registers=4, layer_scale=True),
    ),
}
WIDTHS = {"resnet18": 8, "resnet50": 4}
# Sizes that the network in torch takes.
SHAPES = {"bn_inception": (2, 64, 37, 3), "vit_s16": (2, 64, 48, 3)}
SHAPES |= dict.fromkeys(("vit_s14", "vit_s14_reg4"), (2, 70, 42, 3))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("zipped", [True, False])
def test_activations_equal_those_of_torch_at_every_stage(case, zipped, tmp_path):
    name, make = CASES[case]
    network = randomized(make())
    encoder = make_encoder(name, embedding_dim=4, width=WIDTHS.get(name))
    file = tmp_path / "weights.pth"
    torch.save(network.state_dict(), file, _use_new_zipfile_serialization=zipped)
    shape = SHAPES.get(name, SHAPE)
    variables = load_weights(name, shapes_of(encoder, shape), file)
    assert_same_activations(encoder, variables, network, shape=shape)
    kernel, bias = load_classifier(name, file)
    last = [tensor.numpy() for tensor in list(network.state_dict().values())[-2:]]
    np.testing.assert_array_equal(kernel, last[0].T)
    np.testing.assert_array_equal(bias, last[1])


@pytest.mark.parametrize("resizing", [PLAIN, ANTIALIASED])
@pytest.mark.parametrize(("source", "rows", "columns"), [(14, 4, 3), (14, 24, 14), (37, 16, 38), (5, 5, 1)])
def test_position_embeddings_are_resized_as_torch_does(resizing, source, rows, columns):
    positions = np.random.default_rng(0).normal(size=(1, 1 + source * source, 6)).astype(np.float32)
    patches = torch.tensor(positions[0, 1:].T.reshape(6, source, source))
    expected = networks.interpolated(patches, rows, columns, **resizing._asdict())
    resized = resized_positions(jnp.asarray(positions), (rows, columns), resizing)
    np.testing.assert_array_equal(resized[:, 0], positions[:, 0])
    ours = np.asarray(resized[0, 1:]).reshape(rows, columns, 6)
    np.testing.assert_allclose(ours, expected.permute(1, 2, 0).numpy(), atol=2e-5)


def test_folded_batch_norm_gives_the_same_activations_as_torch():
    arrays = folded_arrays()
    encoder = make_encoder("mobilenet_v2_tf", embedding_dim=4)
    variables = load_weights("mobilenet_v2_tf", shapes_of(encoder), arrays)
    assert_same_activations(encoder, variables, networks.FoldedMobileNetV2(arrays, networks.MOBILENET_V2))


def test_the_network_of_the_quadruplet_code_gives_the_same_activations_as_torch(tmp_path):
    shape, file = (2, 33, 24, 3), tmp_path / "model.npz"
    arrays = quadruplet_vgg_arrays(5 * 3)
    np.savez(file, **arrays)
    encoder = make_encoder("quadruplet_vgg", embedding_dim=4)
    variables = load_weights("quadruplet_vgg", shapes_of(encoder, shape), file)
    assert_same_activations(encoder, variables, networks.QuadrupletVGG(arrays), shape=shape)
    kernel, bias = load_classifier("quadruplet_vgg", file)
    np.testing.assert_array_equal(kernel, arrays["model_definition/fc8/w"])
    np.testing.assert_array_equal(bias, arrays["model_definition/fc8/b"])
