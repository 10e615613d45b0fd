"""Small random models for tests: their configs, weights, tokens, and compiled functions."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from hypothesis import Phase, settings
from hypothesis import strategies as st

from pf_jax import Poolformer, PoolformerConfig
from pf_jax.config import CONVOLUTIONS, EMBEDDINGS, NORMS

# Logits are of the order of 1; float32 rounds each of some thousand terms to 6e-8.
ROUNDING = 5e-5


def fill(build, value):
    """What `build()` makes, each parameter by `value(name, shape)`: no initializer is compiled."""
    graph, params = nnx.split(nnx.eval_shape(build))
    params = jax.tree.map_with_path(
        lambda path, p: jnp.asarray(value(jax.tree_util.keystr(path), p.shape), jnp.float32), params
    )
    return nnx.merge(graph, params)


def zeros(name, shape):
    return np.zeros(shape)


def make_model(config, seed=0):
    """A model with noise in every parameter, so that no bias hides behind a zero."""
    rng = np.random.default_rng(seed)

    def noise(name, shape):
        if "decay" in name or "log_dt" in name:  # Memories from one position to hundreds.
            return rng.uniform(-7.0, 0.0, shape)
        return (shape[-2] ** -0.5 if len(shape) > 1 else 0.5) * rng.standard_normal(shape)

    return fill(lambda: Poolformer(config, rngs=nnx.Rngs(0)), noise)


def make_tokens(config, batch, time, seed=0):
    return np.random.default_rng(seed).integers(0, config.vocab_size, (batch, time))


def shift(tokens, first):
    """What stands before each token."""
    return np.concatenate([np.full_like(tokens[:, :1], first), tokens[:, :-1]], axis=1)


@nnx.jit
def parallel(model, tokens):
    return model(tokens)


@functools.partial(nnx.jit, static_argnums=1)
def init_state(model, batch_size):
    return model.init_state(batch_size)


@nnx.jit
def prefill(model, tokens, state=None, previous=None):
    return model.prefill(tokens, state, previous)


@nnx.jit
def recurrent(model, state, previous_tokens):
    """`step` over `(batch, time)` tokens that stand before those to be scored."""

    def step(state, previous):
        logits, state = model.step(state, previous)
        return state, logits

    return jnp.moveaxis(jax.lax.scan(step, state, previous_tokens.T)[1], 0, 1)


RECURRENCES = ("cglru", "rglru", "gru")
MIXERS = (*RECURRENCES, "attention", "convolution", "depthwise_convolution", "mamba", "s4d")
# FFTs spread the rounding of all inputs over all outputs.
SPREADS_ROUNDING = {"s4d"}


@st.composite
def configs(draw, levels, max_factor=5, mixers=MIXERS, **fields):
    """Small, asymmetric, sometimes empty, with several mixers; `levels` of them."""
    groups = draw(st.sampled_from([None, 1, 2]))
    widths = tuple(draw(st.sampled_from([4, 8])) for _ in range(levels))
    most = 2 if levels < 3 else 1  # A block more is half a second of compilation more.
    names = st.lists(st.sampled_from(mixers), max_size=most).map(tuple)
    side = st.integers(0, most) | names
    values = {
        "widths": widths if groups else widths[:1] * levels,
        "depths": (*(draw(side | st.tuples(side, side)) for _ in widths[1:]), draw(side)),
        "pool_factors": tuple(draw(st.integers(2, max_factor)) for _ in widths[1:]),
        "pool_groups": groups,
        "vocab_size": draw(st.integers(2, 9)),
        "embedding": draw(st.sampled_from(EMBEDDINGS)),
        "mixer": draw(st.sampled_from(mixers)),
        "mixer_gate": draw(st.booleans()),
        "mixer_expansion": draw(st.sampled_from([1.0, 2.0])),
        "recurrence_output": draw(st.booleans()),
        "num_heads": draw(st.integers(1, 2)),
        "convolution": draw(st.sampled_from(CONVOLUTIONS)),
        "conv_width": draw(st.integers(1, 4)),
        "attention_window": draw(st.integers(1, 6)),
        "state_size": 4,
        "norm": draw(st.sampled_from(NORMS)),
        "mlp": draw(st.sampled_from(["gated_mlp", "plain_mlp", "none"])),
        "sashimi_backbone": draw(st.booleans()),
        "recurrence": draw(st.sampled_from(["sequential", "associative", "auto"])),
    }
    return PoolformerConfig(**values | fields)


@st.composite
def problems(draw, levels, max_factor=5):
    """A config, tokens that reach through all its levels or not, and a seed for the weights."""
    config = draw(configs(levels, max_factor))
    period = math.prod(config.pool_factors)
    time = draw(st.one_of(st.integers(1, 2 * period + 9), st.integers(period, 2 * period + 9)))
    seed = draw(st.integers(0, 2**32 - 1))
    return config, make_tokens(config, draw(st.integers(1, 3)), time, seed), seed


def settled(max_examples):
    # Without the phase that shrinks a failing config: it would compile hundreds of programs.
    phases = (Phase.explicit, Phase.generate)
    return settings(max_examples=max_examples, deadline=None, derandomize=True, phases=phases)


SMALL = PoolformerConfig((4, 4), (1, 1), (3,), vocab_size=7, num_heads=2)
