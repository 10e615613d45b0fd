"""How long the runs of a comparison train: a time, a number of steps, or both."""

import dataclasses
import math
import re

from pf_jax.errors import UserError
from pf_jax.training.config import TrainConfig

_UNITS = {"s": 1.0, "min": 60.0, "h": 3_600.0}
_LIKE = "like 60s, 10min, 2h, 1000steps, or 60s,1000steps"


@dataclasses.dataclass(frozen=True)
class Budget:
    """What is equal for all runs of a comparison; at least one of both.

    Attributes:
        seconds: Of training, without compilation and evaluations, by
            `pf_jax.training.clock.training_clock` (CPU seconds on CPUs); None without such a limit.
        steps: Of training, on as many samples each; None where only time matters.
    """

    seconds: float | None = None
    steps: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """The budget in words such as "60s", "10min", "2h", "1000steps" or "60s,1000steps".

        Raises:
            UserError: It is none, or says two times or two numbers of steps.
        """
        found: dict[str, float | int] = {}
        for part in text.replace(" ", "").split(","):
            match = re.fullmatch(r"([\d_]*\.?\d+(?:e\d+)?)(s|min|h|steps)", part)
            if not match:
                raise UserError(f"A budget is {_LIKE}; got {text!r}.")
            number, unit = float(match[1]), match[2]
            kind = "steps" if unit == "steps" else "seconds"
            value = number if unit == "steps" else number * _UNITS[unit]
            if kind in found:
                raise UserError(f"A budget has one time and one number of steps, got {text!r}.")
            if not 0.0 < value < math.inf or (unit == "steps" and value != int(value)):
                raise UserError(f"A budget is above 0, and steps are whole; got {text!r}.")
            found[kind] = int(value) if unit == "steps" else value
        return cls(**found)

    def __str__(self) -> str:
        """As `parse` takes it."""
        seconds = [] if self.seconds is None else [f"{self.seconds:g}s"]
        return ",".join(seconds + ([] if self.steps is None else [f"{self.steps}steps"]))

    def num_steps(self, steps_per_second: float | None) -> list[int]:
        """The steps after which its parts are used up, ascending; the speed is for the seconds."""
        steps = [] if self.steps is None else [self.steps]
        if self.seconds is not None:
            steps.append(max(1, math.ceil(self.seconds * steps_per_second)))
        return sorted(steps)


def within(
    config: TrainConfig, budget: Budget, steps_per_second: float | None, num_evaluations: int
) -> TrainConfig:
    """The config of a run that is as long as a budget needs.

    The learning rate moves over the whole run as the config says, with a warm-up that takes the
    same share of it. Where a budget has two parts, one of the evaluations is where the first is
    used up.

    Args:
        config: The experiment.
        budget: How long.
        steps_per_second: The speed of training, measured; for a budget of seconds only.
        num_evaluations: About how many of them there are to be.
    """
    first, *_, last = budget.num_steps(steps_per_second) * 2
    before_first = max(1, round(num_evaluations * first / last))
    every = max(1, round(first / before_first))
    warmup = math.ceil(config.optimizer.warmup_steps / config.num_steps * last)
    return dataclasses.replace(
        config,
        optimizer=dataclasses.replace(config.optimizer, warmup_steps=warmup),
        num_steps=last,
        log_every=max(1, last // 100),
        eval_every=every,
        checkpoint_every=every,
        sample_every=0,
        patience=0,
        profile=(),
    )
