"""The command line, the configuration file and the checks before a run."""

import dataclasses
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest

from jaxmetric.encoders import ENCODERS
from jaxmetric.run.config import (
    PATHS,
    BatchConfig,
    Config,
    DataConfig,
    EncoderConfig,
    Machine,
    check_config,
    check_machine,
    check_paths,
    check_same_config,
    flatten,
    load_config,
    save_config,
)
from jaxmetric.run.errors import ConfigError
from jaxmetric.run.presets import PRESETS
from jaxmetric.run.terms import Term
from jaxmetric.run.train import read_command_line


def _replace(config, group, **fields):
    return dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **fields)})


def _count_leaves(nested):
    return sum(_count_leaves(value) if isinstance(value, dict) else 1 for value in nested.values())


def test_every_field_has_a_flag_of_its_own():
    nested = dataclasses.asdict(Config())
    assert len(flatten(nested)) == _count_leaves(nested)


def test_every_encoder_has_a_value_of_its_flag():
    assert get_args(get_type_hints(EncoderConfig)["encoder"]) == tuple(ENCODERS)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_passes_its_checks(name):
    config = PRESETS[name]
    if config.data.source == "csv":
        config = _replace(config, "data", csv="pictures.csv")
    check_config(config)


def test_the_default_preset_and_its_directory_need_no_arguments():
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
        "--loss",
        "2*quadruplet(margin=0.3) + center(on='role')",
        "--workdir",
        str(tmp_path),
        "--driver",
        "shard_map",
    ]
    name, (config, machine, workdir) = read_command_line(words)
    assert (name, workdir, machine) == ("debug", tmp_path, Machine(driver="shard_map"))
    expected = _replace(PRESETS["debug"], "data", columns=("skin", "role"))
    assert config == dataclasses.replace(expected, loss="2*quadruplet(margin=0.3) + center(on='role')", steps=7)


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(SystemExit, match="no preset is called 'emoji'; there are emoji_people, emoji_unseen, debug"):
        read_command_line(["emoji"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--colour", "0.1"], "error: --colour is now --color"),
        (["debug", "--pictures-per-class=4"], "error: --pictures-per-class is now --images-per-class"),
        (["debug", "--pictures_per_class", "4"], "error: --pictures-per-class is now --images-per-class"),
    ],
)
def test_a_renamed_flag_is_refused_with_its_new_name(words, message):
    with pytest.raises(SystemExit, match=f"^{message}$"):
        read_command_line(words)


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
        ("batch", {"classes_per_batch": 1, "images_per_class": 1}, "fewer than 2 images"),
        ("batch", {"classes_per_batch": -1}, "classes_per_batch -1"),
        ("batch", {"crop_scale": (0.9, 0.5)}, r"crop_scale is \(0.9, 0.5\)"),
        ("batch", {"color": 1.0}, "color is 1.0"),
        ("update", {"learning_rate": float("nan")}, "learning_rate is nan"),
        ("classes", {"sampled_classes": -1}, "sampled_classes is -1, expected at least 0"),
        ("batch", {"chunks": 0}, "chunks is 0, expected at least 1"),
        ("data", {"source": "csv"}, "source is csv: it needs --csv, which is not given"),
        ("data", {"source": "tfds", "tfds_name": "cars196", "columns": ()}, "it needs --columns, which is not given"),
        ("data", {"csv": "people.csv"}, "source is emoji_people: it cannot use csv, which is '.*people.csv'"),
        ("data", {"csv": "people.csv"}, "jaxmetric train quadruplet_csv --csv .*people.csv$"),
        ("data", {"ordinal": ("age",)}, "jaxmetric train quadruplet_csv --csv LIST$"),
        ("data", {"tfds_name": "cars196"}, "cannot use tfds_name.*; .* give --source tfds$"),
    ],
)
def test_a_configuration_that_cannot_run_names_the_field(group, fields, message):
    with pytest.raises(ConfigError, match=message):
        check_config(_replace(PRESETS["debug"], group, **fields))


@pytest.mark.parametrize(("field", "value"), [("shard_classes", True), ("sampled_classes", 1)])
def test_options_of_class_vectors_need_a_term_with_class_vectors(field, value):
    config = dataclasses.replace(_replace(PRESETS["debug"], "classes", **{field: value}), loss="2*quadruplet")
    with pytest.raises(ConfigError, match=rf"{field} is {value}, but no term .* has class vectors: 2\*quadruplet$"):
        check_config(config)


def test_one_objective_written_in_two_ways_is_one_configuration(tmp_path):
    written = (
        "2*quadruplet(margin=0.3, balance='levels')+ center",
        "2.0 * quadruplet(balance='levels',margin=.3) + center",
    )
    first, second = (dataclasses.replace(PRESETS["debug"], loss=loss) for loss in written)
    save_config(first, tmp_path)
    check_same_config(second, tmp_path)
    with pytest.raises(
        ConfigError, match=r"loss is 2\*quadruplet.* there and center here.* give --loss '2\*quadruplet"
    ):
        check_same_config(dataclasses.replace(first, loss="center"), tmp_path)


def test_a_configuration_with_fields_for_each_loss_is_reported_as_old(tmp_path):
    (tmp_path / "config.json").write_text('{"loss": {"quadruplet_weight": 1.0}}')
    with pytest.raises(ConfigError, match="is of an older version, in which the loss was no expression; train the run"):
        load_config(tmp_path)


def test_a_configuration_survives_its_file(tmp_path):
    config = dataclasses.replace(PRESETS["debug"], loss="quadruplet(label_weights=(2.0, 1.0, 1.0))")
    save_config(config, tmp_path / "run")
    assert load_config(tmp_path / "run") == config
    check_same_config(config, tmp_path / "run")


def test_a_directory_with_another_configuration_is_not_changed(tmp_path):
    check_same_config(PRESETS["debug"], tmp_path)
    save_config(PRESETS["debug"], tmp_path)
    with pytest.raises(ConfigError, match="seed is 0 there and 1 here"):
        check_same_config(dataclasses.replace(PRESETS["debug"], seed=1), tmp_path)


def typed_in(directory, monkeypatch, *words):
    """The configuration that a command line gives in a directory."""
    monkeypatch.chdir(directory)
    return read_command_line(["quadruplet_csv", *words])[1][0]


def test_paths_mean_the_same_in_every_directory(tmp_path, monkeypatch):
    for folder in ("home", "lists", "elsewhere"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    file = str(tmp_path / "lists" / "l.csv")
    relative = typed_in(tmp_path / "lists", monkeypatch, "--csv", "l.csv", "--image-root", ".")
    assert (relative.data.csv, relative.data.image_root) == (file, str(tmp_path / "lists"))
    roundabout = typed_in(tmp_path / "elsewhere", monkeypatch, "--csv", "../home/../lists/l.csv")
    assert roundabout.data.csv == file
    assert typed_in(tmp_path, monkeypatch, "--csv", "~/l.csv").data.csv == str(tmp_path / "home" / "l.csv")
    save_config(relative, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_config(tmp_path / "run") == relative
    check_same_config(typed_in(tmp_path, monkeypatch, "--csv", file, "--image-root", "lists/"), tmp_path / "run")


@pytest.mark.parametrize("name", PATHS)
def test_every_path_is_made_absolute_except_addresses_and_empty_paths(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = {"some/place": str(tmp_path / "some" / "place"), "": "", "gs://bucket/place": "gs://bucket/place"}
    group = {"data": DataConfig, "network": EncoderConfig}[PATHS[name]]
    assert {path: getattr(group(**{name: path}), name) for path in paths} == paths


def test_no_field_that_is_a_path_is_forgotten():
    about_files = ("csv", "root", "dir", "path", "file", "folder", "weights")
    named = {name for name in flatten(dataclasses.asdict(Config())) if any(word in name for word in about_files)}
    assert named == set(PATHS)


def test_a_link_to_the_same_file_is_the_same_configuration(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    first, second = (
        _replace(PRESETS["quadruplet_csv"], "data", csv=str(tmp_path / folder / "l.csv")) for folder in ("real", "link")
    )
    save_config(first, tmp_path / "run")
    check_same_config(second, tmp_path / "run")


def test_a_list_that_has_moved_is_reported_with_the_cure(tmp_path):
    (tmp_path / "new.csv").touch()
    first, second = (
        _replace(PRESETS["quadruplet_csv"], "data", csv=str(tmp_path / name)) for name in ("old.csv", "new.csv")
    )
    save_config(first, tmp_path / "run")
    cure = rf"if it has moved, write its new place into {tmp_path}/run/config.json"
    with pytest.raises(ConfigError, match=rf"csv is {tmp_path}/old.csv \(.*{cure}\) there and {tmp_path}/new.csv here"):
        check_same_config(second, tmp_path / "run")
    with pytest.raises(ConfigError, match=f"csv of the run is {tmp_path}/old.csv, which is not there; {cure}"):
        check_paths(first, tmp_path / "run")
    check_paths(second, tmp_path / "run")


def test_a_relative_path_of_an_older_file_is_reported_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_config(_replace(PRESETS["quadruplet_csv"], "data", csv="l.csv"), tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    file.write_text(file.read_text().replace(str(tmp_path / "l.csv"), "l.csv"))
    (tmp_path / "today").mkdir()
    monkeypatch.chdir(tmp_path / "today")
    told = "is 'l.csv', relative to the directory where the run began"
    with pytest.raises(ConfigError, match=f"csv of the run {told}"):
        check_paths(load_config(tmp_path / "run"), tmp_path / "run")
    with pytest.raises(ConfigError, match=f"csv {told}"):
        check_same_config(_replace(PRESETS["quadruplet_csv"], "data", csv="x.csv"), tmp_path / "run")


@pytest.mark.parametrize(
    ("group", "there", "here", "difference", "flags"),
    [
        ("data", {"image_root": ""}, {"image_root": "/x"}, "image_root is empty there and /x here", "--image-root ''"),
        (
            "data",
            {"columns": ("skin",)},
            {"columns": ()},
            "columns is ('skin',) there and empty here",
            "--columns skin",
        ),
        ("batch", {"flip": False}, {"flip": True}, "flip is False there and True here", "--no-flip"),
        ("batch", {"crop_scale": (0.5, 1.0)}, {}, "crop_scale is (0.5, 1.0) there", "--crop-scale 0.5 1.0"),
    ],
)
def test_another_configuration_is_reported_with_the_flags_of_the_run(group, there, here, difference, flags, tmp_path):
    save_config(_replace(PRESETS["debug"], group, **there), tmp_path)
    mine = _replace(PRESETS["debug"], group, **here)
    with pytest.raises(ConfigError) as refused:
        check_same_config(mine, tmp_path)
    assert difference in str(refused.value)
    assert f"To go on with that run give {flags}; to begin another, give another --workdir" in str(refused.value)
    words = [word.strip("'") for word in flags.split()]
    assert flatten(dataclasses.asdict(read_command_line(["debug", *words])[1][0])) == flatten(
        dataclasses.asdict(_replace(PRESETS["debug"], group, **there))
    )


def test_fields_that_change_no_step_may_differ_when_a_run_resumes(tmp_path):
    save_config(PRESETS["debug"], tmp_path)
    other = dataclasses.replace(PRESETS["debug"], log_every=1, evaluate_every=7, checkpoint_every=3)
    check_same_config(other, tmp_path)
    save_config(other, tmp_path)
    assert load_config(tmp_path) == other


def test_an_existing_configuration_is_not_rewritten(tmp_path):
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
def test_unsupported_hardware_options_name_the_field(machine, message):
    with pytest.raises(ConfigError, match=message):
        check_machine(Machine(**machine), _replace(PRESETS["debug"], "classes", shard_classes=True))


def test_a_directory_without_a_run_is_named(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text('{"stepz": 3}')
    with pytest.raises(ConfigError, match="not a configuration of this version"):
        load_config(tmp_path)


@pytest.mark.parametrize("text", ["[]", "null", "3", '{"loss": 5}', '{"steps": "5"}', '{"data": 3}', '{"batch": null}'])
def test_a_file_that_is_no_configuration_is_a_one_line_error(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json is not a configuration") as error:
        load_config(tmp_path)
    assert "\n" not in str(error.value)


def every_field():
    groups = [Config, Machine, *(type(getattr(Config(), field.name)) for field in dataclasses.fields(Config))]
    return [
        pytest.param(group, field, id=f"{group.__name__}.{field.name}")
        for group in groups
        if dataclasses.is_dataclass(group)
        for field in dataclasses.fields(group)
        if not dataclasses.is_dataclass(field.type)
    ]


@pytest.mark.parametrize(("group", "field"), every_field())
def test_a_value_of_another_type_is_refused_by_the_name_of_its_field(group, field):
    default = getattr(group(), field.name)
    wrong = [None, {}, object(), 1j, np.ones((9, 9))]
    wrong += [3.5, "3"] if isinstance(default, int) else []
    wrong += ["3"] if isinstance(default, float) else []
    wrong += [1, "yes"] if isinstance(default, bool) else [True]
    wrong += [3] if isinstance(default, str) else []
    wrong += ["unheard-of"] if get_origin(field.type) is Literal else []
    wrong += [3, [3], [None], "role"] if default == () else []
    wrong += [(0.5,), (0.5, 0.6, 0.7), ("a", "b")] if field.name == "crop_scale" else []
    for value in wrong:
        with pytest.raises(ConfigError, match=f"^{field.name} is .*, expected ") as error:
            group(**{field.name: value})
        assert "\n" not in str(error.value)


def test_lists_and_numpy_numbers_make_the_configuration_of_its_file(tmp_path):
    config = Config(
        loss=[Term("triplet", margin=0.5), Term("center", weight=0.1)],
        data=DataConfig(columns=["role", "skin"]),
        batch=BatchConfig(crop_scale=[0.5, 1]),
        steps=np.int64(7),
    )
    assert config.loss == "triplet(margin=0.5) + 0.1*center"
    save_config(config, tmp_path)
    assert load_config(tmp_path) == config
    check_same_config(config, tmp_path)
