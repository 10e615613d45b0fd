"""What the levels are worth: the loss without them."""

import dataclasses
import functools
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float64, Int, Int64

from pf_jax.evaluation.analysis.parts import Changed, skip_blocks
from pf_jax.poolformer import Poolformer
from pf_jax.training.state import Params, merge_model, split_model
from pf_jax.training.step import negative_log_likelihood


@dataclasses.dataclass(frozen=True)
class Silencing:
    """The negative log-likelihood of windows, of the intact model and of silenced ones.

    Attributes:
        nats: Row 0 is of the intact model; row `k` is of one in which level `k` and all inside it
            say nothing: what the level above hears of them, after UpPool, is zero.
        num_samples: Real positions of each window.
    """

    nats: Float64[np.ndarray, "levels windows"]
    num_samples: Int64[np.ndarray, "windows"]

    @property
    def bits_per_sample(self) -> Float64[np.ndarray, "levels"]:
        """The mean over all real positions."""
        return self.nats.sum(axis=1) / self.num_samples.sum() / math.log(2.0)

    @property
    def increase(self) -> Float64[np.ndarray, "levels"]:
        """Bits per sample above those of the intact model."""
        return self.bits_per_sample - self.bits_per_sample[0]

    @property
    def standard_error(self) -> Float64[np.ndarray, "levels"]:
        """Of `increase`, as if windows were independent of each other; NaN for a single window.

        That of a ratio of two sums over windows, the increase and the samples.
        """
        number = len(self.num_samples)
        if number < 2:
            return np.full(len(self.nats), math.nan)
        more = (self.nats - self.nats[0]) / math.log(2.0)
        residuals = more - self.increase[:, None] * self.num_samples
        spread = np.sqrt((residuals**2).sum(axis=1) * number / (number - 1))
        return spread / self.num_samples.sum()


def silencing(
    model: Poolformer,
    batches: Iterable[tuple[Int[np.ndarray, "batch time"], Int[np.ndarray, "batch"]]],
) -> Silencing:
    """Scores windows with each of the inner levels silenced in turn, and with none.

    Args:
        model: The model.
        batches: Tokens, and how many of each row are real.

    Returns:
        One row for a model of one level, in which there is nothing to silence.
    """
    graphdef, params = split_model(model)
    num_levels = model.config.num_levels
    nats, counts = [], []
    for tokens, lengths in batches:
        rows = []
        for level in range(num_levels):
            # Silencing level k is not to hear the UpPool above it, number k - 1.
            is_heard = np.arange(num_levels - 1) != level - 1
            row, count = jax.device_get(_score(graphdef, params, tokens, lengths, is_heard))
            rows.append(row.astype(np.float64))
        nats.append(np.stack(rows))
        counts.append(count.astype(np.int64))
    nats, counts = np.concatenate(nats, axis=1), np.concatenate(counts)
    return Silencing(nats[:, counts > 0], counts[counts > 0])


@functools.partial(jax.jit, static_argnums=0)
def _score(
    graphdef: nnx.GraphDef,
    params: Params,
    tokens: Int[Array, "batch time"],
    lengths: Int[Array, "batch"],
    is_heard: Bool[Array, "pools"],
) -> tuple[Float[Array, "batch"], Int[Array, "batch"]]:
    """The nats of each window and the number of its tokens; compiled once for all such models."""
    model = _silenced(merge_model(graphdef, params), is_heard)

    def window(row):
        return negative_log_likelihood(model, row[0][None], row[1][None])

    return jax.lax.map(window, (tokens, lengths))


def _silenced(model: Poolformer, is_heard: Bool[np.ndarray, "pools"]) -> Poolformer:
    """Changes a model: an UpPool that is not heard gives zeros."""
    for block, heard in zip(skip_blocks(model), is_heard, strict=False):
        block.up_pool = Changed(block.up_pool, lambda y, heard=heard: jnp.where(heard, y, 0.0))
    return model
