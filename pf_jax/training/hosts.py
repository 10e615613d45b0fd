"""Several hosts as one: joining them, what they do in turn, and what is asked of one of them."""

import contextlib
import io
import itertools
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Self, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Bool

from pf_jax.errors import UserError
from pf_jax.training.step import DATA_AXIS

_SECONDS_TO_MEET = 300
# JAX ends a process so long after another of them went silent; until then it waits for that one.
_SECONDS_OF_SILENCE = 30
_MILLISECONDS_OF_WAITING = 7 * 24 * 3_600 * 1_000  # To download and prepare data.

_T = TypeVar("_T")
_calls = itertools.count()


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
    if not missing:
        _meet(coordinator, num_processes, process_id)
    # What CPUs of several hosts talk through; other devices have their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=_SECONDS_OF_SILENCE,
        )
    except Exception as error:
        # JAX's ways to say that there is no cluster around, and that it is in use here already.
        alone = ("coordinator_address should be defined", "must be called before any JAX calls")
        if len(missing) == 3 and any(text in str(error) for text in alone):
            return
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"The hosts cannot be joined ({reason}). Give --coordinator=HOST:PORT, --num_processes "
            "and --process_id, or --num_processes=1 to train on this host alone."
        ) from error


def _meet(coordinator: str, num_processes: int, process_id: int) -> None:
    """Waits until all processes are there; JAX would abort with a stack trace if one is not.

    Each of the others tells the first its number, and all go on when it has heard of all.

    Raises:
        UserError: The address is none, cannot be used, or not all came in time.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator must be HOST:PORT, got {coordinator!r}.")
    deadline = time.monotonic() + _SECONDS_TO_MEET
    try:
        if process_id == 0:
            _wait_for_others(int(port), num_processes, deadline)
        else:
            _tell_first((host.strip("[]"), int(port)), num_processes, process_id, deadline)
    except OSError as error:
        raise UserError(
            f"--coordinator={coordinator} cannot be "
            f"{'listened at' if process_id == 0 else 'reached'}: {error.strerror or error}."
        ) from error


def _wait_for_others(port: int, num_processes: int, deadline: float) -> None:
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    server = socket.create_server(
        ("", port), family=family, dualstack_ipv6=family == socket.AF_INET6
    )
    came = {}
    with server, contextlib.ExitStack() as connections:
        while len(came) < num_processes - 1:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection = connections.enter_context(server.accept()[0])
                connection.settimeout(1)
                total, number = map(int, connection.recv(64).split())
            except TimeoutError:
                if time.monotonic() < deadline:
                    continue
                absent = sorted({*range(1, num_processes)} - {*came})
                raise UserError(
                    f"After {_SECONDS_TO_MEET} s, of {num_processes} processes these have not "
                    f"come: --process_id={', '.join(map(str, absent))}."
                ) from None
            except (ValueError, ConnectionError):  # Something that knocks at all ports.
                continue
            if total != num_processes:
                raise UserError(
                    f"--num_processes={num_processes} here, and {total} in process {number}."
                )
            came[number] = connection  # Again where it was started again meanwhile.
        for connection in came.values():
            with contextlib.suppress(OSError):
                connection.sendall(b"go")


def _tell_first(
    address: tuple[str, int], num_processes: int, process_id: int, deadline: float
) -> None:
    while True:
        left = max(0.01, deadline - time.monotonic())
        try:
            with socket.create_connection(address, timeout=left) as connection:
                connection.sendall(f"{num_processes} {process_id}".encode())
                if connection.recv(2) == b"go":
                    return
        except socket.gaierror:
            raise
        except OSError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.2)  # The first one has not begun to listen, or was just ended.


def first_then_others(function: Callable[[], _T]) -> _T:
    """Calls a function in the first process, and when it is done there, in all others.

    So what the first one leaves in a shared place is found by the others. However long it takes,
    they wait: by the coordination service, for devices lose their patience in half a minute.

    Raises:
        UserError: The function failed so; if in the first process, then in all others too.
    """
    if jax.process_count() == 1:
        return function()
    client, key = ocp.multihost.get_jax_distributed_client(), f"first_then_others_{next(_calls)}"
    if jax.process_index() == 0:
        try:
            result = function()
        except UserError as error:
            client.key_value_set(key, str(error))
            _wait_for_all(client, key)  # With this process the service ends, too.
            raise
        client.key_value_set(key, "")
        return result
    if error := client.blocking_key_value_get(key, _MILLISECONDS_OF_WAITING):
        _wait_for_all(client, key)
        raise UserError(f"The first process cannot go on: {error}")
    return function()


def gather(array: np.ndarray) -> list[np.ndarray]:
    """What each process has, in their order; all call this, with any shapes, and get the same.

    By the coordination service, bit for bit: devices would round, and lose their patience with
    processes that come half a minute later.
    """
    if jax.process_count() == 1:
        return [array]
    client, key = ocp.multihost.get_jax_distributed_client(), f"gather_{next(_calls)}"
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    client.key_value_set_bytes(f"{key}/{jax.process_index()}", content.getvalue())
    arrays = []
    for process in range(jax.process_count()):
        content = client.blocking_key_value_get_bytes(f"{key}/{process}", _MILLISECONDS_OF_WAITING)
        arrays.append(np.load(io.BytesIO(content), allow_pickle=False))
    return arrays


def _wait_for_all(client: Any, key: str) -> None:
    with contextlib.suppress(Exception):  # Whoever is gone needs no message.
        client.wait_at_barrier(f"{key}_heard", 10_000)


def replicate(tree: Any) -> Any:
    """One copy a local device, with a leading device axis, as `pmap` wants it."""
    return _to_each(np.arange(jax.local_device_count()), tree)


# Over the axis of the step, or the step would be compiled again for its own output.
_to_each = jax.pmap(lambda _, tree: tree, axis_name=DATA_AXIS, in_axes=(0, None))


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
