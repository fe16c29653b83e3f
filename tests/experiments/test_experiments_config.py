"""The command line, the configuration file and the checks before a run."""

import dataclasses

import pytest

from experiments.config import (
    Config,
    ConfigError,
    Machine,
    check_config,
    check_machine,
    check_same_config,
    flatten,
    load_config,
    save_config,
)
from experiments.presets import PRESETS
from experiments.train import read_command_line


def _replace(config, group, **fields):
    return dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **fields)})


def _count_leaves(nested):
    return sum(_count_leaves(value) if isinstance(value, dict) else 1 for value in nested.values())


def test_every_field_has_a_flag_of_its_own():
    nested = dataclasses.asdict(Config())
    assert len(flatten(nested)) == _count_leaves(nested)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_passes_its_checks(name):
    config = PRESETS[name]
    if config.data.source == "csv":
        config = _replace(config, "data", csv="pictures.csv")
    check_config(config)


def test_the_default_preset_and_its_directory_need_no_words():
    name, (config, machine, workdir) = read_command_line([])
    assert (name, config, str(workdir)) == ("emoji_people", PRESETS["emoji_people"], "runs/emoji_people")
    assert machine == Machine()


def test_fields_of_every_group_are_set_without_prefix(tmp_path):
    words = [
        "debug",
        "--steps",
        "7",
        "--columns",
        "skin",
        "role",
        "--quadruplet-margin",
        "0.3",
        "--workdir",
        str(tmp_path),
        "--driver",
        "shard_map",
    ]
    name, (config, machine, workdir) = read_command_line(words)
    assert (name, workdir, machine) == ("debug", tmp_path, Machine(driver="shard_map"))
    expected = _replace(PRESETS["debug"], "data", columns=("skin", "role"))
    assert config == dataclasses.replace(_replace(expected, "loss", quadruplet_margin=0.3), steps=7)


def test_an_unknown_preset_lists_those_there_are():
    with pytest.raises(SystemExit, match="no preset is called 'emoji'; there are emoji_people, emoji_unseen, debug"):
        read_command_line(["emoji"])


def test_help_names_every_field(capsys):
    with pytest.raises(SystemExit) as stopped:
        read_command_line(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    names = flatten({**dataclasses.asdict(Config()), **dataclasses.asdict(Machine())})
    assert all(f"--{name.replace('_', '-')}" in text for name in names)


@pytest.mark.parametrize(
    ("group", "fields", "message"),
    [
        ("batch", {"classes_per_batch": 1, "pictures_per_class": 1}, "fewer than 2 pictures"),
        ("batch", {"classes_per_batch": -1}, "classes_per_batch -1"),
        ("batch", {"crop_scale": (0.9, 0.5)}, r"crop_scale is \(0.9, 0.5\)"),
        ("batch", {"colour": 1.0}, "colour is 1.0"),
        ("loss", {"quadruplet_weight": 0.0, "soft_triple_weight": 0.0}, "every loss has weight 0"),
        ("loss", {"quadruplet_weight": -1.0}, "quadruplet_weight is -1.0, expected at least 0"),
        ("loss", {"gamma": 0.0}, "gamma is 0.0, expected a number above 0"),
        ("loss", {"centers_per_class": 0}, "centers_per_class is 0, expected at least 1"),
        ("update", {"learning_rate": float("nan")}, "learning_rate is nan"),
        ("loss", {"margin": float("nan")}, "margin is nan, expected a finite number"),
        ("loss", {"label_weights": (0.0, 1.0, 1.0)}, r"label_weights is \(0.0, 1.0, 1.0\), expected numbers above 0"),
        ("loss", {"quadruplet_samples": 9, "label_weights": (2.0, 1.0, 1.0)}, "cannot use label_weights"),
        ("loss", {"quadruplet_samples": 9, "quadruplet_anchors": 4}, "cannot use quadruplet_anchors, which is 4"),
        (
            "loss",
            {"soft_triple_weight": 0.0, "shard_classes": True},
            "shard_classes is True, but no loss with class vectors",
        ),
        (
            "loss",
            {"quadruplet_weight": 0.0, "quadruplet_anchors": 4},
            "quadruplet_anchors is 4, but quadruplet_weight is 0",
        ),
        ("batch", {"chunks": 0}, "chunks is 0, expected at least 1"),
        ("data", {"source": "csv"}, "source is csv: it needs --csv, which is not given"),
        ("data", {"source": "tfds", "tfds_name": "cars196", "columns": ()}, "it needs --columns, which is not given"),
        ("data", {"csv": "people.csv"}, "source is emoji_people: it cannot use csv, which is 'people.csv'"),
    ],
)
def test_a_configuration_that_cannot_run_names_the_field(group, fields, message):
    with pytest.raises(ConfigError, match=message):
        check_config(_replace(PRESETS["debug"], group, **fields))


def test_a_triplet_needs_two_pictures_of_a_class():
    config = _replace(_replace(PRESETS["debug"], "loss", triplet_weight=1.0), "batch", pictures_per_class=1)
    with pytest.raises(ConfigError, match="pictures_per_class is 1, expected at least 2: the triplet loss"):
        check_config(config)
    check_config(_replace(config, "batch", classes_per_batch=0, pictures_per_class=8))  # drawn uniformly


def test_a_configuration_survives_its_file(tmp_path):
    config = _replace(PRESETS["debug"], "loss", label_weights=(2.0, 1.0, 1.0))
    save_config(config, tmp_path / "run")
    assert load_config(tmp_path / "run") == config
    check_same_config(config, tmp_path / "run")


def test_a_directory_with_another_configuration_is_left_alone(tmp_path):
    check_same_config(PRESETS["debug"], tmp_path)
    save_config(PRESETS["debug"], tmp_path)
    with pytest.raises(ConfigError, match="seed is 0 there and 1 here"):
        check_same_config(dataclasses.replace(PRESETS["debug"], seed=1), tmp_path)


def test_what_changes_no_step_may_be_other_when_a_run_goes_on(tmp_path):
    save_config(PRESETS["debug"], tmp_path)
    other = dataclasses.replace(PRESETS["debug"], log_every=1, evaluate_every=7, checkpoint_every=3)
    check_same_config(other, tmp_path)
    save_config(other, tmp_path)
    assert load_config(tmp_path) == other


def test_a_configuration_that_is_there_is_not_written_again(tmp_path):
    save_config(PRESETS["debug"], tmp_path)
    before = (tmp_path / "config.json").stat().st_mtime_ns
    save_config(PRESETS["debug"], tmp_path)
    assert (tmp_path / "config.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        ({}, "driver is pmap, but shard_classes needs --driver shard_map"),
        ({"driver": "shard_map", "workers": -1}, "workers is -1, expected at least 0"),
        ({"driver": "shard_map", "input_timeout": 0.0}, "input_timeout is 0.0, expected a number above 0"),
    ],
)
def test_a_machine_that_cannot_run_it_names_the_field(machine, message):
    with pytest.raises(ConfigError, match=message):
        check_machine(Machine(**machine), _replace(PRESETS["debug"], "loss", shard_classes=True))


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text('{"stepz": 3}')
    with pytest.raises(ConfigError, match="not a configuration of this version"):
        load_config(tmp_path)
