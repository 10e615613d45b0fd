"""The sampler's nested loops against the parallel form, and the same draws on all its ways."""

import collections
import itertools
import pathlib
import pickle
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from pf_jax import PoolformerConfig
from pf_jax.layers import LAYERS
from pf_jax.sampling import Sampler, nested
from pf_jax.sampling import sampler as sampler_module
from pf_jax.sampling.weights import FusedBlock, PlainBlock, lay_out
from tests import models, processes
from tests.models import make_model

KEY = jax.random.key(3)
# The "sequential" recurrence compiles soonest.
SMALL = {"vocab_size": 5, "num_heads": 2, "recurrence": "sequential"}
CONFIG = PoolformerConfig((8, 12), ((1, 0), 1), (6,), pool_groups=2, **SMALL)
GRIFFIN = {"mixer": "rglru", "convolution": "depthwise", "recurrence_output": False, "norm": "rms"}
SASHIMI = {"sashimi_backbone": True, "mixer": "s4d", "state_size": 2, "mlp": "plain_mlp"}


@pytest.fixture(scope="module")
def model():
    return make_model(CONFIG)


@nnx.jit
def log_probabilities(model, tokens):
    return jax.nn.log_softmax(model(tokens))


def drawn(sampler, position, num_chunks):
    """Tokens and log-probabilities of some chunks in a row."""
    chunks = []
    for _ in range(num_chunks):
        position, chunk = sampler.advance(position)
        chunks.append(chunk)
    tokens, log_p = (np.concatenate(parts, axis=1) for parts in zip(*chunks, strict=True))
    assert tokens.dtype == np.int32
    assert log_p.dtype == np.float32
    return tokens, log_p


def assert_scored_as_in_parallel(model, prompt, tokens, log_p, atol):
    """Each token's log-probability is that of the parallel form."""
    whole = np.concatenate([np.broadcast_to(prompt, (len(tokens), prompt.shape[-1])), tokens], 1)
    # Of few lengths, so that there are few programs to compile: what follows does not matter.
    padded = np.pad(whole, ((0, 0), (0, -whole.shape[1] % 32)))
    expected = np.asarray(log_probabilities(model, padded))
    expected = np.take_along_axis(expected, padded[..., None], axis=-1)[..., 0]
    expected = expected[:, prompt.shape[-1] : whole.shape[1]]
    np.testing.assert_allclose(log_p, expected, rtol=0, atol=atol)


def assert_samples(model, sampler, prompt_length, num_streams=2):
    """What is drawn after a random prompt is scored as in the parallel form."""
    shape = (num_streams, prompt_length)
    prompt = np.random.default_rng(prompt_length).integers(0, model.config.vocab_size, shape)
    position = sampler.start(KEY, num_streams, prompt if prompt_length else None)
    tokens, log_p = drawn(sampler, position, 3)
    # Through the loops go first the token before and what is over of the prompt.
    forced = 1 + prompt_length % int(np.prod(model.config.pool_factors))
    assert tokens.shape == log_p.shape == (num_streams, 3 * sampler.chunk_steps - forced)
    assert_scored_as_in_parallel(model, prompt, tokens, log_p, models.ROUNDING)


@pytest.mark.parametrize("num_streams", [1, 3])
@pytest.mark.parametrize(
    ("widths", "depths", "factors", "fields"),
    [
        ((8,), (2,), (), {}),
        ((8, 8, 8), (1, 1, 1), (2, 3), {}),  # As published.
        ((8, 12, 16), ((0, 1), (1, 0), 1), (3, 2), {"pool_groups": 4, **GRIFFIN}),
        ((8, 16), (("convolution", "cglru"), 1), (4,), {"pool_groups": 1, "convolution": "full"}),
        ((8, 40), (0, 2), (2,), {"pool_groups": 1, **GRIFFIN, "mixer_expansion": 4.0}),
        ((80,), (1,), (), {"mixer_expansion": 2.0}),  # So wide that gates are left blocks.
        ((8, 8, 8), (1, (1, 0), 1), (3, 2), SASHIMI),
        ((8, 8), (0, ("cglru", "rglru")), (3,), {"sashimi_backbone": True, "mlp": "none"}),
        ((8, 8), (("gru",), ("attention",)), (3,), {"attention_window": 4, "mixer_gate": False}),
    ],
)
def test_each_step_is_scored_as_in_the_parallel_form(widths, depths, factors, fields, num_streams):
    config = PoolformerConfig(widths, depths, factors, **SMALL | fields)
    model = make_model(config)
    assert_samples(model, Sampler(model, chunk_steps=12), 8, num_streams)


@st.composite
def problems(draw):
    """A config, a chunk and the length of a prompt."""
    config = draw(models.configs(draw(st.integers(1, 3)), 4, recurrence="sequential"))
    period = int(np.prod(config.pool_factors))
    return config, draw(st.integers(1, 2 * period)), draw(st.integers(0, 3 * period))


@models.settled(max_examples=8)
@given(problem=problems(), num_streams=st.integers(1, 2), seed=st.integers(0, 99))
def test_so_it_is_in_any_config(problem, num_streams, seed):
    config, chunk_steps, prompt_length = problem
    model = make_model(config, seed)
    assert_samples(model, Sampler(model, chunk_steps=chunk_steps), prompt_length, num_streams)


@pytest.mark.parametrize("is_sashimi", [False, True])
def test_a_prompt_of_any_length_goes_before_a_chunk_of_any_length(is_sashimi):
    config = PoolformerConfig((8, 8, 8), (1, 0, 1), (2, 3), sashimi_backbone=is_sashimi, **SMALL)
    model = make_model(config)
    for chunk_steps in (1, 13):
        sampler = Sampler(model, chunk_steps=chunk_steps)
        for prompt_length in range(14):
            assert_samples(model, sampler, prompt_length)


@pytest.mark.parametrize(
    ("asked", "factors", "steps"),
    [(1, (2, 3), 12), (12, (2, 3), 12), (13, (2, 3), 18), (1, (), 2), (5, (), 5)],
)
def test_chunks_are_whole_groups_and_even_the_first_has_a_new_token(asked, factors, steps):
    levels = len(factors) + 1
    config = PoolformerConfig((8,) * levels, (0,) * levels, factors, **SMALL)
    sampler = Sampler(make_model(config), chunk_steps=asked)
    assert sampler.chunk_steps == steps
    period = int(np.prod(factors))
    for length in range(1, 2 * period + 1):
        position = sampler.start(KEY, 1, np.zeros(length, int))
        assert -period <= position.step < 0
        assert position.step == -(1 + length % period)


class Leaky(nnx.Module):
    """`h = 0.5 h + x`, and a weight at the end."""

    def __init__(self, width, config, *, rngs):
        self.out_width = width
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (width,)))

    def init_state(self, batch_size):
        return jnp.zeros((batch_size, self.out_width))

    def __call__(self, x, state):
        def step(h, x):
            h = 0.5 * h + x
            return h, h

        state, h = jax.lax.scan(step, state, jnp.moveaxis(x, 1, 0))
        return self.weight * jnp.moveaxis(h, 0, 1), state

    def step(self, x, state):
        state = 0.5 * state + x
        return self.weight * state, state


@pytest.mark.parametrize("num_streams", [1, 2])
def test_a_users_own_layer_comes_in_by_the_same_door(monkeypatch, num_streams):
    monkeypatch.setitem(LAYERS, "leaky", Leaky)
    config = PoolformerConfig(
        (8, 4), ((1, 1), 1), (2,), pool_groups=1, mixer="leaky", mlp="none", **SMALL
    )
    model = make_model(config)
    weights = lay_out(model)
    assert weights.projected is None
    blocks = [block for level in weights.levels for block in level.before + level.after]
    assert [type(block) for block in blocks] == [PlainBlock] * 3
    prompt = np.array([1, 4, 2, 0, 3])
    sampler = Sampler(model, chunk_steps=8)
    tokens, log_p = drawn(sampler, sampler.start(KEY, num_streams, prompt), 2)
    assert_scored_as_in_parallel(model, prompt, tokens, log_p, 2e-5)
    # And of two models of the same shape each has its own weights.
    other = make_model(config, 1)
    sampler = Sampler(other, chunk_steps=8)
    tokens, log_p = drawn(sampler, sampler.start(KEY, num_streams, prompt), 1)
    assert_scored_as_in_parallel(other, prompt, tokens, log_p, 2e-5)


def test_a_bfloat16_model_agrees_with_its_parallel_form():
    config = PoolformerConfig((16, 8), (1, 1), (3,), pool_groups=8, dtype="bfloat16", **SMALL)
    model = make_model(config)
    first = lay_out(model).levels[0].before[0]
    assert isinstance(first, FusedBlock)
    assert first.input.kernel.dtype == first.cell.gates.dtype == jnp.bfloat16
    prompt = np.arange(10) % 5
    sampler = Sampler(model, chunk_steps=12)
    for num_streams in (1, 2):
        tokens, log_p = drawn(sampler, sampler.start(KEY, num_streams, prompt), 2)
        # Activations of the order of 1 have steps of 2**-8, and there are some dozen roundings.
        assert_scored_as_in_parallel(model, prompt, tokens, log_p, 0.1)


def on_devices(model, number, num_streams):
    """Five streams' tokens, each with a prompt of its own, shared by so many devices."""
    prompt = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (num_streams, 8))
    sampler = Sampler(model, chunk_steps=12, devices=jax.devices()[:number])
    return drawn(sampler, sampler.start(KEY, num_streams, prompt), 2)


FOUR_DEVICES = """
    import importlib.util, pickle, sys
    import jax
    spec = importlib.util.spec_from_file_location("test_sampler", sys.argv[1])
    test_sampler = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(test_sampler)
    assert jax.local_device_count() == 4
    model = test_sampler.make_model(test_sampler.CONFIG)
    results = {
        (number, streams): test_sampler.on_devices(model, number, streams)
        for number, streams in ((2, 5), (3, 5), (4, 5), (4, 2))
    }
    with open(sys.argv[2], "wb") as file:
        pickle.dump(results, file)

    compiled = []  # Also for what it was given by itself, the program is compiled once.
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    sampler = test_sampler.Sampler(model, chunk_steps=18)
    position, _ = sampler.advance(sampler.start(test_sampler.KEY, 8))
    assert compiled
    compiled.clear()
    for _ in range(2):
        position, _ = sampler.advance(position)
    assert not compiled
"""


def test_any_number_of_devices_draws_the_same(model, tmp_path):
    processes.run(
        [sys.executable, "-c", textwrap.dedent(FOUR_DEVICES), __file__, tmp_path / "results"],
        env=processes.with_devices(4),
        cwd=pathlib.Path(__file__).parents[2],
        check=True,
    )
    results = pickle.loads((tmp_path / "results").read_bytes())
    assert set(results) == {(2, 5), (3, 5), (4, 5), (4, 2)}
    for (number, num_streams), (tokens, log_p) in results.items():
        expected = on_devices(model, 1, num_streams)
        assert tokens.shape == (num_streams, 21)
        assert len({tuple(row) for row in tokens.tolist()}) == num_streams
        np.testing.assert_array_equal(tokens, expected[0], err_msg=str(number))
        np.testing.assert_allclose(log_p, expected[1], atol=2e-5)


@pytest.mark.parametrize("own", [False, True], ids=["one prompt", "a prompt each"])
def test_a_long_prompt_is_scored_in_pieces(model, monkeypatch, own):
    prompt = np.random.default_rng(1).integers(0, CONFIG.vocab_size, (2, 45) if own else (45,))
    sampler = Sampler(model, chunk_steps=12)
    expected = drawn(sampler, sampler.start(KEY, 2, prompt), 2)
    pieces, prefill = [], sampler_module._prefill

    def counted(model, tokens, *args):
        pieces.append(tokens.shape)
        return prefill(model, tokens, *args)

    monkeypatch.setattr(sampler_module, "_prefill", counted)
    for most, lengths in ((40, [18, 18, 6] if own else [36, 6]), (1, [6] * 7)):
        monkeypatch.setattr(sampler_module, "_MAX_PREFILL", most)
        pieces.clear()
        tokens, log_p = drawn(sampler, sampler.start(KEY, 2, prompt), 2)
        assert pieces == [(2 if own else 1, length) for length in lengths]
        np.testing.assert_array_equal(tokens, expected[0])
        np.testing.assert_allclose(log_p, expected[1], atol=2e-5)


def primitives(jaxpr, scans=()):
    """Each operation of a program, as often as it is written there, with the scans around it."""
    for equation in jaxpr.eqns:
        name, inside = equation.primitive.name, scans
        yield name, scans
        if name == "scan":
            inside = (*scans, equation.params["length"])
        for value in jax.tree.leaves(
            equation.params, is_leaf=lambda v: isinstance(v, jax.extend.core.ClosedJaxpr)
        ):
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                yield from primitives(getattr(value, "jaxpr", value), inside)


@pytest.mark.parametrize(
    ("depths", "factors"), [((1, (0, 2), 3), (2, 4)), (((2, 1), 1), (3,)), ((2,), ())]
)
def test_each_level_works_in_a_loop_of_its_own_and_never_asks(depths, factors):
    config = PoolformerConfig((8,) * len(depths), depths, factors, pool_groups=1, **SMALL)
    weights = lay_out(make_model(config))
    period, groups = int(np.prod(factors)), 5
    assert weights.period == period
    carry = nested.make_carry(weights, make_model(config).init_state(2), 2)
    inputs = nested.Inputs(
        jnp.zeros((groups * period, 2)), jnp.full((groups * period, 2), -1, jnp.int32)
    )
    jaxpr = jax.make_jaxpr(nested.run)(weights, carry, inputs, jnp.float32(1.0), None)
    found = collections.Counter(primitives(jaxpr.jaxpr))
    names = {name for name, _ in found}
    assert not names & {"cond", "switch", "while"}

    # The innermost level's loop is around all others.
    lengths = (groups, *reversed(factors))
    loops = [lengths[: i + 1] for i in range(len(lengths))]
    assert {scans: n for (name, scans), n in found.items() if name == "scan"} == dict.fromkeys(
        [(), *loops[:-1]], 1
    )
    of_level = dict(enumerate(reversed(loops)))
    products, gates = (
        {scans: n for (name, scans), n in found.items() if name == wanted}
        for wanted in ("dot_general", "logistic")
    )
    blocks = {level: sum(config.depth(level)) for level in of_level}
    # As many sigmoids in each recurrence. Four products for it and two for an MLP, of which the
    # first of all is a table; the head and two sums of the draw; between two levels down and up.
    assert gates.keys() == set(of_level.values())
    assert len({gates[of_level[level]] / blocks[level] for level in of_level}) == 1
    assert products == {
        of_level[level]: 6 * blocks[level] + (2 if level else 3 - 1) for level in of_level
    }
    # So a level's blocks run once in as many tokens as it pools.
    for level in of_level:
        assert int(np.prod(of_level[level])) == groups * period // int(np.prod(factors[:level]))


def test_advancing_leaves_the_position_as_it_was(model):
    sampler = Sampler(model, chunk_steps=24)
    for num_streams in (1, 2):
        position = sampler.start(KEY, num_streams, [1, 2, 3, 4, 0, 1, 2])
        following, chunk = sampler.advance(position)
        sampler.advance(following)
        again = {attempt: sampler.advance(position, attempt=attempt) for attempt in (0, 1, 2)}
        jax.tree.map(np.testing.assert_array_equal, again[0][1], chunk)
        jax.tree.map(np.testing.assert_array_equal, again[0][0].carry, following.carry)
        assert position.step == -2
        assert following.step == 22
        tokens = [np.asarray(chunk.tokens) for _, chunk in again.values()]
        for one, other in itertools.combinations(tokens, 2):
            assert not (one == other).all(axis=1).any()
        for attempt in (1, 2):
            _, chunk = sampler.advance(position, attempt=attempt)
            np.testing.assert_array_equal(chunk.tokens, tokens[attempt])
            prompt = np.array([1, 2, 3, 4, 0, 1, 2])
            assert_scored_as_in_parallel(model, prompt, tokens[attempt], chunk.log_p, 2e-5)


@pytest.mark.parametrize("num_streams", [1, 2])
def test_step_numbers_have_no_end(model, num_streams):
    sampler = Sampler(model, chunk_steps=24)
    position = sampler.start(KEY, num_streams)
    _, first = sampler.advance(position)
    for step in (2**31 - 5, 2**32 - 5, 2**32 + 5, 2**40 + 7):
        following, chunk = sampler.advance(position._replace(step=step))
        assert following.step == step + 24
        assert_scored_as_in_parallel(
            model, np.zeros((num_streams, 0), int), np.asarray(chunk.tokens), chunk.log_p, 2e-5
        )
        assert not (np.asarray(first.tokens) == chunk.tokens).all(axis=1).any()
