"""Arrays as the sources of weights have them."""

import numpy as np
from flax.traverse_util import flatten_dict

STAGES = [(1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)]


def folded_arrays(seed=0):
    """A random MobileNetV2 with batch norm in its convolutions, which are numbered in order of use and in HWIO."""
    rng = np.random.default_rng(seed)
    layers, inputs = [(3, 3, 32, False)], 32
    for expansion, features, count in STAGES:
        for _ in range(count):
            inside = inputs * expansion
            layers += [(1, inputs, inside, False)] * (expansion != 1)
            layers += [(3, 1, inside, True), (1, inside, features, False)]
            inputs = features
    layers += [(1, inputs, 1280, False), (1, 1280, 11, False)]
    arrays = {}
    for number, (size, channels, features, depthwise) in enumerate(layers):
        name = f"{number:03d}.{'dw' if depthwise else 'conv'}"
        scale = (2 / (size * size * channels)) ** 0.5
        arrays[f"{name}.w"] = scale * rng.standard_normal((size, size, channels, features), np.float32)
        arrays[f"{name}.b"] = 0.3 * rng.standard_normal(features, np.float32)
    return arrays


def trunks_of(variables):
    """The arrays of a trunk by collection and path."""
    return flatten_dict({kind: tree["trunk"] for kind, tree in variables.items()})


def as_torch(names, variables):
    """Arrays as the source has them: the inverse of loading, by the layouts in torch's documentation."""
    arrays = {}
    for (_, *path), array in trunks_of(variables).items():
        array = np.asarray(array)
        arrays[names.source(tuple(path))] = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
    return arrays
