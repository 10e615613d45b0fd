"""The recurrent form as nested loops, one per level, so that each level works only when it owes to.

A level below pools of `p_1 ... p_k` runs once in `p_1 ... p_k` tokens. Rather than asking at each
token which levels are due (as `Poolformer.step` does), the loop of a level has the loop of the
level above it in its body: `p` tokens, then one position of the level that pools them, and so on.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pf_jax.layers import MixerState
from pf_jax.poolformer import SkipBlockState
from pf_jax.sampling.drawing import draw, log_probability
from pf_jax.sampling.weights import Block, SamplerWeights, norm_scale


class LevelState(NamedTuple):
    """What a level carries from one group of tokens to the next.

    Attributes:
        before: States of the ResBlocks before the nested SkipBlock.
        after: States of those after it.
        up: The up-pooled vectors of the coming group; None in the innermost level.
    """

    before: tuple[MixerState, ...]
    after: tuple[MixerState, ...]
    up: Float[Array, "batch factor width"] | None


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
    """What stands between two groups of the innermost level.

    Attributes:
        levels: The states of the levels, the outermost first.
        previous: The last tokens.
    """

    levels: tuple[LevelState, ...]
    previous: Int[Array, "batch"]


def make_carry(
    weights: SamplerWeights, state: SkipBlockState, previous: Int[Array, "batch"]
) -> Carry:
    """A model's state, level by level. It must stand between two groups at all levels."""
    levels = []
    for level in weights.levels:
        levels.append(
            LevelState(
                tuple(b.adopt(s) for b, s in zip(level.before, state.before, strict=True)),
                tuple(b.adopt(s) for b, s in zip(level.after, state.after, strict=True)),
                None if state.up is None else state.up.astype(jnp.float32),
            )
        )
        state = state.nested
    return Carry(tuple(levels), previous)


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
        carry: The state to go on from.
        inputs: Those of each token, time first.
        temperature: As of `pf_jax.generate`.
        top_p: Likewise; None leaves all tokens.

    Returns:
        The state after the tokens, and the outputs of each, time first.
    """

    def position(level: int, carry: Carry, inputs: Inputs, up: Float[Array, "batch width"] | None):
        """One position of a level, with the tokens that it pools."""
        this, (states, previous) = weights.levels[level], carry
        state, projected, outputs = states[level], None, None
        if level == 0:
            x = weights.embedding[previous]
            projected = None if weights.projected is None else weights.projected[previous]
        else:
            shallower = weights.levels[level - 1]
            carry = Carry(states[:level], previous)
            carry, (outputs, group) = positions(level - 1, carry, inputs)
            states, previous = (*carry.levels, state), carry.previous
            group = jnp.moveaxis(group, 0, 1)
            x = shallower.down_pool(group.reshape(group.shape[0], -1))

        around = this.outer_residual
        x, before = _steps(this.before, x, state.before, around, projected)
        y, after = _steps(this.after, x if up is None else x + up, state.after, around)
        states = (*states[:level], LevelState(before, after, state.up))

        if level == 0:
            logits = weights.head(y, norm_scale(y, weights.epsilon, weights.centred))
            drawn = draw(logits, inputs.uniform, temperature, top_p)
            previous = jnp.where(inputs.forced < 0, drawn, inputs.forced)
            outputs = Outputs(previous, log_probability(logits, previous))
        else:
            up = shallower.up_pool(y).reshape(y.shape[0], shallower.factor, -1)
            states = (*states[: level - 1], states[level - 1]._replace(up=up), states[level])
        return Carry(states, previous), (outputs, x)

    def positions(level: int, carry: Carry, inputs: Inputs):
        """All positions of a level that the first axis of the inputs has."""
        up = carry.levels[level].up
        up = None if up is None else jnp.moveaxis(up, 1, 0)
        return jax.lax.scan(lambda c, xs: position(level, c, *xs), carry, (inputs, up))

    factors = [level.factor for level in weights.levels[-2::-1]]
    nested = jax.tree.map(lambda x: x.reshape(-1, *factors, x.shape[-1]), inputs)
    carry, (outputs, _) = positions(len(weights.levels) - 1, carry, nested)
    return carry, jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), outputs)


def _steps(blocks: tuple[Block, ...], x, states, outer_residual: bool, projected=None):
    new_states, start = [], x
    for block, state in zip(blocks, states, strict=True):
        if projected is not None:
            x, state = block.step(x, state, projected)
            projected = None
        else:
            x, state = block.step(x, state)
        new_states.append(state)
    return start + x if outer_residual and blocks else x, tuple(new_states)
