"""The parts of a Poolformer. They know nothing of audio."""

from pf_jax.layers.attention import Attention, AttentionState
from pf_jax.layers.complex_rglru import ComplexRGLRU, ComplexTemporalMixing
from pf_jax.layers.convolution import CausalConvolution
from pf_jax.layers.embedding import Embedding
from pf_jax.layers.gru import GRU, GRUMixing
from pf_jax.layers.linear import BlockDiagonalLinear
from pf_jax.layers.mamba import Mamba, MambaState
from pf_jax.layers.mixer import MIXERS, Mixer, MixerState
from pf_jax.layers.mlp import MLPS, GatedMLP, PlainMLP
from pf_jax.layers.norm import Norm, make_norm
from pf_jax.layers.pooling import DownPool, UpPool
from pf_jax.layers.rglru import RGLRU, RGLRUState
from pf_jax.layers.s4d import S4D, S4DState
from pf_jax.layers.temporal_mixing import TemporalMixing, TemporalMixingState

__all__ = [
    "GRU",
    "MIXERS",
    "MLPS",
    "RGLRU",
    "S4D",
    "Attention",
    "AttentionState",
    "BlockDiagonalLinear",
    "CausalConvolution",
    "ComplexRGLRU",
    "ComplexTemporalMixing",
    "DownPool",
    "Embedding",
    "GRUMixing",
    "GatedMLP",
    "Mamba",
    "MambaState",
    "Mixer",
    "MixerState",
    "Norm",
    "PlainMLP",
    "RGLRUState",
    "S4DState",
    "TemporalMixing",
    "TemporalMixingState",
    "UpPool",
    "make_norm",
]
