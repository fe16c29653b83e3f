"""The losses made of log-sum-exps against the peer's, value and gradient. Needs the extra `parity`."""

from functools import partial

import jax
import numpy as np
import pytest

from jaxmetric.losses import log_sum_exp
from jaxmetric.references import References

torch = pytest.importorskip("torch", reason="needs the extra `parity`")
pml = pytest.importorskip("pytorch_metric_learning", reason="needs the extra `parity`")
from pytorch_metric_learning import distances, losses, reducers  # noqa: E402

pytestmark = pytest.mark.parity

B, C, D = 24, 5, 8
MEAN = reducers.MeanReducer()


def euclidean(power=1):
    return distances.LpDistance(normalize_embeddings=False, p=2, power=power)


PEERS = {
    "ntxent": (partial(log_sum_exp.ntxent_loss, temperature=0.07), losses.NTXentLoss(temperature=0.07)),
    "ntxent, warm": (partial(log_sum_exp.ntxent_loss, temperature=1.5), losses.NTXentLoss(temperature=1.5)),
    "tuplet_margin": (
        partial(log_sum_exp.tuplet_margin_loss, margin=np.radians(5.73), scale=64.0),
        losses.TupletMarginLoss(margin=5.73, scale=64),
    ),
    "tuplet_margin, wide": (
        partial(log_sum_exp.tuplet_margin_loss, margin=np.radians(30), scale=4.0),
        losses.TupletMarginLoss(margin=30, scale=4),
    ),
    "supcon": (log_sum_exp.supcon_loss, losses.SupConLoss(reducer=MEAN)),
    # By default theirs is the mean over the anchors with a loss above 0.
    "supcon, active": (partial(log_sum_exp.supcon_loss, reduction="mean_active"), losses.SupConLoss()),
    "nca": (
        partial(log_sum_exp.nca_loss, softmax_scale=0.3),
        losses.NCALoss(softmax_scale=0.3, distance=euclidean(power=2)),
    ),
    "multi_similarity": (log_sum_exp.multi_similarity_loss, losses.MultiSimilarityLoss()),
    "multi_similarity, flat": (
        partial(log_sum_exp.multi_similarity_loss, alpha=1.0, beta=3.0, base=0.2),
        losses.MultiSimilarityLoss(alpha=1, beta=3, base=0.2),
    ),
    "circle": (log_sum_exp.circle_loss, losses.CircleLoss()),
    "circle, flat": (partial(log_sum_exp.circle_loss, margin=0.25, gamma=2.0), losses.CircleLoss(m=0.25, gamma=2)),
    "lifted_structure": (log_sum_exp.lifted_structure_loss, losses.LiftedStructureLoss(distance=euclidean())),
    # Only the difference of their two margins matters.
    "lifted_structure, margins": (
        partial(log_sum_exp.lifted_structure_loss, margin=0.4),
        losses.LiftedStructureLoss(neg_margin=0.7, pos_margin=0.3, distance=euclidean()),
    ),
    "generalized_lifted_structure": (
        log_sum_exp.generalized_lifted_structure_loss,
        losses.GeneralizedLiftedStructureLoss(distance=euclidean()),
    ),
    "generalized_lifted_structure, margins": (
        partial(log_sum_exp.generalized_lifted_structure_loss, margin=0.4),
        losses.GeneralizedLiftedStructureLoss(neg_margin=0.7, pos_margin=0.3, distance=euclidean()),
    ),
}


def example(seed=0):
    """Every class has several examples."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(B, D)).astype(np.float32), rng.permutation(np.arange(B) % C)


def value_and_gradient(loss, embeddings, *arguments, **options):
    embeddings = torch.tensor(embeddings, requires_grad=True)
    value = loss(embeddings, *(torch.tensor(argument) for argument in arguments), **options)
    value.backward()
    return value.item(), embeddings.grad.numpy()


def ours(loss, embeddings, labels, **options):
    return jax.jit(jax.value_and_grad(partial(loss, labels=labels, **options)))(embeddings)


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("name", PEERS)
def test_value_and_gradient(name):
    loss, theirs = PEERS[name]
    assert_equal(ours(loss, *example()), value_and_gradient(theirs, *example()))


@pytest.mark.parametrize("name", [name for name in PEERS if not name.startswith("lifted") and "active" not in name])
def test_references(name):
    """Theirs compares the batch with `ref_emb`; of LiftedStructureLoss see below."""
    loss, theirs = PEERS[name]
    others, other_labels = example(1)
    theirs = partial(theirs, ref_emb=torch.tensor(others), ref_labels=torch.tensor(other_labels))
    assert_equal(
        ours(loss, *example(), references=References(others, other_labels)), value_and_gradient(theirs, *example())
    )


def test_lifted_structure_with_references_differs():
    """Theirs then takes the number of a positive among the references for that of an example of the batch.

    So the negatives of the positive are those of an unrelated example. Ours are its own, among the references.
    """
    embeddings, labels = example()
    others, other_labels = example(1)
    references = References(others, other_labels)
    theirs = losses.LiftedStructureLoss(distance=euclidean())
    value, _ = value_and_gradient(
        partial(theirs, ref_emb=torch.tensor(others), ref_labels=torch.tensor(other_labels)), embeddings, labels
    )
    to_others, between = (np.sqrt(((x[:, None] - others[None]) ** 2).sum(-1)) for x in (embeddings, others))
    unlike, unlike_between = (x[:, None] != other_labels[None] for x in (labels, other_labels))
    near, near_between = np.exp(1 - to_others) * unlike, np.exp(1 - between) * unlike_between

    def mean(of_positive):
        pairs = zip(*np.nonzero(~unlike), strict=True)
        return np.mean([max(to_others[a, p] + np.log(near[a].sum() + of_positive(a, p)), 0) ** 2 / 2 for a, p in pairs])

    np.testing.assert_allclose(value, mean(lambda a, p: near[p].sum() * (a != p)), rtol=1e-5)
    loss = log_sum_exp.lifted_structure_loss(embeddings, labels, references=references)
    np.testing.assert_allclose(loss, mean(lambda a, p: near_between[p].sum()), rtol=1e-5)


def test_n_pairs_of_one_pair_per_class():
    """Theirs takes of each class the first pair; given those as anchors and references, ours is the same loss."""
    embeddings, labels = example()
    first, second = (np.array([np.flatnonzero(labels == c)[i] for c in range(C)]) for i in (0, 1))

    def loss(embeddings):
        return log_sum_exp.n_pairs_loss(
            embeddings[first], np.arange(C), references=References(embeddings[second], np.arange(C))
        )

    theirs = losses.NPairsLoss(distance=distances.DotProductSimilarity(normalize_embeddings=False))
    assert_equal(jax.jit(jax.value_and_grad(loss))(embeddings), value_and_gradient(theirs, embeddings, labels))


def test_n_pairs_over_everything_is_their_ntxent_of_inner_products():
    theirs = losses.NTXentLoss(temperature=1, distance=distances.DotProductSimilarity(normalize_embeddings=False))
    assert_equal(ours(log_sum_exp.n_pairs_loss, *example()), value_and_gradient(theirs, *example()))


def test_instance_of_distinct_labels():
    embeddings, _ = example()
    assert_equal(
        ours(partial(log_sum_exp.instance_loss, gamma=5.0), embeddings, np.arange(B)),
        value_and_gradient(losses.InstanceLoss(gamma=5), embeddings, np.arange(B)),
    )


def test_instance_of_repeated_labels_differs():
    """Theirs takes the k-th example of the batch for the class vector of the k-th label, whatever its own label is.

    So it depends on the order of the batch. Ours takes the examples of a label for its class vectors.
    """
    embeddings, labels = example()
    order = np.random.default_rng(3).permutation(B)
    theirs = losses.InstanceLoss(gamma=5)
    value, permuted = (value_and_gradient(theirs, embeddings[o], labels[o])[0] for o in (np.arange(B), order))
    assert abs(value - permuted) > 1e-3
    one, other = (log_sum_exp.instance_loss(embeddings[o], labels[o], gamma=5.0) for o in (np.arange(B), order))
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_nca_without_positives_is_nan_there_and_0_here():
    embeddings, _ = example()
    value, _ = value_and_gradient(losses.NCALoss(), embeddings, np.arange(B))
    assert np.isnan(value)
    assert log_sum_exp.nca_loss(embeddings, np.arange(B)) == 0


def test_nca_drops_far_positives_there_and_keeps_them_here():
    """Where exp underflows, their loss is computed without the anchor: of those whose positives are the farthest."""
    embeddings, labels = np.float32([[0.0], [20.0], [1.0], [19.5]]), np.array([0, 0, 1, 2])
    theirs = losses.NCALoss(distance=euclidean(power=2))
    with pytest.raises(AssertionError):
        assert_equal(ours(log_sum_exp.nca_loss, embeddings, labels), value_and_gradient(theirs, embeddings, labels))
    # Anchor 0: 20 away from its positive, 1 from the nearest other; anchor 1: 20 and 0.5. All else is below rounding.
    expected = ((20**2 - 1**2) + (20**2 - 0.5**2)) / 2
    np.testing.assert_allclose(log_sum_exp.nca_loss(embeddings, labels), expected, rtol=1e-6)


def test_ntxent_of_an_unlikely_positive_is_capped_there():
    """They add the smallest normal number to the probability before taking its logarithm; ours is exact, as above."""
    embeddings, labels = np.float32([[1, 0], [-1, 0], [1, 0]]), np.array([0, 0, 1])
    value, gradient = value_and_gradient(losses.NTXentLoss(temperature=0.01), embeddings, labels)
    loss, _ = ours(partial(log_sum_exp.ntxent_loss, temperature=0.01), embeddings, labels)
    # (1, 0) to (-1, 0): (1 - -1) / 0.01 = 200; and back: two equal similarities, log 2.
    np.testing.assert_allclose(loss, (200 + np.log(2)) / 2, rtol=1e-6)
    assert value < 0.5 * loss


def test_anchors_without_a_positive_count_there_and_not_here():
    """As in the code of its authors, multi-similarity needs both; the same holds of the generalized lifted structure.

    Theirs takes the logarithm of an empty sum for 0, so that an example alone in its class is pushed away from all.
    """
    embeddings, labels = example()
    labels[0] = 99
    without = np.arange(B) != 0
    for ours_of, theirs in [
        (log_sum_exp.multi_similarity_loss, losses.MultiSimilarityLoss()),
        (
            log_sum_exp.generalized_lifted_structure_loss,
            losses.GeneralizedLiftedStructureLoss(distance=euclidean()),
        ),
    ]:
        theirs.reducer = reducers.DoNothingReducer()
        each = theirs(torch.tensor(embeddings), torch.tensor(labels))["loss"]["losses"].reshape(-1).numpy()
        assert each[0] > 0
        losses_here = ours_of(embeddings, labels, reduction="none")
        np.testing.assert_allclose(losses_here, np.where(without, each, 0), rtol=1e-4)


def test_coinciding_positives_have_an_angle_here_and_a_nan_there():
    embeddings, labels = example()
    embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    embeddings[5:10] = embeddings[:5] = np.eye(D, dtype=np.float32)[:5]
    labels = np.arange(B) % C
    _, gradient = value_and_gradient(losses.TupletMarginLoss(), embeddings, labels)
    assert not np.isfinite(gradient).all()
    assert np.isfinite(ours(log_sum_exp.tuplet_margin_loss, embeddings, labels)[1]).all()
