"""All logits of the nested loops, not only those of the tokens that they drew."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pf_jax import PoolformerConfig
from pf_jax.sampling import Sampler, nested
from pf_jax.sampling.weights import lay_out
from tests.models import make_model, parallel


@pytest.mark.parametrize(
    ("widths", "depths", "factors", "fields"),
    [
        ((8,), (2,), (), {}),
        ((8, 8, 8), (1, 1, 1), (2, 3), {}),
        ((8, 16), (("rglru", "convolution"), 1), (4,), {"pool_groups": 1, "norm": "rms"}),
        ((8, 16), ((2, 1), 1), (4,), {"pool_groups": 4, "sashimi_backbone": True}),
        ((16, 8, 40), (1, (2, 0), 1), (3, 2), {"pool_groups": 2, "convolution": "full"}),
    ],
)
def test_logits_are_those_of_the_parallel_form_on_the_tokens_drawn(
    monkeypatch, widths, depths, factors, fields
):
    config = PoolformerConfig(widths, depths, factors, vocab_size=7, num_heads=2, **fields)
    model = make_model(config)
    # The outputs of a step may have any last axis; here, all of the vocabulary.
    monkeypatch.setattr(nested, "log_probability", lambda logits, tokens: logits)
    batch, time = 3, 24
    forced = np.full((time, batch), -1)
    forced[0] = model.start_token

    @nnx.jit
    def sample(model, uniform):
        weights = lay_out(model)
        carry = nested.make_carry(weights, model.init_state(batch), batch)
        inputs = nested.Inputs(uniform, jnp.asarray(forced))
        return nested.run(weights, carry, inputs, jnp.float32(1.0), None)[1]

    uniform = np.random.default_rng(1).uniform(size=(time, batch)).astype(np.float32)
    outputs = sample(model, uniform)
    tokens = np.asarray(outputs.tokens).T
    np.testing.assert_array_equal(tokens[:, 0], model.start_token)
    logits = np.asarray(outputs.log_p).reshape(time, batch, -1).swapaxes(0, 1)
    assert len(np.unique(tokens)) > 3
    np.testing.assert_allclose(logits[:, 1:], parallel(model, tokens[:, 1:]), atol=3e-5)


def test_the_likeliest_token_is_taken_where_logits_are_computed_anew_for_each_use():
    """As XLA does in this model's loop where it does not optimize, as in tests."""
    model = make_model(PoolformerConfig((8, 8), (0, 1), (3,), vocab_size=5, num_heads=2), seed=1)
    sampler = Sampler(model, temperature=0.0, chunk_steps=6)
    _, chunk = sampler.advance(sampler.start(jax.random.key(3), num_streams=2))
    likeliest = np.asarray(parallel(model, chunk.tokens)).argmax(axis=-1)
    np.testing.assert_array_equal(chunk.tokens, likeliest)
