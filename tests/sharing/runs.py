"""A run to be exported, with weights that were drawn and not trained: it takes no time to make."""

import json
import types

import jax
import numpy as np
from flax import nnx

import pf_jax
from pf_jax.data import DataConfig
from pf_jax.training import OptimizerConfig, TrainConfig, TrainState
from pf_jax.training.saving import Checkpoints
from pf_jax.training.state import split_model

STEP = 7


def make_run(root, mixer="cglru", **changes):
    """A run's directory as training leaves it, with weights that were drawn and not trained."""
    config = TrainConfig(
        model=pf_jax.PoolformerConfig(
            widths=(4, 8),
            depths=(1, 2),
            pool_factors=(4,),
            pool_groups=1,
            num_heads=2,
            mixer=mixer,
            state_size=4,
        ),
        data=DataConfig(
            name="folder",
            path=str(root / "secret recordings"),
            sample_rate=1_000,
            window=64,
            data_dir=str(root / "data"),
            manual_dir=str(root / "manual"),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        init_from=str(root / "another run"),
        batch_size=3,
        **changes,
    )
    _, params = split_model(pf_jax.Poolformer(config.model, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(1)
    # As no initial weights are: no zeros, and nothing that bfloat16 could hold.
    averaged = jax.tree.map(lambda x: (x + 0.1 * rng.normal(size=x.shape)).astype(x.dtype), params)
    state = TrainState(
        step=np.array(STEP),
        skipped=np.array(0),
        skipped_in_a_row=np.array(0),
        key=np.zeros(2, np.uint32),
        params=params,
        ema_params=averaged,
        optimizer=(np.zeros(3, np.float32),),
    )
    with Checkpoints(root / "run", config, "0123456789abcdef") as checkpoints:
        checkpoints.note_evaluation(STEP, 3.25)
        checkpoints.save(state, types.SimpleNamespace(get_state=dict))
    return root / "run", jax.device_get(state)


def evaluation(step=STEP):
    bits = {"value": 3.125, "low": 3.0, "high": 3.5, "num_samples": 100, "num_recordings": 2}
    return {
        "checkpoint": "/data/somebody/run",
        "step": step,
        "dataset": "folder",
        "parameters": 1,
        "bits_per_sample": {"carried": bits, "independent": {"value": 3.1875}},
        "hardest": [{"name": "secret.wav", "bits_per_sample": 4.0}],
        "distribution": {
            "fid": 12.5,
            "num_generated": 256,
            "classifier": {"path": "/data/somebody/classifier"},
            "warnings": ["fid: too few."],
        },
        "warnings": ["The intervals come from 2 recordings."],
    }


def weights(path):
    return split_model(pf_jax.load(path)[0])[1]


def about(place):
    return json.loads((place / "pf_jax.json").read_text())


def assert_same(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)
