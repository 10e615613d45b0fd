"""The gated linear recurrence `h_t = a_t h_{t-1} + b_t`, one door and several implementations."""

from pf_jax.recurrence.linear_recurrence import IMPLEMENTATIONS, linear_recurrence

__all__ = ["IMPLEMENTATIONS", "linear_recurrence"]
