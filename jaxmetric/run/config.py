"""The configuration of a run: its fields, its checks and its file.

A preset is a plain function that returns a frozen `Config`. The groups below only order the help text. Every field is a
flag of the same name, so `--steps 100 --image-size 48` works without prefixes.
"""

import dataclasses
import json
import math
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np

from jaxmetric._checks import shown
from jaxmetric.encoders import ENCODERS
from jaxmetric.run.errors import ConfigError
from jaxmetric.run.terms import Term, class_vectors_of, format_terms, parse_terms
from jaxmetric.training import read_json, write_atomically

CONFIG_FILE = "config.json"
# Fields that do not affect a step, so that a run may continue with other values.
_FREE = ("memory", "remat", "log_every", "evaluate_every", "checkpoint_every")
_FLAGS_SHOWN = 4  # of those that differ from the existing run
# The fields that are paths, and the group of each.
PATHS = {"csv": "data", "image_root": "data", "tfds_dir": "data", "weights": "network"}
_TYPES = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}


def absolute_path(path: str) -> str:
    """Makes a path absolute. An empty string, or an address such as gs://bucket, stays as it is."""
    return path if not path or "://" in path else os.path.abspath(os.path.expanduser(path))


def _make_paths_absolute(fields: Any, group: str) -> None:
    """Makes the paths among the fields of a group absolute, in its `__post_init__`."""
    for name in (name for name, its_group in PATHS.items() if its_group == group):
        object.__setattr__(fields, name, absolute_path(getattr(fields, name)))


def is_same_path(one: str, other: str) -> bool:
    """Returns whether two paths lead to the same place, also through links; an empty path only equals itself.

    Example:
      >>> is_same_path("people.csv", "./people.csv"), is_same_path("", "."), is_same_path("", "")
      (True, False, True)
    """
    if not (one and other):
        return one == other
    return one == other or os.path.realpath(one) == os.path.realpath(other)


class _Typed:
    """Makes a dataclass raise ConfigError for a value that is not of its field's type; lists become tuples."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            object.__setattr__(self, field.name, _of_type(field.name, getattr(self, field.name), field.type))


def _of_type(name: str, value: Any, kind: Any) -> Any:
    """Returns a value if it has the type that a field declares."""
    if isinstance(value, np.generic):
        value = value.item()
    if get_origin(kind) is Literal:
        if not isinstance(value, str) or value not in get_args(kind):
            raise ConfigError(f"{name} is {shown(value)}, expected one of {', '.join(get_args(kind))}")
        return value
    if get_origin(kind) is tuple:
        return _tuple_of_type(name, value, get_args(kind))
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{name} is {shown(value)}, expected {_TYPES.get(kind) or f'a {kind.__name__}'}")
    return value


def _tuple_of_type(name: str, value: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{name} is {shown(value)}, expected a tuple")
    if kinds[-1] is Ellipsis:
        return tuple(_of_type(name, each, kinds[0]) for each in value)
    if len(value) != len(kinds):
        raise ConfigError(f"{name} is {shown(value)}, expected {len(kinds)} values")
    return tuple(_of_type(name, each, kind) for each, kind in zip(value, kinds, strict=True))


@dataclasses.dataclass(frozen=True)
class DataConfig(_Typed):
    """Images and labels. Paths are made absolute, so that a run can be evaluated from any directory."""

    source: Literal["emoji_people", "csv", "tfds"] = "emoji_people"
    """Where images come from: the embedded data set, a CSV file of your own, or a prepared TFDS data set."""
    csv: str = ""
    """For csv: the file, as `image,identity,...,split` with a header, or as `filename,class_1,...` without."""
    image_root: str = ""
    """For csv: the folder that image names are relative to (that of the CSV file if empty)."""
    skip_bad: bool = False
    """For csv: skip rows and images that cannot be used, and count them, instead of stopping."""
    ordinal: tuple[str, ...] = ()
    """For csv: columns of ordered integers, such as age; their disagreement is |a - b|."""
    memory: int = 1024
    """For csv: MiB of memory for decoded images; images beyond that are decoded each time."""
    tfds_name: str = ""
    """For tfds: the data set's name, such as cars196."""
    tfds_dir: str = ""
    """For tfds: the folder it was prepared in (the default of TFDS if empty)."""
    columns: tuple[str, ...] = ()
    """Label columns, the identity first; all if empty (for tfds: feature names, at least one)."""
    split: Literal["given", "within", "disjoint"] = "within"
    """What is held out: images of every identity, whole identities, or the source's own split. A CSV file with a split
    column is always split by it.
    """
    stored_size: int = 64
    """Side in pixels at which images are stored; crops are taken from the stored images."""
    resize: Literal["crop", "squash"] = "crop"
    """How csv and tfds images become square: cut off the long side, or squash it."""
    exclude_same: str = ""
    """A column such as camera. In evaluation, images of a query's identity that share its value in this column are
    excluded, as is usual in re-identification. The column is learned only if --columns names it.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        _make_paths_absolute(self, "data")


@dataclasses.dataclass(frozen=True)
class BatchConfig(_Typed):
    """Which images make a batch, and how they are augmented."""

    classes_per_batch: int = 16
    """P: identities in a batch. 0 draws images uniformly, regardless of identity."""
    images_per_class: int = 8
    """K: images of each identity in a batch (the size of a uniform batch if P is 0)."""
    image_size: int = 32
    """Side in pixels of the images that the network sees."""
    crop_scale: tuple[float, float] = (0.6, 1.0)
    """Range of the share of an image's area that a random crop keeps."""
    flip: bool = True
    """Whether to mirror half of the images."""
    color: float = 0.05
    """Brightness, contrast and saturation change by up to this share."""
    chunks: int = 1
    """Parts in which a device passes its images through the network: memory of one part, loss over the whole batch."""

    @property
    def size(self) -> int:
        """Images in a batch, over all devices."""
        return max(self.classes_per_batch, 1) * self.images_per_class


@dataclasses.dataclass(frozen=True)
class EncoderConfig(_Typed):
    """The network that embeds images."""

    encoder: Literal[
        "tiny",
        "resnet10",
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "efficientnet_lite0",
        "efficientnet_lite2",
        "mobilenet_v2",
        "mobilenet_v2_tf",
        "bn_inception",
        "quadruplet_vgg",
        "vit_s16",
        "vit_b16",
        "vit_s14",
        "vit_s14_reg4",
        "vit_b14",
        "vit_b14_reg4",
    ] = "resnet10"
    """Its architecture."""
    pretrained: bool = False
    """Start from the ImageNet weights that the extra `pretrained` brings."""
    weights: str = ""
    """Start from the ImageNet weights of a file: .safetensors, .npz, or .pth of torch."""
    width: int = 16
    """For ResNets: channels of the first stage (64 in the paper, and for weights of others)."""
    stem: Literal["small", "imagenet"] = "small"
    """For ResNets. small: 3x3, for images of about 32 pixels; imagenet: 7x7 of stride 2 and pooling."""
    pooling: Literal["average", "max", "gem", "average+max"] = "average"
    """How the feature map becomes one vector."""
    embedding_dim: int = 128
    """Length of the embedding."""
    freeze_batch_norm: bool = False
    """Keep the batch statistics of the initial network."""
    freeze_until: str = ""
    """The last stage that is not trained, such as stage5. What it makes of each image is computed once, without
    augmentation, and kept on disk.
    """
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the network's activations; weights, embeddings, losses and updates are always float32."""
    remat: bool = False
    """Keep only the input of each block of layers, and recompute the rest for the gradient."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _make_paths_absolute(self, "network")

    @property
    def starts_pretrained(self) -> bool:
        """Whether training starts from weights that were trained before."""
        return bool(self.pretrained or self.weights)


@dataclasses.dataclass(frozen=True)
class ClassConfig(_Typed):
    """Class vectors of the losses that learn them."""

    shard_classes: bool = False
    """Each device holds only the vectors of its share of the classes."""
    sampled_classes: int = 0
    """Classes that each step compares with, over all devices: those of the batch and sampled ones. 0 uses all."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(_Typed):
    """How parameters change."""

    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """The update rule."""
    learning_rate: float = 3e-3
    """Peak learning rate of the encoder."""
    loss_rate: float = 3.0
    """Learning rate of the losses' own parameters, as a multiple of the encoder's."""
    schedule: Literal["cosine", "constant", "step"] = "cosine"
    """How the learning rate decays."""
    warmup: int = 20
    """Steps in which the learning rate rises to its peak."""
    weight_decay: float = 1e-4
    """Weight decay of the encoder's kernels."""
    epsilon: float = 1e-8
    """The epsilon of Adam."""
    clip_norm: float = 0.0
    """Largest norm of the gradient; 0 does not clip."""
    depth_rate: float = 1.0
    """Learning rate of each stage, as a multiple of that of the next one. The head has the full rate."""
    head_first: int = 0
    """Steps at the start in which only the head and the losses' own parameters are trained."""
    average: float = 0.0
    """Decay of a moving average of the network's parameters, such as 0.99, which is evaluated in their place, with the
    batch statistics of the last step; 0 keeps none.
    """


@dataclasses.dataclass(frozen=True)
class Config(_Typed):
    """Everything that determines a run."""

    loss: str = "quadruplet"
    """The objective: a weighted sum of losses, such as "quadruplet(margin=0.3) + 2*soft_triple(on='identity')".
    In Python it may also be a `Term` or several.
    """
    data: DataConfig = DataConfig()
    batch: BatchConfig = BatchConfig()
    network: EncoderConfig = EncoderConfig()
    classes: ClassConfig = ClassConfig()
    update: OptimizerConfig = OptimizerConfig()
    steps: int = 300
    """Steps of the run."""
    seed: int = 0
    """Seed of the split, the batches, the augmentation and the initial parameters."""
    log_every: int = 10
    """Steps between lines of metrics."""
    evaluate_every: int = 100
    """Steps between evaluations on the validation images; 0 disables them."""
    checkpoint_every: int = 100
    """Steps between checkpoints; the last step always has one."""
    neighbors: int = 5
    """k of the joint inference of all labels by k nearest neighbors."""

    def __post_init__(self) -> None:
        if isinstance(self.loss, (Term, list, tuple)):
            terms = [self.loss] if isinstance(self.loss, Term) else self.loss
            object.__setattr__(self, "loss", format_terms(terms))
        super().__post_init__()


@dataclasses.dataclass(frozen=True)
class Machine(_Typed):
    """How the hardware is used. A run may continue with other values here, and on other devices."""

    driver: Literal["pmap", "shard_map"] = "pmap"
    """The driver of the step on all devices. shard_classes needs shard_map."""
    distributed: bool = False
    """Join the other processes of the job, which jax finds on TPU pods, Slurm and Open MPI. See `jaxmetric hosts`."""
    workers: int = 0
    """Processes that read images from files; 0 reads in threads."""
    cache: str = ""
    """The folder for the activations of frozen stages; ~/.cache/jaxmetric/activations if empty."""
    input_timeout: float = 600.0
    """Seconds to wait for a batch before the run ends with an error."""
    profile: bool = False
    """Trace a few steps, for TensorBoard (Profile) and Perfetto, into tensorboard/ of the working directory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "cache", absolute_path(self.cache))


def check_machine(machine: Machine, config: Config) -> None:
    """Raises ConfigError if the hardware does not support these options."""
    if config.classes.shard_classes and machine.driver != "shard_map":
        raise ConfigError(f"driver is {machine.driver}, but shard_classes needs --driver shard_map")
    if "://" in machine.cache:
        raise ConfigError(f"cache is {machine.cache}, expected a folder of this machine")
    if machine.workers < 0:
        raise ConfigError(f"workers is {machine.workers}, expected at least 0")
    if not machine.input_timeout > 0:
        raise ConfigError(f"input_timeout is {machine.input_timeout}, expected a number above 0")


def check_config(config: Config) -> None:
    """Raises ConfigError for everything that can be checked without the data."""
    batch, update = config.batch, config.update
    _check_source(config.data)
    _check_classes(config.classes, parse_terms(config.loss))
    _check_network(config.network)
    if batch.classes_per_batch < 0 or batch.size < 2:
        raise ConfigError(
            f"classes_per_batch {batch.classes_per_batch} x images_per_class {batch.images_per_class} "
            "is a batch of fewer than 2 images; nothing can be compared"
        )
    at_least: dict[int, dict[str, float]] = {
        0: {
            "seed": config.seed,
            "evaluate_every": config.evaluate_every,
            "warmup": update.warmup,
            "weight_decay": update.weight_decay,
            "clip_norm": update.clip_norm,
            "loss_rate": update.loss_rate,
            "head_first": update.head_first,
            "sampled_classes": config.classes.sampled_classes,
            "memory": config.data.memory,
        },
        1: {
            "steps": config.steps,
            "log_every": config.log_every,
            "checkpoint_every": config.checkpoint_every,
            "neighbors": config.neighbors,
            "chunks": batch.chunks,
            "image_size": batch.image_size,
            "stored_size": config.data.stored_size,
            "width": config.network.width,
            "embedding_dim": config.network.embedding_dim,
        },
    }
    above_0 = {
        "learning_rate": update.learning_rate,
        "epsilon": update.epsilon,
        "depth_rate": update.depth_rate,
    }
    for least, fields in at_least.items():
        for name, value in fields.items():
            if not (math.isfinite(value) and value >= least):
                raise ConfigError(f"{name} is {value}, expected at least {least}")
    for name, value in above_0.items():
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name} is {value}, expected a number above 0")
    if not 0 <= update.average < 1:
        raise ConfigError(f"average is {update.average}, expected a number in [0, 1)")
    if update.depth_rate > 1:
        raise ConfigError(f"depth_rate is {update.depth_rate}, expected at most 1")
    low, high = batch.crop_scale
    if not 0 < low <= high <= 1:
        raise ConfigError(f"crop_scale is {batch.crop_scale}, expected 0 < smallest <= largest <= 1")
    if not 0 <= batch.color < 1:
        raise ConfigError(f"color is {batch.color}, expected [0, 1)")
    if config.seed >= 2**32:
        raise ConfigError(f"seed is {config.seed}, expected less than 2^32")


def _check_classes(classes: ClassConfig, terms: Sequence[Term]) -> None:
    """Raises ConfigError for options of class vectors if no term has class vectors."""
    if any(class_vectors_of(term.loss) for term in terms):
        return
    for name in ("shard_classes", "sampled_classes"):
        if value := getattr(classes, name):
            raise ConfigError(f"{name} is {value}, but no term of the loss has class vectors: {format_terms(terms)}")


def _check_network(network: EncoderConfig) -> None:
    """Raises ConfigError for options of the network that exclude each other."""
    if network.pretrained and network.weights:
        raise ConfigError(f"pretrained is set and weights is {network.weights}; give one of them")
    has_statistics = all(names.has_statistics for names in ENCODERS[network.encoder].names)
    if network.starts_pretrained and not (has_statistics or network.freeze_batch_norm):
        raise ConfigError(
            f"weights of {network.encoder} have no batch statistics, so that they only fit with --freeze-batch-norm"
        )


def _check_source(data: DataConfig) -> None:
    """Raises ConfigError if a field of another source is set, or a field that this source needs is not set."""
    of_source = {
        "csv": ("csv", "image_root", "ordinal", "skip_bad", "memory"),
        "tfds": ("tfds_name", "tfds_dir"),
    }
    cures = {
        "csv": "to train on a list, name its preset first: jaxmetric train quadruplet_csv "
        f"--csv {shlex.quote(data.csv) if data.csv else 'LIST'}",
        "tfds": "to train on a TFDS data set, give --source tfds",
    }
    for source, fields in of_source.items():
        if source != data.source:
            _check_default(data, fields, f"source is {data.source}: it", cures[source])
    needed = {"csv": ("csv",), "tfds": ("tfds_name", "columns")}
    for name in needed.get(data.source, ()):
        if not getattr(data, name):
            raise ConfigError(f"source is {data.source}: it needs --{name.replace('_', '-')}, which is not given")


def _check_default(group: Any, names: Sequence[str], what: str, cure: str = "") -> None:
    defaults = type(group)()
    for name in names:
        if getattr(group, name) != getattr(defaults, name):
            raise ConfigError(
                f"{what} cannot use {name}, which is {getattr(group, name)!r}{f'; {cure}' if cure else ''}"
            )


def check_same_config(config: Config, workdir: Path) -> None:
    """Raises ConfigError if the directory holds a run with another configuration; it names the fields."""
    if not (workdir / CONFIG_FILE).exists():
        return
    other = flatten(dataclasses.asdict(load_config(workdir)))
    mine = flatten(dataclasses.asdict(config))
    changed = [name for name in mine if not _same(name, mine[name], other[name]) and name not in _FREE]
    if changed:
        differences = "; ".join(
            f"{name} is {_place_there(name, other[name], workdir)} there and {_or_empty(mine[name])} here"
            for name in changed
        )
        gone = [name for name in changed if _is_gone(name, other[name])]
        flags = " ".join(_flag(name, other[name]) for name in changed)
        same = "the same configuration" if gone or len(changed) > _FLAGS_SHOWN else flags
        raise ConfigError(
            f"{workdir} holds a run with another configuration: {differences}. "
            f"To go on with that run give {same}; to begin another, give another --workdir"
        )


def _same(name: str, mine: Any, other: Any) -> bool:
    """Returns whether two values of a field are equivalent, such as paths through links or other spaces in terms."""
    if name == "loss":
        return parse_terms(mine) == parse_terms(other)
    return is_same_path(mine, other) if name in PATHS else bool(mine == other)


def _or_empty(value: Any) -> Any:
    return "empty" if value in ("", ()) else value


def _flag(name: str, value: Any) -> str:
    """Returns the flag that sets a field."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    values = value if isinstance(value, tuple) else (value,)
    return " ".join([f"--{flag}", *(shlex.quote(str(one)) for one in values)])


def _is_gone(name: str, path: Any) -> bool:
    return bool(name in PATHS and path and "://" not in path and not os.path.exists(path))


def _place_there(name: str, value: Any, workdir: Path) -> Any:
    """Returns the value of a field of a run, with its problem if it is a path."""
    if not _is_gone(name, value):
        return _or_empty(value)
    return (
        f"{_as_written(name, value, workdir)} (which is not there any more; if it has moved, write its new place into "
        f"{workdir / CONFIG_FILE})"
    )


def _as_written(name: str, path: str, workdir: Path) -> str:
    """Returns a path as written in `config.json`, which may have been edited."""
    file = workdir / CONFIG_FILE
    written = read_json(file).get(PATHS[name], {}).get(name) if file.exists() else None
    if not written or written.startswith("~") or os.path.isabs(written) or "://" in written:
        return path
    return f"{written!r}, relative to the directory where the run began (seen from here {path})"


def check_paths(config: Config, workdir: Path) -> None:
    """Raises ConfigError if a file or folder that the configuration of a run names no longer exists."""
    for name, group in PATHS.items():
        path = getattr(getattr(config, group), name)
        if _is_gone(name, path):
            other_list = ", or give --csv to evaluate on another list" if group == "data" else ""
            raise ConfigError(
                f"{name} of the run is {_as_written(name, path, workdir)}, which is not there; "
                f"if it has moved, write its new place into {workdir / CONFIG_FILE}{other_list}"
            )


def save_config(config: Config, workdir: Path) -> None:
    """Writes `config.json` unless it has this content, and creates the directory if there is none."""
    workdir.mkdir(parents=True, exist_ok=True)
    path, text = workdir / CONFIG_FILE, json.dumps(dataclasses.asdict(config), indent=2) + "\n"
    if not path.exists() or path.read_text() != text:
        write_atomically(path, text)


def load_config(workdir: Path) -> Config:
    """Reads the configuration of a run.

    Raises:
      ConfigError: if there is none, or it belongs to another version.
      ValueError: if the file is damaged.
    """
    path = workdir / CONFIG_FILE
    if not path.exists():
        raise ConfigError(f"{workdir} holds no run: it has no {CONFIG_FILE}")
    values = read_json(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is not a configuration: it holds a {type(values).__name__}, expected an object")
    if isinstance(values.get("loss"), dict):
        raise ConfigError(f"{path} is of an older version, in which the loss was no expression; train the run anew")
    try:
        return _from_dict(Config, values)
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is not a configuration of this version: {error}") from error


def flatten(nested: dict[str, Any]) -> dict[str, Any]:
    """Flattens the groups: `{"batch": {"chunks": 2}, "steps": 3}` becomes `{"chunks": 2, "steps": 3}`."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        flat.update(flatten(value) if isinstance(value, dict) else {name: value})
    return flat


def _from_dict(kind: Any, values: dict[str, Any]) -> Any:
    """Inverts `dataclasses.asdict`."""
    groups = {field.name: field.type for field in dataclasses.fields(kind)}
    return kind(
        **{
            name: _from_dict(groups[name], value) if dataclasses.is_dataclass(groups.get(name)) else value
            for name, value in values.items()
        }
    )
