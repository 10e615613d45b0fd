"""One sentence for each picture, whichever way the numbers come out."""

from collections.abc import Sequence

import numpy as np

from pf_jax.evaluation.analysis.horizons import Horizons
from pf_jax.evaluation.analysis.influence import Influence
from pf_jax.evaluation.analysis.pictures import paths, silenced
from pf_jax.evaluation.analysis.silencing import Silencing
from pf_jax.evaluation.analysis.units import Unit, rounded


def of_horizons(found: Sequence[Horizons], unit: Unit) -> str:
    """Whether the median horizon grows with the level, and how much of that pooling does."""
    if not found:
        return (
            "No horizon is known: either no layer has a log_decay, which says how states decay, or "
            "no ResBlock saw a whole position."
        )
    medians = [h.quantile(0.5) for h in found]
    if len(found) == 1:
        low, high = (unit.amount(found[0].quantile(share)) for share in (0.1, 0.9))
        return f"The median horizon is {unit.amount(medians[0])}; 80 % are from {low} to {high}."
    listed = [
        f"{unit.amount(median)} at level {h.level}"
        for h, median in zip(found, medians, strict=True)
    ]
    grows = "grows with every level" if np.all(np.diff(medians) > 0) else "does not always grow"
    first, last = found[0], found[-1]
    whole, pooling = medians[-1] / medians[0], last.every / first.every
    return (
        f"The median horizon {grows}: {_and(listed)}. At level {last.level} it is "
        f"{rounded(whole)} times that of level {first.level}: {rounded(pooling)} times by pooling, "
        f"and {rounded(whole / pooling)} times by what decays in one position."
    )


def of_influence(found: Influence, unit: Unit) -> str:
    """How fast influence falls, and from where on it needs which level."""
    total = found.rms[-1]
    parts = []
    for share, name in ((0.1, "a tenth"), (0.01, "a hundredth")):
        at = _from_there_on(total < share * total[0])
        if at is not None:
            parts.append(f"stays below {name} of that from {unit.amount(int(found.edges[at]))} on")
    parts.append(
        f"is {_ratio(total[-1], total[0])} of it at the farthest distances, about "
        f"{unit.amount(round(float(found.centres[-1])))}"
    )
    sentence = f"Compared with the token just before, the influence of a past one {_and(parts)}"
    for level in range(len(found.rms) - 1):
        at = _from_there_on(found.rms[level] < 0.5 * total)
        through = paths(level, len(found.rms))
        if at is None:
            sentence += f"; at no distance do paths through {through} stay below half of it"
        else:
            beyond = unit.amount(int(found.edges[at]))
            sentence += f"; from {beyond} on, paths through {through} carry less than half of it"
    return f"{sentence}."


def of_silencing(found: Silencing, unit: Unit) -> str:
    """What silencing each level costs, and whether that is more than chance."""
    bits, num_levels = found.bits_per_sample[0], len(found.nats)
    if num_levels == 1:
        return (
            "The model has one level, so that there is no inner one to silence; it needs "
            f"{bits:.3f} bits per {unit.name}."
        )
    parts = []
    for level in range(1, num_levels):
        more, error = found.increase[level], found.standard_error[level]
        known = "" if np.isnan(error) else f" \N{PLUS-MINUS SIGN} {error:.3f}"
        verb = "more" if more >= 0 else "fewer"
        chance = ", which is within two standard errors of nothing" if abs(more) < 2 * error else ""
        parts.append(f"{abs(more):.3f}{known} {verb} without {silenced(level, num_levels)}{chance}")
    return f"The intact model needs {bits:.3f} bits per {unit.name}: {_and(parts)}."


def _from_there_on(holds: np.ndarray) -> int | None:
    """From which place on something holds up to the end, if it does at all."""
    fails = np.flatnonzero(~holds)
    at = int(fails[-1]) + 1 if len(fails) else 0
    return at if at < len(holds) else None


def _ratio(value: float, whole: float) -> str:
    return rounded(value / whole) if whole > 0 else "an unknown part"


def _and(parts: Sequence[str]) -> str:
    return ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1]
