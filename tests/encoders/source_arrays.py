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


def quadruplet_vgg_arrays(positions, seed=0):
    """Random variables of the quadruplet paper's code, for feature maps of so many positions."""
    rng, arrays, inputs = np.random.default_rng(seed), {}, 3
    for stage, features in (("conv1", (64, 64, 128)), ("conv2", (128, 256, 256, 256)), ("conv3", (512, 512, 512))):
        for number, outputs in enumerate(features, 1):
            arrays[f"{stage}_{number}/w"] = (3, 3, inputs, outputs)
            inputs = outputs
    arrays |= {"fc6/w": (positions * inputs, 512), "fc7/w": (512, 256), "fc8/w": (256, 11)}
    arrays |= {name.replace("/w", "/b"): shape[-1:] for name, shape in arrays.items()}
    drawn = {name: rng.standard_normal(shape, np.float32) for name, shape in arrays.items()}
    for name, array in drawn.items():
        array *= 0.3 if name.endswith("/b") else (2 / array[..., 0].size) ** 0.5
    return {f"model_definition/{name}": array for name, array in drawn.items()} | {"Variable": np.int32(9)}


def trunks_of(variables):
    """The arrays of a trunk by collection and path."""
    return flatten_dict({kind: tree["trunk"] for kind, tree in variables.items() if "trunk" in tree})


def as_torch(names, variables):
    """Arrays as the source has them: the inverse of loading, by the layouts in torch's documentation."""
    arrays = {}
    for (_, *path), array in trunks_of(variables).items():
        array = np.asarray(array)
        order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim)
        arrays[names.source(tuple(path))] = array.transpose(order) if order else array
    return arrays
