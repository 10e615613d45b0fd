import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pf_jax import fields
from pf_jax.config import PoolformerConfig
from pf_jax.data.config import DataConfig
from pf_jax.errors import UserError
from pf_jax.training.config import OptimizerConfig, TrainConfig

MODEL = PoolformerConfig(widths=(16, 32), depths=((0, 2), 1), pool_factors=(4,), pool_groups=1)
CONFIG = TrainConfig(model=MODEL, data=DataConfig(name="demo", window=64))


def through_json(config):
    return TrainConfig.from_dict(json.loads(json.dumps(config.to_dict())))


def test_json_round_trip_keeps_tuples_and_types():
    again = through_json(CONFIG)
    assert again == CONFIG
    assert again.model.depths == ((0, 2), 1)
    assert isinstance(again.optimizer.learning_rate, float)


@given(
    learning_rate=st.floats(1e-12, 1e3),
    b1=st.floats(0, 1, exclude_max=True),
    num_steps=st.integers(1, 10**12),
    seed=st.integers(0, 2**32 - 1),
    path=st.text(),
    depths=st.tuples(st.integers(0, 9) | st.tuples(st.integers(0, 9), st.integers(0, 9))),
)
def test_json_round_trip_of_any_values(learning_rate, b1, num_steps, seed, path, depths):
    config = TrainConfig(
        model=dataclasses.replace(MODEL, depths=(*depths, 2)),
        data=DataConfig(name="folder", window=1, path=path),
        optimizer=OptimizerConfig(learning_rate=learning_rate, b1=b1),
        num_steps=num_steps,
        seed=seed,
    )
    assert through_json(config) == config


def test_integers_serve_as_floats():
    rate = OptimizerConfig(learning_rate=1).learning_rate
    assert rate == 1.0
    assert isinstance(rate, float)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2.0}, "batch_size must be an integer, got 2.0"),
        ({"batch_size": True}, "batch_size must be an integer, got True"),
        ({"num_steps": -5}, "num_steps must be at least 1"),
        ({"log_every": 0}, "log_every must be at least 1"),
        ({"eval_every": 0}, "eval_every must be at least 1"),
        ({"checkpoint_every": 0}, "checkpoint_every must be at least 1"),
        ({"keep_latest": 0}, "keep_latest must be at least 1"),
        ({"keep_best": -1}, "keep_best must be at least 0"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\), got 1.0"),
        ({"ema_decay": math.nan}, "ema_decay must be in"),
        ({"seed": 2**32}, "seed must be in"),
        ({"model": "demo"}, "model must be PoolformerConfig, got 'demo'"),
    ],
)
def test_train_config_refuses(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
        ({"learning_rate": math.inf}, "learning_rate must be above 0"),
        ({"learning_rate": "1e-3"}, "learning_rate must be a number, got '1e-3'"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0"),
        ({"final_fraction": 1.5}, r"final_fraction must be in \[0, 1\]"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0"),
        ({"clip_norm": 0}, "clip_norm must be above 0"),
        ({"b1": 1.0}, "b1 must be in"),
        ({"b2": -0.1}, "b2 must be in"),
    ],
)
def test_optimizer_config_refuses(changes, message):
    with pytest.raises(UserError, match=message):
        OptimizerConfig(**changes)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.update(batchsize=1), "Unknown field batchsize; did you mean batch_size?"),
        (
            lambda d: d["optimizer"].update(rate=1),
            "Unknown field optimizer.rate; did you mean optimizer.learning_rate?|known are",
        ),
        (lambda d: d.pop("data"), "The field data is missing"),
        (lambda d: d["model"].pop("widths"), "The field model.widths is missing"),
        (lambda d: d.update(model=[1]), "model must hold named fields"),
        (lambda d: d["model"].update(widths=[16, "a"]), "model.widths must be a tuple of integers"),
        (lambda d: d["model"].update(depths=[[1, 2, 3], 1]), "model.depths must be a tuple"),
        (lambda d: d.update(seed=None), "seed must be an integer, got None"),
    ],
)
def test_from_dict_refuses(edit, message):
    values = json.loads(json.dumps(CONFIG.to_dict()))
    edit(values)
    with pytest.raises(UserError, match=message):
        TrainConfig.from_dict(values)


def test_near_names():
    known = ["seed", "optimizer.learning_rate", "optimizer.b1", "optimizer.b2"]
    assert fields.did_you_mean("learning_rat", known).endswith("mean optimizer.learning_rate?")
    assert fields.did_you_mean("optimizer.b3", known, "--").startswith(
        "; did you mean --optimizer."
    )
    assert "known are seed" in fields.did_you_mean("zzzzz", known)
    assert fields.did_you_mean("zzzzz", [str(i) for i in range(100)]) == "."
