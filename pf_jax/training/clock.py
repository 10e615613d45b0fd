"""The clock by which the cost of training is told and compared."""

import time

import jax


def training_clock() -> float:
    """Seconds from an arbitrary start: CPU time of this process on CPUs, elapsed time elsewhere.

    Elapsed time on a CPU depends on whatever else runs on the machine.
    """
    return time.process_time() if jax.default_backend() == "cpu" else time.monotonic()
