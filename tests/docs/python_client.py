"""What is called `python` on the pages; see `interpreters.py`."""

import json
import os
import signal
import socket
import sys


def main() -> None:
    """Has the test's process run a command line: `SOCKET SIZE ARGUMENTS`."""
    address, size, *arguments = sys.argv[1:]
    server = socket.socket(socket.AF_UNIX)
    server.connect(address)
    request = {
        "arguments": arguments,
        "directory": os.getcwd(),
        "environment": dict(os.environ),
        "small": size == "small",
    }
    message = json.dumps(request).encode() + b"\n"
    sent = socket.send_fds(server, [message], [0, 1, 2])
    server.sendall(message[sent:])
    answer = server.makefile()
    child = int(answer.readline())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: os.kill(child, number))
    status = int(answer.readline())
    if status < 0:  # Ended by a signal.
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


main()
