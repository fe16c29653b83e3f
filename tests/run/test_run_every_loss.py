"""Every exported loss trains through the command's own path."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from finished_runs import final_state
from PIL import Image

from jaxmetric.run.terms import loss_names

ROOT = Path(__file__).parents[2]
NEEDS = {"sampled_quadruplet": "(num_quadruplets=16)", "anchored_quadruplet": "(num_anchors=2)"}
EVERY_LOSS = [f"{name}{NEEDS.get(name, '')}" for name in loss_names()]
OF_EACH_KIND = [
    "20*quadruplet(margin=0.3, label_weights=(3, 1)) + 2.5*soft_triple(on='person', centers_per_class=2) "
    "+ supcon(memory=12) + contrastive(on='side', memory=8, pairs='multi_similarity(epsilon=0.1)') "
    "+ siglip(learn=('scale', 'bias'))",
    "anchored_quadruplet(num_anchors=2) + arcface(on=('person', 'side')) + center(class_weights=(1, 1, 2, 1, 1, 1)) "
    "+ dynamic_soft_margin(num_bins=16) + vicreg",
]
SCRIPT = """
import json, sys
from jaxmetric.run import train
words, expressions = json.loads(sys.argv[1]), json.loads(sys.argv[2])
for i, expression in enumerate(expressions):
    code = train.main([*words, "--loss", expression, "--workdir", f"{sys.argv[3]}/{i}"])
    assert code == 0, expression
"""
WORDS = [
    *("quadruplet_csv", "--steps", "2", "--log-every", "1", "--evaluate-every", "0", "--warmup", "0"),
    *("--encoder", "tiny", "--width", "4", "--embedding-dim", "8", "--image-size", "16", "--stored-size", "16"),
    *("--classes-per-batch", "4", "--images-per-class", "2"),
]


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Six people from two sides, one label missing."""
    folder, rng = tmp_path_factory.mktemp("people"), np.random.default_rng(0)
    rows = ["image,person,side"]
    for i in range(48):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{'abcdef'[i % 6]},{'' if i == 6 else 'lr'[i // 6 % 2]}")
    (folder / "people.csv").write_text("\n".join(rows) + "\n")
    return folder / "people.csv"


def train_with_each(expressions, people, workdir, *, devices, words=()):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    ran = subprocess.run(
        [
            sys.executable,
            "-c",
            SCRIPT,
            json.dumps([*WORDS, "--csv", str(people), *words]),
            json.dumps(expressions),
            workdir,
        ],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    for i, expression in enumerate(expressions):
        assert json.loads((workdir / str(i) / "config.json").read_text())["loss"] == expression
        lines = [json.loads(line) for line in (workdir / str(i) / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "loss" in line]
        assert [line["step"] for line in steps] == [1, 2], expression
        assert all(np.isfinite(line["loss"]) for line in steps), expression
        assert all(value > 0 for line in steps for name, value in line.items() if name.startswith("valid/")), expression


def test_losses_with_a_memory_a_miner_and_learned_numbers_train_on_four_devices(people, tmp_path):
    train_with_each(OF_EACH_KIND[:1], people, tmp_path, devices=4)
    memory = final_state(tmp_path / "0").memory  # the checkpoint holds what the next step would be compared with
    assert memory["supcon"]["references"].position == 2 * 8 % 12
    assert memory["supcon"]["references"].where.any(axis=1).all()


@pytest.mark.slow
def test_losses_of_several_columns_a_histogram_and_two_views_train_on_four_devices(people, tmp_path):
    train_with_each(OF_EACH_KIND[1:], people, tmp_path, devices=4)
    assert np.isclose(final_state(tmp_path / "0").memory["dynamic_soft_margin"]["histogram"].sum(), 1)


@pytest.mark.slow
def test_class_vectors_of_several_columns_and_learned_numbers_train_with_shards(people, tmp_path):
    expressions = ["arcface(on=('person', 'side')) + siglip(learn='bias')"]
    train_with_each(expressions, people, tmp_path, devices=2, words=["--shard-classes", "--driver", "shard_map"])


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_every_exported_loss_trains(devices, people, tmp_path):
    train_with_each(EVERY_LOSS, people, tmp_path, devices=devices)
