"""Token embeddings."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from pf_jax.config import PoolformerConfig


class Embedding(nnx.Module):
    """Vectors for tokens `0 ... vocab_size - 1`; any other token becomes NaN.

    * "sinusoidal" (published): `cos(f_i v)`, then `sin(f_i v)` of the token `v`, with frequencies
      `f_i = 10000^(-i / n)`, `i = 0 ... n - 1`, `n = width / 2`. Nothing is learned.
    * "sinusoidal_linear": `W [sin(f_k v); cos(f_k v)] + b` with wavelengths from 4 levels to 4
      times the vocabulary.
    * "learned": a table.

    Attributes:
        projection: `W` and `b` of "sinusoidal_linear"; None otherwise.
        table: Of "learned"; None otherwise.
    """

    def __init__(self, width: int, config: PoolformerConfig, *, rngs: nnx.Rngs):
        """Makes the embedding for the outermost level's width."""
        self.width, self.vocab_size, self.dtype = width, config.vocab_size, config.dtype
        if config.embedding == "sinusoidal_linear":
            self.projection = nnx.Linear(2 * width, width, dtype=config.dtype, rngs=rngs)
        else:
            self.projection = None
        if config.embedding == "learned":
            normal = nnx.initializers.normal(stddev=1.0)
            self.table = nnx.Param(normal(rngs.params(), (config.vocab_size, width)))
        else:
            self.table = None

    def __call__(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch width"]:
        """Embeds tokens."""
        if self.table is not None:
            table = self.table[...]
        elif self.projection is not None:
            table = wave_features(self.vocab_size, self.width)
        else:
            table = sinusoidal_features(self.vocab_size, self.width)
        # Negative indices would count from the end.
        tokens = jnp.where(tokens < 0, self.vocab_size, tokens)
        x = jnp.asarray(table, self.dtype).at[tokens].get(mode="fill", fill_value=jnp.nan)
        return x if self.projection is None else self.projection(x)


def sinusoidal_features(vocab_size: int, width: int) -> Float[np.ndarray, "vocab width"]:
    """Cosines and sines of each level at the frequencies of Vaswani et al. (1706.03762); float32.

    Args:
        vocab_size: The number of levels.
        width: Even; half of the features are cosines.
    """
    half = width // 2
    frequencies = np.exp(-np.log(10_000.0) * np.arange(half) / half)
    phases = np.arange(vocab_size)[:, None] * frequencies
    return np.concatenate([np.cos(phases), np.sin(phases)], axis=1).astype(np.float32)


def wave_features(vocab_size: int, num_waves: int) -> Float[np.ndarray, "vocab 2*num_waves"]:
    """Sines and cosines of each level with wavelengths that fit the vocabulary, of variance 1."""
    wavelengths = np.geomspace(4.0, 4.0 * vocab_size, num_waves)
    phases = 2.0 * np.pi * np.arange(vocab_size)[:, None] / wavelengths
    features = np.concatenate([np.sin(phases), np.cos(phases)], axis=1)
    return (np.sqrt(2.0) * features).astype(np.float32)
