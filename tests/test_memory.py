from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmetric import memory as xbm
from jaxmetric.references import References


def batch(rng, size, num_labels=None):
    shape = (size,) if num_labels is None else (size, num_labels)
    return rng.normal(size=(size, 3)).astype(np.float32), rng.integers(0, 5, shape).astype(np.int32)


def content(memory):
    """The valid rows of a memory, as a sorted list."""
    rows = np.concatenate([memory.embeddings, np.reshape(memory.labels, (len(memory.labels), -1))], axis=1)
    filled = np.reshape(memory.where, (len(memory.where), -1)).any(1)
    return sorted(map(tuple, rows[filled].tolist()))


def assert_holds(memory, embeddings, labels):
    rows = np.concatenate([embeddings, np.reshape(labels, (len(labels), -1))], axis=1)
    assert content(memory) == sorted(map(tuple, rows.tolist()))


def test_a_new_memory_holds_nothing():
    memory = xbm.init(6, 3)
    assert content(memory) == []
    assert not xbm.as_references(memory).where.any()


@pytest.mark.parametrize("num_labels", [None, 1, 4])
@pytest.mark.parametrize("size", [1, 4, 6, 7, 20])
def test_it_holds_the_newest_examples(size, num_labels):
    rng = np.random.default_rng(0)
    memory, seen = xbm.init(size, 3, num_labels=num_labels), [batch(rng, 0, num_labels)]
    for _ in range(5):
        seen.append(batch(rng, 6, num_labels))
        memory = xbm.update(memory, *seen[-1])
        embeddings, labels = (np.concatenate(each)[-size:] for each in zip(*seen, strict=True))
        assert_holds(memory, embeddings, labels)
    assert memory.labels.shape == ((size,) if num_labels is None else (size, num_labels))


def test_masked_examples_are_skipped_as_if_they_had_been_deleted():
    rng = np.random.default_rng(1)
    memory, expected = xbm.init(7, 3), xbm.init(7, 3)
    for _ in range(4):
        embeddings, labels = batch(rng, 5)
        where = rng.random(5) < 0.6
        poisoned = np.where(where[:, None], embeddings, np.nan)
        memory = xbm.update(memory, poisoned, labels, where)
        expected = xbm.update(expected, embeddings[where], labels[where])
        jax.tree.map(np.testing.assert_array_equal, memory, expected)
    embeddings, labels = batch(rng, 5)
    jax.tree.map(np.testing.assert_array_equal, xbm.update(memory, embeddings, labels, np.zeros(5, bool)), memory)


def test_single_missing_labels_are_kept_as_missing():
    embeddings, labels = batch(np.random.default_rng(0), 3, num_labels=2)
    where = np.array([[True, False], [False, False], [True, True]])
    memory = xbm.update(xbm.init(4, 3, num_labels=2), embeddings, labels, where)
    assert memory.where.tolist() == [[True, False], [True, True], [False, False], [False, False]]
    np.testing.assert_array_equal(memory.embeddings[:2], embeddings[[0, 2]])


def test_the_memory_alone_as_references():
    embeddings, labels = batch(np.random.default_rng(0), 2)
    references = xbm.as_references(xbm.update(xbm.init(3, 3), embeddings, labels))
    assert isinstance(references, References)
    np.testing.assert_array_equal(references.embeddings[:2], embeddings)
    np.testing.assert_array_equal(references.labels[:2], labels)
    assert references.where.tolist() == [True, True, False]
    assert references.weights is None
    assert references.own is None


@pytest.mark.parametrize("num_labels", [None, 2])
def test_the_batch_comes_first_and_own_gives_its_rows(num_labels):
    rng = np.random.default_rng(0)
    old, new = batch(rng, 2, num_labels), batch(rng, 4, num_labels)
    memory = xbm.update(xbm.init(3, 3, num_labels=num_labels), *old)
    where = np.array([True, True, False, True])
    references = xbm.as_references(memory, *new, where=where, weights=np.float32([1, 2, 3, 4]))
    np.testing.assert_array_equal(references.embeddings[:6], np.concatenate([new[0], old[0]]))
    np.testing.assert_array_equal(references.labels[:6], np.concatenate([new[1], old[1]]))
    np.testing.assert_array_equal(references.weights, [1, 2, 3, 4, 1, 1, 1])
    np.testing.assert_array_equal(references.own, np.arange(4))
    valid = np.array([True, True, False, True, True, True, False])
    np.testing.assert_array_equal(references.where, valid if num_labels is None else np.stack([valid] * 2, axis=1))
    assert xbm.as_references(memory, *new).weights is None


def test_remembered_embeddings_are_detached_and_those_of_the_batch_are_not():
    embeddings, labels = batch(np.random.default_rng(0), 2)

    def total(embeddings):
        memory = xbm.update(xbm.init(3, 3), embeddings, labels)
        return jnp.sum(xbm.as_references(memory, 2 * embeddings, labels).embeddings)

    np.testing.assert_array_equal(jax.grad(total)(embeddings), 2)


def test_scan_jit_and_donation_give_what_a_loop_gives():
    rng = np.random.default_rng(0)
    batches = [batch(rng, 4) for _ in range(5)]
    expected = xbm.init(6, 3)
    for each in batches:
        expected = xbm.update(expected, *each)
    stacked = tuple(np.stack(each) for each in zip(*batches, strict=True))
    scanned, _ = jax.lax.scan(lambda memory, each: (xbm.update(memory, *each), None), xbm.init(6, 3), stacked)
    jax.tree.map(np.testing.assert_array_equal, scanned, expected)
    donating, donated = jax.jit(xbm.update, donate_argnums=0), xbm.init(6, 3)
    for each in batches:
        before, donated = donated, donating(donated, *each)
        assert before.embeddings.is_deleted()
    jax.tree.map(np.testing.assert_array_equal, donated, expected)


def test_every_device_remembers_the_gathered_batch():
    devices = 4
    embeddings, labels = batch(np.random.default_rng(0), 8)

    @partial(jax.pmap, axis_name="devices", in_axes=(None, 0, 0), out_axes=None, devices=jax.devices()[:devices])
    def step(memory, embeddings, labels):
        gathered = (jax.lax.all_gather(each, "devices", tiled=True) for each in (embeddings, labels))
        return xbm.update(memory, *gathered)

    memory = step(xbm.init(16, 3), embeddings.reshape(devices, 2, 3), labels.reshape(devices, 2))
    jax.tree.map(np.testing.assert_array_equal, memory, xbm.update(xbm.init(16, 3), embeddings, labels))


def test_a_memory_in_half_precision_gives_references_in_float32():
    embeddings, labels = batch(np.random.default_rng(0), 2)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        memory = jax.jit(xbm.update)(xbm.init(3, 3, dtype=jnp.bfloat16), embeddings, labels)
    assert memory.embeddings.dtype == jnp.bfloat16
    assert xbm.as_references(memory, embeddings, labels).embeddings.dtype == jnp.float32
    np.testing.assert_allclose(memory.embeddings[:2].astype(float), embeddings, rtol=1e-2)


@pytest.mark.parametrize("sizes", [(0, 3, None), (4, 0, None), (4, 3, 0)])
def test_sizes_below_1_are_named(sizes):
    with pytest.raises(ValueError, match=r"(size|dim|num_labels) is 0, expected a static integer of at least 1"):
        xbm.init(*sizes[:2], num_labels=sizes[2])


@pytest.mark.parametrize("function", [xbm.update, xbm.as_references])
def test_a_batch_that_does_not_fit_is_named(function):
    memory, embeddings, labels = xbm.init(4, 3), np.ones((2, 3), np.float32), np.ones(2, np.int32)
    with pytest.raises(ValueError, match=r"embeddings has shape \(2, 5\), expected \[B, 3\] as the memory"):
        function(memory, np.ones((2, 5), np.float32), labels)
    with pytest.raises(TypeError, match=r"embeddings has dtype int32, expected a floating-point dtype"):
        function(memory, np.ones((2, 3), np.int32), labels)
    with pytest.raises(ValueError, match=r"labels has shape \(2, 2\), expected \(2,\) as embeddings and the memory"):
        function(memory, embeddings, np.ones((2, 2), np.int32))
    with pytest.raises(ValueError, match=r"labels has shape \(3,\), expected \(2,\)"):
        function(memory, embeddings, np.ones(3, np.int32))
    with pytest.raises(ValueError, match=r"labels has 4294967295, expected integers that fit int32"):
        function(memory, embeddings, np.full(2, 2**32 - 1, np.uint32))


def test_an_incomplete_batch_is_named():
    memory = xbm.init(4, 3)
    for arguments in ({"embeddings": np.ones((2, 3))}, {"labels": np.ones(2, int)}, {"weights": np.ones(2)}):
        with pytest.raises(ValueError, match=r"(embeddings|labels) is None, expected that of the batch"):
            xbm.as_references(memory, **arguments)
    with pytest.raises(ValueError, match=r"weights has shape \(3,\), expected \(2,\) as embeddings"):
        xbm.as_references(memory, np.ones((2, 3)), np.ones(2, int), weights=np.ones(3))
