"""The state of a training run, and its optimizer.

Parameters are a dict of two: `"encoder"` for the network and `"loss"` for parametric losses (centers, proxies).
Both are in one state, so that neither the optimizer nor a checkpoint can miss the second.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": optax.scale_by_adam,
    "adam": optax.scale_by_adam,
    "sgd": lambda eps: optax.trace(decay=0.9, nesterov=True),
}
_EMBEDDINGS = ("class_token", "positions", "registers")  # parameters of vision transformers
SCHEDULES = ("cosine", "constant", "step")
# The keys of a parameter, such as ("trunk", "stem", "conv1", "kernel").
ParameterPath: TypeAlias = tuple[str, ...]


class TrainState(flax.struct.PyTreeNode):
    """The state of a run, replicated on all devices except for shards of class vectors.

    Attributes:
      step: int32 scalar, the number of steps taken.
      params: `{"encoder": ..., "loss": ...}`.
      batch_stats: the encoder's batch statistics (an empty dict if it has none).
      opt_state: the optimizer's state.
      memory: the objective's state between steps, such as embeddings of past batches.
    """

    step: jax.Array
    params: dict[str, Any]
    batch_stats: Any
    opt_state: Any
    memory: Any = ()

    @property
    def evaluation_params(self) -> Any:
        """The encoder's parameters to evaluate: their moving average, if the optimizer has one."""
        average = optax.tree.get(self.opt_state, "average")
        return self.params["encoder"] if average is None else average

    def with_encoder(self, params: Any, batch_stats: Any) -> "TrainState":
        """Replaces the encoder's parameters, and their moving average, and its batch statistics."""
        opt_state = self.opt_state
        if optax.tree.get(opt_state, "average") is not None:
            opt_state = optax.tree.set(opt_state, average=jax.tree.map(jnp.copy, params))
        return self.replace(params={**self.params, "encoder": params}, batch_stats=batch_stats, opt_state=opt_state)


@dataclasses.dataclass(frozen=True)
class Rate:
    """The learning rate of some parameters.

    Attributes:
      multiple: the rate, as a multiple of the schedule's.
      after: the number of steps before the first in which they change.
    """

    multiple: float = 1.0
    after: int = 0


def create_state(
    key: jax.Array,
    encoder: nn.Module,
    *,
    image_size: int,
    loss_params: Any,
    optimizer: optax.GradientTransformation,
    memory: Any = (),
) -> TrainState:
    """Creates the initial state.

    Args:
      key: a `jax.random` key for the encoder's parameters.
      encoder: a Linen module, called as `encoder(images, train=...)`.
      image_size: side of the encoder's input images.
      loss_params: a tree of the losses' own parameters, such as centers; may be empty.
      optimizer: see `make_optimizer`.
      memory: the objective's state before the first step; empty for an objective without state.

    Returns:
      The state before the first step.
    """

    def create(key: jax.Array, loss_params: Any, memory: Any) -> TrainState:
        with standard_promotion():
            variables = encoder.init(key, jnp.zeros((1, image_size, image_size, 3)), train=False)
            params = {"encoder": variables["params"], "loss": loss_params}
            opt_state = optimizer.init(params)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            opt_state=opt_state,
            memory=memory,
        )

    return jax.jit(create)(key, loss_params, memory)


def make_schedule(name: str, *, peak: float, steps: int, warmup: int = 0) -> optax.Schedule:
    """Makes a learning rate schedule: a linear warmup to `peak`, then the schedule `name`.

    Args:
      name: `"cosine"` decays to 0 at `steps`, `"constant"` stays constant, `"step"` divides the rate by 10 after 40 %
        and after 80 % of the steps (the SoftTriple paper's epochs 20 and 40 of 50).
      peak: the highest rate.
      steps: length of the run.
      warmup: steps of the linear warmup, included in `steps`.

    Returns:
      An optax schedule.

    Raises:
      ValueError: if the name is unknown.

    Example:
      >>> schedule = make_schedule("step", peak=1.0, steps=50)
      >>> [round(float(schedule(step)), 3) for step in (0, 19, 20, 39, 40)]
      [1.0, 1.0, 0.1, 0.1, 0.01]
    """
    if name == "cosine":
        after = optax.cosine_decay_schedule(peak, max(steps - warmup, 1))
    elif name == "constant":
        after = optax.constant_schedule(peak)
    elif name == "step":
        after = optax.piecewise_constant_schedule(peak, {round(share * steps) - warmup: 0.1 for share in (0.4, 0.8)})
    else:
        raise ValueError(f"schedule is {name!r}, expected one of {', '.join(SCHEDULES)}")
    if warmup:
        after = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])

    def schedule(step: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
        with standard_promotion():
            return after(step)

    return schedule


@contextmanager
def standard_promotion() -> Iterator[None]:
    """Allows implicit dtype and rank promotion, which flax and optax rely on, even if JAX is configured as strict."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    loss_rate: float = 1.0,
    weight_decay: float = 0.0,
    epsilon: float = 1e-8,
    rates: Callable[[ParameterPath], Rate] | None = None,
    frozen: Callable[[ParameterPath], bool] | None = None,
    average: float = 0.0,
) -> optax.GradientTransformation:
    """Makes an optimizer with separate rates for the encoder and the loss's own parameters.

    Args:
      name: `"adamw"` decouples weight decay from the gradient, `"adam"` adds the decay to the gradient, and `"sgd"`,
        with Nesterov momentum 0.9, adds it too. Only the encoder's kernels are decayed, not biases, scales,
        tokens, position embeddings or centers.
      schedule: the encoder's learning rate.
      loss_rate: the rate of the loss's parameters, as a multiple of the encoder's.
      weight_decay: coefficient of the weight decay.
      epsilon: epsilon of Adam.
      rates: returns the rate of each of the encoder's parameters; 1 if None.
      frozen: returns whether one of the encoder's parameters stays the same; none does if None. Frozen parameters need
        no memory for their moments.
      average: decay of a moving average of the encoder's parameters, in [0, 1), which `TrainState.evaluation_params`
        returns. Step t uses at most t / (9 + t), so that the average soon forgets the first parameters. 0 keeps none.

    Returns:
      An optax transformation for params `{"encoder": ..., "loss": ...}`.

    Raises:
      ValueError: if the name is unknown, or `average` is out of range.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer is {name!r}, expected one of {', '.join(OPTIMIZERS)}")
    if not 0 <= average < 1:
        raise ValueError(f"average is {average}, expected a number in [0, 1)")
    decay = optax.add_decayed_weights(weight_decay, mask=_kernels)
    scale = OPTIMIZERS[name](eps=epsilon)
    rule = (scale, decay) if name == "adamw" else (decay, scale)
    multiples = {"encoder": _scale_by_rates(rates) if rates else optax.identity(), "loss": optax.scale(loss_rate)}
    update = optax.chain(
        *rule,
        optax.multi_transform(multiples, {"encoder": "encoder", "loss": "loss"}),
        optax.scale_by_learning_rate(schedule),
    )
    if frozen is not None:
        update = optax.multi_transform(
            {"trained": update, "frozen": optax.set_to_zero()},
            lambda params: {
                "encoder": _map_paths(lambda path: "frozen" if frozen(path) else "trained", params["encoder"]),
                "loss": jax.tree.map(lambda x: "trained", params["loss"]),
            },
        )
    return optax.chain(update, _keep_average(average)) if average else update


class _StepState(NamedTuple):
    steps: jax.Array


def _scale_by_rates(rates: Callable[[ParameterPath], Rate]) -> optax.GradientTransformation:
    """Multiplies the updates of the encoder's parameters by their rates."""

    def init(params: Any) -> _StepState:
        return _StepState(jnp.zeros((), jnp.int32))

    def update(updates: Any, state: _StepState, params: Any = None) -> tuple[Any, _StepState]:
        def scaled(update: jax.Array, rate: Rate) -> jax.Array:
            return update * rate.multiple * (state.steps >= rate.after)

        encoder = updates["encoder"]
        changed = jax.tree.map(scaled, encoder, _map_paths(rates, encoder))
        return {**updates, "encoder": changed}, _StepState(optax.safe_increment(state.steps))

    return optax.GradientTransformation(init, update)


class _AverageState(NamedTuple):
    steps: jax.Array
    average: Any  # of the encoder's parameters


def _keep_average(most: float) -> optax.GradientTransformation:
    """Keeps a moving average of the encoder's parameters after each update, and leaves the updates as they are."""

    def init(params: Any) -> _AverageState:
        return _AverageState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params["encoder"]))

    def update(updates: Any, state: _AverageState, params: Any = None) -> tuple[Any, _AverageState]:
        decay = jnp.minimum(most, state.steps / (9 + state.steps))
        now = optax.apply_updates(params["encoder"], updates["encoder"])
        average = jax.tree.map(lambda old, new: new + decay * (old - new), state.average, now)
        return updates, _AverageState(optax.safe_increment(state.steps), average)

    return optax.GradientTransformation(init, update)


def _map_paths(function: Callable[[ParameterPath], Any], params: Any) -> Any:
    """Returns a tree with a function of each parameter's path in its place."""

    def of_path(path: Any, _: Any) -> Any:
        return function(tuple(jax.tree_util.keystr((part,), simple=True) for part in path))

    return jax.tree_util.tree_map_with_path(of_path, params)


def _kernels(params: dict[str, Any]) -> dict[str, Any]:
    """Returns which parameters are decayed: all arrays of two axes or more but tokens and position embeddings."""

    def is_kernel(path: Any, x: Any) -> bool:
        name = getattr(path[-1], "key", None) if path else None
        return x.ndim > 1 and name not in _EMBEDDINGS

    return {
        "encoder": jax.tree_util.tree_map_with_path(is_kernel, params["encoder"]),
        "loss": jax.tree.map(lambda x: False, params["loss"]),
    }
