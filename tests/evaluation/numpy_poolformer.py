"""The whole model once more, in float64 NumPy and from its parameters alone."""

import numpy as np

from pf_jax.layers import GatedMLP
from tests.layers.equations import gated_recurrence, gelu, linear, log_decay, norm, value


def forward(model, tokens, added=0.0, up=None):
    """Scores whole sequences.

    Args:
        model: Of pf_jax, with a learned embedding, gated recurrences without convolutions, gated
            MLPs and dense pools.
        tokens: (batch, time).
        added: To the outputs of the embedding, (batch, time, width).
        up: By level, what is to stand in for the output of its UpPool.

    Returns:
        The nats of each token, (batch, time); the outputs of UpPool by level; and by level a list
        of `log |a|` of its recurrences.
    """
    start = np.full_like(tokens[:, :1], model.config.vocab_size // 2)
    shifted = np.concatenate([start, tokens[:, :-1]], axis=1)
    seen = {"up": dict(up or {}), "log_a": {}}
    x = skip_block(model.body, 0, value(model.embedding.table)[shifted] + added, seen)
    logits = linear(model.head, norm(model.head_norm, x))
    logits = logits - logits.max(axis=-1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    nats = -np.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]
    return nats, seen["up"], seen["log_a"]


def res_blocks(blocks, x, log_as):
    for block in blocks:
        n, layer = norm(block.norm, x), block.layer
        y = linear(layer.input, n)
        if not isinstance(layer, GatedMLP):
            log_as.append(log_decay(layer.cell, y))
            y = linear(layer.output, gated_recurrence(layer.cell, y))
        x = x + linear(block.output, gelu(linear(block.gate, n)) * y)
    return x


def skip_block(block, level, x, seen):
    log_as = seen["log_a"].setdefault(level, [])
    x = res_blocks(block.before, x, log_as)
    if block.is_innermost:
        return x
    batch, time, width = x.shape
    groups = time // block.factor
    if level not in seen["up"]:
        y = x[:, : groups * block.factor].reshape(batch, groups, block.factor, width)
        y = np.einsum("bgfi,fio->bgo", y, value(block.down_pool.kernel))
        y = skip_block(block.nested, level + 1, y + value(block.down_pool.bias), seen)
        y = np.einsum("bgi,ifo->bgfo", y, value(block.up_pool.kernel))
        seen["up"][level] = y + value(block.up_pool.bias)
    y = seen["up"][level].reshape(batch, groups * block.factor, width)
    y = np.pad(y, ((0, 0), (block.factor - 1, 0), (0, 0)))
    y = np.pad(y, ((0, 0), (0, max(0, time - y.shape[1])), (0, 0)))[:, :time]
    return res_blocks(block.after, x + y, log_as)
