"""Sampling: new sequences from a model, one token at a time."""

from pf_jax.sampling.generate import check_arguments, generate

__all__ = ["check_arguments", "generate"]
