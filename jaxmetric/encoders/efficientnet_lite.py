"""EfficientNet-Lite: EfficientNet without squeeze-and-excitation and with ReLU6, for fast inference.

Stages, sizes, "SAME" padding and batch norm are those of the TensorFlow implementation, whose weights
`efficientnet_lite_pytorch` has under its own names. Width and depth grow with the variant, except for the
stem, the head, and the depth of the first and last stage.

References:
  M. Tan, Q. V. Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019.
  R. Liu, "Higher accuracy on vision models with EfficientNet-Lite", TensorFlow Blog, 2020, and its code in
  tensorflow/tpu, models/official/efficientnet/lite.
"""

import dataclasses
import math

from jaxmetric.encoders.inverted_residual import StageSizes, inverted_residual_network
from jaxmetric.encoders.layers import DEFAULT_OPTIONS, LayerOptions
from jaxmetric.encoders.trunk import Trunk

_BASE = (
    StageSizes(1, 16, 1, 1),
    StageSizes(6, 24, 2, 2),
    StageSizes(6, 40, 2, 2, kernel=5),
    StageSizes(6, 80, 3, 2),
    StageSizes(6, 112, 3, 1, kernel=5),
    StageSizes(6, 192, 4, 2, kernel=5),
    StageSizes(6, 320, 1, 1),
)


def efficientnet_lite(stages: tuple[StageSizes, ...], options: LayerOptions = DEFAULT_OPTIONS) -> Trunk:
    """Makes the trunk, with the stages "stem", "stage1" to "stage7" and "head", of total stride 32 and 1280 channels.

    Args:
      stages: `LITE0` or `LITE2`.
      options: see `LayerOptions`; epsilon and padding are the network's own.
    """
    options = dataclasses.replace(options, epsilon=1e-3, padding="same")
    return inverted_residual_network(stages, options, stem=32, head=1280)


def scaled_stages(width: float, depth: float) -> tuple[StageSizes, ...]:
    """Multiplies the channels of the base network by `width`, and its blocks by `depth`.

    Example:
      >>> [stage.features for stage in scaled_stages(1.1, 1.2)]
      [16, 24, 48, 88, 120, 208, 352]
      >>> [stage.blocks for stage in scaled_stages(1.1, 1.2)]
      [1, 3, 3, 4, 4, 5, 1]
    """
    last = len(_BASE) - 1
    return tuple(
        stage._replace(
            features=multiple_of_8(width * stage.features),
            blocks=stage.blocks if number in (0, last) else math.ceil(depth * stage.blocks),
        )
        for number, stage in enumerate(_BASE)
    )


def multiple_of_8(features: float) -> int:
    """Rounds to the nearest multiple of 8, and up where that would lose more than a tenth."""
    rounded = max(8, int(features + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * features else rounded


LITE0 = scaled_stages(1.0, 1.0)
LITE2 = scaled_stages(1.1, 1.2)
