"""Checkpoints and metrics on disk."""

import gc
import json
import re
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
    NonFiniteLossError,
    TrainState,
    open_checkpoints,
    read_json,
    read_metrics,
    restore_best,
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


def test_the_newest_checkpoint_is_restored_and_two_are_kept(tmp_path):
    with open_checkpoints(tmp_path / "checkpoints") as manager:
        for step in (1, 2, 3):
            save_checkpoint(manager, _state(step, float(step)))
    with open_checkpoints(tmp_path / "checkpoints") as manager:
        assert sorted(manager.all_steps()) == [2, 3]
        chex.assert_trees_all_equal(restore_latest(manager, _state(0, 0.0)).state, _state(3, 3.0))


def test_a_saved_step_is_not_saved_again(tmp_path):
    with open_checkpoints(tmp_path / "checkpoints") as manager:
        save_checkpoint(manager, _state(5, 1.0))
        save_checkpoint(manager, _state(5, 2.0))
    with open_checkpoints(tmp_path / "checkpoints") as manager:
        chex.assert_trees_all_equal(restore_latest(manager, _state(0, 0.0)).state, _state(5, 1.0))


def test_extra_values_are_restored_with_the_state(tmp_path):
    with open_checkpoints(tmp_path / "checkpoints") as manager:
        save_checkpoint(manager, _state(1, 1.0), extra={"input": {"next_step": 1, "unreadable": ["a.png: torn"]}})
    with open_checkpoints(tmp_path / "checkpoints") as manager:
        restored = restore_latest(manager, _state(0, 0.0))
    assert restored.extra == {"input": {"next_step": 1, "unreadable": ["a.png: torn"]}}


def test_the_best_checkpoint_is_kept(tmp_path):
    with open_checkpoints(tmp_path / "checkpoints") as manager:
        for step, score in enumerate((0.3, 0.9, None, 0.5, None), 1):
            save_checkpoint(manager, _state(step, float(step)), score=score)
    with open_checkpoints(tmp_path / "checkpoints") as manager:
        assert sorted(manager.all_steps()) == [2, 4, 5]
        chex.assert_trees_all_equal(restore_best(manager, _state(0, 0.0)).state, _state(2, 2.0))
        chex.assert_trees_all_equal(restore_latest(manager, _state(0, 0.0)).state, _state(5, 5.0))


def test_without_scores_there_is_no_best_checkpoint(tmp_path):
    with open_checkpoints(tmp_path / "checkpoints") as manager:
        save_checkpoint(manager, _state(1, 1.0))
        assert restore_best(manager, _state(0, 0.0)) is None


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with open_checkpoints(folder / "checkpoints") as manager:
        for step in (1, 2):
            save_checkpoint(manager, _state(step, float(step)), extra={"step": step}, score=0.1)
    return folder


def _files(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def _flipped(whole):
    return whole[:-1] + bytes([whole[-1] ^ 1])


@pytest.mark.parametrize(
    "damage",
    [pytest.param(lambda whole: b"", marks=pytest.mark.slow), lambda whole: whole[: len(whole) // 2], _flipped],
)
def test_damage_to_any_file_of_the_newest_restores_the_previous(two_checkpoints, tmp_path, damage):
    marks = ("_CHECKPOINT_METADATA", "commit_success.txt")  # written last by orbax, and never read
    names = [name for name in _files(two_checkpoints / "checkpoints" / "2") if str(name) not in marks]
    for number, name in enumerate(names):
        folder = tmp_path / str(number)
        shutil.copytree(two_checkpoints, folder)
        file = folder / "checkpoints" / "2" / name
        whole = file.read_bytes()
        if not whole:
            continue
        file.write_bytes(damage(whole))
        message = f"the checkpoint of step 2 in .* could not be read: {name} (has|is not what was written)"
        with pytest.warns(UserWarning, match=message), open_checkpoints(folder / "checkpoints") as manager:
            restored = restore_latest(manager, _state(0, 0.0))
            save_checkpoint(manager, _state(2, 20.0))
        chex.assert_trees_all_equal(restored.state, _state(1, 1.0))
        assert _files(folder / "unreadable" / "2") == _files(two_checkpoints / "checkpoints" / "2")
        with open_checkpoints(folder / "checkpoints") as manager:
            chex.assert_trees_all_equal(restore_latest(manager, _state(0, 0.0)).state, _state(2, 20.0))


def test_a_large_file_is_checked_when_it_is_restored(tmp_path):
    def state(value):
        return _state(1, value).replace(opt_state=jax.random.normal(jax.random.key(0), (40_000,)))

    with open_checkpoints(tmp_path / "checkpoints") as manager:
        for step in (1, 2):
            save_checkpoint(manager, state(1.0).replace(step=jnp.int32(step)))
    large = max((tmp_path / "checkpoints" / "2").rglob("*"), key=lambda path: path.stat().st_size)
    large.write_bytes(_flipped(large.read_bytes()))
    with open_checkpoints(tmp_path / "checkpoints") as manager:
        assert manager.latest_step() == 2
        with pytest.warns(
            UserWarning, match=f"could not be read: .*{large.name} is not what was written; it was moved"
        ):
            assert int(restore_latest(manager, state(0.0)).state.step) == 1


@pytest.mark.parametrize("note", ["", "[]", '{"files": 3}', None])
def test_a_damaged_note_does_not_reject_a_checkpoint(two_checkpoints, tmp_path, note):
    shutil.copytree(two_checkpoints, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "2.files.json"
    text = path.read_text()
    digest = next(iter(json.loads(text)["files"].values()))[1]
    path.write_text(text.replace(digest, digest[::-1]) if note is None else note)
    with open_checkpoints(tmp_path / "run" / "checkpoints") as manager:
        assert int(restore_latest(manager, _state(0, 0.0)).state.step) == 2


def test_an_unfinished_save_is_not_a_checkpoint(tmp_path):
    left = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp-1"
    left.mkdir(parents=True)
    (left / "array").write_bytes(b"half")
    with open_checkpoints(tmp_path / "checkpoints") as manager:
        for step in (1, 2):
            save_checkpoint(manager, _state(step, float(step)))
    with open_checkpoints(tmp_path / "checkpoints") as manager:
        assert int(restore_latest(manager, _state(0, 0.0)).state.step) == 2


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    with open_checkpoints(tmp_path / "checkpoints") as manager:
        save_checkpoint(manager, _state(1, 1.0))
        with pytest.raises(NonFiniteLossError, match=r"^the state was not finite after step 2$"):
            save_checkpoint(manager, _state(2, float("nan")))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "1.files.json"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # tensorstore calls too late
def test_damage_without_a_note_is_found_by_reading(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "2.files.json").unlink()
    manifest = tmp_path / "run" / "checkpoints" / "2" / "state" / "manifest.ocdbt"
    manifest.write_bytes(manifest.read_bytes()[:20])
    with (
        pytest.warns(UserWarning, match="the checkpoint of step 2 .* could not be read: .*it was moved to"),
        open_checkpoints(tmp_path / "run" / "checkpoints") as manager,
    ):
        chex.assert_trees_all_equal(restore_latest(manager, _state(0, 0.0)).state, _state(1, 1.0))
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_if_no_checkpoint_is_readable_the_last_stays_and_is_an_error(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints, tmp_path / "run")
    for step in ("1", "2"):
        (tmp_path / "run" / "checkpoints" / f"{step}.files.json").unlink()
        manifest = tmp_path / "run" / "checkpoints" / step / "state" / "manifest.ocdbt"
        manifest.write_bytes(manifest.read_bytes()[:20])
    with (
        pytest.warns(UserWarning, match=r"the checkpoint of step 2 .* could not be read"),
        open_checkpoints(tmp_path / "run" / "checkpoints") as manager,
        pytest.raises(CheckpointError, match=r"^the checkpoint of step 1 .* could not be read"),
    ):
        restore_latest(manager, _state(0, 0.0))
    assert (tmp_path / "run" / "checkpoints" / "1").exists()
    gc.collect()


def test_a_checkpoint_never_exists_without_its_note(tmp_path):
    with open_checkpoints(tmp_path / "checkpoints") as manager:
        for step in (1, 2, 3):
            save_checkpoint(manager, _state(step, float(step)))
            manager.wait_until_finished()
            kept = {f"{step}.files.json" for step in manager.all_steps()}
            assert {path.name for path in (tmp_path / "checkpoints").glob("*.json")} >= kept
            assert f"{step}.files.json" in kept


def test_if_all_checkpoints_are_damaged_nothing_is_moved(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints, tmp_path / "run")
    for step in ("1", "2"):
        (tmp_path / "run" / "checkpoints" / step / "state" / "manifest.ocdbt").write_bytes(b"")
    message = r"^the checkpoint of step 2 in .* could not be read: state/manifest.ocdbt has 0 of .*, and all older ones"
    with pytest.raises(CheckpointError, match=message), open_checkpoints(tmp_path / "run" / "checkpoints"):
        pass
    assert not (tmp_path / "run" / "unreadable").exists()


def test_unexpected_arrays_are_named_and_the_checkpoint_stays(two_checkpoints):
    wide = _state(0, 0.0)
    wide.params["loss"]["centers"] = jnp.zeros((2, 5))
    wide.params["encoder"]["bias"] = jnp.zeros(3)
    with open_checkpoints(two_checkpoints / "checkpoints") as manager:
        with pytest.raises(
            CheckpointError, match=r"step 2 .*: it holds nothing as params/encoder/bias, expected \[3\]$"
        ):
            restore_latest(manager, wide)
        assert sorted(manager.all_steps()) == [1, 2]


def test_rows_of_class_vectors_are_cut_or_padded_for_other_devices(tmp_path):
    with open_checkpoints(tmp_path / "checkpoints") as manager:
        save_checkpoint(manager, _state(1, 1.0))
    resize = jax.tree.map(lambda x: x.shape == (2, 3), _state(0, 0.0))
    for rows in (1, 4):
        like = _state(0, 0.0)
        like = jax.tree.map(lambda x, other, rows=rows: jnp.zeros((rows, 3)) if other else x, like, resize)
        with open_checkpoints(tmp_path / "checkpoints") as manager:
            restored = restore_latest(manager, like, resize=resize).state
        expected = np.zeros((rows, 3))
        expected[:2] = -1
        np.testing.assert_array_equal(restored.params["loss"]["centers"], expected)
        np.testing.assert_array_equal(restored.params["encoder"]["kernel"], np.ones((64, 64)))
    with (
        open_checkpoints(tmp_path / "checkpoints") as manager,
        pytest.raises(CheckpointError, match=r"\[2, 3\] .* \[4, 3\]"),
    ):
        restore_latest(manager, like)


def test_a_state_donated_during_a_save_is_saved_unchanged(tmp_path):
    advance = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    with open_checkpoints(tmp_path / "checkpoints") as manager:
        state = advance(_state(6, 0.0))
        save_checkpoint(manager, state)
        for _ in range(20):
            state = advance(state)
        jax.block_until_ready(state)
    with open_checkpoints(tmp_path / "checkpoints") as manager:
        restored = restore_latest(manager, _state(0, 0.0)).state
    assert int(restored.step) == 7
    np.testing.assert_array_equal(restored.params["encoder"]["kernel"], 1.0)


def test_metrics_are_json_lines_with_null_for_undefined(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(1, {"loss": 0.5})
        writer.write(2, {"validation/coherence": None})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 0.5}, {"step": 2, "validation/coherence": None}]
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_a_resumed_run_drops_later_metrics_and_a_truncated_line(tmp_path):
    with MetricWriter(tmp_path) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    with MetricWriter(tmp_path, step=2) as writer:
        writer.write(3, {"loss": 30.0})
    assert [line["loss"] for line in read_metrics(tmp_path)] == [1.0, 2.0, 30.0]


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    with open_checkpoints(tmp_path / "checkpoints") as manager:
        save_checkpoint(manager, _state(1, 1.0))
    full = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with (
        open_checkpoints(tmp_path / "checkpoints") as manager,
        pytest.raises(
            CheckpointError,
            match=r"^no room for a checkpoint of 0.0 MiB: .*checkpoints has 1.0 MiB free, expected 8.1 MiB,",
        ),
    ):
        save_checkpoint(manager, _state(2, 2.0))
    with open_checkpoints(tmp_path / "checkpoints") as manager:
        chex.assert_trees_all_equal(restore_latest(manager, _state(0, 0.0)).state, _state(1, 1.0))


@pytest.mark.parametrize("damage", ["{", "", b"\xff\xfe"])
def test_a_file_that_is_not_json_is_named(damage, tmp_path):
    path = tmp_path / "data.json"
    path.write_bytes(damage if isinstance(damage, bytes) else damage.encode())
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: damaged, as it is not JSON"):
        read_json(path)


def test_a_damaged_line_of_metrics_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo\n{"step": 3}\n')
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}, line 2: damaged"):
        read_metrics(tmp_path)


def test_a_missing_file_of_a_checkpoint_is_named(tmp_path):
    with open_checkpoints(tmp_path / "checkpoints") as manager:
        save_checkpoint(manager, _state(1, 1.0))
    (tmp_path / "checkpoints" / "1" / "state" / "manifest.ocdbt").unlink()
    with (
        pytest.raises(CheckpointError, match=r"could not be read: state/manifest\.ocdbt is missing$"),
        open_checkpoints(tmp_path / "checkpoints"),
    ):
        pass


@pytest.mark.parametrize("alone", [True, False])
def test_unfinished_saves_are_deleted_unless_another_run_may_be_writing(alone, tmp_path):
    with open_checkpoints(tmp_path / "checkpoints") as manager:
        save_checkpoint(manager, _state(1, 1.0))
    unfinished = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    unfinished.mkdir()
    with open_checkpoints(tmp_path / "checkpoints", alone=alone) as manager:
        assert manager.all_steps() == [1]
    assert unfinished.exists() != alone
