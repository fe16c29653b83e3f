"""A user's file that calls the losses passes a strict type checker, which also finds misspelt options."""

import ast
import inspect
import re
import subprocess
import sys

import pytest

import jaxmetric
from jaxmetric import losses
from tests.write_stub import STUB, stub

LOSSES = [name for name in losses.__all__ if name.endswith("_loss")]
GOOD = """
import jax
import jax.numpy as jnp
import numpy as np

import jaxmetric
from jaxmetric import memory, mining

x, y, columns = jnp.ones((8, 4)), np.arange(8), np.zeros((8, 2), int)
proxies, centers = jnp.ones((8, 4)), jnp.ones((8, 2, 4))
key = jax.random.key(0)
losses: list[jax.Array] = [
    jaxmetric.supcon_loss(x, y),
    jaxmetric.triplet_loss(x, y, mining="hard", where=np.ones(8, bool)),
    jaxmetric.multi_similarity_loss(x, columns, label_weights=(2.0, 1.0)),
    jaxmetric.contrastive_loss(x, y, power=1, distance="cosine"),
    jaxmetric.contrastive_loss(None, y, distance=jnp.ones((8, 8))),
    jaxmetric.siglip_loss(x, y, scale=jnp.float32(3), references=jaxmetric.References(x, y)),
    jaxmetric.margin_loss(x, y),
    jaxmetric.binomial_deviance_loss(x, y, reduction="none"),
    jaxmetric.ntxent_loss(x, y, similarity=jaxmetric.pairwise_dot_product),
    jaxmetric.n_pairs_loss(x, y),
    jaxmetric.circle_loss(x, None, pairs=(np.eye(8) > 0, np.eye(8) == 0)),
    jaxmetric.smooth_ap_loss(x, y),
    jaxmetric.histogram_loss(x, y, num_bins=10),
    jaxmetric.quadruplet_loss(x, columns, agreement="any", balance="levels"),
    jaxmetric.sampled_quadruplet_loss(key, x, columns, num_quadruplets=10),
    jaxmetric.angular_loss(x, y),
    jaxmetric.arcface_loss(x, y, proxies, margin=0.2),
    jaxmetric.proxy_anchor_loss(x, y, jaxmetric.ClassShard(proxies, "devices", 8)),
    jaxmetric.soft_triple_loss(x, columns, (centers, centers)),
    jaxmetric.center_loss(x, y, proxies, class_weights=np.ones(8)),
    jaxmetric.vicreg_loss(x, x, weights=np.ones(8), eps=np.float32(1e-4)),
]
host = np.ones((8, 4), np.float32)
positives, negatives = mining.label_pairs(y, where=np.ones(8, bool))
others: list[jax.Array] = [
    jaxmetric.label_agreement(columns, columns, where=columns == 0),
    jaxmetric.pairwise_euclidean(host, host),
    mining.batch_hard(np.ones((8, 8)), np.eye(8) > 0, np.eye(8) == 0),
    mining.batch_easy_hard(jaxmetric.pairwise_cosine_distance(host), positives, negatives, positive="hard"),
    jaxmetric.lp_regularizer(host, weights=np.ones(8)),
    jaxmetric.regular_face_regularizer(host),
    jaxmetric.soft_triple_regularizer(np.ones((8, 2, 4))),
    memory.update(memory.init(16, 4), host, y).labels,
]
loss, stats = jaxmetric.supcon_loss(x, y, has_aux=True)
neighbors = jaxmetric.search.nearest_neighbors(x, x, k=3)
share: jax.Array = stats.active / stats.valid
_, dynamic = jaxmetric.dynamic_soft_margin_loss(x, y, has_aux=True)
histogram: jax.Array = dynamic.histogram
"""
BAD = {
    "jaxmetric.tripet_loss(x, y)": "tripet_loss",
    "jaxmetric.search.nearest_neighbour(x, x, k=3)": "nearest_neighbour",
    'jaxmetric.supcon_loss(x, y, reduction="men")': "supcon_loss",
    'jaxmetric.triplet_loss(x, y, mining="hardest")': "triplet_loss",
    'jaxmetric.quadruplet_loss(x, y, reduction="none")': "quadruplet_loss",
    'jaxmetric.nca_loss(x, y, distance="l2")': "nca_loss",
    'mining.batch_easy_hard(x, x > 0, x < 0, positive="hardest")': "batch_easy_hard",
}


def test_the_stub_matches_the_sources():
    pytest.importorskip("ruff", reason="needs the extra `dev`")
    assert STUB.read_text() == stub(), "run `python -m tests.write_stub`"


@pytest.mark.parametrize("name", LOSSES)
def test_the_stub_has_the_arguments_of_each_loss(name):
    overloads = [node for node in ast.parse(STUB.read_text()).body if getattr(node, "name", "") == name]
    assert len(overloads) == 3
    for node in overloads:
        written = [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
        assert written == list(inspect.signature(getattr(jaxmetric, name)).parameters)


# pyright is no extra, as it may download a runtime of its own.
CHECKERS = {"mypy": ["--strict", "--config-file=", "--follow-imports=silent"], "pyright": []}


@pytest.mark.slow
@pytest.mark.parametrize("checker", CHECKERS)
def test_a_user_file_passes_a_strict_type_checker_that_finds_misspelled_options(checker, tmp_path):
    pytest.importorskip(checker, reason=f"needs {checker}")
    path, lines = tmp_path / "user.py", GOOD.count("\n")
    path.write_text(GOOD + "\n".join(BAD) + "\n")
    command = [sys.executable, "-m", checker, *CHECKERS[checker], str(path)]
    ran = subprocess.run(command, capture_output=True, text=True)
    errors = [line for line in ran.stdout.splitlines() if re.search(r":\d+(: error: |:\d+ - error: )", line)]
    assert len(errors) == len(BAD), ran.stdout + ran.stderr
    for number, (error, loss) in enumerate(zip(errors, BAD.values(), strict=True), lines + 1):
        assert f"user.py:{number}:" in error
        assert loss in error
