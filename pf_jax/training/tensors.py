"""Weights as safetensors: named arrays in one file that every framework reads.

A tensor is called by the path of its parameter in the model, with dots between the parts, such as
`body.before.0.layer.input.kernel`; its layout is the parameter's own.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from pf_jax.training.state import Params

# What safetensors calls the types that parameters may have.
_TYPES = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16},
    **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8},
    **{"U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8},
    **{"BOOL": np.bool_, "C64": np.complex64},
}
_DTYPES = {name: np.dtype(kind) for name, kind in _TYPES.items()}


class TensorsError(ValueError):
    """Tensors that are not those of a model; says which, as part of a line for the user."""


def name_of(path: Sequence[Any]) -> str:
    """What the tensor at a path of `jax.tree_util` is called."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator=".")


def to_bytes(params: Params) -> bytes:
    """The file of a model's weights; the same weights make the same bytes.

    Raises:
        TensorsError: A parameter has a type that safetensors have no name for, or two have one
            name.
    """
    tensors = {}
    for path, leaf in jax.tree.leaves_with_path(params):
        name, array = name_of(path), np.asarray(leaf, order="C")
        if array.dtype not in _DTYPES.values():
            raise TensorsError(f"{name} is of the type {array.dtype}, which safetensors lack")
        if name in tensors:
            raise TensorsError(f"two parameters are called {name}")
        tensors[name] = array
    return safetensors.numpy.save(tensors, {"format": "pf_jax"})


def from_bytes(content: bytes, like: Params) -> Params:
    """The weights in a file.

    Args:
        content: What the file holds.
        like: A model's weights, or what has their shapes and types.

    Returns:
        The weights as NumPy arrays of these types; what was rounded to bfloat16 is widened.

    Raises:
        TensorsError: They are not those of this model, or it is no such file.
    """
    try:
        tensors = dict(safetensors.deserialize(content))
    except safetensors.SafetensorError as error:
        raise TensorsError(f"it is no whole file of safetensors ({error})") from error

    def read(path, leaf):
        name = name_of(path)
        if name not in tensors:
            raise TensorsError(f"it lacks the tensor {name}")
        found = tensors.pop(name)
        dtype, shape = _DTYPES.get(found["dtype"]), tuple(found["shape"])
        if shape != leaf.shape:
            raise TensorsError(f"{name} has the shape {shape} and not {leaf.shape}")
        if dtype != leaf.dtype and (dtype, leaf.dtype) != (jnp.bfloat16, jnp.float32):
            raise TensorsError(f"{name} is of the type {found['dtype']} and not {leaf.dtype}")
        return np.frombuffer(found["data"], dtype).reshape(shape).astype(leaf.dtype)

    params = jax.tree.map_with_path(read, like)
    if tensors:
        raise TensorsError(f"it has the tensor {min(tensors)}, which the model has not")
    return params


def round_kernels(params: Params) -> Params:
    """The weights with the kernels of linear maps and convolutions in bfloat16.

    They are nearly all of a model. Decays and rates of recurrences, biases and norms are few, and a
    recurrence that remembers for thousands of samples would feel their rounding.
    """

    def rounded(path, leaf):
        is_kernel = name_of(path[-1:]) == "kernel" and leaf.dtype == np.float32
        return np.asarray(leaf).astype(jnp.bfloat16) if is_kernel else leaf

    return jax.tree.map_with_path(rounded, params)
