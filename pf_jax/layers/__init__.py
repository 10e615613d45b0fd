"""The layers of a Poolformer. They know nothing of audio."""

from pf_jax.layers.attention import Attention, AttentionState
from pf_jax.layers.convolution import CausalConvolution, Convolution, DepthwiseConvolution
from pf_jax.layers.embedding import Embedding
from pf_jax.layers.gru import GRU, GRURecurrence
from pf_jax.layers.initialization import residual_output
from pf_jax.layers.layer import LAYERS, Layer, LayerState, find_layer, own_layers
from pf_jax.layers.linear import BlockDiagonalLinear
from pf_jax.layers.mamba import Mamba, MambaState
from pf_jax.layers.mlp import GatedMLP, PlainMLP
from pf_jax.layers.norm import Norm, make_norm
from pf_jax.layers.pooling import DownPool, UpPool
from pf_jax.layers.recurrence import (
    ComplexRecurrence,
    RealRecurrence,
    Recurrence,
    RecurrenceState,
)
from pf_jax.layers.rglru import CGLRU, RGLRU
from pf_jax.layers.s4d import S4D, S4DState

__all__ = [
    "CGLRU",
    "GRU",
    "LAYERS",
    "RGLRU",
    "S4D",
    "Attention",
    "AttentionState",
    "BlockDiagonalLinear",
    "CausalConvolution",
    "ComplexRecurrence",
    "Convolution",
    "DepthwiseConvolution",
    "DownPool",
    "Embedding",
    "GRURecurrence",
    "GatedMLP",
    "Layer",
    "LayerState",
    "Mamba",
    "MambaState",
    "Norm",
    "PlainMLP",
    "RealRecurrence",
    "Recurrence",
    "RecurrenceState",
    "S4DState",
    "UpPool",
    "find_layer",
    "make_norm",
    "own_layers",
    "residual_output",
]
