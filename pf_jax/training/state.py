"""What training changes: one pytree, donated to each step and saved in each checkpoint."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Int, PRNGKeyArray, UInt32

from pf_jax.config import PoolformerConfig
from pf_jax.poolformer import Poolformer
from pf_jax.training.config import OptimizerConfig, TrainConfig
from pf_jax.training.schedules import make_schedule

Params = Any
"""The weights of a model: the pytree that `split_model` returns."""


class Run(Protocol):
    """What the config of any training run has.

    Attributes:
        optimizer: The optimizer and its schedule.
        num_steps: Steps of the whole run.
    """

    optimizer: OptimizerConfig
    num_steps: int


class TrainState(NamedTuple):
    """The state of a training run after `step` steps.

    Attributes:
        step: The number of steps taken, those that were skipped included.
        skipped: The number of steps that were skipped, since their loss or gradient was not finite
            or their gradient too large.
        skipped_in_a_row: Of these, those since the last step that was not skipped.
        key: The random key of the run, as raw bits; each step folds its number in.
        params: The weights.
        ema_params: Their exponential moving average, which evaluation and sampling use.
        optimizer: The state of the optimizer.
    """

    step: Int[Array, ""]
    skipped: Int[Array, ""]
    skipped_in_a_row: Int[Array, ""]
    key: UInt32[Array, "2"]
    params: Params
    ema_params: Params
    optimizer: optax.OptState

    def step_key(self) -> PRNGKeyArray:
        """The random key of the next step."""
        return jax.random.fold_in(jax.random.wrap_key_data(self.key), self.step)


def split_model(model: Poolformer) -> tuple[nnx.GraphDef, Params]:
    """The structure of a model, and its weights as a nested dictionary of arrays."""
    graphdef, state = nnx.split(model, nnx.Param)
    return graphdef, nnx.to_pure_dict(state)


def merge_model(graphdef: nnx.GraphDef, params: Params) -> Poolformer:
    """The model of a structure and weights; cheap, for use inside a transformed function."""
    return nnx.merge(graphdef, nnx.State(params))


def abstract_model(config: PoolformerConfig) -> Poolformer:
    """A model of shapes and types in place of weights."""
    return nnx.eval_shape(lambda: Poolformer(config, rngs=nnx.Rngs(0)))


def init_train_state(
    config: TrainConfig, optimizer: optax.GradientTransformation
) -> tuple[nnx.GraphDef, TrainState]:
    """The structure of the config's model as it is in a step, and the state before the first."""

    def make_state(seed):
        model_key, run_key = jax.random.split(jax.random.key(seed))
        _, params = split_model(Poolformer(config.model, rngs=nnx.Rngs(model_key)))
        return TrainState(
            step=jnp.array(0),
            skipped=jnp.array(0),
            skipped_in_a_row=jnp.array(0),
            key=jax.random.key_data(run_key),
            params=params,
            ema_params=params,
            optimizer=optimizer.init(params),
        )

    graphdef, _ = split_model(abstract_model(config.step_model))
    return graphdef, jax.jit(make_state)(np.uint32(config.seed))


def make_optimizer(config: Run) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW behind clipping by global norm, and its learning rate as a function of the step.

    Warm-up takes at most half of a short run. Skipping steps is the step's task
    (`pf_jax.training.step.train_step`).
    """
    c = config.optimizer
    schedule = make_schedule(
        c.schedule,
        peak=c.learning_rate,
        warmup_steps=c.warmup_steps,
        num_steps=config.num_steps,
        final_fraction=c.final_fraction,
    )
    mask = None if c.weight_decay_on == "all" else _is_kernel
    optimizer = optax.chain(
        optax.clip_by_global_norm(c.clip_norm),
        optax.adamw(schedule, b1=c.b1, b2=c.b2, weight_decay=c.weight_decay, mask=mask),
    )
    return optimizer, schedule


def _is_kernel(params: Params) -> Params:
    return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)
