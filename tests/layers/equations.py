"""The equations of layers once more, in float64 NumPy, one position and one channel at a time.

They read parameters from the layers themselves, which may also be copies in float64.
"""

import numpy as np


def value(parameter):
    """A parameter in float64."""
    return np.asarray(parameter[...], np.float64)


def linear(layer, x):
    return x @ value(layer.kernel) + value(layer.bias)


def norm(layer, x, *, epsilon=1e-6):
    """LayerNorm, or RMSNorm where there is no bias."""
    if layer.bias is not None:
        x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + epsilon) * value(layer.scale)
    return x if layer.bias is None else x + value(layer.bias)


def gelu(x):
    """The tanh form of Hendrycks and Gimpel (arXiv 1606.08415)."""
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def block_diagonal(layer, x):
    kernel = value(layer.kernel)
    blocks = np.split(x, len(kernel), axis=-1)
    mapped = [block @ w for block, w in zip(blocks, kernel, strict=True)]
    return np.concatenate(mapped, axis=-1) + value(layer.bias).reshape(-1)


def log_decay(cell, u):
    """`log |a_t|` of an RG-LRU or a CG-LRU."""
    return (
        -8.0
        * np.log1p(np.exp(value(cell.decay)))
        * sigmoid(block_diagonal(cell.recurrence_gate, u))
    )


def gated_recurrence(cell, u, h=None):
    """The states of an RG-LRU, or with turns of a CG-LRU, after a state `h` or from zero."""
    log_a, x = log_decay(cell, u), u
    a, is_complex = np.exp(log_a), hasattr(cell, "turn")
    h = np.zeros_like(u[:, 0]) if h is None else np.asarray(h, np.float64)
    if is_complex:
        r = sigmoid(block_diagonal(cell.recurrence_gate, u))
        a = a * np.exp(1j * value(cell.turn) * r)
        x, h = _complex(u), _complex(h)
    b = np.sqrt(-np.expm1(2.0 * log_a)) * sigmoid(block_diagonal(cell.input_gate, u)) * x
    states = []
    for t in range(u.shape[1]):
        h = a[:, t] * h + b[:, t]
        states.append(h)
    h = np.stack(states, axis=1)
    return np.concatenate([h.real, h.imag], axis=-1) if is_complex else h


def _complex(x):
    real, imaginary = np.split(x, 2, axis=-1)
    return real + 1j * imaginary


def convolution(layer, u, past=None):
    """A causal convolution; `past` are the inputs before, or as many zeros."""
    kernel = value(layer.kernel)
    if kernel.ndim == 2:
        kernel = np.stack([np.diag(tap) for tap in kernel])
    before = np.zeros((len(u), len(kernel) - 1, u.shape[2])) if past is None else past
    seen, y = np.concatenate([before, u], axis=1), np.zeros_like(u)
    for t in range(u.shape[1]):
        for tap, matrix in enumerate(kernel):
            y[:, t] += seen[:, t + tap] @ matrix
    return y + value(layer.bias)


def recurrence(layer, x):
    """The input map, the cell from zero, the output map, and the convolution if there is one."""
    if layer.norm is not None:
        x = norm(layer.norm, convolution(layer.convolution, x))
    u = linear(layer.input, x)
    if layer.norm is None and layer.convolution is not None:
        u = convolution(layer.convolution, u)
    h = gated_recurrence(layer.cell, u)
    return h if layer.output is None else linear(layer.output, h)


def down_pool(layer, x):
    """Each channel of each group of positions, from the channels of its own group of channels."""
    kernel = value(layer.kernel)
    factor, inputs, next_width = kernel.shape
    groups = x.shape[2] // inputs
    y = np.zeros((len(x), x.shape[1] // factor, next_width)) + value(layer.bias)
    for t, channel in np.ndindex(y.shape[1:]):
        first = channel // (next_width // groups) * inputs
        for position in range(factor):
            vector = x[:, t * factor + position, first : first + inputs]
            y[:, t, channel] += vector @ kernel[position, :, channel]
    return y


def up_pool(layer, y):
    """`(batch, time, factor, width)`: each channel, from those of its own group of channels."""
    kernel = value(layer.kernel)
    inputs, factor, width = kernel.shape
    groups = y.shape[2] // inputs
    x = np.zeros((*y.shape[:2], factor, width)) + value(layer.bias)
    for position, channel in np.ndindex(factor, width):
        first = channel // (width // groups) * inputs
        x[..., position, channel] += y[..., first : first + inputs] @ kernel[:, position, channel]
    return x
