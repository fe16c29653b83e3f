"""Builds the parts of a run from its configuration: data, network, objective, optimizer, training step."""

import dataclasses
import warnings
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from jaxmetric import parallel
from jaxmetric.data import (
    LEARNING,
    Augmentation,
    LabeledImages,
    augment,
    image_keys,
    prepare,
)
from jaxmetric.data.problems import counted
from jaxmetric.encoders import ENCODERS, Encoder, load_weights, make_encoder, pretrained_file
from jaxmetric.run.config import Config, EncoderConfig, OptimizerConfig
from jaxmetric.run.errors import ConfigError
from jaxmetric.run.names import did_you_mean
from jaxmetric.run.objective import PlacedTerm, WeightedSum, objective
from jaxmetric.run.source import check_held_out, check_learning, learned_classes, load_labels
from jaxmetric.training import (
    Embed,
    Rate,
    TrainState,
    create_state,
    make_embed,
    make_optimizer,
    make_schedule,
    make_train_step,
)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything built from a `Config`: data, network, objective, optimizer.

    `groups` `[N, 2]` holds the identity and the value of the column `exclude_same` of every image; None without one.
    """

    config: Config
    source: LabeledImages
    groups: np.ndarray | None
    encoder: Encoder
    objective: WeightedSum
    optimizer: optax.GradientTransformation
    num_devices: int

    @cached_property
    def state_shapes(self) -> TrainState:
        """The training state as a tree of `jax.ShapeDtypeStruct`s."""
        return jax.eval_shape(lambda: make_state(self))


def load_experiment(config: Config, *, num_devices: int | None = None) -> Experiment:
    """Loads the data and builds the network.

    Args:
      config: the configuration of the run.
      num_devices: the number of devices that share a batch; those of all processes if None.

    Raises:
      ConfigError: if the data cannot be used for training or evaluation as configured.
      ValueError: for bad data, see `jaxmetric.data`, or loss options that do not fit it.
    """
    source, groups = load_labels(config.data, seed=config.seed)
    check_learning(config, source)
    check_held_out(config, source)
    total = objective(
        config.loss,
        source.columns,
        classes=learned_classes(source),
        sampled_classes=config.classes.sampled_classes,
        shard_classes=config.classes.shard_classes,
        axis_name=parallel.AXIS_NAME,
    )
    _warn_of_small_classes(config, source, total)
    return make_experiment(config, source, groups, total, num_devices=num_devices)


def make_experiment(
    config: Config,
    source: LabeledImages,
    groups: np.ndarray | None,
    total: WeightedSum,
    *,
    num_devices: int | None = None,
) -> Experiment:
    """Builds the network and its optimizer for loaded images.

    Args:
      config: the configuration of the run.
      source: the images and labels.
      groups: see `Experiment`.
      total: the objective.
      num_devices: see `load_experiment`.
    """
    network, update = config.network, config.update
    encoder = make_encoder(
        network.encoder,
        embedding_dim=network.embedding_dim,
        **{option: getattr(network, option) for option in ENCODERS[network.encoder].options},
        pooling=network.pooling,
        pretrained=network.starts_pretrained,
        axis_name=parallel.AXIS_NAME,
        freeze_batch_norm=network.freeze_batch_norm,
        dtype=jnp.dtype(network.dtype),
        remat=network.remat,
    )
    _check_stage(encoder, network)
    optimizer = make_optimizer(
        update.optimizer,
        learning_rate(config),
        loss_rate=update.loss_rate,
        weight_decay=update.weight_decay,
        epsilon=update.epsilon,
        rates=partial(_rate, encoder, update) if update.depth_rate < 1 or update.head_first else None,
        frozen=partial(is_frozen, encoder, network) if network.freeze_until else None,
        average=update.average,
    )
    return Experiment(config, source, groups, encoder, total, optimizer, num_devices or jax.device_count())


def _check_stage(encoder: Encoder, network: EncoderConfig) -> None:
    names = encoder.trunk.names
    if network.freeze_until and network.freeze_until not in names:
        near = did_you_mean(network.freeze_until, names)
        raise ConfigError(
            f"freeze_until is {network.freeze_until!r}{near}, expected a stage of {network.encoder}: {', '.join(names)}"
        )


def is_frozen(encoder: Encoder, network: EncoderConfig, path: tuple[str, ...]) -> bool:
    """Returns whether a parameter or a batch statistic of the encoder belongs to a frozen stage."""
    last = network.freeze_until
    return bool(last) and _stage_number(encoder, path) <= encoder.trunk.names.index(last)


def _stage_number(encoder: Encoder, path: tuple[str, ...]) -> int:
    """Returns the number of the stage that a parameter belongs to; the head comes after all stages."""
    names = encoder.trunk.names
    return names.index(path[1]) if path[0] == "trunk" else len(names)


def _rate(encoder: Encoder, update: OptimizerConfig, path: tuple[str, ...]) -> Rate:
    above = len(encoder.trunk.names) - _stage_number(encoder, path)
    return Rate(update.depth_rate**above, after=update.head_first if above else 0)


def activation_shape(experiment: Experiment) -> tuple[int, ...]:
    """Returns the shape `[1, ...]` of the activations of the last frozen stage."""
    side, variables = experiment.config.batch.image_size, experiment.state_shapes
    shape: tuple[int, ...] = jax.eval_shape(
        _activations(experiment),
        {"params": variables.params["encoder"], "batch_stats": variables.batch_stats},
        jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32),
    ).shape
    return shape


def check_step(experiment: Experiment) -> None:
    """Raises ConfigError for a step that cannot run.

    The images are too small for the network, the batch does not divide among the devices, or options of the loss do not
    fit the data.
    """
    config, devices = experiment.config, experiment.num_devices
    _check_image_size(experiment)
    size, chunks = config.batch.size, config.batch.chunks
    if size % devices:
        raise ConfigError(
            f"classes_per_batch x images_per_class is a batch of {size}, which does not divide among {devices} devices"
        )
    if size // devices % chunks:
        share = counted(size // devices, "image")
        raise ConfigError(f"chunks is {chunks}, which does not divide a device's share of {share}")
    for placed in experiment.objective.terms:
        try:
            _trace_term(experiment, placed)
        except (TypeError, ValueError) as error:
            message = str(error).split("\n")[0].replace("num_sampled", "sampled_classes")
            raise ConfigError(f"{placed.key}: {message}") from error


def _check_image_size(experiment: Experiment) -> None:
    side, trunk = experiment.config.batch.image_size, experiment.encoder.trunk
    network, stride = experiment.config.network.encoder, trunk.stride
    if side % trunk.multiple:
        raise ConfigError(f"image_size is {side}, but {network} takes multiples of {trunk.multiple}")
    if side < stride:
        raise ConfigError(f"image_size is {side}, but {network} divides sides by {stride}: expected at least {stride}")


def check_weights(experiment: Experiment) -> None:
    """Reads the pretrained weights of a run, if it has any.

    Raises:
      ConfigError: if they are in a package that is not installed.
      OSError: if their file cannot be read.
      WeightsError: if it is no file of weights, or they do not fit the network.
    """
    if experiment.config.network.starts_pretrained:
        _load_pretrained(experiment, experiment.state_shapes)


def initial_state(experiment: Experiment, driven: parallel.Driven[TrainState]) -> TrainState:
    """Returns the state before the first step, on the devices of the step; for errors see `check_weights`."""
    state = driven.create_state(lambda: make_state(experiment))
    if not experiment.config.network.starts_pretrained:
        return state
    return driven.place_state(with_pretrained_trunk(experiment, state))


def with_pretrained_trunk(experiment: Experiment, state: TrainState) -> TrainState:
    """Returns a state with the pretrained weights of the run, if it has any, as numpy arrays; see `check_weights`."""
    if not experiment.config.network.starts_pretrained:
        return state
    loaded = _load_pretrained(experiment, state)
    return state.with_encoder(loaded["params"], loaded["batch_stats"])


def _load_pretrained(experiment: Experiment, state: TrainState) -> dict[str, Any]:
    network = experiment.config.network
    try:
        file = pretrained_file(network.encoder) if network.pretrained else network.weights
    except ModuleNotFoundError as error:
        raise ConfigError(str(error)) from error
    variables = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
    return load_weights(network.encoder, variables, file)


def learning_rate(config: Config) -> optax.Schedule:
    """Returns the schedule of the encoder's learning rate."""
    update = config.update
    warmup = min(update.warmup, config.steps - 1)
    return make_schedule(update.schedule, peak=update.learning_rate, steps=config.steps, warmup=warmup)


def make_state(experiment: Experiment) -> TrainState:
    """Returns the state before the first step, without pretrained weights; it depends only on the configuration."""
    config = experiment.config
    # With this generator, sampling all weights under one jit compiles many times faster than with the default.
    encoder_key = jax.random.key(config.seed, impl="unsafe_rbg")
    loss_key = jax.random.key(config.seed)
    return create_state(
        encoder_key,
        experiment.encoder,
        image_size=config.batch.image_size,
        loss_params=_init_loss_params(loss_key, experiment.objective, experiment),
        optimizer=experiment.optimizer,
        memory=experiment.objective.init_memory(dim=config.network.embedding_dim),
    )


def make_step(experiment: Experiment) -> parallel.Step:
    """Returns the per-device training step, which also reports the learning rate."""
    batch, schedule = experiment.config.batch, learning_rate(experiment.config)
    augmentation = Augmentation(crop_scale=batch.crop_scale, flip=batch.flip, color=batch.color)

    last = experiment.config.network.freeze_until

    def preprocess(key: jax.Array, positions: jax.Array, images: jax.Array) -> jax.Array:
        if last:
            return images.astype(experiment.config.network.dtype)
        keys = image_keys(key, positions)
        return augment(keys, images, image_size=batch.image_size, augmentation=augmentation, mean=0.0, std=1.0)

    train_step = make_train_step(
        apply_fn=partial(experiment.encoder.apply, after=last or None),
        objective=experiment.objective,
        optimizer=experiment.optimizer,
        preprocess=preprocess,
        seed=experiment.config.seed,
        chunks=batch.chunks,
        clip_norm=experiment.config.update.clip_norm or None,
        class_shards=experiment.config.classes.shard_classes,
    )

    def step(state: TrainState, batch: Any, *, axis_name: str) -> tuple[TrainState, dict[str, jax.Array]]:
        new_state, metrics = train_step(state, batch, axis_name=axis_name)
        return new_state, {**metrics, "learning_rate": schedule(state.step)}

    return step


def drive_step(experiment: Experiment, driver: str) -> parallel.Driven[TrainState]:
    """Returns the training step on all devices of all processes."""
    step = make_step(experiment)
    if driver == "pmap":
        return parallel.drive_pmap(step)
    return parallel.drive_shard_map(step, state_specs=state_specs(experiment))


def state_specs(experiment: Experiment) -> TrainState:
    """Returns how each array of a state is divided among devices: class vectors and their moments may be sharded."""
    sharded = experiment.config.classes.shard_classes

    def spec(path: Any, leaf: Any) -> PartitionSpec:
        return parallel.SHARDED if sharded and leaf.ndim and _is_of_loss(path) else parallel.REPLICATED

    return jax.tree_util.tree_map_with_path(spec, experiment.state_shapes)


def restorable(
    experiment: Experiment, driven: parallel.Driven[TrainState], *, any_classes: bool = False
) -> tuple[TrainState, TrainState]:
    """Returns arguments of `jaxmetric.training.restore_latest`: the shapes of the state, and which may change.

    Sharded class vectors are padded to a multiple of the number of devices, which may have changed. With `any_classes`,
    if only the encoder of the state is used, all class vectors may have other classes than in the checkpoint.
    """
    shapes = driven.state_shapes(experiment.state_shapes)

    def may_change(path: Any, leaf: Any, spec: Any) -> bool:
        return spec != parallel.REPLICATED or bool(any_classes and leaf.ndim and _is_of_loss(path))

    return shapes, jax.tree_util.tree_map_with_path(may_change, experiment.state_shapes, state_specs(experiment))


def make_embedder(experiment: Experiment) -> Embed:
    """Returns `(state, images) -> [N, D]` embeddings; see `jaxmetric.training.make_embed`."""
    return make_embed(experiment.encoder.apply, _prepared(experiment))


def make_embedder_of_activations(experiment: Experiment) -> Embed:
    """Returns `(state, activations of the last frozen stage) -> [N, D]` embeddings."""
    network = experiment.config.network
    rest = partial(experiment.encoder.apply, after=network.freeze_until)
    return make_embed(rest, lambda activations: activations.astype(network.dtype))


def make_activations(experiment: Experiment) -> Embed:
    """Returns `(state, images) -> [N, ...]` activations of the last frozen stage."""
    activations = _activations(experiment)
    return make_embed(lambda variables, images, train: activations(variables, images), _prepared(experiment))


def _activations(experiment: Experiment) -> Callable[[Any, jax.Array], Any]:
    encoder, last = experiment.encoder, experiment.config.network.freeze_until
    return partial(encoder.apply, until=last, method=encoder.activations)


def _prepared(experiment: Experiment) -> Callable[[jax.Array], jax.Array]:
    return partial(prepare, image_size=experiment.config.batch.image_size, mean=0.0, std=1.0)


def _is_of_loss(path: Any) -> bool:
    return any(getattr(part, "key", None) == "loss" for part in path)


def _init_loss_params(key: jax.Array, total: WeightedSum, experiment: Experiment) -> dict[str, jax.Array]:
    params = total.init_params(key, dim=experiment.config.network.embedding_dim)
    if total.shard_axis is None:
        return params

    def padded(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, -len(x) % experiment.num_devices), *[(0, 0)] * (x.ndim - 1)]) if x.ndim else x

    return jax.tree.map(padded, params)


def _trace_term(experiment: Experiment, placed: PlacedTerm) -> None:
    """Traces a term without data, so that invalid options raise before training starts."""
    config = experiment.config
    total = dataclasses.replace(experiment.objective, terms=(placed,))
    dim, size = config.network.embedding_dim, config.batch.size
    params = jax.eval_shape(lambda: _init_loss_params(jax.random.key(0), total, experiment))
    mapped = jax.shard_map(
        total,
        mesh=AbstractMesh((experiment.num_devices,), (parallel.AXIS_NAME,), axis_types=(AxisType.Auto,)),
        in_specs=(parallel.REPLICATED, _specs_of_loss(total, params), *[parallel.REPLICATED] * 3),
        out_specs=parallel.REPLICATED,
        check_vma=False,
    )
    jax.eval_shape(
        mapped,
        jax.eval_shape(lambda: jax.random.key(0)),
        params,
        jax.eval_shape(lambda: total.init_memory(dim=dim)),
        jax.ShapeDtypeStruct((size, dim), jnp.float32),
        jax.ShapeDtypeStruct((size, len(experiment.source.columns)), jnp.int32),
    )


def _specs_of_loss(total: WeightedSum, params: Any) -> Any:
    sharded = total.shard_axis is not None
    return jax.tree.map(lambda x: parallel.SHARDED if sharded and x.ndim else parallel.REPLICATED, params)


def _warn_of_small_classes(config: Config, source: LabeledImages, total: WeightedSum) -> None:
    identities = source.labels[source.split == LEARNING, 0]
    values, counts = np.unique(identities[identities >= 0], return_counts=True)
    if not len(values):
        return
    smallest = int(counts.min())
    name = source.columns[0].values[values[counts.argmin()]]
    batch = config.batch
    centers = max((placed.term.centers_per_class for placed in total.terms if 0 in placed.columns), default=0)
    if centers > smallest:
        warnings.warn(
            f"centers_per_class is {centers}, but {source.columns[0].name} {name!r} has "
            f"{counted(smallest, 'learning image')}: some centers stay without any",
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
