"""Weights of every kind of model survive as safetensors; what does not fit is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from pf_jax import PoolformerConfig
from pf_jax.layers import LAYERS
from pf_jax.training import tensors
from pf_jax.training.state import abstract_model, split_model


@pytest.mark.parametrize("mixer", sorted(LAYERS))
def test_weights_of_every_layer_survive(mixer):
    config = PoolformerConfig(
        widths=(4, 8),
        depths=(1, 1),
        pool_factors=(4,),
        pool_groups=1,
        num_heads=2,
        mixer=mixer,
        state_size=4,
    )
    _, like = split_model(abstract_model(config))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), like)
    content = tensors.to_bytes(params)
    found = tensors.from_bytes(content, like)
    assert jax.tree.structure(found) == jax.tree.structure(like)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    named = safetensors.numpy.load(content)
    expected = params["body"]["nested"]["before"][1]["norm"]["scale"]
    np.testing.assert_array_equal(named["body.nested.before.1.norm.scale"], expected)


def test_many_blocks_stay_in_their_order():
    params = {"before": {i: {"bias": np.array([i], np.float32)} for i in range(12)}}
    content = tensors.to_bytes(params)
    named = safetensors.numpy.load(content)
    assert {f"before.{i}.bias": i for i in range(12)} == {k: int(v[0]) for k, v in named.items()}
    jax.tree.map(np.testing.assert_array_equal, tensors.from_bytes(content, params), params)


def test_types_and_shapes_are_kept():
    params = {
        "complex": np.array([1 + 2j, -0.0 - 3j], np.complex64),
        "half": np.asarray(jnp.array(1.0078125, jnp.bfloat16)),
        "whole": np.arange(6, dtype=np.int8).reshape(3, 2).T,  # Not contiguous.
        "none": np.zeros((0, 3), np.float16),
        "nan": np.array([np.nan, np.inf, -0.0], np.float32),
    }
    found = tensors.from_bytes(tensors.to_bytes(params), params)
    for name, leaf in params.items():
        assert found[name].dtype == leaf.dtype
        assert found[name].shape == leaf.shape
        assert found[name].tobytes() == leaf.tobytes()


def test_what_safetensors_cannot_hold():
    with pytest.raises(tensors.TensorsError, match="odd is of the type complex128"):
        tensors.to_bytes({"odd": np.zeros(2, np.complex128)})
    with pytest.raises(tensors.TensorsError, match=r"two parameters are called a\.b"):
        tensors.to_bytes({"a": {"b": np.zeros(2)}, "a.b": np.zeros(2)})
