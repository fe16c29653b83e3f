"""The parts of the optimizer, and the initial state."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmetric.encoders import make_encoder
from jaxmetric.training import Rate, TrainState, create_state, make_optimizer
from jaxmetric.training.state import _kernels, make_schedule


def _params():
    return {
        "encoder": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
        "loss": {"centers": jnp.ones((3, 2, 2))},
    }


def _first_update(optimizer, gradient):
    params = _params()
    gradients = jax.tree.map(lambda x: jnp.full_like(x, gradient), params)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    return updates


def test_centers_have_their_own_rate():
    updates = _first_update(make_optimizer("adam", optax.constant_schedule(0.1), loss_rate=100.0), 1.0)
    # The first step of Adam is the sign of the gradient, times the rate.
    np.testing.assert_allclose(updates["encoder"]["bias"], -0.1, rtol=1e-5)
    np.testing.assert_allclose(updates["loss"]["centers"], -10.0, rtol=1e-5)


def test_adamw_decays_kernels_only():
    updates = _first_update(make_optimizer("adamw", optax.constant_schedule(0.1), weight_decay=0.5), 0.0)
    np.testing.assert_allclose(updates["encoder"]["kernel"], -0.1 * 0.5 * 1.0, rtol=1e-6)
    np.testing.assert_array_equal(updates["encoder"]["bias"], 0)
    np.testing.assert_array_equal(updates["loss"]["centers"], 0)


def test_tokens_and_position_embeddings_are_not_decayed():
    encoder = make_encoder("vit_s16")
    shapes = jax.eval_shape(lambda x: encoder.init(jax.random.key(0), x, train=False), jnp.zeros((1, 16, 16, 3)))
    decayed = _kernels({"encoder": shapes["params"], "loss": {}})["encoder"]["trunk"]
    patches = {"kernel": True, "bias": False}
    assert decayed["embed"] == {"class_token": False, "positions": False, "patches": patches}
    assert decayed["block3"]["fc1"] == {"kernel": True, "bias": False}


class Parameters(NamedTuple):
    weight: jax.Array
    offset: jax.Array


KERNEL, BIAS = jnp.ones((2, 2)), jnp.ones(2)


@pytest.mark.parametrize(
    "params",
    [{"w": KERNEL, "b": BIAS}, [KERNEL, BIAS], Parameters(KERNEL, BIAS), KERNEL],
    ids=["dict", "list", "fields", "array"],
)
def test_kernels_of_networks_of_other_libraries_are_decayed(params):
    decayed = _kernels({"encoder": params, "loss": {}})["encoder"]
    assert jax.tree.leaves(decayed) == [leaf.ndim > 1 for leaf in jax.tree.leaves(params)]


def test_adam_adds_the_decay_to_the_gradient():
    updates = _first_update(make_optimizer("adam", optax.constant_schedule(0.1), weight_decay=0.5), 0.0)
    np.testing.assert_allclose(updates["encoder"]["kernel"], -0.1, rtol=1e-5)


def test_sgd_has_nesterov_momentum():
    updates = _first_update(make_optimizer("sgd", optax.constant_schedule(0.1)), 1.0)
    np.testing.assert_allclose(updates["encoder"]["kernel"], -0.1 * (1 + 0.9), rtol=1e-6)


@pytest.mark.parametrize(("step", "rate"), [(0, 0.0), (5, 0.5), (10, 1.0), (55, 0.5), (100, 0.0)])
def test_cosine_rises_linearly_and_falls_to_zero(step, rate):
    assert float(make_schedule("cosine", peak=1.0, steps=100, warmup=10)(step)) == pytest.approx(rate, abs=1e-6)


def test_unknown_names_are_errors():
    with pytest.raises(ValueError, match="schedule is 'linear', expected one of cosine"):
        make_schedule("linear", peak=1.0, steps=10)
    with pytest.raises(ValueError, match="optimizer is 'lion', expected one of adamw"):
        make_optimizer("lion", optax.constant_schedule(1.0))


def test_the_state_holds_the_loss_parameters_and_their_moments():
    optimizer = make_optimizer("adam", optax.constant_schedule(0.1))
    encoder = make_encoder("tiny", embedding_dim=4)
    key = jax.random.key(0, impl="unsafe_rbg")
    centers = {"centers": jnp.ones((3, 2, 4))}
    state = create_state(key, encoder, image_size=8, loss_params=centers, optimizer=optimizer)
    assert int(state.step) == 0
    np.testing.assert_array_equal(state.params["loss"]["centers"], centers["centers"])
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape == (3, 2, 4)]
    assert len(moments) == 2
    assert jax.tree.leaves(state.batch_stats)


def _updates(optimizer, steps):
    """The updates of the encoder's bias in each of some steps, for gradients of 1, and the state of the optimizer."""
    params = _params()
    gradients, state, updates = jax.tree.map(jnp.ones_like, params), optimizer.init(params), []
    for _ in range(steps):
        update, state = optimizer.update(gradients, state, params)
        updates.append(jax.device_get(update))
    return updates, state


def test_parameters_have_rates_of_their_own_from_a_step_on():
    rates = {("kernel",): Rate(0.5), ("bias",): Rate(0.25, after=2)}
    optimizer = make_optimizer("adam", optax.constant_schedule(0.1), loss_rate=3.0, rates=rates.__getitem__)
    updates, _ = _updates(optimizer, 4)
    np.testing.assert_allclose([update["encoder"]["kernel"][0, 0] for update in updates], [-0.05] * 4, rtol=1e-4)
    np.testing.assert_allclose([update["encoder"]["bias"][0] for update in updates], [0, 0, -0.025, -0.025], rtol=1e-4)
    np.testing.assert_allclose([update["loss"]["centers"][0, 0, 0] for update in updates], [-0.3] * 4, rtol=1e-4)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_frozen_parameters_stay_the_same_and_have_no_moments(name):
    plain = make_optimizer(name, optax.constant_schedule(0.1), weight_decay=0.5)
    frozen = make_optimizer(
        name, optax.constant_schedule(0.1), weight_decay=0.5, frozen=lambda path: path == ("kernel",)
    )
    (ours,), state = _updates(frozen, 1)
    (theirs,), full = _updates(plain, 1)
    np.testing.assert_array_equal(ours["encoder"]["kernel"], 0)
    np.testing.assert_array_equal(ours["encoder"]["bias"], theirs["encoder"]["bias"])
    np.testing.assert_array_equal(ours["loss"]["centers"], theirs["loss"]["centers"])
    num_moments = 1 if name == "sgd" else 2
    assert sum(x.size for x in jax.tree.leaves(state)) == sum(x.size for x in jax.tree.leaves(full)) - 4 * num_moments


@pytest.mark.parametrize("frozen", [None, lambda path: path == ("kernel",)])
def test_the_moving_average_follows_the_parameters_and_is_what_is_evaluated(frozen):
    optimizer = make_optimizer("sgd", optax.constant_schedule(0.1), average=0.3, frozen=frozen)
    params = _params()
    state = TrainState(jnp.int32(0), params, {}, optimizer.init(params))
    expected = None
    for step in range(6):
        updates, opt_state = optimizer.update(jax.tree.map(jnp.ones_like, params), state.opt_state, state.params)
        state = state.replace(params=optax.apply_updates(state.params, updates), opt_state=opt_state)
        decay = min(0.3, step / (9 + step))
        bias = np.asarray(state.params["encoder"]["bias"], np.float64)
        expected = bias if expected is None else decay * expected + (1 - decay) * bias
        np.testing.assert_allclose(state.evaluation_params["bias"], expected, rtol=1e-5)
    replaced = state.with_encoder({"kernel": 5 * KERNEL, "bias": 5 * BIAS}, {"mean": BIAS})
    np.testing.assert_array_equal(replaced.evaluation_params["bias"], 5)
    np.testing.assert_array_equal(replaced.params["encoder"]["bias"], 5)
    assert replaced.evaluation_params["bias"] is not replaced.params["encoder"]["bias"]  # both are donated


def test_without_an_average_the_parameters_are_evaluated():
    params, optimizer = _params(), make_optimizer("adamw", optax.constant_schedule(0.1))
    state = TrainState(jnp.int32(0), params, {}, optimizer.init(params))
    assert state.evaluation_params is params["encoder"]


@pytest.mark.parametrize("average", [-0.1, 1.0])
def test_the_decay_of_the_average_is_checked(average):
    with pytest.raises(ValueError, match=r"average is .*, expected a number in \[0, 1\)"):
        make_optimizer("adamw", optax.constant_schedule(0.1), average=average)
