"""Runs whose first stages do not change, and whose activations are computed once."""

import dataclasses
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxmetric.data import LEARNING, VALIDATION, prepare
from jaxmetric.data.feature_store import FeatureStoreError
from jaxmetric.parallel import Driven
from jaxmetric.run import frozen, train
from jaxmetric.run.config import Machine
from jaxmetric.run.errors import ConfigError
from jaxmetric.run.experiment import (
    drive_step,
    initial_state,
    load_experiment,
    make_embedder,
    make_embedder_of_activations,
)
from jaxmetric.run.frozen import with_activations
from jaxmetric.run.presets import PRESETS

STAGES = ("stem", "layer1", "layer2")
EACH_STAGE = pytest.mark.parametrize(
    "stage", [pytest.param("stem", marks=pytest.mark.slow), "layer1", pytest.param("layer2", marks=pytest.mark.slow)]
)


def experiment_of(stage, **update):
    config = PRESETS["debug"]
    return load_experiment(
        dataclasses.replace(
            config,
            network=dataclasses.replace(config.network, width=4, freeze_until=stage),
            update=dataclasses.replace(config.update, **update),
        )
    )


def state_of(experiment):
    driven: Driven = drive_step(experiment, "pmap")
    return driven, initial_state(experiment, driven)


def run(tmp_path, *words):
    printed, errors = StringIO(), StringIO()
    common = ["debug", "--width", "4", "--steps", "2", "--cache", str(tmp_path / "cache")]
    with redirect_stdout(printed), redirect_stderr(errors):
        code = train.main([*common, *words])
    return code, printed.getvalue(), errors.getvalue()


@EACH_STAGE
def test_activations_stand_in_for_the_images(stage, tmp_path, capsys):
    experiment = experiment_of(stage)
    _, state = state_of(experiment)
    stored = with_activations(experiment, state, Machine(cache=str(tmp_path)))
    assert "of which 2,304 are new" in capsys.readouterr().out
    some = np.flatnonzero(np.isin(experiment.source.split, (LEARNING, VALIDATION)))[:8]
    ours = make_embedder_of_activations(stored)(state, [stored.source.images[i] for i in some])
    theirs = make_embedder(experiment)(state, [experiment.source.images[i] for i in some])
    np.testing.assert_allclose(ours, theirs, atol=1e-6)

    images = prepare(experiment.source.images[some], image_size=16, mean=0.0, std=1.0)
    variables = jax.device_get({"params": state.params["encoder"], "batch_stats": state.batch_stats})
    trunk = {kind: tree["trunk"] for kind, tree in variables.items()}
    normalized = experiment.encoder.preprocessing(images)
    expected = experiment.encoder.trunk.apply(trunk, normalized, train=False, until=stage)
    np.testing.assert_allclose(np.stack([stored.source.images[i] for i in some]), expected, atol=1e-5)


def test_only_new_and_changed_images_are_computed(tmp_path, capsys):
    experiment = experiment_of("stem")
    _, state = state_of(experiment)
    machine = Machine(cache=str(tmp_path))
    with_activations(experiment, state, machine)
    capsys.readouterr()
    images = experiment.source.images.copy()
    changed = int(np.flatnonzero(experiment.source.split == LEARNING)[0])
    images[changed, 0, 0, 0] ^= 1
    other = dataclasses.replace(experiment, source=dataclasses.replace(experiment.source, images=images))
    stored = with_activations(other, state, machine)
    assert "of which 1 are new" in capsys.readouterr().out
    assert not np.array_equal(
        stored.source.images[changed], with_activations(experiment, state, machine).source.images[changed]
    )


@pytest.mark.parametrize(
    ("group", "other"),
    [("network", {"freeze_until": "layer1"}), ("network", {"dtype": "bfloat16"}), ("batch", {"image_size": 24})],
)
def test_all_that_activations_depend_on_has_a_cache_of_its_own(group, other, tmp_path):
    machine, experiment = Machine(cache=str(tmp_path)), experiment_of("stem")
    config = experiment.config
    changed = dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **other)})
    for each in (experiment, load_experiment(changed)):
        with_activations(each, state_of(each)[1], machine)
    assert len(list(tmp_path.iterdir())) == 2


def test_other_weights_have_a_cache_of_their_own(tmp_path):
    machine, experiment = Machine(cache=str(tmp_path)), experiment_of("stem")
    _, state = state_of(experiment)
    with_activations(experiment, state, machine)
    moved = state.replace(batch_stats=jax.tree.map(lambda x: x + 1, state.batch_stats))
    with_activations(experiment, moved, machine)
    assert len(list(tmp_path.iterdir())) == 2


@EACH_STAGE
def test_a_step_changes_all_but_the_frozen_stages(stage, tmp_path):
    experiment = experiment_of(stage, average=0.5, depth_rate=0.5, warmup=0)
    driven, state = state_of(experiment)
    stored = with_activations(experiment, state, Machine(cache=str(tmp_path)))
    rows = np.flatnonzero(experiment.source.split == LEARNING)[:32]
    batch = {
        "image": np.stack([stored.source.images[i] for i in rows]),
        "label": experiment.source.labels[rows].astype(np.int32),
    }
    before = jax.device_get((state.params["encoder"], state.batch_stats))
    state, _ = driven(state, driven.place_batch(batch))
    after = jax.device_get((state.params["encoder"], state.batch_stats))
    for old, new in zip(before, after, strict=True):
        old, new = flatten_dict(old), flatten_dict(new)
        for path, array in old.items():
            frozen = path[0] == "trunk" and path[1] in STAGES[: STAGES.index(stage) + 1]
            assert np.array_equal(array, new[path]) == frozen, path


def test_a_run_with_frozen_stages_is_evaluated_and_resumed(tmp_path):
    words = ["--freeze-until", "layer1", "--workdir", str(tmp_path / "run")]
    code, printed, errors = run(tmp_path, *words, "--average", "0.9", "--head-first", "1")
    assert code == 0, errors
    assert "activations of layer1, without augmentation, in" in printed
    assert "of which 2,304 are new" in printed
    assert "report:" in printed
    code, printed, errors = run(tmp_path, *words, "--average", "0.9", "--head-first", "1")
    assert code == 0, errors
    assert "all 2 steps are done" in printed
    assert "activations" not in printed  # no step needs them


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--freeze-until", "laier1"],
            "freeze_until is 'laier1' (did you mean layer1?), expected a stage of tiny:",
        ),
        (["--average", "1.0"], "average is 1.0, expected a number in [0, 1)"),
        (["--depth-rate", "0"], "depth_rate is 0.0, expected a number above 0"),
        (["--depth-rate", "2"], "depth_rate is 2.0, expected at most 1"),
        (["--head-first", "-1"], "head_first is -1, expected at least 0"),
    ],
)
def test_bad_options_are_one_line_before_work_starts(words, message, tmp_path):
    code, _, errors = run(tmp_path, *words, "--workdir", str(tmp_path / "run"))
    assert code == 1
    assert errors.startswith(f"error: {message}")
    assert errors.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_damaged_cache_is_one_line(tmp_path):
    experiment = experiment_of("stem")
    _, state = state_of(experiment)
    machine = Machine(cache=str(tmp_path))
    with_activations(experiment, state, machine)
    (arrays,) = tmp_path.glob("*/arrays")
    arrays.write_bytes(arrays.read_bytes()[:-4])
    with pytest.raises(
        FeatureStoreError, match=r"^[^\n]* is damaged: its arrays have [\d,]+ bytes, expected .*; delete it$"
    ):
        with_activations(experiment, state, machine)


def test_a_complete_cache_may_be_read_only_and_an_incomplete_one_needs_room(tmp_path, monkeypatch):
    experiment = experiment_of("stem")
    _, state = state_of(experiment)
    machine = Machine(cache=str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(frozen.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
        with pytest.raises(FeatureStoreError, match=r"no room for the activations of 2,304 images: .* --cache names"):
            with_activations(experiment, state, machine)
    with_activations(experiment, state, machine)
    (folder,) = tmp_path.iterdir()
    (folder / ".lock").unlink()
    monkeypatch.setattr(frozen.FeatureStore, "_locked", None)
    with_activations(experiment, state, machine)


def test_a_stage_that_does_not_exist_is_a_config_error():
    with pytest.raises(ConfigError, match="expected a stage of tiny"):
        experiment_of("stage1")
