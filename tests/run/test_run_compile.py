"""Whether a step fits a TPU slice that is not there."""

import dataclasses
import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest

from jaxmetric.parallel import average, compile_shard_map, gather
from jaxmetric.run.chips import CHIPS, Cost, cost_of, roofline, sent_bytes
from jaxmetric.run.compile import Sizes, compile_here, compile_step, describe, sizes_of, slice_of
from jaxmetric.run.config import ClassConfig, EncoderConfig
from jaxmetric.run.errors import ConfigError
from jaxmetric.run.experiment import load_experiment
from jaxmetric.run.presets import PRESETS


def test_bytes_sent_are_those_of_ring_algorithms():
    hlo = """
      %a = f32[8,4]{1,0:T(8,128)} all-gather(%p), dimensions={0}
      %b = (bf16[2]{0}, bf16[16]{0}) all-gather-start(%q), dimensions={0}
      %c = (f32[10]{0}, f32[5,2]{1,0}) all-reduce(%r, %s), to_apply=%add
      %d = f32[3]{0} all-reduce-start(%t), to_apply=%add
      %e = f32[2,4]{1,0} reduce-scatter(%u), dimensions={0}, to_apply=%add
      %f = f32[8]{0} all-gather-done(%b)
      ROOT %g = f32[4]{0} add(%all-reduce.1, %all-gather.2)
    """
    assert sent_bytes(hlo, num_chips=4) == {
        "all-gather": (8 * 4 * 4 + 16 * 2) * 3 / 4,
        "all-reduce": 2 * (10 + 10 + 3) * 4 * 3 / 4,
        "reduce-scatter": 4 * (2 * 4 * 4) * 3 / 4,
    }


def test_the_cost_of_a_compiled_step():
    def step(state, batch, *, axis_name):
        return state + average(jnp.sum(gather(batch, axis_name), axis=0), axis_name), jnp.zeros(())

    shapes = jax.ShapeDtypeStruct((4,), jnp.float32), jax.ShapeDtypeStruct((16, 4), jnp.float32)
    program = compile_shard_map(step, *shapes, devices=jax.devices())
    cost = cost_of(program, len(jax.devices()))
    assert cost.arguments == 4 * 4 + 2 * 4 * 4  # the state and two of the sixteen rows
    assert cost.sent == {"all-gather": 16 * 4 * 4 * 7 / 8, "all-reduce": 2 * 4 * 4 * 7 / 8}


def test_the_real_step_compiles_for_given_devices():
    config = dataclasses.replace(PRESETS["debug"], network=EncoderConfig(encoder="tiny", embedding_dim=8))
    experiment = load_experiment(config, num_devices=8)
    program = compile_step(experiment, jax.devices())
    assert cost_of(program, 8).sent.keys() >= {"all-gather", "all-reduce"}


def test_a_chip_holds_its_share_of_sharded_class_vectors():
    whole, sharded = (
        dataclasses.replace(PRESETS["debug"], classes=ClassConfig(shard_classes=shard)) for shard in (False, True)
    )
    sizes = []
    for config in (whole, sharded):
        experiment = load_experiment(config, num_devices=8)
        sizes.append(sizes_of(experiment))
    centers = 72 * 2 * 32 * 4
    assert sizes[0].parameters - sizes[1].parameters == centers * 7 // 8
    assert sizes[0].optimizer - sizes[1].optimizer == 2 * centers * 7 // 8
    assert sizes[0].batch_statistics == sizes[1].batch_statistics


COST = Cost(2**30, 3 * 2**30, flops=394e12, traffic=819e9 / 2, sent={"all-gather": 20e9})
SIZES = Sizes(2**29, 2**20, 2**29 - 2**21)


def test_the_roofline_is_the_slowest_of_three():
    assert roofline(COST, CHIPS["v5e"]) == (2.0, 0.5, 0.1)
    table = describe(COST, SIZES, CHIPS["v5e"], batch_size=4000)
    assert "peak                                  4.0 GiB of 16.0 GiB, 25.0%" in table
    assert "at most                            2,000 images/s, bound by compute" in table
    assert table.endswith("\nfits")


def test_the_output_states_by_how_much_a_step_does_not_fit():
    table = describe(COST._replace(workspace=16 * 2**30), SIZES, CHIPS["v5e"], batch_size=4000)
    assert table.endswith("DOES NOT FIT: 1.0 GiB too much")


@pytest.mark.parametrize("topology", ["v2:2x2", "", "4x4"])
def test_an_unknown_chip_lists_those_known(topology):
    with pytest.raises(ConfigError, match=f"topology is {topology}, expected a chip of v5e, v5p, v6e and a shape"):
        slice_of(topology)


@pytest.mark.parametrize(
    ("topology", "expected"),
    [
        ("v5e", "2 sides, the first two even, and at most 256 chips of v5e, such as v5e:2x2$"),
        ("v5e:3x3", "2 sides"),
        ("v5e:2x2x2", "2 sides"),
        ("v6e:32x16", "2 sides"),
        ("v5p:16x16x32_twisted", "3 sides"),
        ("v6e:2x", "2 sides"),
        ("v5p:2x2", "3 sides, the first two even, and at most 6,144 chips of v5p, such as v5p:2x2x1$"),
        ("v5p:2x2x0", "3 sides"),
    ],
)
def test_an_invalid_shape_of_a_slice_lists_the_valid_ones(topology, expected):
    with pytest.raises(ConfigError, match=f"^topology is {topology}, expected {expected}"):
        slice_of(topology)


@pytest.mark.parametrize("topology", ["v5e:16x16", "v5p:4x4x32", "v5p:4x4x8_twisted", "v6e:2x4"])
def test_valid_shapes_of_slices_are_accepted(topology, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="not installed"):
        slice_of(topology)


def test_without_the_compiler_the_error_tells_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert compile_here(["debug", "--topology", "v5e:2x2"]) == 1
    assert (
        capsys.readouterr().err == 'error: the TPU compiler is not installed; it comes with: pip install "jax[tpu]"\n'
    )


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_the_real_step_compiles_for_an_absent_slice(topology, capfd):
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
    assert compile_here(["debug", "--topology", topology, "--images-per-class", "8"]) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    for name in (
        "parameters",
        "optimizer state",
        "peak",
        "arithmetic",
        "all-reduce, sent",
        "by the interconnect",
        "images/s",
    ):
        assert name in printed.out
    assert printed.out.endswith("\nfits\n")


@pytest.mark.slow
def test_a_step_that_does_not_fit_is_reported(capfd):
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
    words = ["debug", "--topology", "v5e:2x2", "--classes-per-batch", "0", "--images-per-class", "65536"]
    assert compile_here(words) == 1
    assert re.search(r"does not fit|DOES NOT FIT", capfd.readouterr().out)
