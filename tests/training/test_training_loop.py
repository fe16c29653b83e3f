"""Parts of the training loop: mean metrics, checks for finite values, requests to stop."""

import signal
import time
from contextlib import nullcontext, suppress

import jax
import jax.numpy as jnp
import pytest

from jaxmetric.training import (
    MetricWindow,
    NonFiniteLossError,
    TrainState,
    check_finite,
    loop,
    profiled,
    stop_on_signals,
)


def _metrics(loss, finite=True):
    return {"loss": jnp.float32(loss), "finite": jnp.bool(finite)}


def test_a_gradient_that_is_not_finite_has_its_own_message():
    window = MetricWindow()
    window.add(3, _metrics(1.0, finite=False), images=4)
    with pytest.raises(NonFiniteLossError, match=r"^the gradient was not finite at step 3$"):
        window.summary()


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("part", ["params", "batch_stats", "opt_state"])
def test_any_number_in_a_state_that_is_not_finite_is_an_error(part, bad):
    good = {"a": jnp.zeros(3), "b": [jnp.ones((2, 2))]}
    state = TrainState(step=jnp.int32(7), params=good, batch_stats=good, opt_state=(good, jnp.int32(1)))
    check_finite(state)
    worse = {"a": good["a"], "b": [good["b"][0].at[1, 0].set(bad)]}
    state = state.replace(**{part: (worse, jnp.int32(1)) if part == "opt_state" else worse})
    with pytest.raises(NonFiniteLossError, match=r"^the state was not finite after step 7$"):
        check_finite(state)


def test_a_summary_is_the_mean_since_the_last_one():
    window = MetricWindow()
    for step, loss in enumerate((1.0, 2.0, 6.0), 1):
        window.add(step, _metrics(loss), images=4)
    assert window.summary()["loss"] == 3.0
    window.add(4, _metrics(5.0), images=4)
    summary = window.summary()
    assert summary["loss"] == 5.0
    assert summary["images_per_second"] > 0


@pytest.mark.parametrize("value", [1.0, jnp.nan])
def test_arrays_of_all_dtypes_are_checked_or_skipped(value):
    kinds = (jnp.float32(value), jnp.float16(1), jnp.bfloat16(1), jnp.int32(7), jnp.bool(True), jax.random.key(0))
    state = TrainState(step=jnp.int32(7), params={"a": jnp.float32(1)}, batch_stats={}, opt_state=kinds)
    with jax.numpy_dtype_promotion("strict"):
        if value == 1.0:
            check_finite(state)
        else:
            with pytest.raises(NonFiniteLossError):
                check_finite(state)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_first_step_whose_loss_is_not_finite_is_named(bad):
    window = MetricWindow()
    for step, loss in enumerate((1.0, bad, bad), 7):
        window.add(step, _metrics(loss, finite=loss == 1.0), images=4)
    with pytest.raises(NonFiniteLossError, match="at step 8") as caught:
        window.summary()
    assert caught.value.step == 8


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_requests_a_stop_and_handlers_are_restored(number):
    former = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert (stop.signal, stop.agreed()) == (None, False)
        signal.raise_signal(number)
        assert (stop.signal, stop.agreed()) == (number.name, True)
    assert signal.getsignal(number) is former
    assert signal.set_wakeup_fd(-1) == -1


def test_a_second_ctrl_c_interrupts_and_a_second_sigterm_does_not():
    with stop_on_signals() as stop:
        for number in (signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.signal == "SIGTERM"


def test_the_first_ctrl_c_interrupts_if_nothing_must_be_saved():
    with stop_on_signals() as stop, stop.interruptible():
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == "SIGTERM"
    with stop_on_signals() as stop:
        with pytest.raises(KeyboardInterrupt), stop.interruptible():
            signal.raise_signal(signal.SIGINT)
        assert stop.signal is None
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == "SIGINT"
        with pytest.raises(KeyboardInterrupt), stop.interruptible():
            pytest.fail("the signal that came before counts")


@pytest.mark.parametrize(("before", "wish"), [(signal.SIG_DFL, "SIGHUP"), (signal.SIG_IGN, None)])
def test_a_closed_terminal_requests_a_stop_unless_ignored(before, wish):
    former = signal.signal(signal.SIGHUP, before)
    try:
        with stop_on_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.signal == wish
    finally:
        signal.signal(signal.SIGHUP, former)


@pytest.mark.parametrize("interruptible", [True, False])
def test_a_slow_ctrl_c_prints_a_message(interruptible, monkeypatch, capsys):
    monkeypatch.setattr(loop, "_SOON", 0.05)
    with stop_on_signals() as stop, stop.interruptible() if interruptible else nullcontext():
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        time.sleep(0.5)
    assert ("stopping after the current step" in capsys.readouterr().err) != interruptible


def test_steps_are_traced_for_tensorboard_and_perfetto(tmp_path):
    for number in profiled(range(4), tmp_path, after=1, steps=2):
        jnp.ones(3).block_until_ready()
        if number in (0, 3):  # not traced, so that another trace is possible
            with jax.profiler.trace(tmp_path / "other"):
                pass
    (trace,) = (tmp_path / "plugins" / "profile").iterdir()
    assert {path.name for path in trace.iterdir()} >= {"perfetto_trace.json.gz"}
    assert list(trace.glob("*.xplane.pb"))


def test_a_run_that_ends_during_a_trace_keeps_the_trace(tmp_path):
    assert list(profiled(range(2), tmp_path, after=1, steps=9)) == [0, 1]
    assert list((tmp_path / "plugins" / "profile").iterdir())
    assert list(profiled(range(2), None)) == [0, 1]
