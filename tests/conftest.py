"""What all tests share."""

import os
import pathlib
import tempfile

# Several processes compile the same small programs: once is enough. Set before jax is imported.
_CACHE = pathlib.Path(tempfile.gettempdir()) / f"pf_jax_tests_{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
