"""What all tests share."""

import gc
import importlib.metadata
import os
import pathlib
import tempfile

import pytest

# Several processes compile the same small programs: once is enough. Set before jax is imported.
_CACHE = pathlib.Path(tempfile.gettempdir()) / f"pf_jax_tests_{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# To compile takes far longer than to run. What the README shows is run as users run it.
_QUICK = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib") < "0.11":  # Later ones have no other emitters.
    _QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", _QUICK)
# All that is compiled stays: to look again and again for garbage in it takes a tenth of the time.
gc.set_threshold(50_000, 20, 50)

# What takes long comes first, so that no process is left alone with it; each takes whole files.
_LONG = (
    "test_hosts.py",
    "/training/",
    "/experiments/",
    "/docs/",
    "test_notebooks.py",
    "/sampling/",
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: [part not in item.path.as_posix() for part in _LONG])


# Each compiled program takes some of the 65,530 mappings of memory that Linux gives to a process;
# past them, XLA crashes.
_MOST_MAPPINGS = 15_000


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Before a file, lets go of what others have compiled, if that is a lot."""
    mappings = pathlib.Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > _MOST_MAPPINGS:
        import jax

        jax.clear_caches()
        gc.collect()
