"""From tokens to vectors."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from pf_jax.config import PoolformerConfig


class Embedding(nnx.Module):
    """Vectors for tokens `0 ... vocab_size - 1`, and a learned one for the start of a sequence.

    The start of a sequence is the token `vocab_size`. A token outside becomes NaN rather than
    another token.

    * "sinusoidal": `W [sin(f_k v); cos(f_k v)] + b` with `v` the token and wavelengths from 4
      levels to 4 times the vocabulary: levels of an amplitude are ordered, so neighbours start out
      near each other, yet each can be told from the next.
    * "learned": a table.

    Attributes:
        start: The vector that stands before the first token.
        projection: `W` and `b` of the sinusoidal embedding.
        table: Of the learned embedding.
    """

    def __init__(self, width: int, config: PoolformerConfig, *, rngs: nnx.Rngs):
        """Makes the embedding for the outermost level's width."""
        self.vocab_size = config.vocab_size
        self.dtype = config.dtype
        normal = nnx.initializers.normal(stddev=1.0)
        self.start = nnx.Param(normal(rngs.params(), (width,)))
        self.sinusoidal = config.embedding == "sinusoidal"
        if self.sinusoidal:
            self.projection = nnx.Linear(2 * width, width, dtype=config.dtype, rngs=rngs)
        else:
            self.table = nnx.Param(normal(rngs.params(), (config.vocab_size, width)))

    def __call__(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch width"]:
        """Embeds tokens; `vocab_size` stands for the start."""
        if self.sinusoidal:
            features = sinusoidal_features(self.vocab_size, self.projection.in_features // 2)
            x = self.projection(_rows(jnp.asarray(features, self.dtype), tokens))
        else:
            x = _rows(self.table.astype(self.dtype), tokens)
        is_start = (tokens == self.vocab_size)[..., None]
        return jnp.where(is_start, self.start.astype(self.dtype), x)


def sinusoidal_features(vocab_size: int, num_waves: int) -> np.ndarray:
    """`(vocab_size, 2 num_waves)` float32: sines and cosines of each level, variance 1."""
    wavelengths = np.geomspace(4.0, 4.0 * vocab_size, num_waves)
    phases = 2.0 * np.pi * np.arange(vocab_size)[:, None] / wavelengths
    features = np.concatenate([np.sin(phases), np.cos(phases)], axis=1)
    return (np.sqrt(2.0) * features).astype(np.float32)


def _rows(table: Float[Array, "rows width"], tokens: Int[Array, "*batch"]):
    """Rows of a table; zeros for the token one past its end (the start), NaN for any other."""
    table = jnp.concatenate([table, jnp.zeros_like(table[:1])])
    # Negative indices would count from the end.
    tokens = jnp.where(tokens < 0, table.shape[0], tokens)
    return table.at[tokens].get(mode="fill", fill_value=jnp.nan)
