"""Several hosts as one: joining them, what they do in turn, and what is asked of one of them."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Bool

from pf_jax.errors import UserError
from pf_jax.training.step import DATA_AXIS


def join(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Makes this process one of several that train together; to be called before JAX is used.

    Args:
        coordinator: "host:port" of the first process; None to ask the cluster (a TPU slice, Slurm,
            Open MPI, Kubernetes), or to train alone where there is none.
        num_processes: How many processes there are; 1 trains alone, whatever the cluster says.
        process_id: Which of them this is, from 0.

    Raises:
        UserError: The arguments do not fit together, or the other processes cannot be reached.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if num_processes == 1 and not coordinator:
        return
    if 0 < len(missing) < 3:
        raise UserError(
            "To train on several hosts give all of --coordinator=HOST:PORT, --num_processes and "
            f"--process_id, or none of them; {' and '.join(missing)} is missing."
        )
    if not missing and not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id must be in [0, {num_processes}) for --num_processes={num_processes}, "
            f"got {process_id}."
        )
    if not missing and ":" not in coordinator:
        raise UserError(f"--coordinator must be HOST:PORT, got {coordinator!r}.")
    # What CPUs of several hosts talk through; other devices have their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except Exception as error:
        # JAX's way to say that there is no cluster around.
        if len(missing) == 3 and "coordinator_address should be defined" in str(error):
            return
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"The hosts cannot be joined ({reason}). Give --coordinator=HOST:PORT, --num_processes "
            "and --process_id, or --num_processes=1 to train on this host alone."
        ) from error


def first_then_others(function: Callable[[], Any]) -> Any:
    """Calls a function in the first process, and when it is done there, in all others.

    So what the first one leaves in a shared place is found by the others.
    """
    if jax.process_index() > 0:
        multihost_utils.sync_global_devices("first_then_others")
    result = function()
    if jax.process_index() == 0:
        multihost_utils.sync_global_devices("first_then_others")
    return result


def replicate(tree: Any) -> Any:
    """One copy a local device, with a leading device axis, as `pmap` wants it."""
    devices = np.arange(jax.local_device_count())
    # Over the axis of the step, or the step would be compiled again for its own output.
    return jax.pmap(lambda _, tree: tree, axis_name=DATA_AXIS, in_axes=(0, None))(devices, tree)


def first_replica(tree: Any) -> Any:
    """Of values that all devices agree on, those of this host's first, as NumPy arrays."""
    local = jax.tree.map(lambda x: x.addressable_shards[0].data, tree)
    return jax.tree.map(lambda x: x[0], jax.device_get(local))


class StopRequest:
    """Turns SIGTERM and Ctrl-C into a request for the loop; a second Ctrl-C interrupts at once.

    A context manager. With several processes, all must stop at the same step: the request of one
    goes through the devices to all (`flags`), and is certain when it comes back.
    """

    def __init__(self) -> None:
        self._is_asked = False
        self._handlers = {}

    def flags(self) -> Bool[np.ndarray, "local_devices"]:
        """Whether this process was asked to stop, for each of its devices."""
        return np.full(jax.local_device_count(), self._is_asked)

    def is_certain(self) -> bool:
        """Whether this process was asked to stop and has no other to agree with."""
        return self._is_asked and jax.process_count() == 1

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # No other may handle signals.
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._is_asked:
            raise KeyboardInterrupt
        self._is_asked = True
