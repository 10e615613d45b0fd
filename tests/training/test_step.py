"""The step of one device, run by pmap over one device here and over eight in a process apart."""

import dataclasses
import functools
import pathlib
import pickle
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pf_jax.config import PoolformerConfig
from pf_jax.data import DataConfig
from pf_jax.training import OptimizerConfig, TrainConfig, hosts
from pf_jax.training.state import (
    abstract_model,
    init_train_state,
    make_optimizer,
    merge_model,
    split_model,
)
from pf_jax.training.step import DATA_AXIS, eval_step, train_step
from tests import processes

CONFIG = TrainConfig(
    model=PoolformerConfig(
        widths=(8, 16), depths=((0, 1), 1), pool_factors=(4,), pool_groups=1, num_heads=2
    ),
    data=DataConfig(name="demo", window=24),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=1, weight_decay=0.1, clip_norm=0.5),
    batch_size=16,
    num_steps=6,
    ema_decay=0.5,
)
# Of the 16 rows, two to a device of eight: whole, short, empty; on two devices nothing is real.
LENGTHS = np.array([24, 24, 1, 0, 0, 0, 24, 7, 0, 23, 24, 24, 0, 0, 5, 0], np.int32)
STEPS = 4


def global_batch(step):
    tokens = np.random.default_rng(step).integers(0, 256, (16, 24)).astype(np.uint8)
    return {"tokens": tokens, "length": np.roll(LENGTHS, 2 * step)}


def go_on():
    return np.zeros(jax.local_device_count(), bool)


def shared_out(batch):
    devices = jax.local_device_count()
    return {name: x.reshape(devices, -1, *x.shape[1:]) for name, x in batch.items()}


@functools.cache
def make_step():
    """The step as the loop makes it, the structure of the model, and the initial state."""
    optimizer, _ = make_optimizer(CONFIG)
    graphdef, state = init_train_state(CONFIG, optimizer)
    # On the host: what is on the devices is donated by the first step that takes it.
    return pmapped(graphdef), graphdef, jax.device_get(state)


def pmapped(graphdef):
    optimizer, schedule = make_optimizer(CONFIG)
    step = functools.partial(
        train_step,
        graphdef=graphdef,
        optimizer=optimizer,
        schedule=schedule,
        ema_decay=CONFIG.ema_decay,
    )
    return jax.pmap(step, axis_name=DATA_AXIS, donate_argnums=0)


def named(tree):
    """The leaves of a tree with the parts of their names."""
    return [
        ([str(getattr(key, "key", getattr(key, "name", key))) for key in path], np.asarray(leaf))
        for path, leaf in jax.tree.leaves_with_path(tree)
    ]


def train_some(step, state):
    """The state after some steps and the metrics of each, on the host; replicas must agree."""
    state, metrics = hosts.replicate(state), []
    for number in range(STEPS):
        state, m = step(state, shared_out(global_batch(number)), go_on())
        metrics.append(m)
    results = jax.device_get((state, metrics))
    for leaf in jax.tree.leaves(results):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
    return jax.tree.map(lambda x: x[0], results)


EIGHT_DEVICES = """
    import importlib.util, pickle, sys
    import jax
    from pf_jax.training.state import abstract_model, split_model
    spec = importlib.util.spec_from_file_location("test_step", sys.argv[1])
    test_step = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(test_step)
    assert jax.local_device_count() == 8
    with open(sys.argv[2], "rb") as file:
        state = pickle.load(file)
    graphdef, _ = split_model(abstract_model(test_step.CONFIG.model))
    results = test_step.train_some(test_step.pmapped(graphdef), state)
    with open(sys.argv[3], "wb") as file:
        pickle.dump(results, file)
"""


def test_eight_devices_give_what_one_gives(tmp_path):
    step, _, initial = make_step()
    (tmp_path / "initial").write_bytes(pickle.dumps(initial))
    arguments = [__file__, tmp_path / "initial", tmp_path / "eight"]
    processes.run(
        [sys.executable, "-c", textwrap.dedent(EIGHT_DEVICES), *arguments],
        env=processes.with_devices(8),
        cwd=pathlib.Path(__file__).parents[2],
        check=True,
    )
    state, metrics = train_some(step, initial)
    eight_state, eight_metrics = pickle.loads((tmp_path / "eight").read_bytes())
    for (name, one), (_, other), (_, start) in zip(
        named(state), named(eight_state), named(initial), strict=True
    ):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=2e-5, err_msg=str(name))
        if name[0] == "params" and name[-1] == "kernel":  # Else nothing would be compared.
            assert np.max(np.abs(one - start)) > 1e-3, name
    for one, other in zip(metrics, eight_metrics, strict=True):
        np.testing.assert_allclose(other["loss"], one["loss"], rtol=1e-6)
        np.testing.assert_allclose(other["gradient_norm"], one["gradient_norm"], rtol=1e-5)


def test_loss_and_gradient_are_those_of_the_mean_over_real_positions():
    step, graphdef, state = make_step()
    batch = global_batch(0)
    logits = jax.jit(lambda params: merge_model(graphdef, params)(batch["tokens"]))(state.params)
    logits = np.asarray(logits, np.float64)
    log_p = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    nats = -np.take_along_axis(log_p, batch["tokens"][..., None].astype(int), axis=-1)[..., 0]
    real = [nats[row, : batch["length"][row]] for row in range(16)]

    _, metrics = step(hosts.replicate(state), shared_out(batch), go_on())
    np.testing.assert_allclose(metrics["loss"][0], np.mean(np.concatenate(real)), rtol=1e-5)

    def mean_loss(params):
        log_p = jax.nn.log_softmax(merge_model(graphdef, params)(batch["tokens"]))
        of_tokens = log_p[np.arange(16)[:, None], np.arange(24), batch["tokens"].astype(int)]
        return -jnp.sum(of_tokens * (np.arange(24) < batch["length"][:, None])) / sum(LENGTHS)

    gradients = jax.tree.leaves(jax.jit(jax.grad(mean_loss))(state.params))
    norm = np.sqrt(sum(np.sum(np.asarray(leaf, np.float64) ** 2) for leaf in gradients))
    np.testing.assert_allclose(metrics["gradient_norm"][0], norm, rtol=1e-4)

    evaluate = jax.pmap(functools.partial(eval_step, graphdef=graphdef), axis_name=DATA_AXIS)
    total, count, _ = evaluate(hosts.replicate(state.params), shared_out(batch), go_on())
    assert count[0] == sum(map(len, real))
    np.testing.assert_allclose(total[0], np.sum(np.concatenate(real)), rtol=1e-5)


def test_padding_changes_nothing():
    step, _, state = make_step()
    batch = global_batch(1)
    is_padding = np.arange(24) >= batch["length"][:, None]
    other = batch | {"tokens": np.where(is_padding, batch["tokens"] ^ 77, batch["tokens"])}
    assert (other["tokens"] != batch["tokens"]).sum() == is_padding.sum() > 0
    results = [
        jax.device_get(step(hosts.replicate(state), shared_out(b), go_on())) for b in (batch, other)
    ]
    for (name, a), (_, b) in zip(named(results[0]), named(results[1]), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=str(name))


def test_a_batch_of_padding_alone_gives_finite_numbers():
    step, _, state = make_step()
    batch = global_batch(0) | {"length": np.zeros(16, np.int32)}
    state, metrics = jax.device_get(step(hosts.replicate(state), shared_out(batch), go_on()))
    assert metrics["loss"][0] == metrics["gradient_norm"][0] == 0.0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_the_average_follows_the_weights():
    step, _, state = make_step()
    state = hosts.replicate(state)
    for number in range(STEPS):
        old = jax.device_get(state.ema_params)
        state, _ = step(state, shared_out(global_batch(number)), go_on())
        decay = np.float32(min(CONFIG.ema_decay, (1 + number) / (10 + number)))
        for (name, before), (_, after), (_, weights) in zip(
            named(old), named(state.ema_params), named(state.params), strict=True
        ):
            expected = decay * before + (1 - decay) * weights
            np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-6, err_msg=str(name))


def test_the_state_is_donated():
    step, _, state = make_step()
    state = hosts.replicate(state)
    for number in range(2):
        before, (state, _) = state, step(state, shared_out(global_batch(number)), go_on())
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))


def test_a_copy_on_the_host_outlives_the_state():
    step, _, state = make_step()
    state = hosts.replicate(state)
    host = hosts.first_replica(state)  # As for a checkpoint, written while training goes on.
    copy = jax.tree.map(np.array, host)
    for _ in range(3):
        state, _ = step(state, shared_out(global_batch(0)), go_on())
    jax.block_until_ready(state)
    jax.tree.map(np.testing.assert_array_equal, host, copy)


def test_dropout_differs_between_steps_and_seeds():
    optimizer, _ = make_optimizer(CONFIG)
    other = init_train_state(dataclasses.replace(CONFIG, seed=1), optimizer)[1]
    keys = {
        np.asarray(jax.random.key_data(state._replace(step=step).step_key())).tobytes()
        for state in (make_step()[2], other)
        for step in (0, 1)
    }
    assert len(keys) == 4


@pytest.fixture
def params():
    return {"a": {"decay": jnp.ones(3)}, "b": [{"kernel": jnp.ones((4, 5))}]}


def updates_of(config, params, gradients, number):
    """The updates of the given step under constant gradients, and the optimizer's state."""
    optimizer, _ = make_optimizer(config)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for _ in range(number + 1):
        updates, state = update(gradients, state, params)
    return updates, state


@pytest.mark.parametrize(("norm", "clipped"), [(0.25, 0.25), (0.5, 0.5), (400.0, 0.5)])
def test_gradients_are_clipped_by_their_global_norm(params, norm, clipped):
    ones = jax.tree.map(jnp.ones_like, params)
    size = sum(leaf.size for leaf in jax.tree.leaves(ones))
    gradients = jax.tree.map(lambda x: x * norm / np.sqrt(size), ones)
    _, state = updates_of(CONFIG, params, gradients, 0)
    moments = optax.tree_utils.tree_get(state, "mu")
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(moments)])
    expected = (1 - CONFIG.optimizer.b1) * clipped
    np.testing.assert_allclose(np.linalg.norm(flat.astype(np.float64)), expected, rtol=1e-4)


KERNELS = {"kernel"}
OTHERS = {"bias", "scale", "decay", "turn", "table"}


@pytest.mark.parametrize("embedding", ["sinusoidal", "learned"])
def test_only_kernels_decay(embedding):
    model = dataclasses.replace(CONFIG.model, embedding=embedding)
    config = dataclasses.replace(CONFIG, model=model)
    _, schedule = make_optimizer(config)
    _, shapes = split_model(abstract_model(model))
    params = jax.tree.map(lambda x: np.full(x.shape, 0.5, x.dtype), shapes)
    updates, _ = updates_of(config, params, jax.tree.map(np.zeros_like, params), 2)
    names = set()
    for (path, update), (_, weights) in zip(named(updates), named(params), strict=True):
        names.add(path[-1])
        if path[-1] in KERNELS:
            expected = -float(schedule(2)) * config.optimizer.weight_decay * weights
            np.testing.assert_allclose(update, expected, rtol=1e-5, err_msg=str(path))
            assert np.abs(update).max() > 0
        else:
            np.testing.assert_array_equal(update, 0.0, err_msg=str(path))
    assert names == KERNELS | OTHERS - ({"table"} if embedding == "sinusoidal" else set())


def test_learning_rate_warms_up_and_decays_along_a_cosine(params):
    optimizer = OptimizerConfig(learning_rate=0.3, warmup_steps=10, final_fraction=0.1)
    config = dataclasses.replace(CONFIG, optimizer=optimizer, num_steps=110)
    _, schedule = make_optimizer(config)
    expected = [0.03 * step for step in range(10)]
    expected += [0.03 + 0.27 * (1 + np.cos(np.pi * step / 100)) / 2 for step in range(101)]
    np.testing.assert_allclose([schedule(step) for step in range(111)], expected, rtol=1e-4)
    np.testing.assert_allclose(schedule(1_000), 0.03, rtol=1e-6)

    # A constant gradient: Adam's update is the learning rate itself, where nothing decays.
    gradients = jax.tree.map(lambda x: jnp.full_like(x, 1e-3), params)
    updates, _ = updates_of(config, params, gradients, 4)
    decay = {path[-1]: update for path, update in named(updates)}["decay"]
    np.testing.assert_allclose(decay, -0.12, rtol=1e-3)


def test_warm_up_takes_at_most_half_of_a_short_run():
    optimizer = OptimizerConfig(learning_rate=1.0, warmup_steps=500)
    _, schedule = make_optimizer(dataclasses.replace(CONFIG, optimizer=optimizer, num_steps=20))
    assert [float(schedule(step)) for step in (0, 5, 10)] == [0.0, 0.5, 1.0]
    _, schedule = make_optimizer(dataclasses.replace(CONFIG, optimizer=optimizer, num_steps=1))
    assert np.isfinite(schedule(0))
