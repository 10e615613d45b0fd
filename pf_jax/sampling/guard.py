"""What is done about samples that go wrong: runaway noise, and those at the ends of the ranking."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int

from pf_jax.errors import UserError
from pf_jax.sampling.sampler import Chunk, Position, Sampler

# Long enough that a loud passage is no collapse, short enough to lose little: a quarter of a second
# at 16 kHz.
GUARD_STEPS = 4096
_ATTEMPTS = 8


def guarded_chunks(
    sampler: Sampler, position: Position, num_steps: int | None = None, *, most_bits: float
) -> Iterator[tuple[Chunk, Bool[np.ndarray, "streams"]]]:
    """Chunk after chunk, of which those that collapse into noise are drawn again.

    Long samples of autoregressive models of sound can fall into noise and stay there. The mean cost
    of a chunk's own tokens estimates the entropy of the model's predictions over it; where that is
    far above what the model has on real data, the stream is drawn again from the end of its last
    good chunk, with other random numbers, up to eight times. What is given then is no longer a fair
    draw from the model, though its likelihoods are still exact.

    Args:
        sampler: The model; its chunk is what is judged, and what is lost.
        position: Where the sequences stand.
        num_steps: How many new tokens in all; the last chunk is cut. None has no end.
        most_bits: The mean bits per sample up to which a chunk is good.

    Yields:
        The chunk, and which streams of it were drawn again.
    """
    left = math.inf if num_steps is None else num_steps
    while left > 0:
        start = position
        position, chunk = sampler.advance(start)
        chunk = Chunk(*map(np.array, chunk))
        redrawn = np.zeros(len(chunk.tokens), bool)
        for attempt in range(1, _ATTEMPTS + 1):
            bad = _bits(chunk) > most_bits
            if not bad.any():
                break
            redrawn |= bad
            other, again = sampler.advance(start, attempt=attempt)
            for old, new in zip(chunk, again, strict=True):
                old[bad] = np.asarray(new)[bad]
            position = sampler.merge(position, other, bad)
        new = min(left, chunk.tokens.shape[1])
        left -= new
        yield Chunk(*(x[:, :new] for x in chunk)), redrawn


def likelihood_band(
    log_likelihoods: Sequence[float], *, low: float, high: float
) -> Int[np.ndarray, "kept"]:
    """The numbers of the samples that are left when both ends of the ranking are dropped.

    The least likely are often noise, and the likeliest silence. SaShiMi's authors (arXiv
    2202.09729) drop the lower 40 % and the upper 5 % before they compute metrics of samples.

    Args:
        log_likelihoods: Of samples of one length.
        low: The share of the ranking, from its lower end, below which samples are dropped.
        high: The share above which they are.

    Returns:
        The numbers of those that are kept, in their own order.

    Raises:
        UserError: The band is not one of shares in [0, 1].
    """
    if not 0.0 <= low < high <= 1.0:
        raise UserError(
            f"A band of likelihoods is like 0.4,0.95, with 0 <= low < high <= 1; got {low},{high}."
        )
    number = len(log_likelihoods)
    ranking = np.argsort(np.asarray(log_likelihoods), kind="stable")
    # Shares like 0.95 are not exact; a hair must not drop one more.
    kept = ranking[math.floor(low * number + 1e-9) : math.ceil(high * number - 1e-9)]
    return np.sort(kept)


def _bits(chunk: Chunk) -> np.ndarray:
    return -chunk.log_p.mean(axis=1) / math.log(2.0)
