"""Processes as of `subprocess`, that do not import JAX and all that builds on it each anew.

Python with those imports takes two seconds to start. Here it starts once: a server (`forks.py`) has
imported them, has computed nothing yet, and forks for each process, which then does what
`python -m MODULE ...` or `python -c CODE ...` does, with its own arguments, environment, directory
and standard streams. It is a child of this process, to be waited for, signalled and killed as any.

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

ROOT = pathlib.Path(__file__).parents[1]
# What a process of its own environment may have changed: XLA and the commands look at it later.
_READ_LATE = {"XLA_FLAGS", "TPU_LIBRARY_PATH", "XDG_CACHE_HOME", "HOME", "PYTHONPATH"}
_PR_SET_CHILD_SUBREAPER = 36


class Popen(subprocess.Popen):
    """As `subprocess.Popen`, of the command lines `[sys.executable, "-m" or "-c", ...]`."""

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
        order = {"args": [str(arg) for arg in args[1:]], "env": dict(env), "cwd": str(cwd or ".")}
        order["cwd"] = os.path.abspath(order["cwd"])
        data = json.dumps(order).encode()
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
    here = {name: value for name, value in os.environ.items() if name not in _READ_LATE}
    there = {name: value for name, value in env.items() if name not in _READ_LATE}
    here.pop("PYTEST_CURRENT_TEST", None)
    there.pop("PYTEST_CURRENT_TEST", None)
    is_python = not isinstance(args, str) and args[0] == sys.executable and args[1] in ("-m", "-c")
    return sys.platform == "linux" and is_python and here == there


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
