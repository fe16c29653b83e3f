"""From a configuration to what a run works with: pictures, plan, network, objective, optimiser.

Whatever can be wrong with a configuration and its data is found here, before the first step.
"""

import dataclasses
import hashlib
import json
import warnings
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.config import BatchConfig, Config, ConfigError, DataConfig, save_config
from experiments.objective import init_loss_params, make_objective
from jaxmetric import parallel
from jaxmetric.data import (
    LEARNING,
    TEST,
    VALIDATION,
    Augmentation,
    LabelledImages,
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
from jaxmetric.encoders import make_encoder
from jaxmetric.training import (
    Embed,
    TrainState,
    create_state,
    make_embed,
    make_optimizer,
    make_schedule,
    make_train_step,
    write_atomically,
)
from jaxmetric.training.step import Objective

DATA_FILE = "data.json"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A configuration made real."""

    config: Config
    source: LabelledImages
    encoder: nn.Module
    objective: Objective
    optimizer: optax.GradientTransformation


def load_experiment(config: Config, *, num_devices: int | None = None) -> Experiment:
    """Loads the data and builds the network.

    Args:
      config: the run.
      num_devices: among which a batch is divided; those of this process if not given.

    Raises:
      ConfigError: if the data cannot be learnt from, or evaluated on, as configured.
      ValueError: for bad data, see `jaxmetric.data`, or loss options that do not fit it.
    """
    source = load_source(config.data, seed=config.seed)
    if config.loss.label_weights and len(config.loss.label_weights) != len(source.columns):
        raise ConfigError(
            f"label_weights has {len(config.loss.label_weights)} entries, expected one for each of the columns "
            f"{', '.join(column.name for column in source.columns)}"
        )
    devices = num_devices or jax.local_device_count()
    size = config.batch.size
    if size % devices:
        raise ConfigError(
            f"classes_per_batch x pictures_per_class is a batch of {size}, "
            f"which does not divide among {devices} devices"
        )
    evaluated_split(source)
    _warn_of_small_classes(config, source)
    network, update = config.network, config.update
    encoder = make_encoder(
        network.encoder,
        embedding_dim=network.embedding_dim,
        width=network.width,
        stem=network.stem,
        pooling=network.pooling,
        axis_name=parallel.AXIS_NAME,
        freeze_batch_norm=network.freeze_batch_norm,
    )
    optimizer = make_optimizer(
        update.optimizer,
        learning_rate(config),
        loss_rate=update.loss_rate,
        weight_decay=update.weight_decay,
        epsilon=update.epsilon,
        clip_norm=update.clip_norm or None,
    )
    objective = make_objective(config.loss, source.columns, classes=learnt_identities(source))
    experiment = Experiment(config, source, encoder, objective, optimizer)
    _trace_objective(experiment, batch_size=size)
    return experiment


def learning_rate(config: Config) -> optax.Schedule:
    """The encoder's learning rate at each step."""
    update = config.update
    warmup = min(update.warmup, config.steps - 1)
    return make_schedule(update.schedule, peak=update.learning_rate, steps=config.steps, warmup=warmup)


def load_source(data: DataConfig, *, seed: int) -> LabelledImages:
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


def learnt_identities(source: LabelledImages) -> np.ndarray:
    """The codes of the identity column that learning pictures bear, ascending: class c of the losses is entry c."""
    identities = np.unique(source.labels[source.split == LEARNING, 0])
    return identities[identities >= 0]


def evaluated_split(source: LabelledImages) -> int:
    """The split that evaluation asks: test, or validation where fewer than two pictures are for test.

    Raises:
      ConfigError: if fewer than two pictures are held out for either.
    """
    for split in (TEST, VALIDATION):
        if (source.split == split).sum() > 1:
            return split
    raise ConfigError("fewer than two pictures are held out for validation or test; there is nothing to evaluate")


def claim_workdir(experiment: Experiment, workdir: Path) -> None:
    """Makes the directory of a run, or checks that the run in it has the same configuration and data.

    Raises:
      ConfigError: if the configuration, or the pictures and labels behind it, are others.
    """
    save_config(experiment.config, workdir)
    source, path = experiment.source, workdir / DATA_FILE
    digest = hashlib.sha256(source.labels.tobytes() + source.split.tobytes())
    digest.update("\n".join(source.names).encode())
    facts = {
        "pictures": len(source),
        "labels": [column.name for column in source.columns],
        "digest": digest.hexdigest(),
    }
    if not path.exists():
        write_atomically(path, json.dumps(facts, indent=2) + "\n")
    elif json.loads(path.read_text()) != facts:
        raise ConfigError(f"{workdir} holds a run on other data: pictures, labels or split have changed since it began")


def make_batch_plan(batch: BatchConfig, source: LabelledImages, *, seed: int) -> Plan:
    """Which pictures make each batch: P identities x K pictures, or uniformly drawn ones.

    Raises:
      ConfigError: if there are fewer than P identities to learn.
    """
    learning = source.split == LEARNING
    groups = len(np.unique(source.labels[learning, 0]))  # a missing identity is a group of its own
    if batch.classes_per_batch > groups:
        raise ConfigError(
            f"classes_per_batch is {batch.classes_per_batch}, but the learning pictures have {groups} different "
            f"{source.columns[0].name}s; give --classes-per-batch {groups} or less"
        )
    if not batch.classes_per_batch:
        return make_uniform_plan(len(source), batch_size=batch.pictures_per_class, seed=seed, where=learning)
    return make_plan(
        source.labels[:, 0],
        classes_per_batch=batch.classes_per_batch,
        pictures_per_class=batch.pictures_per_class,
        seed=seed,
        where=learning,
    )


def make_state(experiment: Experiment) -> TrainState:
    """The state before the first step, a function of the configuration alone."""
    config = experiment.config
    # Drawing all weights under one jit compiles many times sooner with this generator than with the default one.
    encoder_key = jax.random.key(config.seed, impl="unsafe_rbg")
    loss_key = jax.random.key(config.seed)
    loss_params = _init_loss_params(loss_key, config, experiment.source)
    return create_state(
        encoder_key,
        experiment.encoder,
        image_size=config.batch.image_size,
        loss_params=loss_params,
        optimizer=experiment.optimizer,
    )


def make_step(experiment: Experiment) -> parallel.Step:
    """The per-device training step."""
    batch = experiment.config.batch
    augmentation = Augmentation(crop_scale=batch.crop_scale, flip=batch.flip, colour=batch.colour)

    def preprocess(key: jax.Array, positions: jax.Array, images: jax.Array) -> jax.Array:
        keys = image_keys(key, positions)
        return augment(keys, images, image_size=batch.image_size, augmentation=augmentation)

    return make_train_step(
        apply_fn=experiment.encoder.apply,
        objective=experiment.objective,
        optimizer=experiment.optimizer,
        preprocess=preprocess,
        seed=experiment.config.seed,
    )


def make_embedder(experiment: Experiment) -> Embed:
    """`(state, images) -> [N, D]` embeddings; see `jaxmetric.training.make_embed`."""
    return make_embed(experiment.encoder.apply, partial(prepare, image_size=experiment.config.batch.image_size))


def _init_loss_params(key: jax.Array, config: Config, source: LabelledImages) -> dict[str, jax.Array]:
    num_classes = len(learnt_identities(source))
    return init_loss_params(key, config.loss, num_classes=num_classes, dim=config.network.embedding_dim)


def _trace_objective(experiment: Experiment, *, batch_size: int) -> None:
    """Traces the loss on shapes alone, so that options which do not fit the data are errors before anything runs."""
    config, source = experiment.config, experiment.source
    jax.eval_shape(
        lambda key, embeddings, labels: experiment.objective(
            key, _init_loss_params(key, config, source), embeddings, labels
        ),
        jax.random.key(0),
        jax.ShapeDtypeStruct((batch_size, config.network.embedding_dim), jnp.float32),
        jax.ShapeDtypeStruct((batch_size, len(source.columns)), jnp.int32),
    )


def _warn_of_small_classes(config: Config, source: LabelledImages) -> None:
    identities = source.labels[source.split == LEARNING, 0]
    values, counts = np.unique(identities[identities >= 0], return_counts=True)
    if not len(values):
        raise ConfigError(f"no learning picture has a known {source.columns[0].name}; there is no identity to learn")
    smallest = int(counts.min())
    name = source.columns[0].values[values[counts.argmin()]]
    loss, batch = config.loss, config.batch
    if loss.soft_triple_weight and loss.centers_per_class > smallest:
        warnings.warn(
            f"centers_per_class is {loss.centers_per_class}, but {source.columns[0].name} {name!r} has "
            f"{smallest} learning pictures: some centres stay without any",
            stacklevel=2,
        )
    if batch.classes_per_batch and batch.pictures_per_class > smallest:
        few = int((counts < batch.pictures_per_class).sum())
        warnings.warn(
            f"{few} of {len(values)} values of {source.columns[0].name} have fewer than {batch.pictures_per_class} "
            f"learning pictures ({name!r} has {smallest}); they repeat within a batch",
            stacklevel=2,
        )
