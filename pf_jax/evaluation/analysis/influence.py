"""How much a sample of the past moves the present loss, over its distance."""

import dataclasses
import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Float64, Int, Int64

from pf_jax.evaluation.analysis.parts import Changed, skip_blocks
from pf_jax.poolformer import Poolformer
from pf_jax.training.state import Params, merge_model, split_model

_BINS_PER_DECADE = 12


@dataclasses.dataclass(frozen=True)
class Influence:
    """Norms of gradients over distance; 1 is the token just before the one that is predicted.

    Attributes:
        edges: Bin `i` has the distances from `edges[i]` up to `edges[i + 1] - 1`.
        pairs: How many pairs of a target and a past token are in each bin.
        rms: For each level `k` the root mean square, over the pairs of a bin, of the norm of the
            gradient of the target's loss (nats) with respect to the past token's embedding, as far
            as it passes through levels 0 to `k`. The last row is the whole gradient.
    """

    edges: Int64[np.ndarray, "bins+1"]
    pairs: Int64[np.ndarray, "bins"]
    rms: Float64[np.ndarray, "levels bins"]

    @property
    def centres(self) -> Float64[np.ndarray, "bins"]:
        """The geometric mean of the least and the greatest distance of each bin."""
        return np.sqrt(self.edges[:-1] * (self.edges[1:] - 1.0))


def draw_targets(
    lengths: Int[np.ndarray, "windows"], number: int, rng: np.random.Generator
) -> tuple[Int64[np.ndarray, "number"], Int64[np.ndarray, "number"]]:
    """Draws windows, and in each a position whose loss is looked at.

    Positions are from the second half of what is real of a window, so that each has a long past.

    Args:
        lengths: How many tokens of each window are real; at least one window has two or more.
        number: How many to draw.
        rng: The randomness.

    Returns:
        The numbers of the windows, every one as often as any other but for one, and the positions.
    """
    usable = rng.permutation(np.flatnonzero(lengths >= 2))
    windows = np.resize(usable, number)
    least = np.maximum(lengths[windows] // 2, 1)
    return windows, rng.integers(least, lengths[windows])


def influence(
    model: Poolformer,
    batches: Iterable[tuple[Int[np.ndarray, "batch time"], Int[np.ndarray, "batch"]]],
) -> Influence:
    """Influence over distance, averaged over targets: one backward pass for each and each level.

    Args:
        model: The model.
        batches: Tokens, all of one number of positions, and the target position in each row. A row
            whose target is 0 has no past and counts for nothing.

    Returns:
        Bins without a pair are left out at the far end.
    """
    graphdef, params = split_model(model)
    num_levels = model.config.num_levels
    squares = pairs = np.zeros(0)
    for tokens, positions in batches:
        if not len(pairs):
            squares, pairs = np.zeros((num_levels, tokens.shape[1])), np.zeros(tokens.shape[1], int)
        for level in range(num_levels):
            passes = np.arange(num_levels - 1) < level
            norms = np.asarray(_norms_of(graphdef, params, tokens, positions, passes), np.float64)
            for row, target in zip(norms, positions, strict=True):
                # Behind the start token at 0 come tokens 0 to target - 1: the last is nearest.
                squares[level, 1 : target + 1] += row[target:0:-1] ** 2
                pairs[1 : target + 1] += level == 0
    return _binned(squares, pairs)


@functools.partial(jax.jit, static_argnums=0)
def _norms_of(
    graphdef: nnx.GraphDef,
    params: Params,
    tokens: Int[Array, "batch time"],
    positions: Int[Array, "batch"],
    passes: Bool[Array, "pools"],
) -> Float[Array, "batch time"]:
    """`_norms`, compiled once for all models of one structure."""
    return _norms(merge_model(graphdef, params), tokens, positions, passes)


def influence_norms(
    model: Poolformer,
    tokens: Int[Array, "batch time"],
    positions: Int[Array, "batch"],
    deepest: Int[Array, ""] | int | None = None,
) -> Float[Array, "batch time"]:
    """Norms of the gradients of one loss in each row with respect to the outputs of the embedding.

    Args:
        model: The model, which is left as it is.
        tokens: In `[0, vocab_size)`.
        positions: Of the token in each row whose `-log p(token | past)` is differentiated, in nats.
        deepest: The gradient passes through levels 0 to this one only, though all take part in the
            forward pass; None for all.

    Returns:
        Entry `s` is of the token before position `s`, so that its distance from the target is
        `positions - s + 1`; the first is of the start token.
    """
    num_pools = model.config.num_levels - 1
    passes = jnp.arange(num_pools) < (num_pools if deepest is None else deepest)
    return _norms(model, jnp.asarray(tokens), jnp.asarray(positions), passes)


def _norms(
    model: Poolformer,
    tokens: Int[Array, "batch time"],
    positions: Int[Array, "batch"],
    passes: Bool[Array, "pools"],
) -> Float[Array, "batch time"]:
    """As `influence_norms`; says for each UpPool, from the outermost inward, whether it passes."""

    def loss(added):
        # Made here: a module can be changed only in the transformation in which it was made.
        changed = nnx.clone(model)
        changed.embedding = Changed(changed.embedding, lambda x: x + added.astype(x.dtype))
        for block, does_pass in zip(skip_blocks(changed), passes, strict=False):
            block.up_pool = Changed(
                block.up_pool,
                lambda y, does_pass=does_pass: jnp.where(does_pass, y, jax.lax.stop_gradient(y)),
            )
        at = jnp.arange(len(tokens)), positions
        nats = optax.softmax_cross_entropy_with_integer_labels(
            changed(tokens)[at], tokens[at].astype(jnp.int32)
        )
        return nats.sum()  # Rows do not hear of each other.

    gradient = jax.grad(loss)(jnp.zeros((*tokens.shape, model.config.widths[0]), jnp.float32))
    # Squares of the faintest would be zero in float32.
    largest = jnp.abs(gradient).max(axis=-1, keepdims=True)
    scaled = gradient / jnp.where(largest > 0, largest, 1.0)
    return largest[..., 0] * jnp.sqrt(jnp.sum(scaled**2, axis=-1))


def _binned(
    squares: Float64[np.ndarray, "levels distances"], pairs: Int64[np.ndarray, "distances"]
) -> Influence:
    """Puts distances into bins of about one width on a logarithmic axis."""
    distances = np.flatnonzero(pairs)
    end = int(distances[-1]) + 1 if len(distances) else 1
    number = 1 + int(np.ceil(_BINS_PER_DECADE * np.log10(end)))
    edges = np.unique(np.geomspace(1, end, max(number, 2)).round().astype(np.int64))
    if len(edges) < 2:
        raise ValueError("no target has a past")
    in_bins = np.add.reduceat(pairs[:end], edges[:-1])
    sums = np.add.reduceat(squares[:, :end], edges[:-1], axis=1)
    return Influence(edges, in_bins, np.sqrt(sums / in_bins))
