"""What a model remembers, against the model written once more in float64 NumPy."""

import dataclasses
import html
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from pf_jax import Poolformer, PoolformerConfig, UserError
from pf_jax.audio import AudioFormat
from pf_jax.evaluation import analysis
from pf_jax.evaluation.analysis import Horizons, Influence, Silencing, sentences
from pf_jax.evaluation.analysis.units import Unit
from pf_jax.formats import ImageFormat, TextFormat
from pf_jax.layers import LAYERS
from tests.evaluation.numpy_poolformer import forward

CONFIG = PoolformerConfig(
    widths=(4, 6, 4),
    depths=((1, 1), (0, 1), 1),
    pool_factors=(2, 3),
    pool_groups=1,
    vocab_size=7,
    embedding="learned",
    num_heads=2,
    remat=True,
)
EVERY = (1, 2, 6)
TIME = 27
SOUND = Unit.of(AudioFormat(8_000))


def make_model(config=CONFIG, seed=0):
    """A model with noise in every parameter, that remembers from one position to millions."""
    rng = np.random.default_rng(seed)
    graph, params = nnx.split(nnx.eval_shape(lambda: Poolformer(config, rngs=nnx.Rngs(0))))

    def noise(path, p):
        if "decay" in jax.tree_util.keystr(path):
            return jnp.asarray(rng.permutation(np.linspace(-13.5, 0.0, p.size)), jnp.float32)
        scale = p.shape[-2] ** -0.5 if len(p.shape) > 1 else 0.5
        return jnp.asarray(scale * rng.standard_normal(p.shape), jnp.float32)

    return nnx.merge(graph, jax.tree.map_with_path(noise, params))


def make_tokens(batch, time=TIME, seed=1):
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, (batch, time))


@pytest.fixture(scope="module")
def model():
    return make_model()


def test_decays_are_those_of_the_equations_at_every_level(model):
    tokens = make_tokens(3)
    found = jax.jit(lambda tokens: analysis.log_decays(model, tokens))(tokens)
    _, _, expected = forward(model, tokens)
    assert [len(heard) for heard in found] == [2, 1, 1]
    for level, heard in enumerate(found):
        for (log_a, least), true in zip(heard, expected[level], strict=True):
            # Twice the width inside makes as many complex channels as the width.
            assert log_a.shape == true.shape == (3, TIME // EVERY[level], CONFIG.widths[level])
            np.testing.assert_allclose(log_a, true, rtol=1e-4)
            assert (np.asarray(least) <= true).all()


def test_listening_leaves_the_model_as_it_was(model):
    before = jax.tree.map(np.array, nnx.state(model))
    kinds = [type(m) for _, m in nnx.iter_modules(model)]
    jax.jit(lambda tokens: analysis.log_decays(model, tokens))(make_tokens(3))
    assert [type(m) for _, m in nnx.iter_modules(model)] == kinds
    assert model.body.remat
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), before)


TOKENS, LENGTHS = make_tokens(6), np.array([TIME, 14, 0, 1, TIME, 0])
BATCHES = [(TOKENS[:3], LENGTHS[:3]), (TOKENS[3:], LENGTHS[3:])]


@pytest.fixture(scope="module")
def found_horizons(model):
    return analysis.horizons(model, BATCHES)


def test_horizons_are_samples_over_all_real_positions(model, found_horizons):
    tokens, lengths, found = TOKENS, LENGTHS, found_horizons
    _, _, log_as = forward(model, tokens)
    assert [(h.level, h.every) for h in found] == list(enumerate(EVERY))
    for h in found:
        exact = [
            -h.every / np.expm1(log_a[row, position])
            for log_a in log_as[h.level]
            for row, length in enumerate(lengths)
            # A position of a level is real where all of its samples are.
            for position in range(log_a.shape[1])
            if (position + 1) * h.every <= length
        ]
        exact = np.sort(np.concatenate(exact))
        assert exact.max() > 1e5  # Where 1 - a has few digits left in float32.
        centres = np.sqrt(h.edges[:-1] * h.edges[1:])
        np.testing.assert_allclose(np.repeat(centres, h.counts), exact, rtol=0.012)


def test_least_horizons_follow_from_the_parameters_alone(model, found_horizons):
    blocks = (
        [*model.body.before, *model.body.after],
        model.body.nested.after,
        model.body.nested.nested.before,
    )
    for h, level in zip(found_horizons, blocks, strict=True):
        cells = [block.layer.cell for block in level if hasattr(block.layer, "cell")]
        decay = np.concatenate([np.asarray(cell.decay[...], np.float64) for cell in cells])
        a = np.exp(-8 * np.log1p(np.exp(decay)))
        np.testing.assert_allclose(h.least, np.sort(h.every / (1 - a)), rtol=1e-4)


def test_quantiles_and_histogram_of_horizons():
    rng = np.random.default_rng(0)
    values = 8 * np.exp(np.abs(rng.normal(3.0, 1.0, 20_000)))
    edges = Horizons(1, 8, np.zeros(0), np.zeros(0)).edges
    h = Horizons(1, 8, np.histogram(values, edges)[0], np.sort(values[:5]))
    for share in (0.1, 0.5, 0.9):
        assert h.quantile(share) == pytest.approx(np.quantile(values, share), rel=0.006)
    coarse, shares = h.histogram()
    assert shares.sum() == pytest.approx(1)
    assert coarse[0] <= values.min() < coarse[1]
    assert coarse[-2] <= values.max() < coarse[-1]
    np.testing.assert_allclose(shares, np.histogram(values, coarse)[0] / len(values))


def test_what_forgets_nothing_has_the_longest_horizon_there_is(model):
    graph, params = nnx.split(model)
    model = nnx.merge(graph, params)
    model.body.before[0].layer.cell.decay[...] = jnp.full((4,), -200.0)
    for h in analysis.horizons(model, BATCHES):
        assert np.isfinite([h.quantile(0.0), h.quantile(1.0), *h.least]).all()


class Mute(nnx.Module):
    """A layer of a user's own without `log_decay`: the sum of all inputs."""

    def __init__(self, width, config, *, rngs):
        self.out_width = width
        self.scale = nnx.Param(jnp.full((width,), 0.1))

    def init_state(self, batch_size):
        return jnp.zeros((batch_size, len(self.scale[...])))

    def __call__(self, x, state):
        sums = state[:, None] + jnp.cumsum(x, axis=1)
        return self.scale * sums, sums[:, -1]


def test_a_mixer_without_a_horizon_has_none(monkeypatch):
    monkeypatch.setitem(LAYERS, "mute", Mute)
    model = make_model(dataclasses.replace(CONFIG, mixer="mute"))
    found = analysis.horizons(model, [(make_tokens(1), np.array([TIME]))])
    assert found == []
    assert "No horizon is known" in sentences.of_horizons(found, SOUND)


def finite_differences(model, tokens, positions, deepest):
    """Gradients with respect to each output of the embedding, by central differences."""
    step, width = 1e-5, CONFIG.widths[0]
    _, up, _ = forward(model, tokens)
    norms = np.zeros(tokens.shape)
    for row, target in enumerate(positions):
        # All that is changed is one row of a batch of copies.
        changes = step * np.eye(TIME * width).reshape(-1, TIME, width)
        changes = np.concatenate([changes, -changes])
        copies = np.repeat(tokens[row : row + 1], len(changes), axis=0)
        held = {}
        if deepest < len(EVERY) - 1:  # What comes from further inside does not change.
            held[deepest] = np.repeat(up[deepest][row : row + 1], len(changes), axis=0)
        nats = forward(model, copies, changes, held)[0][:, target]
        gradient = (nats[: TIME * width] - nats[TIME * width :]) / (2 * step)
        norms[row] = np.sqrt((gradient.reshape(TIME, width) ** 2).sum(axis=1))
    return norms


@pytest.fixture(scope="module")
def norms_of(model):
    """`influence_norms` of the model, compiled once."""
    return jax.jit(lambda *arguments: analysis.influence_norms(model, *arguments))


@pytest.mark.parametrize("deepest", [0, 1, 2])
def test_influence_is_the_gradient_and_nothing_comes_from_the_future(model, norms_of, deepest):
    tokens, positions = TOKENS, np.array([0, 13, 18, TIME - 1, 7, 1])
    norms = np.asarray(norms_of(tokens, positions, deepest))
    expected = finite_differences(model, tokens, positions, deepest)
    # Large contributions that cancel leave their float32 rounding behind.
    np.testing.assert_allclose(norms, expected, rtol=1e-3, atol=2e-6)
    for row, target in enumerate(positions):
        assert (norms[row, target + 1 :] == 0.0).all()  # The token itself, and those after it.
        assert (norms[row, : target + 1] > 0.0).any()
    assert np.count_nonzero(norms[3]) > 10


def test_all_paths_are_those_through_the_deepest_level(model, norms_of):
    positions = np.full(6, 20)
    through_all = jax.jit(lambda *arguments: analysis.influence_norms(model, *arguments))
    np.testing.assert_allclose(
        through_all(TOKENS, positions), norms_of(TOKENS, positions, 2), rtol=1e-5
    )


def test_influence_is_a_mean_over_pairs_of_one_distance(model, norms_of):
    positions = np.array([26, 5, 17, 26, 9, 0])  # The last row fills up.
    batches = [(TOKENS[:3], positions[:3]), (TOKENS[3:], positions[3:])]
    found = analysis.influence(model, batches)
    assert found.edges[0] == 1
    assert found.edges[-1] - 1 == 26  # From token 0 to token 26.
    assert (np.diff(found.edges) >= 1).all()
    for deepest in range(3):
        norms = np.asarray(norms_of(TOKENS, positions, deepest))
        for i, rms in enumerate(found.rms[deepest]):
            squares = [
                # After the shift by one, token `past` enters at position `past + 1`.
                float(norms[row, past + 1]) ** 2
                for row, target in enumerate(positions)
                for past in range(target)
                if found.edges[i] <= target - past < found.edges[i + 1]
            ]
            assert found.pairs[i] == len(squares)
            assert rms == pytest.approx(math.sqrt(np.mean(squares)), rel=1e-4)


@settings(max_examples=50)
@given(
    lengths=st.lists(st.integers(0, 50), min_size=1, max_size=8),
    number=st.integers(1, 30),
    seed=st.integers(0, 5),
)
def test_targets_have_a_past_and_are_shared_out_evenly(lengths, number, seed):
    lengths = np.array([*lengths, 2])
    windows, positions = analysis.draw_targets(lengths, number, np.random.default_rng(seed))
    assert len(windows) == len(positions) == number
    assert (positions >= 1).all()
    assert (positions >= lengths[windows] // 2).all()
    assert (positions < lengths[windows]).all()
    times = np.bincount(windows, minlength=len(lengths))[lengths >= 2]
    assert times.max() - times.min() <= 1
    again = analysis.draw_targets(lengths, number, np.random.default_rng(seed))
    np.testing.assert_array_equal(again, (windows, positions))


@pytest.fixture(scope="module")
def found_silencing(model):
    return analysis.silencing(model, BATCHES)


def test_silencing_is_to_hear_nothing_from_inside(model, found_silencing):
    tokens, lengths, found = TOKENS, LENGTHS, found_silencing
    assert found.num_samples.tolist() == [TIME, 14, 1, TIME]
    _, up, _ = forward(model, tokens)
    is_real = np.arange(TIME) < lengths[:, None]
    for level in range(3):
        silent = {level - 1: np.zeros_like(up[level - 1])} if level else {}
        nats = forward(model, tokens, up=silent)[0]
        expected = np.where(is_real, nats, 0.0).sum(axis=1)
        np.testing.assert_allclose(found.nats[level], expected[lengths > 0], rtol=1e-4)
        bits = expected.sum() / is_real.sum() / math.log(2)
        assert found.bits_per_sample[level] == pytest.approx(bits, rel=1e-4)
    assert found.increase[0] == 0.0
    assert (np.abs(found.increase[1:]) > 1e-3).all()


def test_silencing_equals_an_up_pool_without_weights(model, found_silencing):
    found = found_silencing
    for level, block in ((1, "body"), (2, "nested")):
        by_hand = nnx.clone(model)
        up_pool = (by_hand.body if block == "body" else by_hand.body.nested).up_pool
        for p in (up_pool.kernel, up_pool.bias):
            p[...] = jnp.zeros_like(p[...])
        intact = analysis.silencing(by_hand, BATCHES).nats[0]
        np.testing.assert_allclose(found.nats[level], intact, rtol=1e-6)


def test_standard_error_is_that_of_a_mean_where_windows_have_one_length():
    nats = np.random.default_rng(0).uniform(10, 20, (3, 6))
    found = Silencing(nats, np.full(6, 5))
    more = (nats - nats[0]) / 5 / math.log(2)
    np.testing.assert_allclose(found.increase, more.mean(axis=1))
    np.testing.assert_allclose(found.standard_error, more.std(axis=1, ddof=1) / math.sqrt(6))
    assert np.isnan(Silencing(nats[:, :1], np.array([5])).standard_error).all()


def horizons_at(level, every, horizon):
    """Horizons that are all the same."""
    counts = np.zeros(2_400, np.int64)
    counts[int(200 * np.log10(horizon / every))] = 10
    return Horizons(level, every, counts, np.full(3, horizon / 2))


def an_analysis(**fields):
    """Numbers as of a model of three levels."""
    rng = np.random.default_rng(0)
    edges = np.array([1, 2, 4, 8, 16])
    influence = Influence(edges, np.full(4, 9), rng.uniform(1e-6, 1, (3, 4)))
    silencing = Silencing(rng.uniform(10, 20, (3, 6)), np.full(6, 5))
    every = [horizons_at(level, step, 20.0 * step) for level, step in enumerate(EVERY)]
    values = {"config": CONFIG, "unit": SOUND, "horizons": every}
    return analysis.Analysis(**values | {"influence": influence, "silencing": silencing} | fields)


def write(directory, found, **more):
    page = analysis.write_report(directory, found, title="A title", facts={"seed": "3"}, **more)
    numbers = json.loads((directory / "analysis.json").read_text())
    return html.unescape(page.read_text()), numbers


def test_the_report_has_a_page_pictures_and_numbers(tmp_path):
    found = an_analysis()
    page, numbers = write(tmp_path, found, warning="Beware of <these>.")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"index.html", "analysis.json"} | {
        f"{name}.png" for name in ("horizons", "influence", "silenced")
    }
    assert page.count("<img") == 3
    assert "http" not in page
    for words in ("A title", "Beware of <these>.", *found.sentences().values()):
        assert words in page
    assert numbers["facts"] == {"seed": "3"}
    assert numbers["samples_per_position"] == list(EVERY)
    assert numbers["silencing"]["bits_per_sample"] == found.silencing.bits_per_sample.tolist()
    for h, row in zip(found.horizons, numbers["horizons"], strict=True):
        assert row["quantiles"]["0.5"] == h.quantile(0.5)
        assert row["number"] == h.counts.sum()
    assert numbers["influence"]["rms_through_levels_0_to"] == found.influence.rms.tolist()


def test_a_model_of_one_level_has_nothing_to_silence(tmp_path):
    config = dataclasses.replace(CONFIG, widths=(4,), depths=(1,), pool_factors=(), remat=False)
    model, batches = make_model(config), [(TOKENS[:1], np.array([TIME]))]
    found = analysis.Analysis(
        config,
        Unit.of(TextFormat()),
        analysis.horizons(model, batches),
        analysis.influence(model, [(TOKENS[:1], np.array([TIME - 1]))]),
        analysis.silencing(model, batches),
    )
    page, numbers = write(tmp_path, found)
    assert found.silencing.nats.shape == (1, 1)
    assert found.influence.rms.shape[0] == 1
    assert "no inner one to silence" in page
    assert {path.name for path in tmp_path.glob("*.png")} == {"horizons.png", "influence.png"}
    assert numbers["silencing"]["increase"] == [0.0]
    assert numbers["silencing"]["standard_error"] == [None]  # Of one window.
    assert " ms" not in found.sentences()["horizons"]


def test_a_mixer_without_a_horizon_leaves_the_rest(tmp_path):
    page, numbers = write(tmp_path, an_analysis(horizons=[]))
    assert "No horizon is known" in page
    assert {path.name for path in tmp_path.glob("*.png")} == {"silenced.png", "influence.png"}
    assert numbers["horizons"] == []


def test_what_cannot_be_written_is_told(tmp_path):
    (tmp_path / "analysis.json").mkdir()
    with pytest.raises(UserError, match=r"Cannot write .*analysis\.json"):
        write(tmp_path, an_analysis())


def test_sentences_say_what_the_numbers_say_whichever_way():
    longer = [horizons_at(0, 1, 10.0), horizons_at(1, 8, 400.0)]
    shorter = [horizons_at(0, 1, 100.0), horizons_at(1, 8, 25.0)]
    assert "grows with every level" in sentences.of_horizons(longer, SOUND)
    assert "8 times by pooling, and 4.95" in sentences.of_horizons(longer, SOUND)
    assert "does not always grow" in sentences.of_horizons(shorter, SOUND)
    assert "0.247 times that of level 0" in sentences.of_horizons(shorter, SOUND)

    edges, pairs = np.array([1, 2, 4, 8]), np.array([9, 9, 9])
    total = np.array([1.0, 0.05, 0.005])
    fast = sentences.of_influence(Influence(edges, pairs, np.stack([total * 0.1, total])), SOUND)
    assert "a tenth of that from 2 samples (0.25 ms) on" in fast
    assert "a hundredth of that from 4 samples (0.5 ms) on" in fast
    assert "from 1 sample (0.125 ms) on, paths through level 0 alone carry less than half" in fast
    flat = np.ones(3)
    never = sentences.of_influence(Influence(edges, pairs, np.stack([flat, flat])), SOUND)
    assert "stays below a tenth" not in never
    assert "at no distance do paths through level 0 alone stay below half" in never

    samples = np.full(4, 100)
    base, more = np.full(4, 100.0), np.array([9.0, 10.0, 11.0, 10.0])
    rising = Silencing(np.stack([base, base + more]), samples)
    assert "0.144 ± 0.006 more without level 1" in sentences.of_silencing(rising, SOUND)
    falling = Silencing(np.stack([base, base - more]), samples)
    assert "0.144 ± 0.006 fewer without level 1." in sentences.of_silencing(falling, SOUND)
    chance = Silencing(np.stack([base, base + more * [1, -1, 1, -1]]), samples)
    assert "within two standard errors of nothing" in sentences.of_silencing(chance, SOUND)


def test_units_are_those_of_people():
    assert SOUND.amount(1) == "1 sample (0.125 ms)"
    assert SOUND.amount(16_000) == "16,000 samples (2 s)"
    for format in (TextFormat(), ImageFormat(4)):
        assert Unit.of(format).amount(2_000) == "2,000 bytes"
        assert Unit.of(format).time(2_000) == ""
