"""How good a model is: likelihood, what it is measured against, and what its sounds are like."""

from pf_jax.evaluation.distribution import Outputs as Outputs
from pf_jax.evaluation.distribution import Scores as Scores
from pf_jax.evaluation.distribution import score as score
from pf_jax.evaluation.live_curves import LiveCurves as LiveCurves
from pf_jax.evaluation.markov import markov_bits_per_sample as markov_bits_per_sample
