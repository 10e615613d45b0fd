"""TPU slices that are not here: devices for which programs can be compiled, but not run.

The TPU compiler is a part of libtpu, which runs on any Linux machine.
"""

import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from pf_jax.errors import UserError

# By generation, the usual slices of as many chips as the documentation has (as of chips.py); others
# may do, too.
_PLANES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16"),
    *("8x16x16", "16x16x16"),
)
SLICES = {"v4": _CUBES, "v5e": _PLANES, "v5p": _CUBES, "v6e": _PLANES, "tpu7x": _CUBES}

# What gcloud calls a slice counts chips, or of some generations their cores.
_ACCELERATOR_TYPES = {
    "v4": ("v4", 2),
    "v5p": ("v5p", 2),
    "v5litepod": ("v5e", 1),
    "v6e": ("v6e", 1),
}

# Without these, libtpu asks the network what TPU this machine is, and tells at length that it is
# none. The type has nothing to do with the slice that is compiled for.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
    # Compiling takes no TPU from anybody.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def topology_devices(name: str) -> list[jax.Device]:
    """The devices of a slice, to lower and compile for.

    May be called before or after JAX is used; where this process has no TPU of its own.

    Args:
        name: Generation and shape of the slice in chips, such as "v5e:16x16" or "v5p:4x4x8".

    Raises:
        UserError: There is no such slice, or no TPU compiler.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if not match or match[1] not in SLICES:
        raise UserError(f"Unknown topology {name!r}: {_hint(name)}")
    if importlib.util.find_spec("libtpu") is None and not os.environ.get("TPU_LIBRARY_PATH"):
        raise UserError(
            "The TPU compiler is not installed; on Linux (x86-64) get it by "
            'pip install -e ".[tpu]" (200 MB).'
        )
    options = {}
    if match[1] == "v4":
        options["chip_config_name"] = "megacore"  # As TPU VMs have it: a device is a chip.
    if set(match[2].split("x")) == {"1"}:
        options["chips_per_host_bounds"] = (1, 1, 1)
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    try:
        return topologies.get_topology_desc(name, platform="tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"Topology {name!r} is refused ({reason}): {_hint(name)}") from error


def _hint(name: str) -> str:
    """What the user may have meant."""
    match = re.fullmatch(r"(\w+)-(\d+)", name)
    if match and match[1] in _ACCELERATOR_TYPES:
        generation, cores = _ACCELERATOR_TYPES[match[1]]
        chips = int(match[2]) // cores
        for shape in SLICES[generation]:
            if math.prod(map(int, shape.split("x"))) == chips:
                return f"the slice that gcloud calls {name} is {generation}:{shape} here."
    generation = re.split("[:-]", name)[0]
    generation = _ACCELERATOR_TYPES.get(generation, (generation,))[0]
    if generation in SLICES:
        return f"try {generation}: and one of {', '.join(SLICES[generation])}."
    return (
        f"it is a generation ({', '.join(SLICES)}) and a shape in chips, such as v5e:4x4 or "
        "v5p:4x4x8."
    )
