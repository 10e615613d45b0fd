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
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from pf_jax import Poolformer, PoolformerConfig
from pf_jax.layers import MIXERS
from pf_jax.sampling import Sampler, nested
from pf_jax.sampling import sampler as sampler_module
from pf_jax.sampling.weights import FusedBlock, PlainBlock, lay_out
from tests import processes

KEY = jax.random.key(3)
# The "sequential" recurrence compiles soonest.
SMALL = {"num_heads": 2, "recurrence": "sequential"}
CONFIG = PoolformerConfig((8, 12), ((1, 0), 1), (6,), vocab_size=5, **SMALL)


def make_model(config, seed=0):
    """A model with noise in every parameter, so that no bias hides behind a zero."""
    rng = np.random.default_rng(seed)

    def noise(path, p):
        if "decay" in jax.tree_util.keystr(path):  # Memories from one position to hundreds.
            return jnp.asarray(rng.uniform(-7.0, 0.0, p.shape), jnp.float32)
        scale = p.shape[-2] ** -0.5 if len(p.shape) > 1 else 0.5
        return jnp.asarray(scale * rng.standard_normal(p.shape), jnp.float32)

    graph, params = nnx.split(nnx.eval_shape(lambda: Poolformer(config, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, jax.tree.map_with_path(noise, params))


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
    expected = np.asarray(log_probabilities(model, whole))
    expected = np.take_along_axis(expected, whole[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(log_p, expected[:, prompt.shape[-1] :], rtol=0, atol=atol)


@st.composite
def problems(draw):
    """A config, how it is asked, and a seed for weights and prompts."""
    levels = draw(st.integers(1, 3))
    depth = st.one_of(st.integers(0, 1), st.sampled_from([(0, 1), (1, 0)]))
    config = PoolformerConfig(
        widths=tuple(draw(st.sampled_from([8, 12, 16])) for _ in range(levels)),
        depths=(*(draw(depth) for _ in range(levels - 1)), draw(st.integers(0, 1))),
        pool_factors=tuple(draw(st.integers(2, 4)) for _ in range(levels - 1)),
        vocab_size=draw(st.integers(2, 11)),
        embedding=draw(st.sampled_from(["sinusoidal", "learned"])),
        num_heads=draw(st.sampled_from([1, 2, 4])),
        conv_width=draw(st.integers(1, 4)),
        recurrence="sequential",
    )
    chunk = int(np.prod(config.pool_factors)) * draw(st.integers(1, 2))
    prompt = draw(st.integers(0, 3 * chunk))
    return config, chunk, prompt, draw(st.integers(1, 3)), draw(st.integers(0, 99))


WIDE = PoolformerConfig((40,), (2,), vocab_size=4, **SMALL)  # Blocks of 20 are left blocks.
DEEP = PoolformerConfig((8, 12, 8), (1, (0, 1), 1), (2, 3), vocab_size=5, **SMALL)
WIDE_BELOW = PoolformerConfig((8, 40), ((1, 0), 1), (2,), vocab_size=4, **SMALL)


# Without the phase that shrinks a failing config: it would compile hundreds of programs.
@settings(max_examples=4, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate))
@example((WIDE, 7, 0, 1, 0))
@example((WIDE_BELOW, 6, 17, 2, 1))
@example((DEEP, 6, 4, 1, 2))
@given(problem=problems())
def test_each_step_is_scored_as_in_the_parallel_form(problem):
    config, chunk, length, num_streams, seed = problem
    model = make_model(config, seed)
    prompt = np.random.default_rng(seed).integers(0, config.vocab_size, (num_streams, length))
    sampler = Sampler(model, chunk_steps=chunk)
    position = sampler.start(KEY, num_streams, prompt if length else None)
    tokens, log_p = drawn(sampler, position, 3)
    period = int(np.prod(config.pool_factors))
    assert tokens.shape == log_p.shape == (num_streams, 3 * chunk - length % period)
    assert_scored_as_in_parallel(model, prompt, tokens, log_p, 2e-5)


class Leaky(nnx.Module):
    """`h = 0.5 h + x`, and a weight at the end."""

    def __init__(self, width, config, *, rngs):
        self.width = width
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (width,)))

    def init_state(self, batch_size):
        return jnp.zeros((batch_size, self.width))

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
def test_a_users_own_mixer_comes_in_by_the_same_door(monkeypatch, num_streams):
    monkeypatch.setitem(MIXERS, "leaky", Leaky)
    config = PoolformerConfig((8, 4), ((1, 1), 1), (2,), 5, mixer="leaky", **SMALL)
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
    config = PoolformerConfig((16, 8), (1, 1), (3,), 5, dtype="bfloat16", **SMALL)
    model = make_model(config)
    first = lay_out(model).levels[0].before[0]
    assert isinstance(first, FusedBlock)
    assert first.mixer_input.kernel.dtype == first.gates.dtype == jnp.bfloat16
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
        assert tokens.shape == (num_streams, 22)
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
    config = PoolformerConfig((8,) * len(depths), depths, factors, vocab_size=5, **SMALL)
    weights = lay_out(make_model(config))
    period, groups = int(np.prod(factors)), 5
    assert weights.period == period
    state = make_model(config).init_state(2)
    carry = nested.make_carry(weights, state, jnp.zeros(2, jnp.int32))
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
    # One sigmoid a ResBlock for both gates; five products, of which the first one of all is a
    # table; the head and two sums of the draw; between two levels one to the next and one back.
    assert gates == {of_level[level]: blocks[level] for level in of_level}
    assert products == {
        of_level[level]: 5 * blocks[level] + (2 if level else 3 - 1) for level in of_level
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
        assert position.step == -1
        assert following.step == 23
        tokens = [np.asarray(chunk.tokens) for _, chunk in again.values()]
        for one, other in itertools.combinations(tokens, 2):
            assert not (one == other).all(axis=1).any()
        for attempt in (1, 2):
            _, chunk = sampler.advance(position, attempt=attempt)
            np.testing.assert_array_equal(chunk.tokens, tokens[attempt])
            prompt = np.array([1, 2, 3, 4, 0, 1, 2])
            assert_scored_as_in_parallel(model, prompt, tokens[attempt], chunk.log_p, 2e-5)


@pytest.fixture
def programs(monkeypatch):
    """Which programs were asked for, and none refused yet."""
    asked, program = [], sampler_module._program

    def counted(devices, in_one_kernel):
        asked.append(in_one_kernel)
        return program(devices, in_one_kernel)

    monkeypatch.setattr(sampler_module, "_program", counted)
    monkeypatch.setattr(sampler_module, "_refused", set())
    return asked


def refusing(monkeypatch, message):
    asked_before = sampler_module._program

    def refuse(*args):
        raise jax.errors.JaxRuntimeError(message)

    def program(devices, in_one_kernel):
        result = asked_before(devices, in_one_kernel)
        return refuse if in_one_kernel else result

    monkeypatch.setattr(sampler_module, "_program", program)


def test_one_kernel_draws_the_same_and_without_it_goes_too(model, programs, monkeypatch):
    sampler = Sampler(model, chunk_steps=24)
    position = sampler.start(KEY, 1, [1, 2, 3])
    tokens, log_p = drawn(sampler, position, 3)
    assert programs == [True] * 3

    programs.clear()
    refusing(monkeypatch, "UNIMPLEMENTED: Dot with non-standard layout.")
    expected = drawn(sampler, position, 3)
    # Refused once, it is not asked for again, neither by another sampler of such a model.
    assert programs == [True] + [False] * 3
    sampler = Sampler(make_model(CONFIG, 1), chunk_steps=24)
    sampler.advance(sampler.start(KEY, 1))
    assert programs == [True] + [False] * 4
    np.testing.assert_array_equal(tokens, expected[0])
    np.testing.assert_allclose(log_p, expected[1], atol=2e-5)


def test_only_what_xla_cannot_do_is_done_otherwise(model, programs, monkeypatch):
    refusing(monkeypatch, "RESOURCE_EXHAUSTED: out of memory")
    sampler = Sampler(model, chunk_steps=24)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        sampler.advance(sampler.start(KEY, 1))
    assert programs == [True]


def test_one_stream_is_one_kernel_with_top_p_too_and_two_are_not(model, programs):
    for num_streams, top_p in ((1, 1.0), (1, 0.9), (2, 1.0)):
        sampler = Sampler(model, chunk_steps=24, top_p=top_p)
        sampler.advance(sampler.start(KEY, num_streams))
    assert programs == [True, True, False]  # None was asked twice, as it is when refused.


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
