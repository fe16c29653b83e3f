"""What stands around the losses, beside pytorch-metric-learning: distances, miners, regularizers, memory, views.

Their miners return triplets or pairs of indices; ours the mask of the pairs in them, so that sets of pairs are
compared. Needs the extra `parity`; skipped without it.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmetric import memory as xbm
from jaxmetric import mining, regularizers
from jaxmetric.distances import (
    pairwise_cosine_distance,
    pairwise_cosine_similarity,
    pairwise_dot_product,
    pairwise_euclidean,
    pairwise_lp,
    pairwise_snr,
    pairwise_squared_euclidean,
)
from jaxmetric.losses.log_sum_exp import ntxent_loss
from jaxmetric.references import References
from jaxmetric.views import self_supervised

torch = pytest.importorskip("torch", reason="needs the extra `parity`")
pml = pytest.importorskip("pytorch_metric_learning", reason="needs the extra `parity`")
from pytorch_metric_learning import distances, losses, miners  # noqa: E402
from pytorch_metric_learning import regularizers as their_regularizers  # noqa: E402

pytestmark = pytest.mark.parity

A, R, C, D = 24, 30, 5, 8
raw = {"normalize_embeddings": False}


def example(seed=0, size=A, normalized=True):
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(size, D))
    if normalized:
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings.astype(np.float32), rng.integers(0, C, size)


def torch_value_and_gradients(function, *arrays):
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    value = function(*tensors)
    value.backward()
    return value.item(), *(tensor.grad.numpy() for tensor in tensors)


def assert_equal(ours, theirs, **tolerance):
    for one, other in zip(jax.tree.leaves(ours), theirs, strict=True):
        np.testing.assert_allclose(one, other, **{"rtol": 1e-4, "atol": 3e-6, **tolerance})


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (pairwise_squared_euclidean, distances.LpDistance(p=2, power=2, **raw)),
        (pairwise_euclidean, distances.LpDistance(**raw)),
        (partial(pairwise_lp, p=1), distances.LpDistance(p=1, **raw)),
        (partial(pairwise_lp, p=3, power=2), distances.LpDistance(p=3, power=2, **raw)),
        (partial(pairwise_lp, p=math.inf), distances.LpDistance(p=math.inf, **raw)),
        (pairwise_cosine_similarity, distances.CosineSimilarity()),
        (pairwise_dot_product, distances.DotProductSimilarity(**raw)),
        (pairwise_snr, distances.SNRDistance(**raw)),
    ],
)
def test_distances(ours, theirs):
    x, y = example(normalized=False)[0], example(1, R, normalized=False)[0]
    cotangent = np.random.default_rng(2).normal(size=(A, R)).astype(np.float32)
    value_and_grad = jax.jit(jax.value_and_grad(lambda x, y: jnp.sum(ours(x, y) * cotangent), argnums=(0, 1)))
    expected = torch_value_and_gradients(lambda x, y: torch.sum(theirs(x, y) * torch.tensor(cotangent)), x, y)
    assert_equal(value_and_grad(x, y), expected, atol=1e-4)


def test_snr_distances_from_an_anchor_without_signal_are_zero_here_and_infinite_there():
    constant, other = np.full((1, D), 0.5, np.float32), example(size=1)[0]
    assert pairwise_snr(constant, other) == 0
    assert distances.SNRDistance(**raw)(torch.tensor(constant), torch.tensor(other)).isinf()


def pairs_of(mined):
    """The pairs in the triplets (a, p, n), or in the pairs (a1, p) and (a2, n), that a miner of theirs returns."""
    a1, p, a2, n = mined if len(mined) == 4 else (mined[0], mined[1], mined[0], mined[2])
    return {*zip(a1.tolist(), p.tolist(), strict=True), *zip(a2.tolist(), n.tolist(), strict=True)}


def pairs_in(mask):
    return set(zip(*(index.tolist() for index in np.nonzero(np.asarray(mask))), strict=True))


def mine_both(ours, theirs, distance, *, referenced, normalized=True):
    """The sets of pairs of our miner, given our distances, and of theirs; of a batch, or with references."""
    x, labels = example(normalized=normalized)
    y, others = example(1, R, normalized=normalized)
    if referenced:
        masks = mining.label_pairs(labels, References(y, others))
        mined = theirs(*map(torch.tensor, (x, labels, y, others)))
    else:
        masks = mining.label_pairs(labels)
        mined = theirs(torch.tensor(x), torch.tensor(labels))
    return pairs_in(ours(distance(x, y if referenced else None), *masks)), pairs_of(mined)


euclidean = distances.LpDistance(**raw)
batch_or_references = pytest.mark.parametrize("referenced", [False, True])


@batch_or_references
def test_batch_hard(referenced):
    ours, theirs = mine_both(
        mining.batch_hard, miners.BatchHardMiner(distance=euclidean), pairwise_euclidean, referenced=referenced
    )
    assert ours == theirs


@pytest.mark.parametrize(
    ("positive", "negative"),
    [
        ("easy", "semi-hard"),
        ("easy", "hard"),
        ("easy", "easy"),
        ("hard", "semi-hard"),
        ("semi-hard", "hard"),
        ("semi-hard", "easy"),
        ("easy", "all"),
        ("all", "hard"),
        ("all", "all"),
    ],
)
@batch_or_references
def test_batch_easy_hard(positive, negative, referenced):
    their_names = {"pos_strategy": positive.replace("-", ""), "neg_strategy": negative.replace("-", "")}
    ours, theirs = mine_both(
        partial(mining.batch_easy_hard, positive=positive, negative=negative),
        miners.BatchEasyHardMiner(distance=euclidean, **their_names),
        pairwise_euclidean,
        referenced=referenced,
    )
    assert ours == theirs


def test_with_all_positives_an_anchor_without_negatives_keeps_nothing_here_and_its_positives_there():
    x, labels = example()[0], np.zeros(A, int)
    theirs = miners.BatchEasyHardMiner(pos_strategy="all", neg_strategy="hard")(torch.tensor(x), torch.tensor(labels))
    assert len(pairs_of(theirs)) == A * (A - 1)
    masks = mining.label_pairs(labels)
    assert not mining.batch_easy_hard(pairwise_euclidean(x), *masks, positive="all", negative="hard").any()


@pytest.mark.parametrize("kind", ["all", "hard", "semi-hard", "easy"])
@batch_or_references
def test_triplet_margin(kind, referenced):
    ours, theirs = mine_both(
        partial(mining.triplet_margin, margin=0.1, kind=kind),
        miners.TripletMarginMiner(margin=0.1, type_of_triplets=kind.replace("-", ""), distance=euclidean),
        pairwise_euclidean,
        referenced=referenced,
    )
    assert ours == theirs


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
@batch_or_references
def test_multi_similarity(epsilon, referenced):
    ours, theirs = mine_both(
        partial(mining.multi_similarity, epsilon=epsilon),
        miners.MultiSimilarityMiner(epsilon=epsilon),
        pairwise_cosine_distance,
        referenced=referenced,
        normalized=False,
    )
    assert ours == theirs


@batch_or_references
def test_pair_margin(referenced):
    ours, theirs = mine_both(
        partial(mining.pair_margin, pos_margin=1.1, neg_margin=1.2),
        miners.PairMarginMiner(pos_margin=1.1, neg_margin=1.2, distance=euclidean),
        pairwise_euclidean,
        referenced=referenced,
    )
    assert ours == theirs


def test_hard_aware():
    ours, theirs = mine_both(
        partial(mining.hard_aware, share=0.3),
        miners.HDCMiner(filter_percentage=0.3, distance=euclidean),
        partial(pairwise_euclidean),
        referenced=True,
    )
    assert ours == theirs


@pytest.mark.parametrize("angle", [20, 35])
@batch_or_references
def test_angular(angle, referenced):
    x, labels = example()
    y, others = example(1, R)
    references = References(y, others) if referenced else None
    mask = mining.angular(x, *mining.label_pairs(labels, references), angle=np.radians(angle), references=references)
    arrays = (x, labels, y, others) if referenced else (x, labels)
    assert pairs_in(mask) == pairs_of(miners.AngularMiner(angle=angle)(*map(torch.tensor, arrays)))


def test_distance_weighted():
    """They draw, with replacement, one negative for each of as many positives as the class has examples.

    So the sets differ from draw to draw. Over many draws they find no pair that we do not, and negatives of anchors
    with a single positive, where drawing with or without replacement is the same, alike often.
    """
    x, labels = example()
    labels = np.where(np.arange(A) < 2, C, labels)  # a class of two: one positive, and at least two triplets there
    theirs, torch_labels = miners.DistanceWeightedMiner(), torch.tensor(labels)
    torch.manual_seed(0)
    masks = mining.label_pairs(labels)
    counts = np.zeros((A, A))
    drawn = np.zeros((A, A), bool)
    for _ in range(300):
        a, p, n = theirs(torch.tensor(x), torch_labels)
        np.add.at(counts, (a.numpy(), n.numpy()), 1)
        drawn[a.numpy(), p.numpy()] = drawn[a.numpy(), n.numpy()] = True
    keys = jax.random.split(jax.random.key(0), 2000)
    ours = jax.vmap(lambda key: mining.distance_weighted(key, pairwise_euclidean(x), *masks, dim=D))(keys)
    assert pairs_in(drawn) <= pairs_in(ours.any(axis=0))
    frequency = np.where(masks[1], ours.mean(axis=0), 0)[:2]
    np.testing.assert_allclose(frequency, counts[:2] / counts[:2].sum(1, keepdims=True), atol=0.08)


def test_distance_weighted_draws_far_negatives_here_and_none_there():
    """Their weights are relative to the largest of the batch: in high dimensions those of far anchors vanish."""
    distances_of_two = np.float32([[0, 1, 1.35, 1.35], [1, 0, 1.35, 1.35], [1.35, 1.35, 0, 0.6], [1.35, 1.35, 0.6, 0]])
    labels, dim = np.array([0, 0, 1, 2]), 512

    class Given(distances.LpDistance):
        def forward(self, query, ref=None):
            return torch.tensor(distances_of_two)

    their_pairs = pairs_of(miners.DistanceWeightedMiner(distance=Given())(torch.ones(4, dim), torch.tensor(labels)))
    masks = mining.label_pairs(labels)
    assert not their_pairs
    assert mining.distance_weighted(jax.random.key(0), distances_of_two, *masks, dim=dim).sum() == 4


def test_uniform_histogram():
    """They draw from each bin with replacement, we without: of all the pairs of the bins, or as many as there are."""
    x, labels = example()
    miner = miners.UniformHistogramMiner(num_bins=20, pos_per_bin=3, neg_per_bin=3, distance=euclidean)
    masks = mining.label_pairs(labels)
    draw = partial(mining.uniform_histogram, jax.random.key(0), pairwise_euclidean(x), *masks, num_bins=20)
    assert pairs_of(miner(torch.tensor(x), torch.tensor(labels))) <= pairs_in(
        draw(pos_per_bin=A * A, neg_per_bin=A * A)
    )
    a, p, _, n = miner(torch.tensor(x), torch.tensor(labels))
    ours = np.asarray(draw(pos_per_bin=3, neg_per_bin=3))
    for mask, drawn_there in ((masks[0], p), (masks[1], n)):
        occupied = len(drawn_there) // 3  # three from every bin that is not empty
        assert occupied <= (ours & mask).sum() <= 3 * occupied


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (regularizers.lp_regularizer, their_regularizers.LpRegularizer()),
        (partial(regularizers.lp_regularizer, p=1, power=2), their_regularizers.LpRegularizer(p=1, power=2)),
        (regularizers.zero_mean_regularizer, their_regularizers.ZeroMeanRegularizer()),
        (regularizers.center_invariant_regularizer, their_regularizers.CenterInvariantRegularizer()),
        (regularizers.regular_face_regularizer, their_regularizers.RegularFaceRegularizer()),
    ],
)
def test_regularizers(ours, theirs):
    x = example(normalized=False)[0]
    assert_equal(jax.jit(jax.value_and_grad(ours))(x), torch_value_and_gradients(theirs, x))


def test_cross_batch_memory():
    """Theirs enqueues the batch first and compares it with its detached copy.

    So a queue of theirs that has room for the batch as well holds what our references are made of.
    """
    batches = [example(seed, size=6) for seed in range(5)]
    theirs = losses.CrossBatchMemory(losses.NTXentLoss(temperature=0.1), embedding_size=D, memory_size=14 + 6)
    memory = xbm.init(14, D)

    @jax.jit
    def step(memory, embeddings, labels):
        def loss(embeddings):
            references = xbm.as_references(memory, jax.lax.stop_gradient(embeddings), labels)
            return ntxent_loss(embeddings, labels, references=references, temperature=0.1)

        return jax.value_and_grad(loss)(embeddings), xbm.update(memory, embeddings, labels)

    for embeddings, labels in batches:
        ours, memory = step(memory, embeddings, labels)
        assert_equal(ours, torch_value_and_gradients(lambda x, y=labels: theirs(x, torch.tensor(y)), embeddings))


@pytest.mark.parametrize("symmetric", [True, False])
def test_self_supervised(symmetric):
    first, second = example()[0], example(1)[0]
    loss = self_supervised(partial(ntxent_loss, temperature=0.1), symmetric=symmetric)
    ours = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(first, second)
    theirs = losses.SelfSupervisedLoss(losses.NTXentLoss(temperature=0.1), symmetric=symmetric)
    assert_equal(ours, torch_value_and_gradients(theirs, first, second))
