"""From a configuration to what a run works with: pictures, plan, network, objective, optimiser.

Whatever can be wrong with a configuration and its data is found here, before the first step.
"""

import dataclasses
import fcntl
import hashlib
import json
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from jaxmetric import parallel
from jaxmetric.data import (
    LEARNING,
    QUERY,
    SPLITS,
    TEST,
    VALIDATION,
    Augmentation,
    LabeledImages,
    Plan,
    augment,
    image_keys,
    load_emoji_people,
    load_manifest,
    load_tfds,
    make_plan,
    make_uniform_plan,
    prepare,
)
from jaxmetric.data.problems import counted
from jaxmetric.data.splits import split_disjoint_classes, split_within_classes
from jaxmetric.encoders import make_encoder
from jaxmetric.run.config import (
    CONFIG_FILE,
    BatchConfig,
    Config,
    ConfigError,
    DataConfig,
    check_same_config,
    save_config,
)
from jaxmetric.run.objective import init_loss_params, make_objective
from jaxmetric.training import (
    Embed,
    TrainState,
    create_state,
    make_embed,
    make_optimizer,
    make_schedule,
    make_train_step,
    read_json,
    write_atomically,
)
from jaxmetric.training.step import Objective

CHECKPOINTS = "checkpoints"
DATA_FILE = "data.json"
LOCK_FILE = ".lock"
_GRACE = 30  # seconds that a run which is told to stop may take


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything built from a `Config`: data, network, objective, optimizer.

    `groups` `[N, 2]` holds the identity and the value of the column `exclude_same` of every image; None without one.
    """

    config: Config
    source: LabeledImages
    groups: np.ndarray | None
    encoder: nn.Module
    objective: Objective
    optimizer: optax.GradientTransformation
    num_classes: int
    num_devices: int

    @cached_property
    def state_shapes(self) -> TrainState:
        """A state of `jax.ShapeDtypeStruct`s."""
        return jax.eval_shape(lambda: make_state(self))


def load_experiment(config: Config, *, num_devices: int | None = None) -> Experiment:
    """Loads the data and builds the network.

    Args:
      config: the run.
      num_devices: among which a batch is divided; those of all processes if not given.

    Raises:
      ConfigError: if the data cannot be learnt from, or evaluated on, as configured.
      ValueError: for bad data, see `jaxmetric.data`, or loss options that do not fit it.
    """
    source, groups = load_labels(config.data, seed=config.seed)
    weights = config.loss.label_weights
    if config.loss.quadruplet_weight and weights and len(weights) != len(source.columns):
        raise ConfigError(
            f"label_weights has {len(weights)} entries, expected one for each of the columns "
            f"{', '.join(column.name for column in source.columns)}"
        )
    _check_learning(config, source)
    _check_held_out(config, source)
    _warn_of_small_classes(config, source)
    return make_experiment(config, source, groups, learned_identities(source), num_devices=num_devices)


def make_experiment(
    config: Config,
    source: LabeledImages,
    groups: np.ndarray | None,
    classes: np.ndarray,
    *,
    num_devices: int | None = None,
) -> Experiment:
    """Builds the network, its loss and its optimizer for images that are loaded.

    Args:
      config: the run.
      source: the images and labels.
      groups: see `Experiment`.
      classes: the codes of the identities that are learned.
      num_devices: see `load_experiment`.
    """
    network, update = config.network, config.update
    encoder = make_encoder(
        network.encoder,
        embedding_dim=network.embedding_dim,
        width=network.width,
        stem=network.stem,
        pooling=network.pooling,
        axis_name=parallel.AXIS_NAME,
        freeze_batch_norm=network.freeze_batch_norm,
        dtype=jnp.dtype(network.dtype),
        remat=network.remat,
    )
    optimizer = make_optimizer(
        update.optimizer,
        learning_rate(config),
        loss_rate=update.loss_rate,
        weight_decay=update.weight_decay,
        epsilon=update.epsilon,
    )
    objective = make_objective(config.loss, source.columns, classes=classes)
    devices = num_devices or jax.device_count()
    return Experiment(config, source, groups, encoder, objective, optimizer, len(classes), devices)


def check_step(experiment: Experiment) -> None:
    """Raises ConfigError if the step cannot run on the devices, or options of the loss do not fit the data."""
    config, devices = experiment.config, experiment.num_devices
    size, chunks = config.batch.size, config.batch.chunks
    if size % devices:
        raise ConfigError(
            f"classes_per_batch x images_per_class is a batch of {size}, which does not divide among {devices} devices"
        )
    if size // devices % chunks:
        share = counted(size // devices, "image")
        raise ConfigError(f"chunks is {chunks}, which does not divide a device's share of {share}")
    try:
        _trace_objective(experiment)
    except ValueError as error:
        message = str(error).replace("num_anchors", "quadruplet_anchors").replace("num_sampled", "sampled_classes")
        raise ConfigError(message) from error


def learning_rate(config: Config) -> optax.Schedule:
    """The encoder's learning rate at each step."""
    update = config.update
    warmup = min(update.warmup, config.steps - 1)
    return make_schedule(update.schedule, peak=update.learning_rate, steps=config.steps, warmup=warmup)


def load_labels(data: DataConfig, *, seed: int) -> tuple[LabeledImages, np.ndarray | None]:
    """The images with the labels to learn, and what `Experiment.groups` holds."""
    name = data.exclude_same
    extra = (name,) if name and data.columns and name not in data.columns else ()
    source = load_source(dataclasses.replace(data, columns=(*data.columns, *extra)), seed=seed)
    return split_off_groups(source, data)


def split_off_groups(source: LabeledImages, data: DataConfig) -> tuple[LabeledImages, np.ndarray | None]:
    """Takes the column that `exclude_same` names out of the labels, unless `columns` names it too.

    Returns:
      The images with the other labels, and what `Experiment.groups` holds.

    Raises:
      ConfigError: if there is no such column beside the identity.
    """
    name, names = data.exclude_same, [column.name for column in source.columns]
    if not name:
        return source, None
    if name not in names[1:]:
        raise ConfigError(f"exclude_same is {name!r}, expected a column beside the identity, of {', '.join(names)}")
    groups = source.labels[:, [0, names.index(name)]]
    kept = [t for t, other in enumerate(names) if other != name or name in data.columns]
    columns = tuple(source.columns[t] for t in kept)
    return dataclasses.replace(source, labels=source.labels[:, kept], columns=columns), groups


def load_source(data: DataConfig, *, seed: int) -> LabeledImages:
    """The pictures and labels that a configuration names."""
    if data.source == "emoji_people":
        if data.split == "given":
            raise ConfigError("split is given, but emoji_people has none of its own; expected within or disjoint")
        columns = {"columns": data.columns} if data.columns else {}
        return load_emoji_people(data.split, seed=seed, size=data.stored_size, **columns)
    if data.source == "csv":
        return load_manifest(
            data.csv,
            root=data.image_root or None,
            image_size=data.stored_size,
            resize=data.resize,
            columns=data.columns or None,
            ordinal=data.ordinal,
            memory_budget=data.memory * 2**20,
            skip_bad=data.skip_bad,
            split=data.split,
            seed=seed,
        )
    return load_tfds(
        data.tfds_name,
        data_dir=data.tfds_dir or None,
        label_keys=data.columns,
        split=data.split,
        image_size=data.stored_size,
        resize=data.resize,
        seed=seed,
    )


def learned_identities(source: LabeledImages) -> np.ndarray:
    """The codes of the identity column that learning pictures bear, ascending: class c of the losses is entry c."""
    identities = np.unique(source.labels[source.split == LEARNING, 0])
    return identities[identities >= 0]


def evaluated_split(source: LabeledImages) -> int:
    """The split that evaluation asks: queries, or test, or validation where fewer than two images are for test.

    Raises:
      ConfigError: if there are queries but no gallery or the reverse, or fewer than two images are held out.
    """
    counts = split_sizes(source)
    if bool(counts["query"]) != bool(counts["gallery"]):
        there, missing = ("query", "gallery") if counts["query"] else ("gallery", "query")
        raise ConfigError(
            f"{counted(counts[there], 'image has', 'images have')} the split {there}, "
            f"but none has the split {missing}: a query is searched "
            f"in the gallery; name both, or call them test"
        )
    if counts["query"]:
        return QUERY
    for split in (TEST, VALIDATION):
        if counts[SPLITS[split]] > 1:
            return split
    raise ConfigError(
        f"fewer than two images are held out for test, fewer than two for validation, and none as query and gallery "
        f"({described_splits(source)}): there is nothing to compare"
    )


def _check_held_out(config: Config, source: LabeledImages) -> None:
    """Raises ConfigError, with a cure, if there is nothing to evaluate."""
    try:
        evaluated_split(source)
    except ConfigError as error:
        if (source.split >= QUERY).any():
            raise
        cure = (
            "give two rows or more the split test, or leave the split column out"
            if has_own_split(config, source)
            else "give more images, a split column with two rows or more of test, or "
            f"--split {'within' if config.data.split == 'disjoint' else 'disjoint'}"
        )
        raise ConfigError(f"{error}; {cure}") from error


def has_own_split(config: Config, source: LabeledImages) -> bool:
    """Whether a list's split is not the one that `split` would make of it."""
    data = config.data
    if data.source != "csv":
        return False
    made_by = {"within": split_within_classes, "disjoint": split_disjoint_classes}.get(data.split)
    return made_by is None or not np.array_equal(source.split, made_by(source.labels[:, 0], seed=config.seed))


def split_sizes(source: LabeledImages) -> dict[str, int]:
    """How many images each split has, by its name."""
    return {name: int((source.split == code).sum()) for code, name in enumerate(SPLITS)}


def described_splits(source: LabeledImages) -> str:
    """The splits that have images, as `8 learning, 2 test`."""
    return ", ".join(f"{size:,} {name}" for name, size in split_sizes(source).items() if size)


@contextmanager
def sole_run(workdir: Path) -> Iterator[None]:
    """Makes the directory of a run, and keeps other runs out of it where the file system has locks.

    The lock goes with the process, however that ends. Of several processes the first holds it.

    Raises:
      ConfigError: in all processes, if another run is under way there and does not end within some seconds.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / LOCK_FILE).open("a") as file:
        if parallel.any_process(jax.process_index() == 0 and not _locked(file, patience=_GRACE)):
            raise ConfigError(f"a run is under way in {workdir}; wait for its end, or give another --workdir")
        yield


@contextmanager
def alone_in(workdir: Path) -> Iterator[bool]:
    """Whether no run is under way in a directory; if so, none begins within."""
    with (workdir / LOCK_FILE).open("a") as file:
        yield _locked(file, patience=0)


def _locked(file: IO[str], *, patience: float) -> bool:
    """Whether the lock could be had. A run that was told to stop may be about to end."""
    deadline = None
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if deadline is None:
                deadline = time.monotonic() + patience
                if patience:
                    where = Path(file.name).parent
                    print(f"a run is under way in {where}; waiting up to {patience:g} s for its end", flush=True)
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.2)
        except OSError as error:
            warnings.warn(
                f"{file.name}: no lock ({error.strerror}); nothing keeps a second run off the directory", stacklevel=3
            )
            return True


def claim_workdir(experiment: Experiment, workdir: Path) -> None:
    """Writes what a run is into its directory, or checks that the run there has the same configuration and data.

    Of several processes all check and one writes.

    Raises:
      ConfigError: if the configuration, or the pictures and labels behind it, are others.
    """
    for name in (CONFIG_FILE, DATA_FILE):
        if not (workdir / name).exists() and any((workdir / CHECKPOINTS).glob("[0-9]*")):
            raise ConfigError(f"{workdir} holds checkpoints, but no {name}; put it back, or give another --workdir")
    check_same_config(experiment.config, workdir)
    source, path = experiment.source, workdir / DATA_FILE
    facts = _facts_of(source)
    if path.exists() and (changed := _changed_data(read_facts(path), facts)):
        raise ConfigError(f"{workdir} holds a run on other data: {changed}; {_cure_of_data(experiment, path)}")
    if jax.process_index() == 0:
        save_config(experiment.config, workdir)
        if not path.exists():
            write_atomically(path, json.dumps(facts, indent=2) + "\n")


def read_facts(path: Path) -> dict[str, Any]:
    """Reads a `data.json`. Older files call the number of images "pictures"."""
    facts = read_json(path)
    return {"images": facts.get("pictures"), **facts}


def _facts_of(source: LabeledImages) -> dict[str, Any]:
    """What `data.json` holds. `digest` is of everything; `parts` tells what has changed."""
    parts = {
        "image names": "\n".join(source.names).encode(),
        "label values": source.labels.tobytes(),
        "split": source.split.tobytes(),
    }
    whole = parts["label values"] + parts["split"] + parts["image names"]
    return {
        "images": len(source),
        "labels": [column.name for column in source.columns],
        "digest": hashlib.sha256(whole).hexdigest(),
        "parts": {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()},
    }


def _changed_data(began: dict[str, Any], now: dict[str, Any]) -> str:
    """What of the data has changed since a run began; "" if nothing. Older files have no `parts`."""
    if all(began.get(name) == now[name] for name in ("images", "labels", "digest")):
        return ""
    if began["labels"] != now["labels"]:
        return f"the label columns were {', '.join(began['labels'])} then and are {', '.join(now['labels'])} now"
    parts = began.get("parts")
    changed = [name for name in now["parts"] if parts[name] != now["parts"][name]] if parts else []
    what = " and ".join(changed) or "image names, label values or split"
    counts = f"{counted(began['images'], 'image')} then, {now['images']:,} now"
    return f"{what} changed since it began ({counts})"


def _cure_of_data(experiment: Experiment, path: Path) -> str:
    if experiment.config.data.skip_bad and len(experiment.source) < read_facts(path)["images"]:
        return "images that --skip-bad leaves out now were there then: put them back"
    return "put the data back as they were to go on with it, or train anew in another --workdir"


def make_batch_plan(batch: BatchConfig, source: LabeledImages, *, seed: int) -> Plan:
    """Which pictures make each batch: P identities x K pictures, or uniformly drawn ones.

    Raises:
      ConfigError: if there are fewer than P identities to learn.
    """
    learning, groups = source.split == LEARNING, learning_groups(source)
    if batch.classes_per_batch > groups:
        fitting = f"{groups} or less, but not 0, which draws images of any" if groups > 1 else "1"
        raise ConfigError(
            f"classes_per_batch is {batch.classes_per_batch}, but the learning pictures have "
            f"{counted(groups, 'value')} of {source.columns[0].name}; give --classes-per-batch {fitting}"
        )
    if not batch.classes_per_batch:
        return make_uniform_plan(len(source), batch_size=batch.images_per_class, seed=seed, where=learning)
    return make_plan(
        source.labels[:, 0],
        classes_per_batch=batch.classes_per_batch,
        images_per_class=batch.images_per_class,
        seed=seed,
        where=learning,
    )


def learning_groups(source: LabeledImages) -> int:
    """Values of the identity among the learning images; a missing one is a group of its own."""
    return len(np.unique(source.labels[source.split == LEARNING, 0]))


def make_state(experiment: Experiment) -> TrainState:
    """The state before the first step, a function of the configuration alone."""
    config = experiment.config
    # Drawing all weights under one jit compiles many times sooner with this generator than with the default one.
    encoder_key = jax.random.key(config.seed, impl="unsafe_rbg")
    loss_key = jax.random.key(config.seed)
    return create_state(
        encoder_key,
        experiment.encoder,
        image_size=config.batch.image_size,
        loss_params=_init_loss_params(loss_key, experiment),
        optimizer=experiment.optimizer,
    )


def make_step(experiment: Experiment) -> parallel.Step:
    """The per-device training step, with the learning rate among its metrics."""
    batch, schedule = experiment.config.batch, learning_rate(experiment.config)
    augmentation = Augmentation(crop_scale=batch.crop_scale, flip=batch.flip, color=batch.color)

    def preprocess(key: jax.Array, positions: jax.Array, images: jax.Array) -> jax.Array:
        keys = image_keys(key, positions)
        return augment(keys, images, image_size=batch.image_size, augmentation=augmentation)

    train_step = make_train_step(
        apply_fn=experiment.encoder.apply,
        objective=experiment.objective,
        optimizer=experiment.optimizer,
        preprocess=preprocess,
        seed=experiment.config.seed,
        chunks=batch.chunks,
        clip_norm=experiment.config.update.clip_norm or None,
        class_shards=experiment.config.loss.shard_classes,
    )

    def step(state: TrainState, batch: Any, *, axis_name: str) -> tuple[TrainState, dict[str, jax.Array]]:
        new_state, metrics = train_step(state, batch, axis_name=axis_name)
        return new_state, {**metrics, "learning_rate": schedule(state.step)}

    return step


def drive_step(experiment: Experiment, driver: str) -> parallel.Driven[TrainState]:
    """The training step on all devices of all processes."""
    step = make_step(experiment)
    if driver == "pmap":
        return parallel.drive_pmap(step)
    return parallel.drive_shard_map(step, state_specs=state_specs(experiment))


def state_specs(experiment: Experiment) -> TrainState:
    """What of a state each device holds a part of: class vectors and their moments, if they are sharded."""
    sharded = experiment.config.loss.shard_classes

    def spec(path: Any, leaf: Any) -> PartitionSpec:
        return parallel.SHARDED if sharded and leaf.ndim and _is_of_loss(path) else parallel.REPLICATED

    return jax.tree_util.tree_map_with_path(spec, experiment.state_shapes)


def restorable(
    experiment: Experiment, driven: parallel.Driven[TrainState], *, any_classes: bool = False
) -> tuple[TrainState, TrainState]:
    """What `jaxmetric.training.restore_latest` wants to know: the state's arrays, and which may change in length.

    Sharded class vectors are padded to a multiple of the devices, which may be others now. With `any_classes`, for a
    state of which only the encoder is used, all class vectors may be of other classes than those of the checkpoint.
    """
    shapes = driven.state_shapes(experiment.state_shapes)

    def may_change(path: Any, leaf: Any, spec: Any) -> bool:
        return spec != parallel.REPLICATED or bool(any_classes and leaf.ndim and _is_of_loss(path))

    return shapes, jax.tree_util.tree_map_with_path(may_change, experiment.state_shapes, state_specs(experiment))


def make_embedder(experiment: Experiment) -> Embed:
    """`(state, images) -> [N, D]` embeddings; see `jaxmetric.training.make_embed`."""
    return make_embed(experiment.encoder.apply, partial(prepare, image_size=experiment.config.batch.image_size))


def _is_of_loss(path: Any) -> bool:
    return any(getattr(part, "key", None) == "loss" for part in path)


def _init_loss_params(key: jax.Array, experiment: Experiment) -> dict[str, jax.Array]:
    config, num_classes = experiment.config, experiment.num_classes
    params = init_loss_params(key, config.loss, num_classes=num_classes, dim=config.network.embedding_dim)
    if not config.loss.shard_classes:
        return params
    padding = -num_classes % experiment.num_devices
    return jax.tree.map(lambda x: jnp.pad(x, [(0, padding), *[(0, 0)] * (x.ndim - 1)]), params)


def _trace_objective(experiment: Experiment) -> None:
    """Traces the loss on shapes alone, so that options which do not fit the data are errors before anything runs."""
    config, source = experiment.config, experiment.source
    everywhere = parallel.REPLICATED
    mapped = jax.shard_map(
        experiment.objective,
        mesh=AbstractMesh((experiment.num_devices,), (parallel.AXIS_NAME,), axis_types=(AxisType.Auto,)),
        in_specs=(everywhere, parallel.SHARDED if config.loss.shard_classes else everywhere, everywhere, everywhere),
        out_specs=everywhere,
        check_vma=False,
    )
    jax.eval_shape(
        mapped,
        jax.eval_shape(lambda: jax.random.key(0)),
        jax.eval_shape(lambda: _init_loss_params(jax.random.key(0), experiment)),
        jax.ShapeDtypeStruct((config.batch.size, config.network.embedding_dim), jnp.float32),
        jax.ShapeDtypeStruct((config.batch.size, len(source.columns)), jnp.int32),
    )


def _check_learning(config: Config, source: LabeledImages) -> None:
    """Raises ConfigError if there is nothing to learn from."""
    if (source.split == LEARNING).any():
        return
    data = config.data
    of_list, new = (f"{data.csv} has", f" --csv {data.csv}") if data.source == "csv" else ("the data set has", "")
    hint = f"; to evaluate a trained run on it: python -m experiments.evaluate --workdir RUN{new}" if new else ""
    raise ConfigError(
        f"{of_list} no learning images ({described_splits(source)}); to train, give some rows the split learning{hint}"
    )


def _warn_of_small_classes(config: Config, source: LabeledImages) -> None:
    identities = source.labels[source.split == LEARNING, 0]
    values, counts = np.unique(identities[identities >= 0], return_counts=True)
    if not len(values):
        return
    smallest = int(counts.min())
    name = source.columns[0].values[values[counts.argmin()]]
    loss, batch = config.loss, config.batch
    if loss.soft_triple_weight and loss.centers_per_class > smallest:
        warnings.warn(
            f"centers_per_class is {loss.centers_per_class}, but {source.columns[0].name} {name!r} has "
            f"{counted(smallest, 'learning image')}: some centres stay without any",
            stacklevel=2,
        )
    if batch.classes_per_batch and batch.images_per_class > smallest:
        few = int((counts < batch.images_per_class).sum())
        warnings.warn(
            f"{few:,} of {counted(len(values), 'value')} of {source.columns[0].name} "
            f"{'has' if few == 1 else 'have'} fewer than "
            f"{batch.images_per_class} learning images ({name!r} has {smallest}); they repeat within a batch",
            stacklevel=2,
        )
