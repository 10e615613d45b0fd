"""The gated linear recurrence `h_t = a_t h_{t-1} + b_t`, one door and several implementations."""

from pf_jax.recurrence import gates
from pf_jax.recurrence.choice import IMPLEMENTATIONS
from pf_jax.recurrence.coefficients import Coefficients
from pf_jax.recurrence.linear_recurrence import linear_recurrence, recurrence

__all__ = ["IMPLEMENTATIONS", "Coefficients", "gates", "linear_recurrence", "recurrence"]
