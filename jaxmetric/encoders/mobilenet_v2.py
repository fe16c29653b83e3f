"""MobileNetV2 of width 1.0: a small network of inverted residual blocks.

There are two versions with the same layers. torchvision and timm pad as torch does; TensorFlow pads by its "SAME" and
has another epsilon in batch norm. Weights of one are not exact in the other.

References:
  M. Sandler, A. Howard, M. Zhu, A. Zhmoginov, L.-C. Chen, "MobileNetV2: Inverted Residuals and Linear Bottlenecks",
  CVPR 2018.
"""

import dataclasses

from jaxmetric.encoders.inverted_residual import StageSizes, inverted_residual_network
from jaxmetric.encoders.layers import DEFAULT_OPTIONS, LayerOptions
from jaxmetric.encoders.trunk import Trunk

TF_EPSILON = 1e-3
STAGES = (
    StageSizes(1, 16, 1, 1),
    StageSizes(6, 24, 2, 2),
    StageSizes(6, 32, 3, 2),
    StageSizes(6, 64, 4, 2),
    StageSizes(6, 96, 3, 1),
    StageSizes(6, 160, 3, 2),
    StageSizes(6, 320, 1, 1),
)


def mobilenet_v2(options: LayerOptions = DEFAULT_OPTIONS) -> Trunk:
    """Makes torchvision's version, with the stages "stem", "stage1" to "stage7" and "head".

    Its total stride is 32, and its feature map has 1280 channels.
    """
    return inverted_residual_network(STAGES, options, stem=32, head=1280)


def mobilenet_v2_tf(options: LayerOptions = DEFAULT_OPTIONS) -> Trunk:
    """Makes TensorFlow's version; see `mobilenet_v2`."""
    return mobilenet_v2(dataclasses.replace(options, epsilon=TF_EPSILON, padding="same"))
