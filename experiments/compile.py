"""Says what a TPU slice would need for a config, on any Linux machine, without a TPU.

Compiles the step that training runs (or with --sampling, what sampling runs) by the TPU's own
compiler, and prints its memory against what a device has, the largest batch that fits, its
arithmetic and traffic, and so the least time that it can take. A compilation takes minutes.

Examples:
  python -m experiments.compile --config=musicnet --topology=v5e:16x16
  python -m experiments.compile --config=sc09 --topology=v6e:2x2 --batch=64 --json
  python -m experiments.compile --config=sc09 --topology=v5e:1x1 --sampling --streams=256
"""

import dataclasses
import json
import sys
import time
from collections.abc import Sequence

import jax
from absl import flags

from experiments import cli
from pf_jax.errors import UserError
from pf_jax.training import planning
from pf_jax.training.chips import CHIPS, Chip
from pf_jax.training.config import TrainConfig
from pf_jax.training.report import Report
from pf_jax.training.topology import topology_devices

_CONFIG = cli.define_config()
_TOPOLOGY = flags.DEFINE_string(
    "topology",
    None,
    "Generation and shape of the slice in chips, such as v5e:16x16, v6e:4x4 or v5p:4x4x8.",
    required=True,
)
_BATCH = flags.DEFINE_integer(
    "batch", None, "Windows in a step, over all devices; the config's batch_size if left out.", 1
)
_LARGEST = flags.DEFINE_bool(
    "largest", True, "Look for the largest batch that fits, in some more compilations."
)
_SAMPLING = flags.DEFINE_bool("sampling", False, "The sampler in place of the training step.")
_STREAMS = flags.DEFINE_integer("streams", 1, "Of the sampler: sequences on each device.", 1)
cli.group("Of sampling", _SAMPLING, _STREAMS)
_PRICE = flags.DEFINE_float("price", None, "US$ an hour and device, if you know better.", 0.0)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead of a table.")

_MOST_ATTEMPTS = 5  # After the first.


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    del argv
    jax.config.update("jax_platforms", "cpu")  # Whatever there is here, nothing will run on it.
    devices = topology_devices(_TOPOLOGY.value)
    chip = CHIPS[devices[0].device_kind]
    if _PRICE.value is not None:
        chip = chip._replace(price=_PRICE.value, price_source="--price")
    plan = _sampler if _SAMPLING.value else _train_step
    report = plan(_CONFIG.value, devices, chip)
    print(json.dumps(report.to_dict()) if _JSON.value else "\n".join(report.lines()))
    if report.attempt.program is None:
        raise UserError(_too_large(_CONFIG.value))


def _train_step(config: TrainConfig, devices: Sequence[jax.Device], chip: Chip) -> Report:
    # Fewer windows than these leave devices, or parts of an accumulation, without any.
    unit = max(1, len(devices) // config.sequence_devices) * config.accumulation_steps
    batch, notes = _BATCH.value or config.batch_size, []
    if _BATCH.value is None and batch < unit:
        notes.append(f"batch_size={batch} is too small for so many devices: here it is {unit}.")
        batch = unit

    def compile_for(batch: int) -> planning.Attempt:
        changed = dataclasses.replace(config, batch_size=batch)
        return _attempt(f"{batch} windows", planning.train_step_task(changed, devices))

    if batch % unit:
        compile_for(batch)  # Raises an error that says what is possible.
    attempts = planning.largest(
        lambda units: compile_for(units * unit),
        batch // unit,
        chip.memory,
        most=_MOST_ATTEMPTS if _LARGEST.value else 0,
    )
    attempts = {units * unit: attempt for units, attempt in attempts.items()}
    fitting = max((n for n, attempt in attempts.items() if attempt.program), default=None)
    shown = batch
    if attempts[batch].program is None and fitting:
        shown = fitting
        notes.append(
            f"{batch} windows need {attempts[batch].memory / 2**30:.2f} of "
            f"{chip.memory / 2**30:.2f} GiB and do not fit: these are the figures of {fitting}."
        )
    if config.accumulation_steps > 1:
        notes.append(
            "FLOPs and bytes are those of one part of the batch and of the update, times "
            f"accumulation_steps={config.accumulation_steps}."
        )
    return Report(
        title=f"The training step of {_where(devices)}, for {shown:,} windows of "
        f"{config.data.window:,} tokens",
        attempt=attempts[shown],
        chip=chip,
        devices=len(devices),
        samples=shown * config.data.window,
        batches={n: attempt.memory for n, attempt in attempts.items()},
        asked=batch,
        largest=fitting if _LARGEST.value else None,
        times=config.accumulation_steps,
        notes=notes,
    )


def _sampler(config: TrainConfig, devices: Sequence[jax.Device], chip: Chip) -> Report:
    task, steps = planning.sampler_task(config, devices, _STREAMS.value)
    streams = _STREAMS.value * len(devices)
    attempt = _attempt(f"{streams} streams", task)
    return Report(
        title=f"The sampler of {_where(devices)}, for {steps:,} tokens of {streams:,} streams",
        attempt=attempt,
        chip=chip,
        devices=len(devices),
        samples=streams * steps,
        model_flops=planning.sampling_flops(config.model) * _STREAMS.value * steps,
        notes=[
            "A token comes after the other: far more time than any count here tells goes into the "
            "start of each small operation."
        ],
    )


def _attempt(what: str, task: planning.Task) -> planning.Attempt:
    print(f"Compiles for {what} ...", file=sys.stderr, flush=True)
    start = time.monotonic()
    result = planning.attempt(task)
    seconds = time.monotonic() - start
    verdict = "fits" if result.program else "does not fit"
    print(
        f"  {result.memory / 2**30:.2f} GiB of a device: {verdict} ({seconds:.0f} s)",
        file=sys.stderr,
        flush=True,
    )
    return result


def _where(devices: Sequence[jax.Device]) -> str:
    name = _CONFIG.value.data.name
    return f"{name} on {_TOPOLOGY.value} ({len(devices)} x {devices[0].device_kind})"


def _too_large(config: TrainConfig) -> str:
    """What to change where not even one window fits, or what was asked for does not."""
    if _SAMPLING.value:
        return "So many streams do not fit: --streams must be smaller."
    if not _LARGEST.value:
        return "That does not fit; --largest finds a batch that does."
    ways = ["--config.sequence_devices=2 or more"] if config.sequence_devices == 1 else []
    if not config.model.remat:
        ways.insert(0, "--config.model.remat=true")
    if config.model.dtype != "bfloat16":
        ways.insert(0, "--config.model.dtype=bfloat16")
    ways.append("a smaller --config.data.window")
    return f"Not even the smallest batch fits; try {', '.join(ways)}, or a smaller model."


if __name__ == "__main__":
    cli.run(main)
