"""From a configuration to what a run works with: pictures, plan, network, objective, optimiser.

Whatever can be wrong with a configuration and its data is found here, before the first step.
"""

import dataclasses
import warnings
from functools import partial

import flax.linen as nn
import jax
import numpy as np
import optax

from experiments.config import BatchConfig, Config, ConfigError, DataConfig
from experiments.objective import init_loss_params, make_objective
from jaxmetric import parallel
from jaxmetric.data import (
    LEARNING,
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
from jaxmetric.training import TrainState, create_state, make_embed, make_optimizer, make_train_step
from jaxmetric.training.state import make_schedule


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A configuration made real."""

    config: Config
    source: LabelledImages
    encoder: nn.Module
    optimizer: optax.GradientTransformation

    @property
    def learning(self) -> np.ndarray:
        """Which pictures are learnt from, `[N]` booleans."""
        return self.source.split == LEARNING


def load_experiment(config: Config) -> Experiment:
    """Loads the data and builds the network.

    Raises:
      ConfigError: if the data cannot be learnt from as configured.
      ValueError: for bad data, see `jaxmetric.data`.
    """
    source = load_source(config.data, seed=config.seed)
    if config.loss.label_weights and len(config.loss.label_weights) != len(source.columns):
        raise ConfigError(
            f"label_weights has {len(config.loss.label_weights)} entries, expected one for each of the columns "
            f"{', '.join(column.name for column in source.columns)}"
        )
    devices = jax.local_device_count()
    size = max(config.batch.classes_per_batch, 1) * config.batch.pictures_per_class
    if size % devices:
        raise ConfigError(
            f"classes_per_batch x pictures_per_class is a batch of {size}, "
            f"which does not divide among {devices} devices"
        )
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
    return Experiment(config, source, encoder, optimizer)


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
            split="disjoint" if data.split == "disjoint" else "within",
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


def make_batch_plan(batch: BatchConfig, source: LabelledImages, *, seed: int) -> Plan:
    """Which pictures make each batch: P identities x K pictures, or uniformly drawn ones."""
    learning = source.split == LEARNING
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
    loss_params = init_loss_params(
        loss_key,
        config.loss,
        num_classes=len(experiment.source.columns[0].values),
        dim=config.network.embedding_dim,
    )
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
        objective=make_objective(experiment.config.loss, experiment.source.columns),
        optimizer=experiment.optimizer,
        preprocess=preprocess,
        seed=experiment.config.seed,
    )


def make_embedder(experiment: Experiment):  # type: ignore[no-untyped-def]
    """`(state, images) -> [N, D]` embeddings; see `jaxmetric.training.make_embed`."""
    return make_embed(experiment.encoder.apply, partial(prepare, image_size=experiment.config.batch.image_size))


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
