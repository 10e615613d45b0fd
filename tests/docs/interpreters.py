"""A `python` for the commands of the pages, which need not import JAX anew for each of them.

`python` on the pages is a small client, `python_client.py`: it hands its arguments, directory,
environment and open files to a thread of the test's process, passes signals on, and ends as the
command does. The thread starts the process, which `tests.processes` forks where that is the same as
a fresh interpreter.
"""

import contextlib
import json
import os
import pathlib
import shlex
import socket
import sys
import threading
from collections.abc import Iterator

from tests import processes
from tests.docs import small

_CLIENT = pathlib.Path(__file__).with_name("python_client.py")


@contextlib.contextmanager
def interpreters(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """Makes a directory of programs in another one; its `python` makes commands small.

    What such a command starts by `sys.executable` is run as it is.
    """
    address = directory / "socket"
    client = [sys.executable, "-I", "-S", str(_CLIENT), str(address)]
    nested, here = (directory / place / "python" for place in ("nested", "bin"))
    for file, size in ((nested, "as_it_is"), (here, "small")):
        file.parent.mkdir()
        file.write_text(f'#!/bin/sh\nexec {shlex.join([*client, size])} "$@"\n')
        file.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen(64)
        threading.Thread(target=_serve, args=(listener, str(nested)), daemon=True).start()
        yield here.parent
        listener.shutdown(socket.SHUT_RDWR)


def _serve(listener: socket.socket, nested: str) -> None:
    with contextlib.suppress(OSError):  # It is shut down in the end.
        while True:
            client, _ = listener.accept()
            threading.Thread(target=_run, args=(client, nested), daemon=True).start()


def _run(client: socket.socket, nested: str) -> None:
    """Runs a command for a client, and tells it how that ended; without a client, it ends."""
    with client:
        message, files, _, _ = socket.recv_fds(client, 1 << 20, 3)
        while not message.endswith(b"\n"):
            message += client.recv(1 << 20)
        request = json.loads(message)
        arguments = request["arguments"]
        process = processes.Popen(
            [sys.executable, *(small.shrink(arguments) if request["small"] else arguments)],
            cwd=request["directory"],
            env=request["environment"],
            stdin=files[0],
            stdout=files[1],
            stderr=files[2],
            executable_of_its_own=nested,
        )
        for file in files:
            os.close(file)
        client.sendall(b"%d\n" % process.pid)
        threading.Thread(target=_kill_if_gone, args=(client, process), daemon=True).start()
        status = process.wait()
        with contextlib.suppress(OSError):
            client.sendall(b"%d\n" % status)


def _kill_if_gone(client: socket.socket, process: processes.Popen) -> None:
    with contextlib.suppress(OSError):
        if not client.recv(1):  # The client has been killed.
            process.kill()
