"""The server of `processes.py`: imports what all commands import, and forks for each of them."""

import gc
import importlib
import os
import pathlib
import pkgutil
import runpy
import signal
import socket
import sys
import types


def import_all() -> None:
    """The library, and what commands import besides; the commands define their flags themselves."""
    import pf_jax

    for module in pkgutil.walk_packages(pf_jax.__path__, "pf_jax."):
        importlib.import_module(module.name)
    for name in ("experiments.cli", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        importlib.import_module(name)
    from jax._src import xla_bridge

    assert not xla_bridge._backends, "A module computes with JAX while it is imported."
    gc.collect()
    gc.freeze()  # What is never looked at stays shared.


def serve(connection: socket.socket) -> dict:
    """Returns in the forks only, each with what it shall do."""
    while True:
        head, streams, *_ = socket.recv_fds(connection, 8, 3)
        if not head:
            os._exit(0)  # Who asks has ended.
        size, data = int.from_bytes(head, "little"), b""
        while len(data) < size:
            data += connection.recv(size - len(data))
        # Not a child but a grandchild: with its parent gone, it becomes one of the process that
        # asks, which can wait for it.
        read, write = os.pipe()
        child = os.fork()
        if not child:
            grandchild = os.fork()
            if not grandchild:
                break
            os.write(write, grandchild.to_bytes(8, "little"))
            os._exit(0)
        os.waitpid(child, 0)
        connection.sendall(os.read(read, 8))
        for number in (read, write, *streams):
            os.close(number)
    os.close(read)
    os.close(write)
    connection.close()
    for own, number in enumerate(streams):
        os.dup2(number, own)
        os.close(number)
    import json

    return json.loads(data)


def run(order: dict) -> None:
    """As `python -m MODULE ...`, `python -c CODE ...` or `python FILE.py ...` does."""
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    first = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    how, *arguments = order["args"]
    place = order["cwd"] if how in ("-m", "-c") else os.path.dirname(os.path.abspath(how))
    sys.path[:] = [place, *filter(None, first), *sys.path]
    sys.executable = order["executable"]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell's background ignores it.
    if how == "-m":
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    elif how == "-c":
        sys.argv = [how, *arguments[1:]]
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(arguments[0], "<string>", "exec"), main.__dict__)
    else:
        sys.argv = [how, *arguments]
        runpy.run_path(how, run_name="__main__")


if __name__ == "__main__":
    sys.path.remove(str(pathlib.Path(__file__).parent))
    number = int(sys.argv[1])
    import_all()
    order = serve(socket.socket(fileno=number))
    run(order)
