"""Sampling: new sequences from a model, one token at a time."""

from pf_jax.sampling.generate import generate

__all__ = ["generate"]
