"""All logits of the nested loops, not only those of the tokens that they drew."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pf_jax import PoolformerConfig
from pf_jax.sampling import Sampler, nested
from pf_jax.sampling.weights import lay_out
from tests.sampling import test_sampler
from tests.test_poolformer import make_model, parallel


@pytest.mark.parametrize(
    ("widths", "depths", "factors", "parts"),
    [
        ((8,), (2,), (), {}),
        ((8, 16), ((0, 1), 2), (4,), {}),
        ((8, 16), (1, 1), (4,), {"norm": "layer"}),
        ((8, 16), (1, 1), (4,), {"mixer_gate": False, "mlp": "plain"}),
        ((8, 16), ((2, 1), 1), (4,), {"outer_residual": True}),
        ((16, 8, 40), (1, (2, 0), 1), (3, 2), {"mlp": "none", "conv_width": 1}),
        ((8, 8, 8, 8), (1, 0, 1, 1), (2, 3, 2), {}),
    ],
)
def test_logits_are_those_of_the_parallel_form_on_the_tokens_drawn(
    monkeypatch, widths, depths, factors, parts
):
    config = PoolformerConfig(widths, depths, factors, vocab_size=7, num_heads=2, **parts)
    model = make_model(config)
    # The outputs of a step may have any last axis; here, all of the vocabulary.
    monkeypatch.setattr(nested, "log_probability", lambda logits, tokens: logits)
    batch, time = 3, 24

    @nnx.jit
    def sample(model, uniform):
        weights, start = lay_out(model), jnp.full((batch,), model.start_token)
        carry = nested.make_carry(weights, model.init_state(batch), start)
        inputs = nested.Inputs(uniform, jnp.full((time, batch), -1))
        return nested.run(weights, carry, inputs, jnp.float32(1.0), None)[1]

    uniform = np.random.default_rng(1).uniform(size=(time, batch)).astype(np.float32)
    outputs = sample(model, uniform)
    tokens = np.asarray(outputs.tokens).T
    logits = np.asarray(outputs.log_p).reshape(time, batch, -1).swapaxes(0, 1)
    assert len(np.unique(tokens)) > 3
    np.testing.assert_allclose(logits, parallel(model, tokens), atol=2e-5)


def test_the_likeliest_token_is_taken_where_logits_are_computed_anew_for_each_use():
    """As XLA does in this model's loop where it does not optimize, as in tests."""
    model = test_sampler.make_model(
        PoolformerConfig((8, 8), (0, 1), (3,), vocab_size=5, num_heads=2), seed=1
    )
    sampler = Sampler(model, temperature=0.0, chunk_steps=6)
    _, chunk = sampler.advance(sampler.start(jax.random.key(3), num_streams=2))
    likeliest = np.asarray(parallel(model, chunk.tokens)).argmax(axis=-1)
    np.testing.assert_array_equal(chunk.tokens, likeliest)
