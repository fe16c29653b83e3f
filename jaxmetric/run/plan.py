"""Selects the images of the batches of a run."""

import numpy as np

from jaxmetric.data import LEARNING, LabeledImages, Plan, make_plan, make_uniform_plan
from jaxmetric.data.problems import counted
from jaxmetric.run.config import BatchConfig
from jaxmetric.run.errors import ConfigError


def make_batch_plan(batch: BatchConfig, source: LabeledImages, *, seed: int) -> Plan:
    """Returns the plan of the batches: P identities x K images, or uniformly drawn images.

    Raises:
      ConfigError: if there are fewer than P identities to learn.
    """
    learning, groups = source.split == LEARNING, learning_groups(source)
    if batch.classes_per_batch > groups:
        fitting = f"a number from 1 to {groups}, or 0 for batches of images drawn at random" if groups > 1 else "1"
        raise ConfigError(
            f"classes_per_batch is {batch.classes_per_batch}, but the learning images have "
            f"{counted(groups, 'value')} of {source.columns[0].name}; give --classes-per-batch {fitting}"
        )
    if not batch.classes_per_batch:
        return make_uniform_plan(len(source), batch_size=batch.images_per_class, seed=seed, where=learning)
    return make_plan(
        source.labels[:, 0],
        classes_per_batch=batch.classes_per_batch,
        images_per_class=batch.images_per_class,
        seed=seed,
        where=learning,
    )


def learning_groups(source: LabeledImages) -> int:
    """Counts the values of the identity among the learning images; missing values count as one."""
    return len(np.unique(source.labels[source.split == LEARNING, 0]))
