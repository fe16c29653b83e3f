"""Loads weights that others trained into the trunk of an encoder."""

import importlib.util
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from jaxmetric._extras import require
from jaxmetric.encoders.architectures import ENCODERS, Architecture
from jaxmetric.encoders.weights.errors import WeightsError
from jaxmetric.encoders.weights.files import Arrays, read_arrays
from jaxmetric.encoders.weights.names import Names

Source = str | PathLike[str] | Mapping[str, np.ndarray]

_PREFIXES = ("module.", "backbone.", "model.", "encoder.", "_orig_mod.")
_COLLECTIONS = ("params", "batch_stats")
_SHOWN = 3  # names of each kind in an error


class Classifier(NamedTuple):
    """A linear layer `features @ kernel + bias` over averaged features.

    Attributes:
      kernel: `[C, classes]`.
      bias: `[classes]`.
    """

    kernel: np.ndarray
    bias: np.ndarray


def load_weights(encoder: str, variables: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """Replaces the parameters and batch statistics of a trunk by weights from a file.

    Names of arrays are recognized with prefixes such as `module.` or `backbone.`. A classifier,
    `num_batches_tracked` and a `mask_token` are left out. All other arrays must be those of the network, no more and no
    less. Position embeddings of another grid are resized.

    Args:
      encoder: the name of the encoder in `ENCODERS`.
      variables: `{"params": {"trunk": ..., "head": ...}, "batch_stats": {"trunk": ...}}`, as `Encoder.init` returns
        them. Shapes are enough for the trunk.
      source: a file that `read_arrays` reads, or the arrays by name.

    Returns:
      The variables with a trunk of float32 numpy arrays. The head is the same.

    Raises:
      OSError: if the file cannot be read.
      WeightsError: if it holds anything but arrays, or arrays are missing, left over or of the wrong shape: all of them
        in one message.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxmetric.encoders import make_encoder
      >>> encoder, images = make_encoder("tiny", width=2, pretrained=True), jnp.ones((1, 8, 8, 3))
      >>> variables = jax.eval_shape(lambda key: encoder.init(key, images, train=False), jax.random.key(0))
      >>> load_weights("tiny", variables, {"conv1.weight": np.ones((2, 3, 3, 3)), "scale": np.ones(4)})
      Traceback (most recent call last):
      jaxmetric.encoders.weights.errors.WeightsError: the weights do not fit tiny, by the names of torchvision: 29
      arrays are missing: bn1.bias, bn1.running_mean, bn1.running_var, ...; 1 is left over: scale; 1 has the wrong
      shape: conv1.weight is (2, 3, 3, 3), expected (2, 3, 7, 7)
    """
    given, title = _read(source)
    trunks = {
        kind: traverse_util.flatten_dict(variables[kind]["trunk"])
        for kind in _COLLECTIONS
        if "trunk" in variables.get(kind, {})  # without batch norm there are no statistics
    }
    paths = [path for trunk in trunks.values() for path in trunk]
    names = _recognized(encoder, paths, given)
    given = _fitted(names, trunks, given)
    _check(encoder, names, trunks, given, title)
    loaded = {
        kind: traverse_util.unflatten_dict(
            {path: _converted(names, path, shape.shape, given) for path, shape in trunk.items()}
        )
        for kind, trunk in trunks.items()
    }
    return {kind: {**tree, "trunk": loaded[kind]} if kind in loaded else tree for kind, tree in variables.items()}


def load_classifier(encoder: str, source: Source) -> Classifier:
    """Returns the classifier of a file of weights.

    Args:
      encoder: the name of the encoder in `ENCODERS`.
      source: see `load_weights`.

    Raises:
      OSError: if the file cannot be read.
      WeightsError: if it holds anything but arrays, or no classifier.
    """
    given, title = _read(source)
    for names in _architecture(encoder).names:
        kernel, bias = (
            given.get(f"{names.classifier}{names.separator}{names.leaves[leaf]}") for leaf in ("kernel", "bias")
        )
        if kernel is not None and bias is not None:
            matrix = kernel.transpose(names.transposition(kernel.ndim)).reshape(-1, *bias.shape)
            return Classifier(matrix.astype(np.float32), bias.astype(np.float32))
    raise WeightsError(f"{title} hold no classifier of {encoder}")


def pretrained_file(encoder: str) -> Path:
    """Returns the file of ImageNet weights in the package that the extra `pretrained` installs; imports nothing.

    Args:
      encoder: the name of the encoder in `ENCODERS`.

    Raises:
      ModuleNotFoundError: in one line with its cure, if the package is not installed.
      WeightsError: if no package has weights of this network.
    """
    package = _architecture(encoder).package
    if package is None:
        others = ", ".join(name for name, architecture in ENCODERS.items() if architecture.package)
        raise WeightsError(f"no package has weights of {encoder}, only of {others}; load a file of weights instead")
    require(f"{encoder} with its ImageNet weights", package, extra="pretrained")
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or () for file in Path(folder).glob("models/*.pth")]
    if len(files) != 1:
        raise WeightsError(f"the package {package} has {len(files)} files models/*.pth, expected 1")
    return files[0]


def _read(source: Source) -> tuple[Arrays, str]:
    """Returns the arrays without common prefixes, and what messages call them."""
    if isinstance(source, Mapping):
        arrays, title = dict(source), "the weights"
    else:
        arrays, title = read_arrays(source), f"the weights of {source}"
    while arrays and (prefix := _common_prefix(arrays)):
        arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    return arrays, title


def _common_prefix(names: Mapping[str, Any]) -> str | None:
    return next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in names)), None)


def _architecture(encoder: str) -> Architecture:
    if encoder not in ENCODERS:
        raise ValueError(f"encoder is {encoder!r}, expected one of {', '.join(ENCODERS)}")
    return ENCODERS[encoder]


def _recognized(encoder: str, paths: Sequence[tuple[str, ...]], given: Arrays) -> Names:
    """Returns the names of the source that has most of the arrays."""
    return max(_architecture(encoder).names, key=lambda names: len({names.source(path) for path in paths} & set(given)))


def _fitted(names: Names, trunks: Mapping[str, Mapping[tuple[str, ...], Any]], given: Arrays) -> Arrays:
    """Returns the arrays, with those in the shape of the network that the source may have in another."""
    shapes = {names.source(path): shape.shape for trunk in trunks.values() for path, shape in trunk.items()}
    fitted = {
        name: fit(given[name], shapes[name]) for name, fit in names.fits.items() if name in given and name in shapes
    }
    return given | fitted


def _check(
    encoder: str, names: Names, trunks: Mapping[str, Mapping[tuple[str, ...], Any]], given: Arrays, title: str
) -> None:
    expected = {
        name: _shape_there(names, shape.shape)
        for trunk in trunks.values()
        for path, shape in trunk.items()
        if isinstance(name := names.source(path), str)
    }
    missing = sorted(set(expected) - set(given))
    left_over = sorted(name for name in set(given) - set(expected) if not names.leaves_out(name))
    wrong = [
        f"{name} is {given[name].shape}, expected {shape}"
        for name, shape in sorted(expected.items())
        if name in given and given[name].shape != shape
    ]
    counted = [
        _counted(missing, "array is missing", "arrays are missing"),
        _counted(left_over, "is left over", "are left over"),
        _counted(wrong, "has the wrong shape", "have the wrong shape"),
    ]
    if any(counted):
        problems = "; ".join(filter(None, counted))
        raise WeightsError(f"{title} do not fit {encoder}, by the names of {names.title}: {problems}")


def _counted(items: Sequence[str], one: str, many: str) -> str:
    shown = ", ".join([*items[:_SHOWN], *["..."] * (len(items) > _SHOWN)])
    return f"{len(items)} {one if len(items) == 1 else many}: {shown}" if items else ""


def _shape_there(names: Names, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape in the source of an array of this shape here."""
    positions = names.transposition(len(shape))
    return tuple(shape[positions.index(axis)] for axis in range(len(shape)))


def _converted(names: Names, path: tuple[str, ...], shape: tuple[int, ...], given: Arrays) -> np.ndarray:
    source = names.source(path)
    if not isinstance(source, str):
        return np.full(shape, source, np.float32)
    array = given[source].astype(np.float32)
    return np.ascontiguousarray(array.transpose(names.transposition(array.ndim)))
