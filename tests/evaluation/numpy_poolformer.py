"""The whole model once more, in float64 NumPy and from its parameters alone."""

import numpy as np


def forward(model, tokens, added=0.0, up=None):
    """Scores whole sequences.

    Args:
        model: Of pf_jax, with a learned embedding and the mixer "rglru".
        tokens: (batch, time).
        added: To the outputs of the embedding, (batch, time, width).
        up: By level, what is to stand in for the output of its UpPool.

    Returns:
        The nats of each token, (batch, time); the outputs of UpPool by level; and by level a list
        of `log a` of its ResBlocks.
    """
    vocab = model.config.vocab_size
    table = np.concatenate([value(model.embedding.table), value(model.embedding.start)[None]])
    shifted = np.concatenate([np.full_like(tokens[:, :1], vocab), tokens[:, :-1]], axis=1)
    seen = {"up": dict(up or {}), "log_a": {}}
    x = skip_block(model.body, 0, table[shifted] + added, seen)
    logits = linear(model.head, norm(model.head_norm, x))
    logits = logits - logits.max(axis=-1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    nats = -np.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]
    return nats, seen["up"], seen["log_a"]


def value(parameter):
    return np.asarray(parameter[...]).astype(np.float64)


def linear(layer, x):
    return x @ value(layer.kernel) + value(layer.bias)


def norm(layer, x):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6) * value(layer.scale)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def block_diagonal(layer, x):
    kernel = value(layer.kernel)
    pieces = np.split(x, len(kernel), axis=-1)
    mapped = [piece @ w for piece, w in zip(pieces, kernel, strict=True)]
    return np.concatenate(mapped, axis=-1) + value(layer.bias).reshape(-1)


def mix(mixer, x, log_as):
    u, kernel = linear(mixer.input, x), value(mixer.convolution.kernel)
    padded = np.pad(u, ((0, 0), (len(kernel) - 1, 0), (0, 0)))
    taps = [padded[:, j : j + u.shape[1]] * kernel[j] for j in range(len(kernel))]
    u = sum(taps) + value(mixer.convolution.bias)
    r = sigmoid(block_diagonal(mixer.rglru.recurrence_gate, u))
    i = sigmoid(block_diagonal(mixer.rglru.input_gate, u))
    log_a = -8 * np.log1p(np.exp(value(mixer.rglru.decay))) * r
    log_as.append(log_a)
    h = [i[:, 0] * u[:, 0]]
    for t in range(1, u.shape[1]):
        scale = np.sqrt(-np.expm1(2 * log_a[:, t]))
        h.append(np.exp(log_a[:, t]) * h[-1] + scale * i[:, t] * u[:, t])
    return linear(mixer.output, gelu(linear(mixer.gate, x)) * np.stack(h, axis=1))


def res_blocks(blocks, x, log_as):
    for block in blocks:
        x = x + mix(block.mixer, norm(block.mixer_norm, x), log_as)
        y = norm(block.mlp_norm, x)
        y = gelu(linear(block.mlp.gate, y)) * linear(block.mlp.input, y)
        x = x + linear(block.mlp.output, y)
    return x


def skip_block(block, level, x, seen):
    log_as = seen["log_a"].setdefault(level, [])
    x = res_blocks(block.before, x, log_as)
    if block.is_innermost:
        return x
    batch, time, width = x.shape
    groups = time // block.factor
    if level not in seen["up"]:
        y = x[:, : groups * block.factor].reshape(batch, groups, -1)
        y = skip_block(block.nested, level + 1, linear(block.down_pool.projection, y), seen)
        seen["up"][level] = linear(block.up_pool.projection, y)
    y = seen["up"][level].reshape(batch, groups * block.factor, width)
    y = np.pad(y, ((0, 0), (block.factor, 0), (0, 0)))[:, :time]
    return res_blocks(block.after, x + y, log_as)
