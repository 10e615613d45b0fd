"""What a model remembers: horizons, influence over distance, and what each level is worth."""

from pf_jax.evaluation.analysis.horizons import Horizons as Horizons
from pf_jax.evaluation.analysis.horizons import horizons as horizons
from pf_jax.evaluation.analysis.horizons import log_decays as log_decays
from pf_jax.evaluation.analysis.influence import Influence as Influence
from pf_jax.evaluation.analysis.influence import draw_targets as draw_targets
from pf_jax.evaluation.analysis.influence import influence as influence
from pf_jax.evaluation.analysis.influence import influence_norms as influence_norms
from pf_jax.evaluation.analysis.report import Analysis as Analysis
from pf_jax.evaluation.analysis.report import write_report as write_report
from pf_jax.evaluation.analysis.silencing import Silencing as Silencing
from pf_jax.evaluation.analysis.silencing import silencing as silencing
