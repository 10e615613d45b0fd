"""How far the recurrences remember: `1 / (1 - a_t)` of every channel at every position.

A state that decays by `a` a position is an average over about `1 / (1 - a)` positions; a position
of a level is as many samples as the product of the pool factors above it.
"""

import dataclasses
import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float64, Int, Int64

from pf_jax.evaluation.analysis.parts import (
    Listener,
    res_blocks,
    samples_per_position,
    skip_blocks,
)
from pf_jax.poolformer import Poolformer
from pf_jax.training.state import Params, merge_model, split_model

_BINS_PER_DECADE = 200  # A quantile is at most 0.6 % from the true one.
_DECADES = 12  # What lasts longer counts as this long: float32 cannot tell it from for ever.
_NUM_BINS = _BINS_PER_DECADE * _DECADES


@dataclasses.dataclass(frozen=True)
class Horizons:
    """The memory horizons of one level.

    Attributes:
        level: Which level.
        every: Samples in one of its positions.
        counts: Numbers of horizons on real positions, over all channels of all ResBlocks, by 200
            bins a decade from `every` samples on.
        least: The least horizon that each of the channels can have, in samples, sorted: for the
            RG-LRU that at `r_t = 1`, which follows from the parameters alone.
    """

    level: int
    every: int
    counts: Int64[np.ndarray, "bins"]
    least: Float64[np.ndarray, "channels"]

    @property
    def edges(self) -> Float64[np.ndarray, "bins+1"]:
        """Where the bins of `counts` begin and end, in samples."""
        return self.every * 10.0 ** (np.arange(_NUM_BINS + 1) / _BINS_PER_DECADE)

    def quantile(self, share: float) -> float:
        """The horizon, in samples, that this share of all does not exceed, within 0.6 %."""
        below = np.concatenate([[0], np.cumsum(self.counts)])
        return float(10.0 ** np.interp(share * below[-1], below, np.log10(self.edges)))

    def histogram(
        self, bins_per_decade: int = 20
    ) -> tuple[Float64[np.ndarray, "coarse+1"], Float64[np.ndarray, "coarse"]]:
        """The edges, in samples, of coarser bins from the first to the last used, and their shares.

        Args:
            bins_per_decade: A divisor of 200.
        """
        fine = _BINS_PER_DECADE // bins_per_decade
        counts = self.counts.reshape(-1, fine).sum(axis=1)
        used = np.flatnonzero(counts)
        first, last = used[0], used[-1] + 1
        return self.edges[::fine][first : last + 1], counts[first:last] / counts.sum()


def horizons(
    model: Poolformer,
    batches: Iterable[tuple[Int[np.ndarray, "batch time"], Int[np.ndarray, "batch"]]],
) -> list[Horizons]:
    """The distribution of horizons of each level, on data.

    Args:
        model: The model.
        batches: Tokens, and how many of each row are real.

    Returns:
        One for each level that has any: none where layers have no `log_decay` (see
        `pf_jax.layers.Layer`), where a level has no ResBlocks, or where no real window is as long
        as one of its positions.
    """
    graphdef, params = split_model(model)
    totals: list[np.ndarray] = [np.zeros(_NUM_BINS, np.int64)] * model.config.num_levels
    least: list[list[np.ndarray]] = [[] for _ in totals]
    for tokens, lengths in batches:
        counts, least = jax.device_get(_count(graphdef, params, tokens, lengths))
        totals = [total + more for total, more in zip(totals, counts, strict=True)]
    found = []
    for level, (total, log_a) in enumerate(zip(totals, least, strict=True)):
        if total.any():
            every = samples_per_position(model.config, level)
            forgotten = -np.expm1(np.concatenate(log_a).astype(np.float64))
            of_channels = every / np.maximum(forgotten, 10.0**-_DECADES)
            found.append(Horizons(level, every, total, np.sort(of_channels)))
    return found


@functools.partial(jax.jit, static_argnums=0)
def _count(
    graphdef: nnx.GraphDef,
    params: Params,
    tokens: Int[Array, "batch time"],
    lengths: Int[Array, "batch"],
) -> tuple[list[Int[Array, "bins"]], list[list[Float[Array, "width"]]]]:
    """By level, counts of horizons, and the least decays of its blocks' channels, as logarithms.

    Compiled once for all models of one structure.
    """
    model = merge_model(graphdef, params)
    per_level = log_decays(model, tokens)
    every = [samples_per_position(model.config, level) for level in range(len(per_level))]
    counts = [
        sum(
            (_counts(log_a, lengths // step) for log_a, _ in heard),
            jnp.zeros(_NUM_BINS, jnp.int32),
        )
        for heard, step in zip(per_level, every, strict=True)
    ]
    return counts, [[least for _, least in heard] for heard in per_level]


def log_decays(
    model: Poolformer, tokens: Int[Array, "batch time"]
) -> list[list[tuple[Float[Array, "batch positions states"], Float[Array, "states"]]]]:
    """The logarithms of all decays in the parallel form.

    Args:
        model: The model, which is left as it is.
        tokens: In `[0, vocab_size)`.

    Returns:
        For each level a list of its ResBlocks whose layers have a `log_decay`: what that returns.
    """
    model = nnx.clone(model)
    levels = []
    for block in skip_blocks(model):
        heard = []
        block.remat = False  # What was heard inside of a checkpoint could not leave it.

        def listen(layer, x, state, heard=heard):
            if hasattr(layer, "log_decay"):
                heard.append(layer.log_decay(x, state))

        for res_block in res_blocks(block):
            res_block.layer = Listener(res_block.layer, listen)
        levels.append(heard)
    model(tokens)
    return levels


def _counts(
    log_a: Float[Array, "batch positions states"], num_real: Int[Array, "batch"]
) -> Int[Array, "bins"]:
    """How many horizons on the first `num_real` positions are in each bin."""
    # `1 - a` by expm1: the decays of the longest memories round to 1.
    decades = -jnp.log10(-jnp.expm1(log_a.astype(jnp.float32)))
    bins = jnp.clip(decades * _BINS_PER_DECADE, 0, _NUM_BINS - 1).astype(jnp.int32)
    is_real: Bool[Array, "batch positions"] = jnp.arange(log_a.shape[1]) < num_real[:, None]
    return jnp.zeros(_NUM_BINS, jnp.int32).at[bins].add(is_real[..., None].astype(jnp.int32))
