import collections
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pf_jax.evaluation import markov, markov_bits_per_sample


def slow_bits(train, validation, order, vocab_size):
    """The definition, with dictionaries."""
    pairs, contexts = collections.Counter(), collections.Counter()
    padding = [vocab_size // 2] * order

    def steps(recording):
        padded = padding + list(recording)
        for t, token in enumerate(recording):
            yield tuple(padded[t : t + order]), token

    for recording in train:
        for context, token in steps(recording):
            pairs[context, token] += 1
            contexts[context] += 1
    bits = [
        -math.log2((pairs[context, token] + 1) / (contexts[context] + vocab_size))
        for recording in validation
        for context, token in steps(recording)
    ]
    return sum(bits) / len(bits)


@st.composite
def problems(draw):
    vocab_size = draw(st.integers(2, 6))
    recording = st.lists(st.integers(0, vocab_size - 1), max_size=30)
    return (
        draw(st.lists(recording, max_size=4)),
        [*draw(st.lists(recording, max_size=4)), [0, 1]],
        draw(st.integers(0, 3)),
        vocab_size,
    )


@given(problem=problems(), chunk=st.integers(1, 40))
def test_equals_the_definition(problem, chunk):
    train, validation, order, vocab_size = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(markov, "_CHUNK", chunk)
        bits = markov_bits_per_sample(
            (np.array(r, np.uint8) for r in train),
            (np.array(r, np.uint8) for r in validation),
            order,
            vocab_size,
        )
    assert bits == pytest.approx(slow_bits(train, validation, order, vocab_size))


def test_knows_nothing_without_training():
    tokens = np.arange(256, dtype=np.uint8)
    assert markov_bits_per_sample([], [tokens]) == pytest.approx(8)


def test_learns_a_cycle():
    cycle = np.tile(np.arange(0, 256, 8, dtype=np.uint8), 20_000)
    # After 20,000 of 20,256 counts, the add-one smoothing is all that is left.
    assert markov_bits_per_sample([cycle], [cycle]) == pytest.approx(
        math.log2(20_256 / 20_001), 0.01
    )


def test_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="too large a table"):
        markov_bits_per_sample([], [np.zeros(3, np.uint8)], order=3)
    with pytest.raises(ValueError, match="no validation samples"):
        markov_bits_per_sample([np.zeros(3, np.uint8)], [])
