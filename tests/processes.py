"""Processes as of `subprocess`, that do not import JAX and all that builds on it each anew.

Python with those imports takes two seconds to start. Here it starts once: a server (`forks.py`) has
imported them, has computed nothing yet, and forks for each process, which then does what
`python -m MODULE ...`, `python -c CODE ...` or `python FILE.py ...` does, with its own arguments,
environment, directory and standard streams. It is a child of this process, to be waited for,
signalled and killed as any.

What is started in another way, or in an environment that imports would look at, or where forks
cannot be handed over (only Linux can), is started by `subprocess` itself.
"""

import ctypes
import functools
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading

ROOT = pathlib.Path(__file__).parents[1]
# What is read by imports; a process may have anything else of its own.
_READ_EARLY = ("JAX_", "JAXTYPING_", "LD_", "OMP_", "OPENBLAS_", "PYTHON")
_PR_SET_CHILD_SUBREAPER = 36
_ONE_AT_A_TIME = threading.Lock()  # Of those that ask the server.


class Popen(subprocess.Popen):
    """As `subprocess.Popen`, of command lines that begin with `sys.executable`.

    Args:
        executable_of_its_own: What is `sys.executable` in it, if it is forked; by default the same.
    """

    def __init__(self, *args, executable_of_its_own=sys.executable, **options):
        self._executable_of_its_own = executable_of_its_own
        super().__init__(*args, **options)

    def _execute_child(self, args, *rest):
        (cwd, env), streams = rest[4:6], rest[9:15]
        env = os.environ if env is None else env
        if not _can_be_forked(args, env):
            return super()._execute_child(args, *rest)
        p2cread, _, _, c2pwrite, _, errwrite = streams
        given = [
            own if number == -1 else number
            for own, number in enumerate((p2cread, c2pwrite, errwrite))
        ]
        order = {
            "args": [str(arg) for arg in args[1:]],
            "env": dict(env),
            "cwd": os.path.abspath(cwd or "."),
            "executable": self._executable_of_its_own,
        }
        data = json.dumps(order).encode()
        with _ONE_AT_A_TIME:
            server = _server()
            socket.send_fds(server, [len(data).to_bytes(8, "little")], given)
            server.sendall(data)
            self.pid = int.from_bytes(_exactly(server, 8), "little")
        self._child_created = True
        self._close_pipe_fds(*streams)


def run(args, *, input=None, capture_output=False, check=False, timeout=None, **options):
    """As `subprocess.run`."""
    if input is not None:
        options["stdin"] = subprocess.PIPE
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(args, **options) as process:
        try:
            out, err = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(args, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


def with_devices(number: int) -> dict[str, str]:
    """The environment of a process of several devices, whose programs are compiled as here."""
    flags = f"--xla_force_host_platform_device_count={number} {os.environ['XLA_FLAGS']}"
    return os.environ | {"XLA_FLAGS": flags}


def _can_be_forked(args, env) -> bool:
    if sys.platform != "linux" or isinstance(args, str) or args[0] != sys.executable:
        return False
    early = {n for n in {*os.environ, *env} if n.startswith(_READ_EARLY)} - {"PYTHONPATH"}
    how = str(args[1]) if len(args) > 1 else ""
    is_known = how in ("-m", "-c") or how.endswith(".py")
    return is_known and all(os.environ.get(name) == env.get(name) for name in early)


@functools.cache
def _server() -> socket.socket:
    """The server of this process, and the connection to it."""
    # The fork whose parent has ended is given to this process.
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1):
        raise OSError(ctypes.get_errno(), "prctl")
    here, there = socket.socketpair()
    with there:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "forks.py"), str(there.fileno())],
            pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=environment,
        )
    return here


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += (new := connection.recv(size - len(data)))
        assert new, "The server of processes has ended."
    return data
