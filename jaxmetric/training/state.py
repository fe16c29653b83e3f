"""The state of a training run, and its optimizer.

Parameters are a dict of two: `"encoder"` for the network and `"loss"` for parametric losses (centers, proxies).
Both are in one state, so that neither the optimizer nor a checkpoint can miss the second.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

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


Path: TypeAlias = tuple[str, ...]  # the keys of a parameter, such as ("trunk", "stem", "conv1", "kernel")


class TrainState(flax.struct.PyTreeNode):
    """The state of a run, replicated on all devices except for shards of class vectors.

    Attributes:
      step: int32 scalar, the number of steps taken.
      params: `{"encoder": ..., "loss": ...}`.
      batch_stats: the encoder's batch statistics (an empty dict if it has none).
      opt_state: the optimizer's state.
      memory: the objective's state between steps, such as embeddings of past batches.
      average: a moving average of the encoder's parameters; empty without one.
    """

    step: jax.Array
    params: dict[str, Any]
    batch_stats: Any
    opt_state: Any
    memory: Any = ()
    average: Any = ()

    @property
    def evaluated(self) -> Any:
        """The encoder's parameters to evaluate: their moving average, if there is one."""
        return self.average or self.params["encoder"]


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
    average: bool = False,
) -> TrainState:
    """Creates the initial state.

    Args:
      key: a `jax.random` key for the encoder's parameters.
      encoder: a Linen module, called as `encoder(images, train=...)`.
      image_size: side of the encoder's input images.
      loss_params: a tree of the losses' own parameters, such as centers; may be empty.
      optimizer: see `make_optimizer`.
      memory: the objective's state before the first step; empty for an objective without state.
      average: whether the state holds a moving average of the encoder's parameters.

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
            average=jax.tree.map(jnp.copy, params["encoder"]) if average else (),
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
    rates: Callable[[Path], Rate] | None = None,
    frozen: Callable[[Path], bool] | None = None,
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

    Returns:
      An optax transformation for params `{"encoder": ..., "loss": ...}`.

    Raises:
      ValueError: if the name is unknown.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer is {name!r}, expected one of {', '.join(OPTIMIZERS)}")
    decay = optax.add_decayed_weights(weight_decay, mask=_kernels)
    scale = OPTIMIZERS[name](eps=epsilon)
    rule = (scale, decay) if name == "adamw" else (decay, scale)
    update = optax.chain(*rule, _scale_by_rates(schedule, loss_rate, rates))
    if frozen is None:
        return update
    return optax.multi_transform(
        {"trained": update, "frozen": optax.set_to_zero()},
        lambda params: {
            "encoder": _map_paths(lambda path: "frozen" if frozen(path) else "trained", params["encoder"]),
            "loss": jax.tree.map(lambda x: "trained", params["loss"]),
        },
    )


def _scale_by_rates(
    schedule: optax.Schedule, loss_rate: float, rates: Callable[[Path], Rate] | None
) -> optax.GradientTransformation:
    """Multiplies updates by minus the learning rate of each parameter."""

    def init(params: Any) -> optax.ScaleByScheduleState:
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(updates: Any, state: optax.ScaleByScheduleState, params: Any = None) -> tuple[Any, Any]:
        scale = -jnp.asarray(schedule(state.count), jnp.float32)

        def scaled(update: jax.Array, rate: Rate) -> jax.Array:
            factor = scale if rate.multiple == 1 else scale * rate.multiple
            return update * (jnp.where(state.count >= rate.after, factor, 0) if rate.after else factor)

        encoder_rates = _map_paths(rates or (lambda path: Rate()), updates["encoder"])
        changed = {
            "encoder": jax.tree.map(scaled, updates["encoder"], encoder_rates),
            "loss": jax.tree.map(lambda update: scaled(update, Rate(loss_rate)), updates["loss"]),
        }
        return changed, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)


def _map_paths(function: Callable[[Path], Any], params: Any) -> Any:
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
