"""What a run would need of devices that are not here: programs, memory, time at the least."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pf_jax.config import PoolformerConfig
from pf_jax.errors import UserError
from pf_jax.sampling import nested, sampler
from pf_jax.sampling.weights import lay_out
from pf_jax.training.chips import Chip
from pf_jax.training.config import TrainConfig
from pf_jax.training.parallel import batch_shapes, parallel_train_step
from pf_jax.training.program import Program, analyze
from pf_jax.training.state import (
    TrainState,
    abstract_model,
    init_train_state,
    make_optimizer,
    merge_model,
    split_model,
)
from pf_jax.training.summary import level_costs

_CHUNK_STEPS = 1024  # The default of `Sampler`.

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)"


class Task(NamedTuple):
    """A program to compile.

    Attributes:
        lowered: The program.
        arguments: Bytes of its arguments on a device, by what they are, without padding.
    """

    lowered: jax.stages.Lowered
    arguments: dict[str, int]


class Attempt(NamedTuple):
    """An attempt to compile a task.

    Attributes:
        task: The task.
        program: What it needs; None if the compiler refused it, for it needs too much memory.
        memory: Bytes of a device that it needs.
    """

    task: Task
    program: Program | None
    memory: int


class Bounds(NamedTuple):
    """The least time that each part of a device needs for a program, in seconds.

    Attributes:
        arithmetic: Its FLOPs at the bfloat16 peak.
        memory: The bytes that it moves, at the bandwidth of the memory.
        exchange: What it sends to other devices, at the bandwidth of all its links together.
    """

    arithmetic: float
    memory: float
    exchange: float


def train_step_task(config: TrainConfig, devices: Sequence[jax.Device]) -> Task:
    """The config's training step as a run calls it, for devices that need not be attached.

    Raises:
        UserError: The devices cannot share a batch as the config wants it.
    """
    optimizer, schedule = make_optimizer(config)
    graphdef, _ = split_model(abstract_model(config.step_model))
    step = parallel_train_step(config, graphdef, optimizer, schedule, devices=devices)
    state: TrainState = jax.eval_shape(lambda: init_train_state(config, optimizer)[1])
    batch, stop = batch_shapes(config, devices=devices), jax.ShapeDtypeStruct((), jnp.bool_)
    arguments = {
        "parameters": _size(state.params),
        "optimizer state": _size(state.optimizer),
        "moving average": _size(state.ema_params),
        "batch": _size(batch) // len(devices),
    }
    state, stop = _on_each((state, stop), len(devices))
    return Task(step.lower(state, batch, stop), arguments)


def sampler_task(
    config: TrainConfig, devices: Sequence[jax.Device], streams: int
) -> tuple[Task, int]:
    """What `pf_jax.sampling.Sampler` runs for a chunk, and the tokens of a chunk.

    Args:
        config: The experiment.
        devices: Those that share the streams; they need not be attached.
        streams: How many there are on each device.
    """
    graphdef, params = split_model(abstract_model(config.model))

    def inputs(params, keys):
        model = merge_model(graphdef, params)
        weights = lay_out(model, devices[0].platform)
        state = model.init_state(streams)
        carry = nested.make_carry(weights, state, streams)
        steps = -(-_CHUNK_STEPS // weights.period) * weights.period
        return weights, carry, jax.random.split(keys, streams), jnp.zeros((streams, steps), int)

    inputs = jax.eval_shape(inputs, params, jax.eval_shape(jax.random.key, 0))
    steps = inputs[3].shape[1]
    arguments = {
        "weights": _size(inputs[0]),
        "state": _size(inputs[1]),
        "tokens": _size(inputs[3]),
    }
    if len(devices) > 1:
        inputs = _on_each(inputs, len(devices))
    number, temperature = (jax.ShapeDtypeStruct((), t) for t in (jnp.uint32, jnp.float32))
    run = sampler._program(tuple(devices))
    return Task(run.lower(*inputs, number, number, temperature, None), arguments), steps


def sampling_flops(config: PoolformerConfig) -> float:
    """The FLOPs of drawing a token: two a multiply-add, see `level_costs`."""
    return 2.0 * sum(cost.multiply_adds for cost in level_costs(config))


def attempt(task: Task) -> Attempt:
    """Compiles a task, or finds out how much memory it would need."""
    try:
        program = analyze(task.lowered.compile())
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Attempt(task, None, _needed(" ".join(str(error).split()), task))
    return Attempt(task, program, program.memory)


def largest(
    compile_for: Callable[[int], Attempt], first: int, available: int, *, most: int = 5
) -> dict[int, Attempt]:
    """Looks for the largest number of parts for which a program fits.

    Memory is close to affine in it, so two attempts predict it; more check the prediction.

    Args:
        compile_for: Compiles for a number of parts of at least 1.
        first: The first that is tried.
        available: Bytes that a program may take.
        most: Attempts after the first.

    Returns:
        All attempts by their number.
    """
    attempts = {first: compile_for(first)}
    for _ in range(most):
        fitting = [n for n, a in attempts.items() if a.program is not None]
        lower, upper = max(fitting, default=0), min(attempts.keys() - fitting, default=None)
        guess = _guess({n: a.memory for n, a in attempts.items()}, available)
        if upper == lower + 1 or (upper is None and guess <= lower):
            break
        guess = max(guess, lower + 1)
        guess = guess if upper is None else min(guess, upper - 1)
        attempts[guess] = compile_for(guess)
    return attempts


def bounds(program: Program, chip: Chip) -> Bounds:
    """The least times of a program; `chip` must have all bandwidths."""
    sent = sum(collective.sent for collective in program.collectives)
    return Bounds(
        program.flops / chip.flops,
        program.bytes_accessed / chip.bandwidth,
        sent / chip.interconnect,
    )


def _needed(message: str, task: Task) -> int:
    """The bytes in a refusal for want of memory; the compiler has two ways to say it."""
    if match := re.search(rf"Used {_SIZE} of {_SIZE} hbm", message):
        resident = 0
    elif match := re.search(rf"HLO temporaries \({_SIZE}\) exceeds available HBM", message):
        resident = sum(task.arguments.values())
    else:
        raise UserError(f"The program does not fit: {message[:300]}")
    return resident + round(float(match[1]) * _UNITS[match[2]])


def _guess(memory: dict[int, int], available: int) -> int:
    """The largest number whose memory would be available, by the two that are closest to it."""
    *others, last = sorted(memory, key=lambda n: abs(memory[n] - available), reverse=True)
    if not others:  # As if all of it grew with the number.
        return max(1, last * available // memory[last])
    slope = (memory[last] - memory[others[-1]]) / (last - others[-1])
    return last + int((available - memory[last]) // slope) if slope > 0 else last


def _on_each(tree: Any, devices: int) -> Any:
    """The shapes of one copy a device, with a leading device axis."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((devices, *x.shape), x.dtype), tree)


def _size(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
