"""Encoders: Flax Linen modules that map images to embeddings of norm 1.

`make_encoder` builds an encoder by name from a trunk in `ENCODERS` (images to a feature map) and an `EmbeddingHead`
(feature map to embeddings). `load_weights` starts from weights that others trained, of which `pretrained_file` finds
some in installed packages. To add a network, add an `Architecture` to `ENCODERS`.
"""

from jaxmetric._extras import require

require(__name__, "flax")

from jaxmetric.encoders.architectures import ENCODERS, Architecture
from jaxmetric.encoders.encoder import Encoder, make_encoder
from jaxmetric.encoders.head import POOLINGS, EmbeddingHead
from jaxmetric.encoders.layers import LayerOptions
from jaxmetric.encoders.preprocessing import Preprocessing
from jaxmetric.encoders.resnet import STEMS
from jaxmetric.encoders.trunk import Trunk
from jaxmetric.encoders.weights.errors import WeightsError
from jaxmetric.encoders.weights.files import read_arrays
from jaxmetric.encoders.weights.pretrained import Classifier, load_classifier, load_weights, pretrained_file

__all__ = [
    "ENCODERS",
    "POOLINGS",
    "STEMS",
    "Architecture",
    "Classifier",
    "EmbeddingHead",
    "Encoder",
    "LayerOptions",
    "Preprocessing",
    "Trunk",
    "WeightsError",
    "load_classifier",
    "load_weights",
    "make_encoder",
    "pretrained_file",
    "read_arrays",
]
