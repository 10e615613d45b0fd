"""All logits of the nested loops, not only those of the tokens that they drew."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pf_jax import Poolformer, PoolformerConfig
from pf_jax.sampling import nested
from pf_jax.sampling.weights import lay_out


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
    model = Poolformer(config, rngs=nnx.Rngs(0))
    if config.norm == "layer":  # What is 0 or 1 at first shall not stay so.
        model.head_norm.bias[...] = jnp.linspace(-1, 1, widths[0])
        model.head_norm.scale[...] = jnp.linspace(0.5, 2, widths[0])
    # The outputs of a step may have any last axis; here, all of the vocabulary.
    monkeypatch.setattr(nested, "log_probability", lambda logits, tokens: logits)
    weights, batch, time = lay_out(model), 3, 24
    start = jnp.full((batch,), model.start_token)
    carry = nested.make_carry(weights, model.init_state(batch), start)
    uniform = jax.random.uniform(jax.random.key(1), (time, batch))
    inputs = nested.Inputs(uniform, jnp.full((time, batch), -1))
    _, outputs = nested.run(weights, carry, inputs, jnp.float32(1.0), None)
    tokens = np.asarray(outputs.tokens).T
    logits = np.asarray(outputs.log_p).reshape(time, batch, -1).swapaxes(0, 1)
    assert len(np.unique(tokens)) > 3
    np.testing.assert_allclose(logits, model(tokens), atol=2e-5)
