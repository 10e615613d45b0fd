"""Poolformer in JAX: recurrent networks with pooling for long sequences of raw audio."""

from pf_jax import audio
from pf_jax.config import PoolformerConfig
from pf_jax.errors import UserError
from pf_jax.poolformer import Poolformer
from pf_jax.recurrence import linear_recurrence
from pf_jax.sampling import generate, stream
from pf_jax.sharing import export
from pf_jax.training import load
from pf_jax.version import __version__

__all__ = [
    "Poolformer",
    "PoolformerConfig",
    "UserError",
    "__version__",
    "audio",
    "export",
    "generate",
    "linear_recurrence",
    "load",
    "stream",
]
