"""Miners: functions that select the pairs of a batch worth learning from, by their distances.

`label_pairs` returns masks of the positives and the negatives of each anchor. A miner keeps some of both and returns
them as one mask `[A, R]`, which losses take as `pairs=`:

    positives, negatives = label_pairs(labels)
    pairs = multi_similarity(pairwise_cosine_distance(embeddings), positives, negatives, epsilon=0.1)
    loss = contrastive_loss(embeddings, labels, pairs=pairs)

Every miner takes `[A, R]` distances (for a similarity s: 1 - s, or -s) and the two masks. It keeps only pairs that are
in one of the masks. It keeps all of those whose distance is NaN, so that the loss shows the NaN. A triplet miner keeps
the pairs (a, p) and (a, n) of each triplet (a, p, n) that it finds, and nothing for an anchor without a triplet. The
functions at the end return indices of references instead. No gradient flows through this module.
"""

import math
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxmetric import _checks as checks
from jaxmetric.agreement import known_labels
from jaxmetric.distances import pairwise_squared_euclidean
from jaxmetric.numerics import as_float
from jaxmetric.references import References, check_own_rows, check_references, own_pairs

Hardness: TypeAlias = Literal["easy", "hard", "semi-hard", "all"]


def label_pairs(
    labels: ArrayLike, references: References | None = None, *, where: ArrayLike | None = None
) -> tuple[jax.Array, jax.Array]:
    """Returns which references have the same class as each anchor, and which have another class.

    Args:
      labels: `[A]` or `[A, 1]` integers.
      references: what the anchors are compared with; the batch itself if not given.
      where: `[A]` booleans: which anchors are valid.

    Returns:
      `positives` and `negatives`, `[A, R]` booleans. Both exclude the anchor itself, whose row is `references.own`, and
      examples that are masked or have weight 0.

    Raises:
      ValueError: if a shape does not fit.
      TypeError: if a dtype does not.

    Example:
      >>> import jax.numpy as jnp
      >>> positives, negatives = label_pairs(jnp.array([7, 7, 4]))
      >>> positives.tolist()
      [[False, True, False], [True, False, False], [False, False, False]]
      >>> negatives.tolist()
      [[False, False, True], [False, False, True], [True, True, False]]
    """
    check_references(references)
    labels, valid = _column("labels", labels, where)
    others, others_valid, own = labels, valid, jnp.eye(labels.size, dtype=bool)
    if references is not None:
        others, others_valid = _column("references.labels", references.labels, references.where)
        if references.weights is not None:
            others_valid &= checks.check_array("references.weights", references.weights, "numbers").reshape(-1) != 0
        own = own_pairs(check_own_rows(references, labels.size), labels.size, others.size)
    compared = valid[:, None] & others_valid[None, :] & ~own
    same = labels[:, None] == others[None, :]
    return compared & same, compared & ~same


def batch_hard(distances: ArrayLike, positives: ArrayLike, negatives: ArrayLike) -> jax.Array:
    """Keeps the farthest positive and the nearest negative of each anchor; the first of equal ones.

    Args:
      distances: `[A, R]`.
      positives: `[A, R]` booleans.
      negatives: `[A, R]` booleans.

    Returns:
      `[A, R]` booleans.

    Raises:
      ValueError: if the shapes differ.
      TypeError: if a mask is not boolean.

    Example:
      >>> import jax.numpy as jnp
      >>> distances = jnp.array([[0.1, 0.4, 0.3, 0.9]])
      >>> batch_hard(distances, jnp.array([[1, 1, 0, 0]], bool), jnp.array([[0, 0, 1, 1]], bool)).tolist()
      [[False, True, True, False]]

    References:
      A. Hermans, L. Beyer, B. Leibe, In Defense of the Triplet Loss for Person Re-Identification, 2017.
    """
    return batch_easy_hard(distances, positives, negatives, positive="hard", negative="hard")


def batch_easy_hard(
    distances: ArrayLike,
    positives: ArrayLike,
    negatives: ArrayLike,
    *,
    positive: Hardness = "easy",
    negative: Hardness = "semi-hard",
) -> jax.Array:
    """Keeps one positive and one negative per anchor, each of them the easy, the hard or the semi-hard one.

    The easy positive is the nearest, which lets a class form several clusters; the hard positive is the farthest. The
    hard negative is the nearest, and the easy negative the farthest. The semi-hard negative is the nearest one that is
    farther than the selected positive. The semi-hard positive is the farthest one that is nearer than the selected
    negative.

    Args:
      distances: `[A, R]`.
      positives: `[A, R]` booleans.
      negatives: `[A, R]` booleans.
      positive: `"easy"`, `"hard"`, `"semi-hard"`, or `"all"` to keep every positive.
      negative: the same for negatives. At most one of the two can be `"semi-hard"`, and the other must not be `"all"`
        then.

    Returns:
      `[A, R]` booleans; the first of equal ones.

    Raises:
      ValueError: if the shapes differ, a name is unknown or the two do not go together.
      TypeError: if a mask is not boolean.

    Example:
      >>> import jax.numpy as jnp
      >>> distances = jnp.array([[0.2, 0.4, 0.1, 0.3]])
      >>> batch_easy_hard(distances, jnp.array([[1, 1, 0, 0]], bool), jnp.array([[0, 0, 1, 1]], bool)).tolist()
      [[True, False, False, True]]

    References:
      H. Xuan, A. Stylianou, R. Pless, Improved Embeddings with Easy Positive Triplet Mining, WACV 2020.
    """
    distances, positives, negatives = _check(distances, positives, negatives)
    candidates = positives | negatives
    checks.check_choice("positive", positive, get_args(Hardness))
    checks.check_choice("negative", negative, get_args(Hardness))
    if (positive, negative) in (("semi-hard", "semi-hard"), ("semi-hard", "all"), ("all", "semi-hard")):
        expected = "'easy' or 'hard'" if positive == "semi-hard" else "'easy' or 'hard' or 'all'"
        raise ValueError(f"negative is {negative!r}, expected {expected} with positive {positive!r}")
    # Farther positives are harder; nearer negatives are harder.
    hardness_of_positives = -distances if positive == "easy" else distances
    hardness_of_negatives = distances if negative == "easy" else -distances
    if positive == "semi-hard":
        keep_negatives = _hardest(hardness_of_negatives, negatives)
        nearer = distances < _value_of(keep_negatives, distances)
        keep_positives = _hardest(hardness_of_positives, positives & nearer)
    else:
        keep_positives = positives if positive == "all" else _hardest(hardness_of_positives, positives)
        if negative == "semi-hard":
            negatives = negatives & (distances > _value_of(keep_positives, distances))
        keep_negatives = negatives if negative == "all" else _hardest(hardness_of_negatives, negatives)
    both = jnp.any(keep_positives, axis=1, keepdims=True) & jnp.any(keep_negatives, axis=1, keepdims=True)
    return _keep_nan((keep_positives | keep_negatives) & both, distances, candidates)


def triplet_margin(
    distances: ArrayLike, positives: ArrayLike, negatives: ArrayLike, *, margin: float = 0.2, kind: Hardness = "all"
) -> jax.Array:
    """Keeps the pairs of the triplets in which the negative is not farther than the positive by more than the margin.

    With the gap d(a, n) - d(a, p), these are the triplets whose gap is at most the margin (`"all"`), at most 0
    (`"hard"`), above 0 and at most the margin (`"semi-hard"`), or above the margin (`"easy"`).

    Args:
      distances: `[A, R]`.
      positives: `[A, R]` booleans.
      negatives: `[A, R]` booleans.
      margin: >= 0.
      kind: which of the four.

    Returns:
      `[A, R]` booleans: the pairs that are part of such a triplet. A loss over triplets uses every triplet of these
      pairs, including triplets that combine pairs from different selected ones.

    Raises:
      ValueError: if the shapes differ, the margin is negative or the kind unknown.
      TypeError: if a mask is not boolean.

    Example:
      >>> import jax.numpy as jnp
      >>> distances = jnp.array([[0.2, 0.5, 0.1, 0.6]])
      >>> positives, negatives = jnp.array([[1, 1, 0, 0]], bool), jnp.array([[0, 0, 1, 1]], bool)
      >>> triplet_margin(distances, positives, negatives).tolist()
      [[True, True, True, True]]
      >>> triplet_margin(distances, positives, negatives, kind="hard").tolist()  # 0.6 is farther than both positives
      [[True, True, True, False]]
    """
    distances, positives, negatives = _check(distances, positives, negatives)
    margin = checks.check_scalar("margin", margin, least=0)
    intervals = {"all": (-jnp.inf, margin), "hard": (-jnp.inf, 0), "semi-hard": (0, margin), "easy": (margin, jnp.inf)}
    checks.check_choice("kind", kind, intervals)
    return _pairs_with_gap(distances, positives, negatives, *intervals[kind])


def semi_hard(distances: ArrayLike, positives: ArrayLike, negatives: ArrayLike, *, margin: float = 0.2) -> jax.Array:
    """Keeps the pairs of the triplets whose negative is farther than the positive, but by no more than the margin.

    Args:
      distances: `[A, R]`.
      positives: `[A, R]` booleans.
      negatives: `[A, R]` booleans.
      margin: >= 0.

    Returns:
      `[A, R]` booleans, as `triplet_margin(..., kind="semi-hard")`.

    Raises:
      ValueError: if the shapes differ or the margin is negative.
      TypeError: if a mask is not boolean.

    Example:
      >>> import jax.numpy as jnp
      >>> distances = jnp.array([[0.2, 0.5, 0.1, 0.6]])
      >>> semi_hard(distances, jnp.array([[1, 1, 0, 0]], bool), jnp.array([[0, 0, 1, 1]], bool)).tolist()
      [[False, True, False, True]]

    References:
      F. Schroff, D. Kalenichenko, J. Philbin, FaceNet: A Unified Embedding for Face Recognition and Clustering, CVPR
      2015.
    """
    return triplet_margin(distances, positives, negatives, margin=margin, kind="semi-hard")


def distance_weighted(
    key: jax.Array,
    distances: ArrayLike,
    positives: ArrayLike,
    negatives: ArrayLike,
    *,
    dim: int,
    cutoff: float = 0.5,
    nonzero_loss_cutoff: float = 1.4,
) -> jax.Array:
    r"""Draws as many negatives per anchor as it has positives, evenly over the possible distances.

    On the unit sphere in D dimensions, distances have the density :math:`q(d) \propto d^{D-2} (1 - d^2/4)^{(D-3)/2}`.
    A negative is drawn with probability proportional to 1 / q(max(d, cutoff)), without replacement.

    Args:
      key: a `jax.random` key.
      distances: `[A, R]` Euclidean distances of embeddings of length 1.
      positives: `[A, R]` booleans.
      negatives: `[A, R]` booleans.
      dim: D >= 1, the size of the embeddings.
      cutoff: in (0, 2): nearer negatives are drawn as if they were this far, which bounds the variance.
      nonzero_loss_cutoff: in (0, 2]: negatives at this distance or farther are not drawn; their loss would be 0.

    Returns:
      `[A, R]` booleans: the drawn negatives (all that are near enough, if these are fewer than the positives), and all
      positives of every anchor with a drawn negative.

    Raises:
      ValueError: if the shapes differ or a number is out of range.
      TypeError: if a mask is not boolean.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> distances = jnp.array([[0.3, 0.9, 1.5]])
      >>> positives, negatives = jnp.array([[1, 0, 0]], bool), jnp.array([[0, 1, 1]], bool)
      >>> distance_weighted(jax.random.key(0), distances, positives, negatives, dim=8).tolist()
      [[True, True, False]]

    References:
      C.-Y. Wu, R. Manmatha, A. J. Smola, P. Krähenbühl, Sampling Matters in Deep Embedding Learning, ICCV 2017.
    """
    distances, positives, negatives = _check(distances, positives, negatives)
    dim = checks.check_scalar("dim", dim, least=1)
    cutoff = checks.check_scalar("cutoff", cutoff, above=0, below=2)
    nonzero_loss_cutoff = checks.check_scalar("nonzero_loss_cutoff", nonzero_loss_cutoff, above=0, most=2)
    return _draw_by_distance(key, distances, positives, negatives, dim, cutoff, nonzero_loss_cutoff)


def multi_similarity(
    distances: ArrayLike, positives: ArrayLike, negatives: ArrayLike, *, epsilon: float = 0.1
) -> jax.Array:
    """Keeps positives farther than the nearest negative, and negatives nearer than the farthest positive, or nearly so.

    A positive is kept if d(a, p) + epsilon > min_n d(a, n), a negative if d(a, n) - epsilon < max_p d(a, p). The paper
    states the same conditions for the similarities 1 - d.

    Args:
      distances: `[A, R]`; cosine distances in the paper.
      positives: `[A, R]` booleans.
      negatives: `[A, R]` booleans.
      epsilon: the slack.

    Returns:
      `[A, R]` booleans.

    Raises:
      ValueError: if the shapes differ.
      TypeError: if a mask is not boolean.

    Example:
      >>> import jax.numpy as jnp
      >>> distances = jnp.array([[0.2, 0.5, 0.4, 0.7]])
      >>> multi_similarity(distances, jnp.array([[1, 1, 0, 0]], bool), jnp.array([[0, 0, 1, 1]], bool)).tolist()
      [[False, True, True, False]]

    References:
      X. Wang, X. Han, W. Huang, D. Dong, M. R. Scott, Multi-Similarity Loss with General Pair Weighting for Deep Metric
      Learning, CVPR 2019.
    """
    distances, positives, negatives = _check(distances, positives, negatives)
    epsilon = checks.check_scalar("epsilon", epsilon)
    nearest = jnp.min(jnp.where(negatives, distances, jnp.inf), axis=1, keepdims=True, initial=jnp.inf)
    farthest = jnp.max(jnp.where(positives, distances, -jnp.inf), axis=1, keepdims=True, initial=-jnp.inf)
    kept = (positives & (distances + epsilon > nearest)) | (negatives & (distances - epsilon < farthest))
    return _keep_nan(kept, distances, positives | negatives)


def pair_margin(
    distances: ArrayLike,
    positives: ArrayLike,
    negatives: ArrayLike,
    *,
    pos_margin: float = 0.2,
    neg_margin: float = 0.8,
) -> jax.Array:
    """Keeps positives farther than one margin and negatives nearer than another.

    Args:
      distances: `[A, R]`.
      positives: `[A, R]` booleans.
      negatives: `[A, R]` booleans.
      pos_margin: positives are kept above this distance.
      neg_margin: negatives are kept below this distance.

    Returns:
      `[A, R]` booleans.

    Raises:
      ValueError: if the shapes differ.
      TypeError: if a mask is not boolean.

    Example:
      >>> import jax.numpy as jnp
      >>> distances = jnp.array([[0.1, 0.5, 0.4, 0.9]])
      >>> pair_margin(distances, jnp.array([[1, 1, 0, 0]], bool), jnp.array([[0, 0, 1, 1]], bool)).tolist()
      [[False, True, True, False]]
    """
    distances, positives, negatives = _check(distances, positives, negatives)
    pos_margin = checks.check_scalar("pos_margin", pos_margin)
    neg_margin = checks.check_scalar("neg_margin", neg_margin)
    kept = (positives & (distances > pos_margin)) | (negatives & (distances < neg_margin))
    return _keep_nan(kept, distances, positives | negatives)


def hard_aware(distances: ArrayLike, positives: ArrayLike, negatives: ArrayLike, *, share: float = 0.5) -> jax.Array:
    """Keeps a share of the whole batch's positives, the farthest, and the same share of its negatives, the nearest.

    Args:
      distances: `[A, R]`.
      positives: `[A, R]` booleans.
      negatives: `[A, R]` booleans.
      share: in [0, 1]; the resulting number is rounded up.

    Returns:
      `[A, R]` booleans; the first of equal ones.

    Raises:
      ValueError: if the shapes differ or the share is out of range.
      TypeError: if a mask is not boolean.

    Example:
      >>> import jax.numpy as jnp
      >>> distances = jnp.array([[0.1, 0.5, 0.4, 0.9]])
      >>> hard_aware(distances, jnp.array([[1, 1, 0, 0]], bool), jnp.array([[0, 0, 1, 1]], bool)).tolist()
      [[False, True, True, False]]

    References:
      Y. Yuan, K. Yang, C. Zhang, Hard-Aware Deeply Cascaded Embedding, ICCV 2017.
    """
    distances, positives, negatives = _check(distances, positives, negatives)
    share = checks.check_scalar("share", share, least=0, most=1)
    return _share_of_the_hardest(distances, positives, negatives, share)


def uniform_histogram(
    key: jax.Array,
    distances: ArrayLike,
    positives: ArrayLike,
    negatives: ArrayLike,
    *,
    num_bins: int = 100,
    pos_per_bin: int = 10,
    neg_per_bin: int = 10,
) -> jax.Array:
    """Draws pairs of the whole batch evenly over their distances, with a maximum number per bin of distances.

    The bins divide the range of the positives' distances, and that of the negatives', into equal parts.

    Args:
      key: a `jax.random` key.
      distances: `[A, R]`.
      positives: `[A, R]` booleans.
      negatives: `[A, R]` booleans.
      num_bins: >= 1, static.
      pos_per_bin: how many positives to draw from each bin, without replacement; all if it has fewer.
      neg_per_bin: how many negatives.

    Returns:
      `[A, R]` booleans.

    Raises:
      ValueError: if the shapes differ or a number is below 1.
      TypeError: if a mask is not boolean.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> distances, none = jnp.linspace(0, 1, 1000)[None, :], jnp.zeros((1, 1000), bool)
      >>> pairs = uniform_histogram(jax.random.key(0), distances, ~none, none, num_bins=4, pos_per_bin=10)
      >>> int(pairs.sum()), int(pairs[0, :250].sum())
      (40, 10)
    """
    distances, positives, negatives = _check(distances, positives, negatives)
    num_bins = checks.check_static_integer("num_bins", num_bins, least=1)
    pos_per_bin = checks.check_static_integer("pos_per_bin", pos_per_bin, least=1)
    neg_per_bin = checks.check_static_integer("neg_per_bin", neg_per_bin, least=1)
    return _draw_from_bins(key, distances, positives, negatives, pos_per_bin, neg_per_bin, num_bins=num_bins)


def angular(
    embeddings: ArrayLike,
    positives: ArrayLike,
    negatives: ArrayLike,
    *,
    angle: float = math.pi / 9,
    references: References | None = None,
) -> jax.Array:
    r"""Keeps the pairs of the triplets with a large angle at the negative.

    With the center :math:`c = (a + p) / 2`, a triplet is kept if :math:`\arctan(|a - p| / (2 |n - c|))` is above the
    angle. Only O(A R + R^2) numbers are in memory at a time; the time is O(A R^2).

    Args:
      embeddings: `[A, D]`.
      positives: `[A, R]` booleans.
      negatives: `[A, R]` booleans.
      angle: in (0, pi / 2) radians.
      references: what the anchors are compared with; the batch itself if not given.

    Returns:
      `[A, R]` booleans: the pairs that are part of such a triplet.

    Raises:
      ValueError: if the shapes do not fit or the angle is out of range.
      TypeError: if a mask is not boolean.

    Example:
      >>> import jax.numpy as jnp
      >>> points = jnp.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 3.0], [0.0, 2.0]])
      >>> positives, negatives = label_pairs(jnp.array([0, 0, 1, 2]))
      >>> angular(points, positives, negatives, angle=0.4)[0].tolist()  # arctan(1/3) = 0.32, arctan(1/2) = 0.46
      [False, True, False, True]

    References:
      J. Wang, F. Zhou, S. Wen, X. Liu, Y. Lin, Deep Metric Learning with Angular Loss, ICCV 2017.
    """
    angle = checks.check_scalar("angle", angle, above=0, below=math.pi / 2, unit="radians")
    check_references(references)
    embeddings = checks.check_embeddings(embeddings)
    others = (
        embeddings if references is None else checks.check_embeddings(references.embeddings, "references.embeddings")
    )
    squared = pairwise_squared_euclidean(embeddings, others)
    squared, positives, negatives = _check(squared, positives, negatives)
    between = jax.lax.stop_gradient(pairwise_squared_euclidean(others))
    return _pairs_under_angle(squared, between, positives, negatives, jnp.tan(angle))


def hardest_positives(distances: ArrayLike, positives: ArrayLike) -> jax.Array:
    """Returns `[A]`: for each anchor the index of its farthest positive (0 if it has none)."""
    distances = _check_distances(distances)
    return jnp.argmax(jnp.where(_check_mask("positives", positives, distances), distances, -jnp.inf), axis=1)


def easiest_positives(distances: ArrayLike, positives: ArrayLike) -> jax.Array:
    """Returns `[A]`: for each anchor the index of its nearest positive (0 if it has none)."""
    distances = _check_distances(distances)
    return jnp.argmin(jnp.where(_check_mask("positives", positives, distances), distances, jnp.inf), axis=1)


def hardest_negatives(distances: ArrayLike, negatives: ArrayLike) -> jax.Array:
    """Returns `[A]`: for each anchor the index of its nearest negative (0 if it has none)."""
    distances = _check_distances(distances)
    return jnp.argmin(jnp.where(_check_mask("negatives", negatives, distances), distances, jnp.inf), axis=1)


def semi_hard_negatives(distances: ArrayLike, negatives: ArrayLike) -> jax.Array:
    """Returns `[A, B]`: for each anchor and reference the index of the nearest negative beyond that reference.

    If no negative is farther, it is the index of the farthest negative. The index is undefined for an anchor without
    negatives, or with a negative at distance NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> distances = jnp.array([[0.0, 2.0, 1.0, 3.0]])
      >>> semi_hard_negatives(distances, jnp.array([[False, False, True, True]])).tolist()
      [[2, 3, 3, 3]]

    References:
      F. Schroff, D. Kalenichenko, J. Philbin, FaceNet: A Unified Embedding for Face Recognition and Clustering, CVPR
      2015.
    """
    distances = _check_distances(distances)
    return _next_negatives(distances, _check_mask("negatives", negatives, distances))


@jax.jit
def _next_negatives(distances: jax.Array, negatives: jax.Array) -> jax.Array:
    def next_negatives(distance: jax.Array, negative: jax.Array) -> jax.Array:
        ascending, index = jax.lax.sort((jnp.where(negative, distance, jnp.inf), jnp.arange(distance.size)), num_keys=1)
        farther = jnp.searchsorted(ascending, distance, side="right")
        return index[jnp.clip(farther, 0, jnp.sum(negative) - 1)]

    return jax.vmap(next_negatives)(distances, negatives)


def _hardest(hardness: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns `[A, R]`: the first hardest entry of each row of the mask; NaN counts as hardest."""
    index = jnp.argmax(jnp.where(mask, hardness, -jnp.inf), axis=1)
    return mask & (jnp.arange(mask.shape[1])[None, :] == index[:, None])


def _value_of(chosen: jax.Array, distances: jax.Array) -> jax.Array:
    """Returns `[A, 1]`: the distance of the selected entry of each row."""
    return jnp.sum(jnp.where(chosen, distances, 0), axis=1, keepdims=True)


@jax.jit
def _pairs_with_gap(
    distances: jax.Array, positives: jax.Array, negatives: jax.Array, low: float, high: float
) -> jax.Array:
    """Returns the pairs of the triplets with low < d(a, n) - d(a, p) <= high."""
    has_partner = jax.vmap(_has_partner, in_axes=(0, 0, None, None))
    kept_positives = positives & has_partner(distances, negatives, low, high)
    kept_negatives = negatives & has_partner(-distances, positives, low, high)
    return _keep_nan(kept_positives | kept_negatives, distances, positives | negatives)


def _has_partner(values: jax.Array, mask: jax.Array, low: float, high: float) -> jax.Array:
    """Returns `[R]`: whether the mask has a value u with low < u - v <= high, for each value v."""
    mask = mask & ~jnp.isnan(values)
    ascending = jnp.sort(jnp.where(mask, values, jnp.inf))
    index = jnp.searchsorted(ascending, values + low, side="right")
    nearest = ascending[jnp.minimum(index, values.size - 1)]
    return (index < jnp.sum(mask)) & (nearest - values <= high)


@jax.jit
def _draw_by_distance(
    key: jax.Array,
    distances: jax.Array,
    positives: jax.Array,
    negatives: jax.Array,
    dim: int,
    cutoff: float,
    nonzero_loss_cutoff: float,
) -> jax.Array:
    # At a distance of 2 the density is 0 and its inverse is undefined.
    near = negatives & (distances < nonzero_loss_cutoff) & (distances < 2)
    d = jnp.where(near, jnp.maximum(distances, cutoff), 1)
    log_weights = (2.0 - dim) * jnp.log(d) - (dim - 3.0) / 2 * jnp.log1p(-jnp.square(d / 2))
    # Selecting the largest log-weights plus Gumbel noise draws without replacement, and needs no exponentials.
    scores = jnp.where(near, log_weights + jax.random.gumbel(key, d.shape, d.dtype), -jnp.inf)
    count = jnp.minimum(jnp.sum(positives, axis=1), jnp.sum(near, axis=1))[:, None]
    descending = -jnp.sort(-scores, axis=1)
    lowest = jnp.take_along_axis(descending, jnp.maximum(count - 1, 0), axis=1)
    kept = (near & (scores >= lowest) | positives) & (count > 0)
    return _keep_nan(kept, distances, positives | negatives)


@jax.jit
def _share_of_the_hardest(distances: jax.Array, positives: jax.Array, negatives: jax.Array, share: float) -> jax.Array:
    kept = jnp.zeros(distances.shape, bool)
    for mask, easiness in ((positives, -distances), (negatives, distances)):
        rank = _rank_in_group((~mask).astype(jnp.int32), easiness, num_groups=2)
        count = jnp.ceil(share * jnp.sum(mask, dtype=distances.dtype))
        kept |= mask & (rank < count.astype(rank.dtype))
    return _keep_nan(kept, distances, positives | negatives)


@partial(jax.jit, static_argnames="num_bins")
def _draw_from_bins(
    key: jax.Array,
    distances: jax.Array,
    positives: jax.Array,
    negatives: jax.Array,
    pos_per_bin: int,
    neg_per_bin: int,
    *,
    num_bins: int,
) -> jax.Array:
    kept = jnp.zeros(distances.shape, bool)
    sides = zip(jax.random.split(key), (positives, negatives), (pos_per_bin, neg_per_bin), strict=True)
    for side_key, mask, per_bin in sides:
        mask = mask & ~jnp.isnan(distances)
        low = jnp.min(distances, where=mask, initial=jnp.inf)
        width = (jnp.max(distances, where=mask, initial=-jnp.inf) - low) / num_bins
        position = jnp.where(mask & (width > 0), (distances - low) / jnp.where(width > 0, width, 1), 0)
        index = jnp.where(mask, jnp.clip(position.astype(jnp.int32), 0, num_bins - 1), num_bins)
        rank = _rank_in_group(index, jax.random.uniform(side_key, mask.shape), num_groups=num_bins + 1)
        kept |= mask & (rank < per_bin)
    return _keep_nan(kept, distances, positives | negatives)


def _rank_in_group(group: jax.Array, score: jax.Array, *, num_groups: int) -> jax.Array:
    """Returns the rank, from 0, of each entry's score within its group (0 to num_groups - 1)."""
    flat = jnp.arange(group.size, dtype=jnp.int32)
    groups, _, index = jax.lax.sort((group.ravel(), score.ravel(), flat), num_keys=2, is_stable=True)
    start = jnp.searchsorted(groups, jnp.arange(num_groups, dtype=groups.dtype))
    rank = flat - start[groups].astype(jnp.int32)
    return jnp.zeros_like(flat).at[index].set(rank, unique_indices=True).reshape(group.shape)


@jax.jit
def _pairs_under_angle(
    squared: jax.Array, between: jax.Array, positives: jax.Array, negatives: jax.Array, tangent: jax.Array
) -> jax.Array:
    # As 4 |n - c|^2 = 2 |n - a|^2 + 2 |n - p|^2 - |a - p|^2, the condition is |n - a|^2 + |n - p|^2 < factor |a - p|^2.
    factor = (1 + tangent**2) / (2 * tangent**2)
    candidates, known = positives | negatives, ~jnp.isnan(squared)
    between = jnp.where(jnp.isnan(between), jnp.inf, between)

    def kept_pairs(row: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        to, positive, negative = row
        reach = jnp.where(positive, factor * to, -jnp.inf)
        least = jnp.min(jnp.where(negative, to, jnp.inf)[:, None] + between, axis=0, initial=jnp.inf)
        most = jnp.max(reach[:, None] - between, axis=0, initial=-jnp.inf)
        return (positive & (least < reach)) | (negative & (to < most))

    kept = jax.lax.map(kept_pairs, (squared, positives & known, negatives & known))
    return _keep_nan(kept, squared, candidates)


def _keep_nan(kept: jax.Array, distances: jax.Array, candidates: jax.Array) -> jax.Array:
    """Adds the candidates at distance NaN, which no comparison selects, so that the loss shows the NaN."""
    return kept | (candidates & jnp.isnan(distances))


def _column(name: str, labels: Any, where: Any) -> tuple[jax.Array, jax.Array]:
    columns, known = known_labels(labels, where, name)
    if columns.shape[1] != 1:
        raise ValueError(f"{name} has shape {columns.shape}, expected one column")
    return columns[:, 0], known[:, 0]


def _check(distances: Any, positives: Any, negatives: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    distances = _check_distances(distances)
    return distances, _check_mask("positives", positives, distances), _check_mask("negatives", negatives, distances)


def _check_distances(distances: Any) -> jax.Array:
    distances = jax.lax.stop_gradient(as_float(checks.check_array("distances", distances, "floats")))
    if distances.ndim != 2:
        raise ValueError(f"distances has shape {distances.shape}, expected [A, R]")
    return distances


def _check_mask(name: str, mask: Any, distances: jax.Array) -> jax.Array:
    mask = checks.check_booleans(name, mask)
    if mask.shape != distances.shape:
        raise ValueError(f"{name} has shape {mask.shape}, expected {distances.shape} as distances")
    return mask
