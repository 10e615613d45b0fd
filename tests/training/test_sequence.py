"""Sequences that are split over devices, eight of them in a process apart."""

import dataclasses
import functools
import json
import pathlib
import pickle
import shutil
import sys
import textwrap
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import pf_jax
from pf_jax import PoolformerConfig, UserError
from pf_jax.data import DataConfig
from pf_jax.layers import CausalConvolution
from pf_jax.training import TrainConfig, hosts, loop, parallel, step, train
from pf_jax.training.config import SEQUENCE_AXIS
from pf_jax.training.parallel import batch_shapes, parallel_train_step
from pf_jax.training.state import TrainState, abstract_model, merge_model, split_model
from pf_jax.training.step import DATA_AXIS, train_step
from tests import processes

# Of three levels, with every layer that can be split; with eight devices the innermost level has a
# single position on each.
CONFIG = TrainConfig(
    model=PoolformerConfig(
        widths=(4, 6, 8),
        depths=((0, ("rglru", "depthwise_convolution")), 0, ("cglru",)),
        pool_factors=(2, 3),
        pool_groups=2,
        convolution="full",
        embedding="learned",
        num_heads=2,
    ),
    data=DataConfig(name="demo", window=48),
    batch_size=4,
)
# No padding; from the middle of a piece on; from the end of one; nothing but padding.
LENGTHS = np.array([48, 29, 24, 0], np.int32)
# By sequence_devices: how many devices there are in all, and whether blocks are computed again.
SPLIT = {2: (2, False), 4: (8, True), 8: (8, False)}
# Positions of each piece, and whether it is depthwise.
CONVOLUTIONS = ((1, True), (2, False), (5, True))


def make_weights(config=CONFIG.model):
    """Noise in every parameter, and memories that reach over pieces."""
    rng = np.random.default_rng(0)

    def noise(path, p):
        if path[-1].key == "decay":
            return rng.uniform(-4.0, 0.0, p.shape).astype(np.float32)
        return ((p.shape[-2] ** -0.5 if p.ndim > 1 else 0.5) * rng.standard_normal(p.shape)).astype(
            np.float32
        )

    _, shapes = split_model(abstract_model(config))
    return jax.tree.map_with_path(noise, shapes)


def make_tokens():
    return np.random.default_rng(1).integers(0, 256, (4, 48)).astype(np.uint8)


def make_model(**changes):
    config = dataclasses.replace(CONFIG.model, **changes)
    graphdef, _ = split_model(abstract_model(config))
    return merge_model(graphdef, make_weights(config))


def over_pieces(function, number, in_specs):
    """`function` on pieces of its arguments; of the results, all devices' are stacked."""
    return jax.jit(
        jax.shard_map(
            lambda *args: jax.tree.map(lambda x: x[None], function(*args)),
            mesh=Mesh(jax.devices()[:number], (SEQUENCE_AXIS,)),
            in_specs=in_specs,
            out_specs=P(SEQUENCE_AXIS),
            check_vma=False,
        )
    )


# What the other process does.


def loss_and_gradients(sequence_devices):
    """Of the step that training takes, with an optimizer that does nothing but keep gradients."""
    num_devices, remat = SPLIT[sequence_devices]
    model = dataclasses.replace(CONFIG.model, remat=remat)
    config = dataclasses.replace(CONFIG, model=model, sequence_devices=sequence_devices)

    def keep(gradients, _, params):
        return jax.tree.map(jnp.zeros_like, params), gradients

    optimizer = optax.GradientTransformation(lambda params: params, keep)
    devices = jax.devices()[:num_devices]
    graphdef, _ = split_model(abstract_model(config.step_model))
    run = parallel_train_step(config, graphdef, optimizer, lambda step: 0.0, devices=devices)
    params, zero = make_weights(), np.array(0)
    state = TrainState(zero, zero, zero, np.zeros(2, np.uint32), params, params, params)
    state = jax.tree.map(lambda x: np.broadcast_to(x, (num_devices, *x.shape)), state)
    shapes = batch_shapes(config, devices=devices)
    batch = {
        "tokens": make_tokens().reshape(shapes["tokens"].shape),
        "length": LENGTHS.reshape(shapes["length"].shape),
    }
    state, metrics = run(state, batch, np.zeros(num_devices, bool))
    results = jax.device_get((metrics["loss"], state.optimizer))
    for leaf in jax.tree.leaves(results):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
    return jax.tree.map(lambda x: x[0], results)


def prefills():
    """Logits and the last state, of whole sequences that go on from others and of four pieces.

    Without blocks, so that all that passes from piece to piece is tokens and pooled vectors.
    """
    depths, tokens = (0, 0, 0), make_tokens().astype(np.int32)
    whole, pieces = (
        make_model(depths=depths),
        make_model(depths=depths, sequence_axis=SEQUENCE_AXIS),
    )
    prefill = jax.jit(whole.prefill)
    _, state = prefill(tokens[::-1], whole.init_state(4), np.full(4, 3))
    previous = tokens[::-1, -1]
    run = over_pieces(pieces.prefill, 4, (P(None, SEQUENCE_AXIS), P(), P()))
    logits, states = run(tokens, state, previous)
    of_pieces = np.concatenate(list(logits), axis=1), jax.tree.map(lambda x: x[-1], states)
    return jax.device_get((prefill(tokens, state, previous), of_pieces))


def convolutions(time, depthwise):
    """Outputs and last inputs, of whole sequences and of eight pieces of some positions each."""
    u = np.random.default_rng(0).standard_normal((2, 8 * time, 3)).astype(np.float32)
    state = np.random.default_rng(1).standard_normal((2, 3, 3)).astype(np.float32)
    layers = [
        CausalConvolution(
            3, 4, depthwise=depthwise, dtype="float32", sequence_axis=axis, rngs=nnx.Rngs(0)
        )
        for axis in ("", SEQUENCE_AXIS)
    ]
    y, states = over_pieces(layers[1], 8, (P(None, SEQUENCE_AXIS), P()))(u, state)
    of_pieces = np.concatenate(list(y), axis=1), states[-1]
    return jax.device_get((layers[0](u, state), of_pieces))


def on_eight_devices(config, workdir):
    assert jax.local_device_count() == 8
    traces, initial = [], []

    def traced(*args, **kwargs):
        traces.append(1)
        return train_step(*args, **kwargs)

    def kept(state):
        initial.append(hosts.replicate(state))
        return initial[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "train_step", traced)
        patch.setattr(loop, "replicate", kept)
        train(TrainConfig.from_dict(json.loads(config)), workdir)
    return {
        "traces": len(traces),
        "donated": [leaf.is_deleted() for leaf in jax.tree.leaves(initial[0])],
        "steps": {number: loss_and_gradients(number) for number in SPLIT},
        "prefills": prefills(),
        "convolutions": {case: convolutions(*case) for case in CONVOLUTIONS},
    }


CHILD = """
    import importlib.util, pickle, sys
    spec = importlib.util.spec_from_file_location("test_sequence", sys.argv[1])
    test_sequence = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(test_sequence)
    with open(sys.argv[4], "wb") as file:
        pickle.dump(test_sequence.on_eight_devices(*sys.argv[2:4]), file)
"""


@dataclasses.dataclass(frozen=True)
class Found:
    """What the other process found, and the run that it trained with `sequence_devices=2`."""

    config: TrainConfig
    workdir: pathlib.Path
    results: dict


@pytest.fixture(scope="module")
def found(tiny_config, tmp_path_factory) -> Found:
    root = tmp_path_factory.mktemp("sequence")
    config = dataclasses.replace(
        tiny_config,
        model=dataclasses.replace(tiny_config.model, dropout=0.0, depths=((0, 1), 0)),
        sequence_devices=2,
        num_steps=6,
        eval_every=3,
        checkpoint_every=3,
        num_samples=1,
        sample_length=16,
    )
    arguments = (__file__, json.dumps(config.to_dict()), root / "run", root / "results")
    processes.run(
        [sys.executable, "-c", textwrap.dedent(CHILD), *arguments],
        env=processes.with_devices(8),
        cwd=pathlib.Path(__file__).parents[2],
        check=True,
    )
    return Found(config, root / "run", pickle.loads((root / "results").read_bytes()))


def assert_trees_close(tree, expected, **tolerance):
    jax.tree.map(functools.partial(np.testing.assert_allclose, **tolerance), tree, expected)


@pytest.fixture(scope="module")
def expected():
    """The mean of `-log p` over real positions, and its gradients, on one device."""
    graphdef, _ = split_model(abstract_model(CONFIG.model))

    def mean_loss(params):
        log_p = jax.nn.log_softmax(merge_model(graphdef, params)(make_tokens()))
        of_tokens = log_p[np.arange(4)[:, None], np.arange(48), make_tokens().astype(int)]
        return -jnp.sum(of_tokens * (np.arange(48) < LENGTHS[:, None])) / LENGTHS.sum()

    return jax.device_get(jax.jit(jax.value_and_grad(mean_loss))(make_weights()))


@pytest.mark.parametrize("number", SPLIT)
def test_devices_that_share_sequences_find_the_loss_and_gradients_of_one(found, expected, number):
    (loss, gradients), (expected_loss, expected_gradients) = (
        found.results["steps"][number],
        expected,
    )
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    for (path, leaf), (_, expected_leaf) in zip(
        jax.tree.leaves_with_path(gradients),
        jax.tree.leaves_with_path(expected_gradients),
        strict=True,
    ):
        scale = np.abs(expected_leaf).max()
        assert scale > 1e-5, path
        # Small gradients are sums of larger terms that cancel, each rounded by itself.
        atol = 2e-5 * scale + 5e-8
        np.testing.assert_allclose(leaf, expected_leaf, rtol=0, atol=atol, err_msg=str(path))


def test_logits_and_the_last_state_are_those_of_whole_sequences(found):
    (logits, state), (of_pieces, last_state) = found.results["prefills"]
    np.testing.assert_allclose(of_pieces, logits, atol=5e-5)
    assert_trees_close(last_state, state, atol=5e-5)


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_a_convolution_of_four_taps_reaches_over_pieces_of_any_length(found, case):
    expected, of_pieces = found.results["convolutions"][case]
    assert_trees_close(of_pieces, expected, rtol=1e-6, atol=1e-6)


def test_a_run_compiles_its_step_once_and_donates_its_state(found):
    assert found.results["traces"] == 1
    assert all(found.results["donated"])


def test_a_run_of_split_sequences_goes_on_with_whole_ones(found, tmp_path, metrics_of):
    shutil.copytree(found.workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    config = dataclasses.replace(found.config, sequence_devices=1)
    assert jax.device_count() == 1
    train(config, tmp_path / "run")
    for line, other in zip(metrics_of(tmp_path / "run"), metrics_of(found.workdir), strict=True):
        assert line.keys() == other.keys()
        for name, value in line.items():
            assert value == (other[name] if name == "split" else pytest.approx(other[name], 1e-5))
    models = [
        pf_jax.load(directory / "checkpoints" / "6")[0]
        for directory in (tmp_path / "run", found.workdir)
    ]
    assert_trees_close(*(split_model(model)[1] for model in models), rtol=1e-4, atol=1e-5)


def test_a_checkpoint_does_not_tell_that_sequences_were_split(found):
    model, meta = pf_jax.load(found.workdir)
    assert meta.config.sequence_devices == 2
    assert model.config == meta.config.model == found.config.model
    assert meta.config.to_dict()["model"]["sequence_axis"] == ""
    # As it draws for the log.
    tokens = loop._draw(found.config, split_model(model)[1], step=6)
    key = jax.random.fold_in(jax.random.key(found.config.seed), 6)
    expected, likelihoods = pf_jax.generate(model, key, num_samples=1, num_steps=16)
    np.testing.assert_array_equal(tokens, expected)
    log_p = jax.nn.log_softmax(jax.jit(model)(tokens))
    scores = np.take_along_axis(np.asarray(log_p), np.asarray(tokens)[..., None], axis=-1)
    np.testing.assert_allclose(likelihoods[0], scores.sum(), rtol=1e-4)


def test_each_piece_of_each_share_drops_entries_of_its_own(monkeypatch):
    keys = []

    def noting(model, tokens, length, *, dropout_key):
        jax.debug.callback(lambda key: keys.append(key.tobytes()), jax.random.key_data(dropout_key))
        return model.head.bias[...].sum(), jnp.sum(length)

    monkeypatch.setattr(step, "negative_log_likelihood", noting)
    params = make_weights()
    graphdef, _ = split_model(
        abstract_model(dataclasses.replace(CONFIG, sequence_devices=2).step_model)
    )
    zero = jnp.array(0)
    optimizer = optax.identity()
    state = TrainState(zero, zero, zero, jnp.zeros(2, jnp.uint32), params, params, ())
    state = state._replace(optimizer=optimizer.init(params))

    def run(tokens, length):
        return step.train_step(
            state,
            {"tokens": tokens, "length": length},
            jnp.array(False),
            graphdef=graphdef,
            optimizer=optimizer,
            schedule=lambda step: 0.0,
            ema_decay=0.0,
        )[1]["loss"]

    run = jax.vmap(run, axis_name=SEQUENCE_AXIS, in_axes=(0, None))
    jax.jit(jax.vmap(run, axis_name=DATA_AXIS))(
        np.zeros((3, 2, 1, 6), np.uint8), np.ones((3, 1), int)
    ).block_until_ready()
    jax.effects_barrier()
    assert len(keys) == len({*keys}) == 6


# What cannot be split.


def test_windows_of_which_devices_would_not_have_whole_groups():
    with pytest.raises(
        UserError, match=r"data\.window=48 cannot .* a multiple of 30,.*try 30 or 60"
    ):
        dataclasses.replace(CONFIG, sequence_devices=5)
    with pytest.raises(UserError, match=r"a multiple of 96, .*try 96\.$"):
        dataclasses.replace(CONFIG, sequence_devices=16)
    with pytest.raises(UserError, match="sequence_devices must be at least 1, got 0"):
        dataclasses.replace(CONFIG, sequence_devices=0)
    dataclasses.replace(CONFIG, data=DataConfig(name="demo", window=47))


def test_the_axis_is_no_matter_of_a_runs_model():
    model = dataclasses.replace(CONFIG.model, sequence_axis="sequence")
    with pytest.raises(UserError, match=r"model.sequence_axis .* set sequence_devices instead"):
        dataclasses.replace(CONFIG, model=model)


@pytest.mark.parametrize(
    ("sequence_devices", "batch_size", "message"),
    [
        (8, 2, r"=8 does not divide the 4 devices of a host, .*; try 1 or 2 or 4\."),
        (
            4,
            3,
            r"batch_size=3 is not .* the 8 devices over sequence_devices=4; try 2 or 4\.",
        ),
        (2, 3, r"batch_size=3 is not a multiple of the 8 devices over sequence_devices=2; try 4\."),
        (1, 12, r"batch_size=12 is not a multiple of the 8 devices; try 8 or 16\."),
    ],
)
def test_devices_that_cannot_share_a_batch(sequence_devices, batch_size, message):
    devices = [types.SimpleNamespace(process_index=number // 4) for number in range(8)]
    config = dataclasses.replace(CONFIG, sequence_devices=sequence_devices, batch_size=batch_size)
    with pytest.raises(UserError, match=message):
        batch_shapes(config, devices=devices)


def test_shares_of_a_batch():
    devices = [types.SimpleNamespace(process_index=number // 4) for number in range(8)]
    config = dataclasses.replace(CONFIG, batch_size=16, sequence_devices=4)
    shapes = {name: x.shape for name, x in batch_shapes(config, devices=devices).items()}
    assert shapes == {"tokens": (2, 8, 48), "length": (2, 8)}


def test_training_says_so_before_it_opens_any_data(tmp_path):
    data = dataclasses.replace(CONFIG.data, data_dir=str(tmp_path / "data"))
    config = dataclasses.replace(CONFIG, data=data, sequence_devices=2)
    with pytest.raises(
        UserError, match="sequence_devices=2 does not divide the 1 devices of a host"
    ):
        train(config, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_pieces_that_end_inside_of_a_group():
    model = make_model(sequence_axis=SEQUENCE_AXIS)
    with pytest.raises(UserError, match=r"multiples of 6, .*pool_factors=\(2, 3\), and not of 8 "):
        model(np.zeros((1, 8), int))
