"""The recurrent form as nested loops, one per level; each level runs only when its group is full.

A level below pools of `p_1 ... p_k` runs once in `p_1 ... p_k` tokens. Rather than asking at each
token which levels are due (as `Poolformer.step` does), the loop of a level has the loop of the
level above it in its body.

The loops begin and end in the middle of a position. The last position of a group gets a vector that
depends on the group itself, so what is done at a position is cut in two where the nested level
comes in: an iteration of a level's loop finishes one position (the ResBlocks after the nested
SkipBlock; at level 0 the token) and begins the next (the ResBlocks before it). After `p` iterations
a group is complete, and the deeper level can finish a position and begin the next.

A sequence starts between two positions: its first iteration finishes nothing
(`Carry.is_started`), and the token that it gives is one that is known, before the first new one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pf_jax.layers import LayerState
from pf_jax.poolformer import SkipBlockState
from pf_jax.sampling.drawing import draw, log_probability
from pf_jax.sampling.weights import Block, SamplerWeights


class LevelState(NamedTuple):
    """What a level carries from one iteration to the next.

    Attributes:
        before: States of the ResBlocks before the nested SkipBlock.
        after: States of those after it.
        x: The position that has begun, behind the ResBlocks before the nested SkipBlock.
        up: For a sequence that is not started: the up-pooled vectors of its next positions; None in
            the innermost level.
        delayed: Up-pooled vectors that the next group gets, for a delay of more than `factor - 1`;
            None in the innermost level.
    """

    before: tuple[LayerState, ...]
    after: tuple[LayerState, ...]
    x: Float[Array, "batch width"]
    up: Float[Array, "batch delay width"] | None
    delayed: Float[Array, "batch delay-factor+1 width"] | None


class Inputs(NamedTuple):
    """What a step takes from outside.

    Attributes:
        uniform: The random number that decides.
        forced: The token where it is known already, as of a prompt; -1 where it is to be drawn.
    """

    uniform: Float[Array, "*time batch"]
    forced: Int[Array, "*time batch"]


class Outputs(NamedTuple):
    """What a step gives.

    Attributes:
        tokens: The tokens.
        log_p: Their log-probabilities under the model itself, in nats.
    """

    tokens: Int[Array, "*time batch"]
    log_p: Float[Array, "*time batch"]


class Carry(NamedTuple):
    """What is carried from one group of the innermost level to the next.

    Attributes:
        levels: The states of the levels, the outermost first.
        is_started: Whether a position has begun.
    """

    levels: tuple[LevelState, ...]
    is_started: Bool[Array, ""]


def make_carry(weights: SamplerWeights, state: SkipBlockState, batch_size: int) -> Carry:
    """A model's state, level by level. It must be between two groups at all levels."""
    levels = []
    for level in weights.levels:
        up = None if state.up is None else state.up.astype(jnp.float32)
        levels.append(
            LevelState(
                tuple(b.adopt(s) for b, s in zip(level.before, state.before, strict=True)),
                tuple(b.adopt(s) for b, s in zip(level.after, state.after, strict=True)),
                jnp.zeros((batch_size, level.width), jnp.float32),
                up,
                None if up is None else up[:, level.factor - 1 :],
            )
        )
        state = state.nested
    return Carry(tuple(levels), jnp.array(False))


def run(
    weights: SamplerWeights,
    carry: Carry,
    inputs: Inputs,
    temperature: Float[Array, ""],
    top_p: Float[Array, ""] | None,
) -> tuple[Carry, Outputs]:
    """Draws tokens; their number must be a multiple of `weights.period`.

    Args:
        weights: The model.
        carry: The state to continue from.
        inputs: Those of each token, time first. The first of a sequence that is not started must be
            forced: the last token of the prompt that is already in the state, or the start token.
        temperature: As of `pf_jax.generate`.
        top_p: Likewise; None keeps all tokens.

    Returns:
        The state after the tokens, and the outputs of each, time first.
    """

    def iteration(level: int, carry: Carry, inputs: Inputs, up: Float[Array, "batch width"] | None):
        """Finishes a position of a level, with its tokens, and begins the next."""
        this, state, is_started = weights.levels[level], carry.levels[level], carry.is_started

        def if_started(new, old):
            return jax.tree.map(lambda x, y: jnp.where(is_started, x, y), new, old)

        y, after = state.x, state.after
        if up is not None:
            y, after = _steps(this.after, y + up, after, this.is_sashimi)
            after = if_started(after, state.after)
        if level == 0:
            logits = weights.head(y, weights.norm.scale(y))
            drawn = draw(logits, inputs.uniform, temperature, top_p)
            tokens = jnp.where(inputs.forced < 0, drawn, inputs.forced)
            outputs = Outputs(tokens, log_probability(logits, tokens))
            x, above = weights.embedding[tokens], ()
            projected = None if weights.projected is None else weights.projected[tokens]
            is_started = jnp.array(True)
        else:
            shallower, above = weights.levels[level - 1], carry.levels[:level]
            ups = jnp.concatenate([above[-1].delayed, shallower.pools.pool_up(y)], axis=1)
            ups = if_started(ups, jnp.pad(above[-1].up, ((0, 0), (1, 0), (0, 0))))
            above = (*above[:-1], above[-1]._replace(delayed=ups[:, shallower.factor :]))
            ups = jnp.moveaxis(ups[:, : shallower.factor], 1, 0)
            carry, (outputs, group) = iterations(level - 1, Carry(above, is_started), inputs, ups)
            (above, is_started), projected = carry, None
            x = shallower.pools.pool_down(jnp.moveaxis(group, 0, 1))
        x, before = _steps(this.before, x, state.before, this.is_sashimi, projected)
        levels = (*above, state._replace(before=before, after=after, x=x))
        return Carry(levels, is_started), (outputs, x)

    def iterations(level: int, carry: Carry, inputs: Inputs, ups):
        """As many as the first axis of the inputs has."""
        return jax.lax.scan(lambda c, xs: iteration(level, c, *xs), carry, (inputs, ups))

    factors = [level.factor for level in weights.levels[-2::-1]]
    nested = jax.tree.map(lambda x: x.reshape(-1, *factors, x.shape[-1]), inputs)
    carry, (outputs, _) = iterations(len(weights.levels) - 1, carry, nested, None)
    return carry, jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), outputs)


def _steps(blocks: tuple[Block, ...], x, states, is_sashimi: bool, projected=None):
    new_states, start = [], x
    for block, state in zip(blocks, states, strict=True):
        if projected is not None:
            x, state = block.step(x, state, projected)
            projected = None
        else:
            x, state = block.step(x, state)
        new_states.append(state)
    return start + x if is_sashimi and blocks else x, tuple(new_states)
