"""Sampling: new sequences from a model, each level of it working only when it owes to."""

from pf_jax.sampling.generate import generate, stream
from pf_jax.sampling.sampler import Chunk, Position, Sampler, check_arguments

__all__ = ["Chunk", "Position", "Sampler", "check_arguments", "generate", "stream"]
