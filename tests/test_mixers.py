"""Every mixer in every backbone: the properties of a causal model with two forms.

Each case compiles few programs and looks at their results from several sides; tests of layers and
of the backbone by itself have more shapes.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pf_jax import Poolformer, PoolformerConfig
from pf_jax.sampling import nested
from pf_jax.sampling.weights import lay_out
from tests.models import (
    MIXERS,
    RECURRENCES,
    ROUNDING,
    SPREADS_ROUNDING,
    init_state,
    make_model,
    make_tokens,
    parallel,
    prefill,
    recurrent,
    shift,
)

VOCAB = 7
PERIOD = 4
PIECE = 3 * PERIOD
TIME = 3 * PIECE
BACKBONES = {
    "published": {"widths": (8, 8), "depths": (1, 1)},
    "griffin": {
        "widths": (4, 8),
        "depths": (1, 1),
        "pool_groups": 1,
        "embedding": "sinusoidal_linear",
        "mixer_expansion": 1.0,
        "recurrence_output": False,
        "convolution": "depthwise",
        "norm": "rms",
    },
    "sashimi": {
        "widths": (4, 8),
        "depths": ((0, 1), 1),
        "pool_groups": 2,
        "embedding": "learned",
        "convolution": "full",
        "mlp": "plain_mlp",
        "sashimi_backbone": True,
    },
}
SMALL = {"num_heads": 2, "state_size": 4, "attention_window": 5}
# What depends on the mixer rather than on what is around it, and takes long to compile.
in_the_published_backbone = pytest.mark.parametrize(
    "config", [(mixer, "published") for mixer in MIXERS], indirect=True, ids=str
)


@pytest.fixture(
    scope="module",
    params=[
        (mixer, backbone)
        for backbone in BACKBONES
        for mixer in (RECURRENCES if backbone == "griffin" else MIXERS)
    ],
    ids=str,
)
def config(request):
    mixer, backbone = request.param
    fields = SMALL | BACKBONES[backbone]
    return PoolformerConfig(pool_factors=(PERIOD,), vocab_size=VOCAB, mixer=mixer, **fields)


@pytest.fixture(scope="module")
def model(config):
    return make_model(config)


@pytest.fixture(scope="module")
def tokens(config):
    return make_tokens(config, 3, TIME)


@pytest.fixture(scope="module")
def expected(model, tokens):
    return np.asarray(parallel(model, tokens))


def test_forms_agree_from_the_start_after_a_prompt_and_in_pieces(model, tokens, expected):
    previous, state = shift(tokens, model.start_token), init_state(model, 3)
    logits = recurrent(model, state, previous)
    np.testing.assert_allclose(logits, expected, atol=ROUNDING)
    assert expected.std() > 0.1

    for start in range(0, TIME, PIECE):
        piece = slice(start, start + PIECE)
        logits, state = prefill(model, tokens[:, piece], state, previous[:, start])
        np.testing.assert_allclose(logits, expected[:, piece], atol=ROUNDING)
        # Padded at the end so that one program does for both.
        rest = np.pad(previous[:, start + PIECE :], ((0, 0), (0, start + PIECE)))
        logits = recurrent(model, state, rest)[:, : TIME - start - PIECE]
        np.testing.assert_allclose(logits, expected[:, start + PIECE :], atol=ROUNDING)


def test_logits_hear_no_later_tokens_and_no_other_rows(config, model, tokens, expected):
    rounding = 1e-5 if config.mixer in SPREADS_ROUNDING else 0.0
    for position in (0, 1, 17, TIME - 2):
        changed = tokens.copy()
        changed[1, position:] = (changed[1, position:] + 1) % VOCAB
        logits = parallel(model, changed)
        np.testing.assert_array_equal(logits[::2], expected[::2])
        earlier, later = np.split(np.abs(logits[1] - expected[1]), [position + 1])
        assert earlier.max() <= rounding
        assert later[0].max() > 1e-3


def test_nested_sampler_has_the_logits_of_the_parallel_form(monkeypatch, model):
    # The outputs of a step may have any last axis; here, all of the vocabulary.
    monkeypatch.setattr(nested, "log_probability", lambda logits, tokens: logits)

    @nnx.jit
    def sample(model, uniform):
        weights = lay_out(model)
        carry = nested.make_carry(weights, model.init_state(3), 3)
        # A sequence begins with the token before its first.
        forced = jnp.full((TIME, 3), -1).at[0].set(model.start_token)
        return nested.run(weights, carry, nested.Inputs(uniform, forced), jnp.float32(1.0), None)[1]

    outputs = sample(model, jax.random.uniform(jax.random.key(1), (TIME, 3)))
    tokens = np.asarray(outputs.tokens).T
    logits = np.asarray(outputs.log_p).reshape(TIME, 3, -1).swapaxes(0, 1)
    assert len(np.unique(tokens)) > 3
    np.testing.assert_array_equal(tokens[:, 0], model.start_token)
    scores = parallel(model, np.roll(tokens, -1, axis=1))
    np.testing.assert_allclose(logits[:, 1:], scores[:, :-1], atol=ROUNDING)


@in_the_published_backbone
def test_bfloat16_stays_near_float32(config, tokens, expected):
    rough = make_model(dataclasses.replace(config, dtype="bfloat16"))
    logits = np.asarray(parallel(rough, tokens))
    assert logits.dtype == np.float32
    difference = np.abs(logits - expected)
    assert 0 < difference.max() < 0.3 * expected.std()
    assert difference.mean() < 0.03 * expected.std()


@in_the_published_backbone
def test_a_few_steps_of_training_lower_the_loss_and_reach_every_parameter(model, tokens):
    graph, params = nnx.split(model)

    @jax.jit
    def step(params):
        def loss(params):
            log_p = jax.nn.log_softmax(nnx.merge(graph, params)(tokens))
            return -jnp.mean(jnp.take_along_axis(log_p, tokens[..., None], axis=-1))

        value, gradient = jax.value_and_grad(loss)(params)
        return value, gradient, jax.tree.map(lambda p, g: p - 0.03 * g, params, gradient)

    losses = []
    for _ in range(5):
        value, gradient, params = step(params)
        losses.append(float(value))
    assert np.all(np.diff(losses) < 0.0)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradient))


def test_parameters_and_states_have_types_of_their_own(config, model):
    """The weak type of a Python number would have a training step compiled once more."""
    fresh = nnx.eval_shape(lambda: Poolformer(config, rngs=nnx.Rngs(0)))
    params = jax.tree.leaves(nnx.state(fresh, nnx.Param))
    assert all(p.dtype == jnp.float32 and not p.weak_type for p in params)

    def describe(state):
        return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), state)

    state = jax.eval_shape(lambda: model.init_state(3))
    _, stepped = jax.eval_shape(model.step, state, jnp.zeros((3,), jnp.int32))
    _, prefilled = jax.eval_shape(model.prefill, jnp.zeros((3, PIECE + 1), jnp.int32))
    assert describe(stepped) == describe(prefilled) == describe(state)
