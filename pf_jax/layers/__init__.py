"""The parts of a Poolformer. They know nothing of audio."""

from pf_jax.layers.convolution import CausalConvolution
from pf_jax.layers.embedding import Embedding
from pf_jax.layers.linear import BlockDiagonalLinear
from pf_jax.layers.mixer import MIXERS, Mixer, MixerState
from pf_jax.layers.mlp import GatedMLP
from pf_jax.layers.pooling import DownPool, UpPool
from pf_jax.layers.rglru import RGLRU, RGLRUState
from pf_jax.layers.temporal_mixing import TemporalMixing, TemporalMixingState

__all__ = [
    "MIXERS",
    "RGLRU",
    "BlockDiagonalLinear",
    "CausalConvolution",
    "DownPool",
    "Embedding",
    "GatedMLP",
    "Mixer",
    "MixerState",
    "RGLRUState",
    "TemporalMixing",
    "TemporalMixingState",
    "UpPool",
]
