"""What a run leaves on disk, and what it reads back: checkpoints and metrics."""

import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmetric.training import (
    CheckpointError,
    MetricWriter,
    TrainState,
    open_checkpoints,
    read_metrics,
    restore_latest,
    save_checkpoint,
)


def _state(step, value):
    optimizer = optax.adam(0.1)
    params = {"encoder": {"kernel": jnp.full((64, 64), value)}, "loss": {"centers": jnp.full((2, 3), -value)}}
    return TrainState(step=jnp.int32(step), params=params, batch_stats={}, opt_state=optimizer.init(params))


def test_no_checkpoint_restores_nothing(tmp_path):
    with open_checkpoints(tmp_path / "checkpoints") as manager:
        assert restore_latest(manager, _state(0, 0.0)) is None


def test_the_newest_checkpoint_comes_back_whole_and_two_are_kept(tmp_path):
    with open_checkpoints(tmp_path / "checkpoints") as manager:
        for step in (1, 2, 3):
            save_checkpoint(manager, _state(step, float(step)))
    with open_checkpoints(tmp_path / "checkpoints") as manager:
        assert sorted(manager.all_steps()) == [2, 3]
        chex.assert_trees_all_equal(restore_latest(manager, _state(0, 0.0)), _state(3, 3.0))


def test_a_step_that_is_saved_is_not_saved_again(tmp_path):
    with open_checkpoints(tmp_path / "checkpoints") as manager:
        save_checkpoint(manager, _state(5, 1.0))
        save_checkpoint(manager, _state(5, 2.0))
    with open_checkpoints(tmp_path / "checkpoints") as manager:
        chex.assert_trees_all_equal(restore_latest(manager, _state(0, 0.0)), _state(5, 1.0))


def test_a_state_donated_to_the_next_step_while_it_is_written_is_saved_as_it_was(tmp_path):
    advance = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    with open_checkpoints(tmp_path / "checkpoints") as manager:
        state = advance(_state(6, 0.0))
        save_checkpoint(manager, state)
        for _ in range(20):
            state = advance(state)
        jax.block_until_ready(state)
    with open_checkpoints(tmp_path / "checkpoints") as manager:
        restored = restore_latest(manager, _state(0, 0.0))
    assert int(restored.step) == 7
    np.testing.assert_array_equal(restored.params["encoder"]["kernel"], 1.0)


def test_metrics_are_json_lines_and_undefined_is_null(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(1, {"loss": 0.5})
        writer.write(2, {"validation/coherence": None})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 0.5}, {"step": 2, "validation/coherence": None}]
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_a_run_that_goes_on_drops_what_lies_beyond_its_checkpoint_and_a_torn_line(tmp_path):
    with MetricWriter(tmp_path) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    with MetricWriter(tmp_path, step=2) as writer:
        writer.write(3, {"loss": 30.0})
    assert [line["loss"] for line in read_metrics(tmp_path)] == [1.0, 2.0, 30.0]


def test_a_disk_without_room_is_one_line_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    with open_checkpoints(tmp_path / "checkpoints") as manager:
        save_checkpoint(manager, _state(1, 1.0))
    full = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with (
        open_checkpoints(tmp_path / "checkpoints") as manager,
        pytest.raises(CheckpointError, match=r"^no room for a checkpoint of 0.0 MiB: .*checkpoints has 1.0 MiB free$"),
    ):
        save_checkpoint(manager, _state(2, 2.0))
    with open_checkpoints(tmp_path / "checkpoints") as manager:
        chex.assert_trees_all_equal(restore_latest(manager, _state(0, 0.0)), _state(1, 1.0))
