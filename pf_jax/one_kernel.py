"""Small loops on CPUs, compiled as a whole."""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata


def one_kernel(function: Callable) -> Callable:
    """Has XLA's CPU compiler make one kernel of a function, loops and all.

    By itself it makes a kernel of each fused operation, and goes from one to the next in some tens
    of nanoseconds. Other platforms take no notice.
    """
    function = jax.jit(function)

    def call(*args: Any) -> Any:
        with set_xla_metadata(inlineable="false", xla_cpu_small_call="true"):
            return function(*args)

    return call
