"""How much memory this process has taken at most."""

import pathlib
import re
import sys

import jax

_STATUS = pathlib.Path("/proc/self/status")


def peak_memory() -> int | None:
    """The most bytes that this process has held at once, on the device where it held most.

    Of accelerators, that is what JAX allocated there. On CPUs it is the resident memory of the
    process, with all of its libraries, some hundreds of megabytes.

    Returns:
        A number of bytes; None where the device does not tell.
    """
    devices = jax.local_devices()
    if devices[0].platform != "cpu":
        stats = [device.memory_stats() or {} for device in devices]
        return max(
            (s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s), default=None
        )
    # Linux's ru_maxrss starts at that of the process that started this one.
    if _STATUS.exists() and (match := re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())):
        return 1024 * int(match[1])
    import resource  # Not everywhere.

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
