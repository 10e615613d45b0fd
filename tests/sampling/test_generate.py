"""The sampler against the model's own distribution, and the same draws however they are made."""

import jax
import numpy as np
import pytest
import scipy.stats
from flax import nnx

from pf_jax import Poolformer, PoolformerConfig, UserError, generate, stream
from pf_jax.sampling import Sampler, nested

VOCAB = 5
KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def model():
    """A tiny model with opinions: its tokens are far from equally likely."""
    config = PoolformerConfig((8, 8), (0, 1), (3,), vocab_size=VOCAB, num_heads=2)
    model = nnx.jit(lambda: Poolformer(config, rngs=nnx.Rngs(1)))()
    model.head.kernel[...] = 2.5 * model.head.kernel[...]
    return model


@nnx.jit
def log_probabilities(model, tokens):
    return jax.nn.log_softmax(model(tokens))


def log_likelihoods(model, tokens, given=0):
    """Of tokens after the first `given`, in the parallel form."""
    log_p = np.asarray(log_probabilities(model, tokens), np.float64)
    return np.take_along_axis(log_p, tokens[..., None], axis=-1)[:, given:, 0].sum(axis=1)


@pytest.fixture(scope="module")
def expected(model):
    """Eleven tokens of three samples, drawn in one chunk."""
    return generate(model, KEY, num_samples=3, num_steps=11)


def test_gives_tokens_of_the_vocabulary_and_a_likelihood_each(expected):
    tokens, likelihoods = expected
    assert tokens.shape == (3, 11)
    assert tokens.dtype == np.int32
    assert tokens.min() >= 0
    assert tokens.max() < VOCAB
    assert likelihoods.shape == (3,)
    assert likelihoods.dtype == np.float64


@pytest.mark.parametrize("chunk_steps", [1, 4, 9, 12])
def test_draws_the_same_whatever_the_chunk(model, expected, chunk_steps):
    seen = []
    tokens, likelihoods = generate(
        model, KEY, num_samples=3, num_steps=11, chunk_steps=chunk_steps, progress=seen.append
    )
    np.testing.assert_array_equal(tokens, expected[0])
    np.testing.assert_allclose(likelihoods, expected[1], rtol=1e-5)
    chunk = max(6, -(-chunk_steps // 3) * 3)  # The pool factor is 3.
    assert seen == [*range(chunk - 1, 11, chunk), 11]  # The first chunk begins with the start.


def test_a_sample_does_not_depend_on_how_many_are_drawn_beside_it(model, expected):
    for num_samples in (1, 5):
        tokens, likelihoods = generate(model, KEY, num_samples=num_samples, num_steps=11)
        shared = min(num_samples, 3)
        np.testing.assert_array_equal(tokens[:shared], expected[0][:shared])
        np.testing.assert_allclose(likelihoods[:shared], expected[1][:shared], rtol=1e-5)


def test_a_longer_sample_begins_with_the_shorter(model, expected):
    tokens, _ = generate(model, KEY, num_samples=3, num_steps=17)
    np.testing.assert_array_equal(tokens[:, :11], expected[0])


def test_samples_and_keys_differ(model):
    tokens, _ = generate(model, KEY, num_samples=6, num_steps=30)
    assert len({tuple(row) for row in tokens.tolist()}) == 6
    others, _ = generate(model, jax.random.key(8), num_samples=6, num_steps=30)
    assert not (tokens == others).all(axis=1).any()


@pytest.mark.parametrize("prompt_length", [0, 1, 6, 7])
@pytest.mark.parametrize("own", [False, True], ids=["one prompt", "a prompt each"])
def test_likelihood_is_that_of_the_parallel_form(model, prompt_length, own):
    prompt = np.random.default_rng(0).integers(0, VOCAB, (3, prompt_length))
    if not own:
        prompt[:] = prompt[0]
    tokens, likelihoods = generate(
        model,
        KEY,
        num_samples=3,
        num_steps=11,
        prompt=None if not prompt_length else prompt if own else prompt[0],
        temperature=0.7,
        top_p=0.9,
        chunk_steps=3,  # 11 steps are no multiple of it.
    )
    whole = np.concatenate([prompt, tokens], axis=1)
    np.testing.assert_allclose(likelihoods, log_likelihoods(model, whole, prompt_length), rtol=1e-4)


def test_temperature_zero_takes_the_likeliest_token(model):
    prompt = np.random.default_rng(1).integers(0, VOCAB, (3, 4))
    for top_p in (1.0, 0.5):
        tokens, _ = generate(
            model, KEY, num_samples=3, num_steps=9, prompt=prompt, temperature=0.0, top_p=top_p
        )
        whole = np.concatenate([prompt, tokens], axis=1)
        likeliest = np.asarray(log_probabilities(model, whole)).argmax(axis=-1)
        np.testing.assert_array_equal(tokens, likeliest[:, 4:])


def assert_drawn_from(tokens, p):
    """Chi-square test at one in a thousand, with a fixed key; what cannot be never is."""
    counts = np.bincount(tokens.ravel(), minlength=p.size)
    assert counts[p.ravel() == 0].sum() == 0
    expected = p.ravel() * counts.sum()
    rare = expected < 10  # Too few for the test one by one: it takes them together.
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    assert scipy.stats.chisquare(counts, expected).pvalue > 1e-3


def softmax(x):
    return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


@pytest.mark.parametrize(
    ("prompt", "temperature"), [([1, 4, 2], 1.0), ([4, 2], 2.0), ([3, 1, 4, 2], 2.0)]
)
def test_two_tokens_in_a_row_are_drawn_from_the_joint_distribution(model, prompt, temperature):
    tokens, _ = generate(
        model, KEY, num_samples=20_000, num_steps=2, prompt=prompt, temperature=temperature
    )
    # The last column does not matter to the logits that predict it.
    whole = np.array([[*prompt, first, 0] for first in range(VOCAB)])
    log_p = np.asarray(log_probabilities(model, whole), np.float64) / temperature
    p = softmax(log_p[0, -2])[:, None] * softmax(log_p[:, -1])
    assert p.max() > 3 / VOCAB**2  # Not uniform, or the test would show little.
    assert_drawn_from(VOCAB * tokens[:, 0] + tokens[:, 1], p)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.8, 0.999])
def test_top_p_keeps_the_nucleus_and_its_proportions(model, top_p, temperature):
    tokens, _ = generate(
        model, KEY, num_samples=4_000, num_steps=1, temperature=temperature, top_p=top_p
    )
    log_p = np.asarray(log_probabilities(model, np.zeros((1, 1), int)), np.float64)[0, 0]
    p = softmax(log_p / temperature)
    nucleus, total = np.zeros(VOCAB, bool), 0.0
    for token in np.argsort(-p):
        if total < top_p:
            nucleus[token] = True
            total += p[token]
    assert set(np.unique(tokens)) == set(np.flatnonzero(nucleus))
    if nucleus.sum() > 1:
        assert_drawn_from(tokens, np.where(nucleus, p, 0.0) / p[nucleus].sum())


def test_a_number_of_samples_is_compiled_once(model, monkeypatch):
    traces, run = [], nested.run

    def counted(weights, *args):
        traces.append(weights)
        return run(weights, *args)

    monkeypatch.setattr(nested, "run", counted)
    generate(model, KEY, num_samples=2, num_steps=3, chunk_steps=21)
    assert traces
    traces.clear()
    generate(model, KEY, num_samples=2, num_steps=50, chunk_steps=21)
    generate(model, jax.random.key(1), num_samples=2, num_steps=8, chunk_steps=21, temperature=0.5)
    generate(model, KEY, num_samples=2, num_steps=8, chunk_steps=21, prompt=[1, 2])
    assert not traces


def test_no_more_chunks_are_drawn_than_are_needed(model, monkeypatch):
    steps, advance = [], Sampler.advance

    def counted(self, position):
        steps.append(self.chunk_steps)
        return advance(self, position)

    monkeypatch.setattr(Sampler, "advance", counted)
    for num_steps, chunks in ((11, [6] * 2), (12, [6] * 3)):
        steps.clear()
        generate(model, KEY, num_samples=2, num_steps=num_steps, chunk_steps=6)
        assert steps == chunks
    # A short sample does not pay for a long chunk, nor for a second one.
    for num_steps, prompt, chunk in ((2, None, 6), (6, None, 9), (6, [1, 2], 9)):
        steps.clear()
        generate(model, KEY, num_samples=2, num_steps=num_steps, prompt=prompt)
        assert steps == [chunk]


def test_old_keys_work_too(model, expected):
    tokens, _ = generate(model, jax.random.PRNGKey(7), num_samples=3, num_steps=11)
    np.testing.assert_array_equal(tokens, expected[0])


def test_batches_of_streams_are_those_of_one_batch(model, expected):
    sampler = Sampler(model, chunk_steps=12)
    _, chunk = sampler.advance(sampler.start(KEY, 2, first_stream=1))
    np.testing.assert_array_equal(chunk.tokens[:, :11], expected[0][1:])


def test_a_stream_gives_what_generate_gives(model, expected):
    chunks = stream(model, KEY, num_streams=3, chunk_steps=3)
    tokens = np.concatenate([next(chunks).tokens for _ in range(4)], axis=1)
    np.testing.assert_array_equal(tokens[:, :11], expected[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"temperature": -0.1}, "temperature must be a number of at least 0, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be .* got nan"),
        ({"temperature": float("inf")}, "temperature must be .* got inf"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
        ({"top_p": float("nan")}, "top_p must be .* got nan"),
        ({"chunk_steps": 0}, "chunk_steps must be at least 1, got 0"),
        ({"prompt": []}, r"non-empty integer array .* float64 of shape \(0,\)"),
        ({"prompt": [0.5]}, r"non-empty integer array .* float64 of shape \(1,\)"),
        ({"prompt": np.zeros((2, 0), int)}, r"non-empty .* int64 of shape \(2, 0\)"),
        ({"prompt": np.zeros((2, 3, 1), int)}, r"\(time,\) or \(samples, time\), got int64"),
        ({"prompt": [[1, 2]] * 3}, "prompt has 3 sequences for num_samples=2"),
        ({"prompt": [0, 5]}, "prompt has tokens from 0 to 5; the model knows 0 to 4"),
        ({"prompt": [-1, 0]}, "prompt has tokens from -1 to 0; the model knows 0 to 4"),
    ],
)
def test_wrong_arguments_are_named(model, arguments, message):
    with pytest.raises(UserError, match=message):
        generate(model, KEY, **{"num_samples": 2, "num_steps": 2} | arguments)
