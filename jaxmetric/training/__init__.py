"""Training: the state, the per-device step, checkpoints, metric files and signals.

There is no trainer class. `jaxmetric/run/train.py` is a loop over these functions, to read and copy.
"""

from jaxmetric._extras import require

require(__name__, "flax", "optax", "orbax", "tensorboardX")

from jaxmetric.training.checkpoints import (
    CheckpointError,
    open_checkpoints,
    restore_best,
    restore_latest,
    save_checkpoint,
)
from jaxmetric.training.embedding import Embed, make_embed
from jaxmetric.training.loop import (
    MetricWindow,
    NonFiniteLossError,
    StopRequest,
    check_finite,
    profiled,
    stop_on_signals,
)
from jaxmetric.training.state import Rate, TrainState, create_state, make_optimizer, make_schedule
from jaxmetric.training.step import make_train_step
from jaxmetric.training.writers import MetricWriter, read_json, read_metrics, write_atomically

__all__ = [
    "CheckpointError",
    "Embed",
    "MetricWindow",
    "MetricWriter",
    "NonFiniteLossError",
    "Rate",
    "StopRequest",
    "TrainState",
    "check_finite",
    "create_state",
    "make_embed",
    "make_optimizer",
    "make_schedule",
    "make_train_step",
    "open_checkpoints",
    "profiled",
    "read_json",
    "read_metrics",
    "restore_best",
    "restore_latest",
    "save_checkpoint",
    "stop_on_signals",
    "write_atomically",
]
