"""The networks by name: how each is made, what its images look like, and which options it has."""

import dataclasses
from collections.abc import Callable
from functools import partial

from jaxmetric.encoders.preprocessing import CENTERED, IMAGENET, Preprocessing
from jaxmetric.encoders.resnet import BasicBlock, Bottleneck, resnet
from jaxmetric.encoders.trunk import Trunk


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network that encoders can be built from.

    Attributes:
      trunk: makes the trunk from `LayerOptions` and, as keywords, the network's own options.
      preprocessing: what its images look like when it is trained from scratch.
      options: names of its own options: "width" and "stem", or none.
      pretrained_preprocessing: what its images look like for ImageNet weights.
    """

    trunk: Callable[..., Trunk]
    preprocessing: Preprocessing = CENTERED
    options: tuple[str, ...] = ()
    pretrained_preprocessing: Preprocessing = CENTERED


def _resnet(counts: tuple[int, ...], block: Callable[..., BasicBlock | Bottleneck], width: int = 64) -> Architecture:
    return Architecture(
        partial(resnet, counts, block, width=width),
        options=("width", "stem"),
        pretrained_preprocessing=IMAGENET,
    )


ENCODERS: dict[str, Architecture] = {
    "tiny": _resnet((1, 1), BasicBlock, width=8),
    "resnet10": _resnet((1, 1, 1, 1), BasicBlock),
    "resnet18": _resnet((2, 2, 2, 2), BasicBlock),
    "resnet34": _resnet((3, 4, 6, 3), BasicBlock),
    "resnet50": _resnet((3, 4, 6, 3), Bottleneck),
    "resnet101": _resnet((3, 4, 23, 3), Bottleneck),
}
