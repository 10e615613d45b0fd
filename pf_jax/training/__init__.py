"""Training: the state, the step of one device, the loop, checkpoints and the log."""

from pf_jax.training.checkpoint import CheckpointMeta, load
from pf_jax.training.config import OptimizerConfig, TrainConfig
from pf_jax.training.loop import train
from pf_jax.training.state import TrainState
from pf_jax.training.step import eval_step, train_step

__all__ = [
    "CheckpointMeta",
    "OptimizerConfig",
    "TrainConfig",
    "TrainState",
    "eval_step",
    "load",
    "train",
    "train_step",
]
