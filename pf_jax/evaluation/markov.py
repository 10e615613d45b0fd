"""An order-k Markov model of tokens: the baseline that a trained model has to beat."""

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import UInt8

_MAX_TABLE = 2**27  # Counts held at once: 1 GiB of int64.
_CHUNK = 2**22  # Tokens packed at once, so that long recordings need little memory.


def markov_bits_per_sample(
    train: Iterable[UInt8[np.ndarray, "time"]],
    validation: Iterable[UInt8[np.ndarray, "time"]],
    order: int = 2,
    vocab_size: int = 256,
) -> float:
    """Returns the bits per sample of a Markov model counted on `train` and scored on `validation`.

    A token `s` after the context `c` of `order` tokens has the probability
    `(count(c, s) + 1) / (count(c) + vocab_size)` (add-one smoothing). Before the start of each
    recording stand `order` tokens of `vocab_size // 2`, which is silence for 256 levels.

    Args:
        train: Whole recordings to count, tokens from 0 to `vocab_size - 1`.
        validation: Whole recordings to score.
        order: Length of the context, 0 or more.
        vocab_size: How many tokens there are.

    Returns:
        The mean over all validation tokens of `-log2` of their probability.

    Raises:
        ValueError: The table of counts would not fit into memory, or there is nothing to score.
    """
    if vocab_size ** (order + 1) > _MAX_TABLE:
        raise ValueError(f"order={order} with vocab_size={vocab_size} needs too large a table")
    counts = np.zeros(vocab_size ** (order + 1), np.int64)
    for packed in _packed(train, order, vocab_size):
        np.add.at(counts, packed, 1)
    totals = counts.reshape(-1, vocab_size).sum(axis=1)

    bits, num_samples = 0.0, 0
    for packed in _packed(validation, order, vocab_size):
        probabilities = (counts[packed] + 1) / (totals[packed // vocab_size] + vocab_size)
        bits -= float(np.log2(probabilities).sum())
        num_samples += len(packed)
    if not num_samples:
        raise ValueError("there are no validation samples to score")
    return bits / num_samples


def _packed(recordings: Iterable[np.ndarray], order: int, vocab_size: int) -> Iterator[np.ndarray]:
    """Yields each token with its context as one integer, the token in the lowest digit."""
    for tokens in recordings:
        padded = np.concatenate([np.full(order, vocab_size // 2, tokens.dtype), tokens])
        for start in range(0, len(tokens), _CHUNK):
            stop = min(start + _CHUNK, len(tokens))
            packed = np.zeros(stop - start, np.int64)
            for lag in range(order + 1):
                packed = packed * vocab_size + padded[start + lag : stop + lag]
            yield packed
