"""Where the sources of weights keep the arrays of each network: tables of names and the order of a kernel's axes."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmetric.encoders.efficientnet_lite import LITE0, LITE2
from jaxmetric.encoders.inverted_residual import StageSizes
from jaxmetric.encoders.mobilenet_v2 import STAGES, TF_EPSILON
from jaxmetric.encoders.positions import ANTIALIASED, PLAIN, Resizing, resized_positions

Module = tuple[str, ...]  # the path of a layer in a trunk, such as ("stage1", "block0", "depthwise")

Leaves = Mapping[str, str | float]

_TORCH: Leaves = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_VIT: Leaves = {
    **{"kernel": "weight", "scale": "weight", "bias": "bias"},
    **{"scale1": "ls1.gamma", "scale2": "ls2.gamma"},
    **{"class_token": "cls_token", "positions": "pos_embed", "registers": "register_tokens"},
}
_COUNTER = ".num_batches_tracked"
# Batch norm that is part of the convolution before it: what is left of it has no effect but to add the bias.
_FOLDED: Leaves = {"kernel": "w", "bias": "b", "scale": 1.0, "mean": 0.0, "var": 1.0 - TF_EPSILON}
_TENSORFLOW = (0, 1, 2, 3)


class Names(NamedTuple):
    """How a source of weights names the arrays of a network.

    Attributes:
      title: the source.
      module: maps the path of a layer in the trunk to the layer's name in the source.
      leaves: maps each of a layer's arrays (kernel; scale, bias, mean, var) to the last part of its name in the
        source, or to the constant that stands for it.
      axes: for each axis of a kernel here (height, width, input, output), its position in the source. The last two are
        also the order of the axes of a linear layer.
      classifier: the name of the layer behind the trunk, which is left out.
      separator: what stands between the name of a layer and the last part.
      left_out: other names that are left out.
      fits: by name in the source, what makes an array of the shape that the network has from one of another shape. It
        returns an array that it cannot fit as it is.
    """

    title: str
    module: Callable[[Module], str]
    classifier: str
    leaves: Leaves = _TORCH
    axes: tuple[int, ...] = (2, 3, 1, 0)
    separator: str = "."
    left_out: tuple[str, ...] = ()
    fits: Mapping[str, Callable[[np.ndarray, tuple[int, ...]], np.ndarray]] = {}

    @property
    def has_statistics(self) -> bool:
        """Whether the source has the network's batch statistics; where they are missing, training must freeze them."""
        return isinstance(self.leaves.get("var", ""), str)

    def source(self, path: Module) -> str | float:
        """Returns the name of an array, given its path in the trunk, or the constant that stands for it."""
        leaf = self.leaves[path[-1]]
        if not isinstance(leaf, str):
            return leaf
        return self.separator.join(filter(None, (self.module(path[:-1]), leaf)))

    def transposition(self, dimensions: int) -> tuple[int, ...]:
        """Returns, for each axis of an array here, its position in the source.

        Example:
          >>> RESNET[0].transposition(4), RESNET[0].transposition(2), RESNET[0].transposition(1)
          ((2, 3, 1, 0), (1, 0), (0,))
        """
        if dimensions == 4:
            return self.axes
        if dimensions == 2 and self.axes[-2] > self.axes[-1]:
            return (1, 0)
        return tuple(range(dimensions))

    def leaves_out(self, name: str) -> bool:
        """Whether an array of the source is known not to belong to the network."""
        return name.startswith(self.classifier + self.separator) or name in self.left_out or name.endswith(_COUNTER)


def _torchvision_resnet(module: Module) -> str:
    if module[0] == "stem":
        return module[1]
    stage, block, layer = module
    layer = {"downsample_conv": "downsample.0", "downsample_bn": "downsample.1"}.get(layer, layer)
    return f"{stage}.{block.removeprefix('block')}.{layer}"


def _numbers(module: Module, stages: Sequence[StageSizes]) -> tuple[int, int, int, bool]:
    """Returns the numbers of a block's stage, of the block in its stage and in the network, and whether it expands."""
    stage, block = int(module[0].removeprefix("stage")), int(module[1].removeprefix("block"))
    before = sum(sizes.blocks for sizes in stages[: stage - 1])
    return stage - 1, block, before + block, stages[stage - 1].expansion != 1


def _lite(module: Module, stages: Sequence[StageSizes]) -> str:
    """The names of `efficientnet_lite_pytorch`."""
    ends = {"stem.conv": "_conv_stem", "stem.bn": "_bn0", "head.conv": "_conv_head", "head.bn": "_bn1"}
    if module[0] in ("stem", "head"):
        return ends[".".join(module)]
    layers = {
        "expand": "_expand_conv",
        "expand_bn": "_bn0",
        "depthwise": "_depthwise_conv",
        "depthwise_bn": "_bn1",
        "project": "_project_conv",
        "project_bn": "_bn2",
    }
    return f"_blocks.{_numbers(module, stages)[2]}.{layers[module[2]]}"


def _timm(module: Module, stages: Sequence[StageSizes]) -> str:
    ends = {"stem.conv": "conv_stem", "stem.bn": "bn1", "head.conv": "conv_head", "head.bn": "bn2"}
    if module[0] in ("stem", "head"):
        return ends[".".join(module)]
    stage, block, _, expands = _numbers(module, stages)
    layers = {"depthwise": "conv_dw", "depthwise_bn": "bn1", "project": "conv_pw", "project_bn": "bn2"}
    if expands:
        layers = {
            "expand": "conv_pw",
            "expand_bn": "bn1",
            "depthwise": "conv_dw",
            "depthwise_bn": "bn2",
            "project": "conv_pwl",
            "project_bn": "bn3",
        }
    return f"blocks.{stage}.{block}.{layers[module[2]]}"


def _torchvision_mobilenet_v2(module: Module) -> str:
    if module[0] in ("stem", "head"):
        number = 0 if module[0] == "stem" else 1 + sum(sizes.blocks for sizes in STAGES)
        return f"features.{number}.{('conv', 'bn').index(module[1])}"
    _, _, block, expands = _numbers(module, STAGES)
    shift = 1 if expands else 0
    layers = {
        "expand": "0.0",
        "expand_bn": "0.1",
        "depthwise": f"{shift}.0",
        "depthwise_bn": f"{shift}.1",
        "project": f"{shift + 1}",
        "project_bn": f"{shift + 2}",
    }
    return f"features.{block + 1}.conv.{layers[module[2]]}"


def _folded_mobilenet_v2(module: Module) -> str:
    """Numbers the convolutions in order of use; the first block has two, the others have three."""
    if module[0] in ("stem", "head"):
        return "000.conv" if module[0] == "stem" else f"{3 * sum(sizes.blocks for sizes in STAGES):03d}.conv"
    _, _, block, _ = _numbers(module, STAGES)
    layer = module[2].removesuffix("_bn")
    number = 3 * block + ("expand", "depthwise", "project").index(layer)
    return f"{number:03d}.{'dw' if layer == 'depthwise' else 'conv'}"


def _bn_inception(module: Module) -> str:
    return "_".join(part for part in module if part != "block0")


def _quadruplet_vgg(module: Module) -> str:
    """The variables of the authors' TensorFlow code."""
    return f"model_definition/{module[-1] if module[-1] != 'dense' else module[0]}"


def _vit(module: Module) -> str:
    match module:
        case ("embed",):
            return ""
        case ("embed", "patches"):
            return "patch_embed.proj"
        case ("norm", "norm"):
            return "norm"
    number = f"blocks.{module[0].removeprefix('block')}"
    parts = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    return ".".join([number, *(parts.get(part, part) for part in module[1:])])


def _fitted_positions(array: np.ndarray, shape: tuple[int, ...], *, resizing: Resizing) -> np.ndarray:
    """Resizes position embeddings; where the class token has none, which timm has added to it, they are 0."""
    if array.ndim != 3 or array.shape[0] != 1 or array.shape[2] != shape[2]:
        return array
    if array.shape[1] == math.isqrt(array.shape[1]) ** 2:
        array = np.concatenate([np.zeros_like(array[:, :1]), array], axis=1)
    if array.shape[1] != 1 + math.isqrt(array.shape[1] - 1) ** 2:
        return array
    side = math.isqrt(shape[1] - 1)
    return np.asarray(resized_positions(jnp.asarray(array, jnp.float32), (side, side), resizing))


RESNET = (Names("torchvision", _torchvision_resnet, "fc"),)
EFFICIENTNET_LITE0, EFFICIENTNET_LITE2 = (
    (
        Names("efficientnet_lite_pytorch", partial(_lite, stages=stages), "_fc"),
        Names("timm", partial(_timm, stages=stages), "classifier"),
    )
    for stages in (LITE0, LITE2)
)
MOBILENET_V2 = (
    Names("torchvision", _torchvision_mobilenet_v2, "classifier.1"),
    Names("timm", partial(_timm, stages=STAGES), "classifier"),
)
MOBILENET_V2_TF = (Names("folded batch norm", _folded_mobilenet_v2, "052.conv", leaves=_FOLDED, axes=_TENSORFLOW),)
BN_INCEPTION = (Names("pretrainedmodels", _bn_inception, "last_linear"),)
QUADRUPLET_VGG = (
    Names(
        "the authors' code",
        _quadruplet_vgg,
        "model_definition/fc8",
        leaves={"kernel": "w", "bias": "b"},
        axes=_TENSORFLOW,
        separator="/",
        left_out=("Variable",),  # the number of the epoch
    ),
)
VIT, VIT_REGISTERS = (
    tuple(
        Names(
            title,
            _vit,
            "head",
            leaves={**_VIT, "registers": registers},
            left_out=("mask_token",),
            fits={"pos_embed": partial(_fitted_positions, resizing=resizing)},
        )
        for title, registers in sources
    )
    for sources, resizing in (
        ([("DINO", "register_tokens")], PLAIN),
        ([("DINOv2", "register_tokens"), ("timm", "reg_token")], ANTIALIASED),
    )
)
