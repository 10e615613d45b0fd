"""Learning rates as functions of the step, by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax.numpy as jnp
import optax

from pf_jax.errors import UserError
from pf_jax.fields import did_you_mean


def make_schedule(
    name: str, *, peak: float, warmup_steps: int, num_steps: int, final_fraction: float
) -> optax.Schedule:
    """A linear warm-up from 0 to `peak`, then the named schedule; continuous where they meet.

    * "cosine": half a period of a cosine down to `final_fraction * peak` at `num_steps` (Loshchilov
      and Hutter, arXiv 1608.03983, equation 5, without restarts).
    * "linear": a straight line to the same end.
    * "constant": `peak` to the end; `final_fraction` has no effect.
    * "wsd", warm-up, stable, decay (MiniCPM, arXiv 2404.06395, section 4): `peak`, and in the last
      fifth of the steps a straight line to `final_fraction * peak`. Until the decay it does not
      depend on where the run will end.
    * "inverse_sqrt": `peak * sqrt(warmup / step)` (Vaswani et al., arXiv 1706.03762, equation 3),
      never below `final_fraction * peak`. Without warm-up as if it had taken one step.

    Args:
        name: One of `SCHEDULES`.
        peak: The highest learning rate.
        warmup_steps: Steps of the warm-up; of a short run it takes at most half.
        num_steps: Steps of the whole run, at least 1.
        final_fraction: The last learning rate as a fraction of the highest.

    Returns:
        A function from the number of steps taken so far to the learning rate of the next.

    Raises:
        UserError: No schedule has this name.
    """
    if name not in SCHEDULES:
        raise UserError(f"Unknown schedule {name!r}{did_you_mean(name, SCHEDULES)}")
    warmup = min(warmup_steps, num_steps // 2)
    after = SCHEDULES[name](peak, final_fraction * peak, warmup, num_steps - warmup)
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def _cosine(peak: float, final: float, warmup: int, num_steps: int) -> optax.Schedule:
    del warmup
    # alpha as optax.warmup_cosine_decay_schedule has it, to the last bit.
    return optax.cosine_decay_schedule(peak, num_steps, alpha=final / peak)


def _linear(peak: float, final: float, warmup: int, num_steps: int) -> optax.Schedule:
    del warmup
    return optax.linear_schedule(peak, final, num_steps)


def _constant(peak: float, final: float, warmup: int, num_steps: int) -> optax.Schedule:
    del final, warmup, num_steps
    return optax.constant_schedule(peak)


def _wsd(peak: float, final: float, warmup: int, num_steps: int) -> optax.Schedule:
    decay = max(1, (warmup + num_steps) // 5)
    return optax.linear_schedule(peak, final, decay, transition_begin=num_steps - decay)


def _inverse_sqrt(peak: float, final: float, warmup: int, num_steps: int) -> optax.Schedule:
    del num_steps

    def schedule(step):
        step = jnp.maximum(warmup + step, 1)
        return jnp.maximum(peak * jnp.sqrt(max(warmup, 1) / step), final)

    return schedule


SCHEDULES: Mapping[str, Callable[[float, float, int, int], optax.Schedule]] = MappingProxyType(
    {
        "cosine": _cosine,
        "linear": _linear,
        "constant": _constant,
        "wsd": _wsd,
        "inverse_sqrt": _inverse_sqrt,
    }
)
"""What follows the warm-up, by name: `(peak, final, warmup, steps after it) -> schedule`."""
