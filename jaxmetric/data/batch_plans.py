"""Batch plans: the images of each batch as a pure function of (seed, step).

A run that resumes at step 7,000 computes batch 7,000 without replaying earlier ones, and every process of a
multi-host run computes the same batch. `make_plan` samples P classes x K images, `make_uniform_plan` samples
images of any class. `batch_indices` gives the images of a step, `visit_counts` the number of visits to each
class before a step, and `plan_fingerprint` a digest to compare plans.

An epoch of the C classes is ceil(C / P) batches, so (epoch, batch) is a division of the step, and the
permutation of an epoch is seeded by (seed, epoch). If P does not divide C, the last batch lacks f classes.
They come from a fixed order, the next f in each epoch. The number of earlier visits to a class therefore has a
closed form. It selects the images in the same way: an epoch of a class with n images is ceil(n / K) visits,
permuted by (seed, class, epoch).
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_CLASSES, _FILLERS, _IMAGES = range(3)


@dataclass(frozen=True, eq=False)
class Plan:
    """The input of `batch_indices`, made by `make_plan` or `make_uniform_plan`.

    Attributes:
      groups: the indices of the images of each class. Images without a class form one more group.
      classes_per_batch: P.
      images_per_class: K.
      seed: seed of the batches.
    """

    groups: tuple[np.ndarray, ...]
    classes_per_batch: int
    images_per_class: int
    seed: int

    @property
    def batch_size(self) -> int:
        """P K."""
        return self.classes_per_batch * self.images_per_class


def make_plan(
    class_ids: np.ndarray,
    *,
    classes_per_batch: int,
    images_per_class: int,
    seed: int = 0,
    where: np.ndarray | None = None,
) -> Plan:
    """Makes a plan of batches of P distinct classes with K images each.

    Every epoch of ceil(C / P) batches visits each class at least once, and all classes are visited equally often
    in the long run. The K images of a class are distinct if it has at least K images; otherwise they repeat.
    A class with n images shows all of them in every ceil(n / K) visits.

    Args:
      class_ids: integers `[N]`. Images without a class (-1) form one more class, so that they are visited too.
      classes_per_batch: P, at most the number of classes.
      images_per_class: K.
      seed: a non-negative integer.
      where: booleans `[N]`, the images to sample from (all by default), such as `source.split == 0`.

    Returns:
      The plan. Its indices refer to all N images, including those that `where` excludes.

    Raises:
      ValueError: if P or K is below 1, a batch has fewer than 2 images, or there are fewer than P classes.

    Example:
      >>> class_ids = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
      >>> plan = make_plan(class_ids, classes_per_batch=2, images_per_class=3)
      >>> class_ids[batch_indices(plan, step=1000)].reshape(2, 3).std(axis=1)
      array([0., 0.])
    """
    class_ids = np.asarray(class_ids)
    if class_ids.ndim != 1 or not np.issubdtype(class_ids.dtype, np.integer):
        raise ValueError(f"class_ids must be integers [N], got {class_ids.dtype} {class_ids.shape}")
    allowed = _allowed(len(class_ids), where)
    members = allowed[np.argsort(class_ids[allowed], kind="stable")]
    _, starts = np.unique(class_ids[members], return_index=True)
    groups = tuple(np.split(members, starts[1:])) if len(members) else ()
    return _checked(Plan(groups, classes_per_batch, images_per_class, seed))


def make_uniform_plan(num_images: int, *, batch_size: int, seed: int = 0, where: np.ndarray | None = None) -> Plan:
    """Makes a plan of uniformly random batches. Every epoch of ceil(N / batch_size) batches visits every image.

    It is the plan of `make_plan` with all images in one class, and has the same guarantees.

    Args:
      num_images: N.
      batch_size: at least 2. The images of a batch are distinct if there are enough of them.
      seed: a non-negative integer.
      where: booleans `[N]`, the images to sample from (all by default).

    Returns:
      The plan.

    Raises:
      ValueError: if the batch size is below 2 or there is no image to draw.

    Example:
      >>> plan = make_uniform_plan(5, batch_size=5)
      >>> sorted(batch_indices(plan, step=3).tolist())
      [0, 1, 2, 3, 4]
    """
    return _checked(Plan((_allowed(num_images, where),), 1, batch_size, seed))


def batch_indices(plan: Plan, step: int) -> np.ndarray:
    """Returns the indices of the images of batch `step`, int64 `[P K]`, class by class.

    Args:
      plan: from `make_plan` or `make_uniform_plan`.
      step: counts from 0, without an upper limit.

    Returns:
      Indices of images, with the K images of each class next to each other.

    Raises:
      ValueError: if the step is negative.
    """
    epoch, batch = _position(plan, step)
    classes = _epoch_of_classes(plan.seed, len(plan.groups), plan.classes_per_batch, epoch)[batch]
    visits = visit_counts(plan, step)
    return np.concatenate([_images(plan, int(c), int(visits[c])) for c in classes])


def visit_counts(plan: Plan, step: int) -> np.ndarray:
    """Counts how often the batches before `step` visit each group of the plan, int64 `[C]`.

    Args:
      plan: from `make_plan` or `make_uniform_plan`.
      step: counts from 0.

    Returns:
      One count per entry of `plan.groups`.

    Raises:
      ValueError: if the step is negative.

    Example:
      >>> plan = make_plan(np.array([0, 1, 2]), classes_per_batch=2, images_per_class=1)
      >>> visit_counts(plan, step=6)  # 12 visits of 3 classes
      array([4, 4, 4])
    """
    epoch, batch = _position(plan, step)
    num_classes, per_batch = len(plan.groups), plan.classes_per_batch
    counts = np.full(num_classes, epoch, np.int64)
    rounds, rest = divmod(epoch * _shortfall(num_classes, per_batch), num_classes)
    order = _filler_order(plan.seed, num_classes)
    counts[order] += rounds
    counts[order[:rest]] += 1
    counts[_epoch_of_classes(plan.seed, num_classes, per_batch, epoch)[:batch].ravel()] += 1
    return counts


def plan_fingerprint(plan: Plan) -> str:
    """Returns 16 hexadecimal digits that differ between plans with different batches.

    Example:
      >>> plan_fingerprint(make_uniform_plan(5, batch_size=5)) == plan_fingerprint(make_uniform_plan(6, batch_size=5))
      False
    """
    digest = hashlib.sha256(f"{plan.classes_per_batch} {plan.images_per_class} {plan.seed}".encode())
    for group in plan.groups:
        digest.update(f" {len(group)} ".encode() + group.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def _checked(plan: Plan) -> Plan:
    P, K = plan.classes_per_batch, plan.images_per_class
    if P < 1 or K < 1:
        raise ValueError(f"a batch needs at least one class and one image of each, got {P} classes x {K} images")
    if P * K < 2:
        raise ValueError(f"a batch needs at least 2 images to compare, got {P} classes x {K} images")
    if not plan.groups or not len(plan.groups[0]):
        raise ValueError("there is no image to draw batches from")
    if len(plan.groups) < P:
        raise ValueError(f"classes_per_batch is {P}, but there are only {len(plan.groups)} classes to draw from")
    if plan.seed < 0:
        raise ValueError(f"seed must not be negative, got {plan.seed}")
    return plan


def _allowed(num_images: int, where: np.ndarray | None) -> np.ndarray:
    if where is None:
        return np.arange(num_images)
    where = np.asarray(where)
    if where.shape != (num_images,) or where.dtype != bool:
        raise ValueError(f"where must be booleans [{num_images}], got {where.dtype} {where.shape}")
    return np.flatnonzero(where)


def _position(plan: Plan, step: int) -> tuple[int, int]:
    """Returns the epoch of `step` and the batch within it."""
    if step < 0:
        raise ValueError(f"step must not be negative, got {step}")
    return divmod(step, -(-len(plan.groups) // plan.classes_per_batch))


def _shortfall(num_classes: int, per_batch: int) -> int:
    return -num_classes % per_batch


def _filler_order(seed: int, num_classes: int) -> np.ndarray:
    return _permutation(num_classes, seed, _FILLERS)


@lru_cache(maxsize=4)
def _epoch_of_classes(seed: int, num_classes: int, per_batch: int, epoch: int) -> np.ndarray:
    """Returns the classes of each batch of an epoch, `[ceil(C / P), P]`: each once, this epoch's fillers twice.

    A filler must not be in the last batch twice, so the other classes of that batch are chosen among non-fillers.
    """
    shortfall = _shortfall(num_classes, per_batch)
    turn = (epoch * shortfall + np.arange(shortfall)) % num_classes
    fillers = _filler_order(seed, num_classes)[turn]
    shuffled = _permutation(num_classes, seed, _CLASSES, epoch)
    others = shuffled[~np.isin(shuffled, fillers)]
    last = others[: per_batch - shortfall]
    first = shuffled[~np.isin(shuffled, last)]
    return np.concatenate([first, last, fillers]).reshape(-1, per_batch)


def _images(plan: Plan, group: int, visit: int) -> np.ndarray:
    """Returns the K images of a group at a given visit, which counts from 0."""
    members, K = plan.groups[group], plan.images_per_class
    epoch, turn = divmod(visit, -(-len(members) // K))
    places = np.arange(turn * K, (turn + 1) * K) % len(members)
    return members[_permutation(len(members), plan.seed, _IMAGES, group, epoch)[places]]


@lru_cache(maxsize=4)
def _permutation(length: int, *key: int) -> np.ndarray:
    """Returns a permutation from raw random bits, which numpy keeps stable, unlike `Generator.permutation`."""
    return np.argsort(np.random.Philox(np.random.SeedSequence(key)).random_raw(length), kind="stable")
