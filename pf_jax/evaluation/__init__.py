"""How good a model is: likelihood, and what it is measured against."""

from pf_jax.evaluation.markov import markov_bits_per_sample as markov_bits_per_sample
