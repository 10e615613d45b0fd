"""A `python` for the commands of the pages that need not import JAX anew for each of them.

A server imports what all commands import, once, and starts no backend of JAX, so that it has a
single thread and may fork. `python` on the pages is a small client, `python_client.py`: it hands
its arguments, directory, environment and open files to the server, passes signals on, and ends as
the command does. `python -m MODULE` and `python FILE` run in a fork of the server as a fresh
interpreter would run them; anything else, and what sets variables that JAX reads while it is
imported, in a fresh one.

Run as `python interpreter.py SOCKET`; ends when its standard input does.
"""

import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import sys

from tests.docs import small


def main() -> None:
    """Imports, and then serves one client after the other."""
    import pf_jax

    for module in pkgutil.walk_packages(pf_jax.__path__, "pf_jax."):
        importlib.import_module(module.name)
    for name in ("matplotlib.pyplot", "optax", "tensorflow_datasets", "experiments.trials"):
        importlib.import_module(name)
    from jax._src import xla_bridge

    assert not xla_bridge._backends, "A module computes with JAX while it is imported."
    if os.path.exists("/proc/self/task"):
        assert len(os.listdir("/proc/self/task")) == 1, "A fork has one thread only."
    gc.collect()
    gc.freeze()  # What is never looked at stays shared.
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen(64)
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [], 0.2)
        while _reap():
            pass
        if sys.stdin in ready:
            return
        if listener in ready:
            client, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _watch(client)
                return
            client.close()


def _reap() -> bool:
    """Takes leave of one of those that have ended, if any has."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def _watch(client: socket.socket) -> None:
    """Runs a command in a fork, and tells the client how it ended; without a client, it ends."""
    message, files, _, _ = socket.recv_fds(client, 1 << 20, 3)
    while not message.endswith(b"\n"):
        message += client.recv(1 << 20)
    request = json.loads(message)
    child = os.fork()
    if child == 0:
        client.close()
        _run(request, files)  # Leaves by the end of `main`, as a script does.
        return
    for file in files:
        os.close(file)
    client.sendall(b"%d\n" % child)
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if select.select([client], [], [], 0.02)[0]:  # The client is gone: killed.
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os._exit(1)
    client.sendall(b"%d\n" % os.waitstatus_to_exitcode(ended[1]))
    os._exit(0)


def _run(request: dict, files: list[int]) -> None:
    """Becomes the interpreter that was asked for."""
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    os.chdir(request["directory"])
    environment, arguments = request["environment"], request["arguments"]
    if request["small"]:
        arguments = small.shrink(arguments)
    is_module = arguments[:1] == ["-m"]
    is_file = bool(arguments) and arguments[0].endswith(".py")
    names = [name for name in {*environment, *os.environ} if name.startswith("JAX_")]
    is_same = all(environment.get(name) == os.environ.get(name) for name in names)
    if not (is_same and (is_module or is_file)):
        os.execve(sys.executable, [sys.executable, *arguments], environment)
    os.environ.clear()
    os.environ.update(environment)
    sys.executable = request["nested"]
    paths = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [path for path in paths if path and path not in sys.path]
    if is_module:
        sys.argv = arguments[1:]
        sys.path[0] = request["directory"]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main()
