"""SaShiMi with S4D (arXiv 2202.09729, 2206.11893) in NumPy and float64, in PyTorch's layouts.

Sequences are `(batch, channels, time)`; a state space is a loop over time. The tensors are named
and shaped as those of the published module, with an embedding and a head around it.
"""

import math

import numpy as np
from scipy.special import erf, expit


def shapes(width, layers, pools, *, vocab, expand=2, ff=2, states=64, copies=None, around=""):
    """The shape of each tensor, by its name in the state dictionary of the module."""
    found = {"encoder.weight": (vocab, width)}

    def linear(name, inputs, outputs, *kernel):
        found[f"{name}.weight"] = (outputs, inputs, *kernel)
        found[f"{name}.bias"] = (outputs,)

    def norm(name, w):
        found[f"{name}.weight"] = found[f"{name}.bias"] = (w,)

    def blocks(name, first, w):
        step = 2 if ff else 1
        for number in range(first, first + step * layers, step):
            system, half, s = f"{name}.{number}.layer.layer", states // 2, copies or w
            found[f"{system}.D"] = (1, w)
            found[f"{system}.kernel.inv_dt"] = (w, 1)
            found[f"{system}.kernel.C"] = (1, w, half, 2)
            found[f"{system}.kernel.B"] = (1, s, half, 2)
            found[f"{system}.kernel.A_real"] = found[f"{system}.kernel.A_imag"] = (s, half)
            linear(f"{name}.{number}.layer.output_linear.0", w, 2 * w)
            norm(f"{name}.{number}.norm", w)
            if ff:
                linear(f"{name}.{number + 1}.layer.ff.0.0", w, ff * w, 1)
                linear(f"{name}.{number + 1}.layer.ff.2", ff * w, w, 1)
                norm(f"{name}.{number + 1}.norm", w)

    for level, pool in enumerate(pools):
        w, deeper = width * expand**level, width * expand ** (level + 1)
        linear(f"{around}d_layers.{level}.linear", w * pool, deeper, 1)
        outwards = f"{around}u_layers.{len(pools) - 1 - level}"
        linear(f"{outwards}.0.linear", deeper, w * pool, 1)
        blocks(outwards, 1, w)
    blocks(f"{around}c_layers", 0, width * expand ** len(pools))
    norm(f"{around}norm", width)
    linear("decoder", width, vocab)
    return found


def random_weights(named_shapes, seed=0):
    """Noise in every tensor: no bias hides behind a zero. Memories from a position to hundreds."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in named_shapes.items():
        if name.endswith("inv_dt"):
            value = rng.uniform(np.log(1e-2), np.log(0.5), shape)
        elif name.endswith("A_imag"):
            value = rng.uniform(0.0, 10.0, shape)
        elif name.endswith((".weight", ".A_real")) and len(shape) > 1:
            value = rng.standard_normal(shape) / math.sqrt(shape[1])
        else:
            value = rng.standard_normal(shape) / 2.0
        weights[name] = value.astype(np.float32)
    return weights


def logits(weights, tokens, pools, *, start, around=""):
    """Of `(batch, time)` tokens, `time` a multiple of the product of the pools."""
    weights = {name: np.asarray(array, np.float64) for name, array in weights.items()}
    before = np.concatenate([np.full_like(tokens[:, :1], start), tokens[:, :-1]], axis=1)
    x = weights["encoder.weight"][before].swapaxes(1, 2)
    backbone = {n.removeprefix(around): a for n, a in weights.items() if n.startswith(around)}
    skips = [x]
    for level, pool in enumerate(pools):
        batch, width, time = x.shape
        # Channel h at position l of the group goes to channel h * pool + l.
        x = x.reshape(batch, width, time // pool, pool).swapaxes(2, 3)
        x = _linear(backbone, f"d_layers.{level}.linear", x.reshape(batch, width * pool, -1))
        skips.append(x)
    x = _blocks(backbone, "c_layers", 0, x) + skips.pop()
    for number, pool in enumerate(reversed(pools)):
        x = _linear(backbone, f"u_layers.{number}.0.linear", x)
        x = np.concatenate([np.zeros_like(x[..., :1]), x[..., :-1]], axis=2)
        batch, wide, time = x.shape
        x = x.reshape(batch, wide // pool, pool, time).swapaxes(2, 3)
        x = x.reshape(batch, wide // pool, -1) + skips.pop()
        x = x + _blocks(backbone, f"u_layers.{number}", 1, x)
    return _linear(weights, "decoder", _norm(backbone, "norm", x)).swapaxes(1, 2)


def _blocks(weights, name, number, x):
    while f"{name}.{number}.norm.weight" in weights:
        place = f"{name}.{number}"
        y = _norm(weights, f"{place}.norm", x)
        if f"{place}.layer.ff.2.weight" in weights:
            y = gelu(_linear(weights, f"{place}.layer.ff.0.0", y))
            x = x + _linear(weights, f"{place}.layer.ff.2", y)
        else:
            y = gelu(_state_space(weights, f"{place}.layer.layer", y))
            y = _linear(weights, f"{place}.layer.output_linear.0", y)
            p, q = np.split(y, 2, axis=1)
            x = x + p * expit(q)
        number += 1
    return x


def _state_space(weights, name, x):
    dt = np.exp(weights[f"{name}.kernel.inv_dt"])
    a = -np.exp(weights[f"{name}.kernel.A_real"]) - 1j * weights[f"{name}.kernel.A_imag"]
    b, c = (weights[f"{name}.kernel.{n}"][0] @ np.array([1.0, 1j]) for n in "BC")
    # Channels that share a system: the first with the first again after the last.
    a, b = (np.concatenate([m] * (x.shape[1] // len(m))) for m in (a, b))
    z = np.exp(dt * a)
    b = (z - 1.0) / a * b
    h, ys = np.zeros((len(x), *a.shape), complex), []
    for u in np.moveaxis(x, 2, 0):
        h = z * h + b * u[..., None]
        ys.append(2.0 * (c * h).sum(axis=-1).real)
    return np.stack(ys, axis=2) + weights[f"{name}.D"].reshape(-1, 1) * x


def _linear(weights, name, x):
    kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return np.einsum("oi,bit->bot", kernel.reshape(kernel.shape[:2]), x) + bias[:, None]


def _norm(weights, name, x):
    x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    return x * weights[f"{name}.weight"][:, None] + weights[f"{name}.bias"][:, None]


def gelu(x):
    """The exact one, by the error function."""
    return 0.5 * x * (1.0 + erf(x / math.sqrt(2.0)))
