"""Reads the tensors of a file that PyTorch's `torch.save` wrote: without PyTorch, and safely.

Such a file is a pickle, a program that may call any function of any module. Here it can call but a
few functions of this file, which build arrays; whatever else it names becomes an inert `Record`
that keeps what the file says about it, and nothing is ever imported.

Both formats are read: the zip archive (PyTorch 1.6 and newer) and the stream of pickles before it.
"""

import collections
import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from etils import epath

from pf_jax.errors import UserError

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # Of the stream of pickles.
_PROTOCOL = 1001
_MOST_PICKLE_BYTES = 2**26
_MOST_DEPTH = 64  # Modules within modules.

_TYPES = {
    "Float": "f4",
    "Double": "f8",
    "Half": "f2",
    "BFloat16": jnp.bfloat16,
    "Long": "i8",
    "Int": "i4",
    "Short": "i2",
    "Char": "i1",
    "Byte": "u1",
    "Bool": "?",
}


class _StorageType(NamedTuple):
    """What a class of storages says: the type of its numbers."""

    dtype: np.dtype


class _Storage(NamedTuple):
    """Numbers that tensors are views of."""

    key: str
    dtype: np.dtype
    size: int

    @property
    def num_bytes(self) -> int:
        """How many it takes in a file."""
        return self.size * self.dtype.itemsize


class _Tensor(NamedTuple):
    """A view of numbers that may not have been read yet."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Record:
    """An object of a class that is not known here: what the file says of it, and no more.

    Attributes:
        name: Of its class, a subclass of this one for each.
        arguments: What it was made from.
        state: What it was then given.
    """

    name: ClassVar[str] = ""

    def __new__(cls, *arguments: Any, **named: Any):
        """Keeps the arguments."""
        record = super().__new__(cls)
        record.arguments = (arguments, named)
        record.state = None
        return record

    def __init__(self, *arguments: Any, **named: Any):
        """Does nothing."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Forgets what a dictionary of a class of its own holds."""

    def append(self, value: Any) -> None:
        """Forgets what a list of a class of its own holds."""

    def extend(self, values: Any) -> None:
        """As `append`."""


class _Allowed:
    """A function that a file may call, and nothing else: the file can set none of its attributes.

    A dataclass or `functools.partial` would not do: they let a pickle set their state.
    """

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: Any) -> None:
        raise UserError(f"it tries to change what it may call ({name}).")

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)


def read_tensors(path: epath.PathLike) -> dict[str, np.ndarray]:
    """The tensors in a file of `torch.save`, by name.

    Args:
        path: A file that holds a module, a state dictionary, or a dictionary with "state_dict".

    Returns:
        Parameters and buffers by their dotted names; the "module." that `DataParallel` puts before
        each is taken away.

    Raises:
        UserError: There is no such file, `torch.save` did not write it, it is damaged, or it holds
            something else.
    """
    path = epath.Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    try:
        with path.open("rb") as file:
            is_zip = zipfile.is_zipfile(file)
            file.seek(0)
            content, storages = _read_zip(file) if is_zip else _read_stream(file)
            tensors = dict(_named_tensors(content))
            arrays = {name: _array(tensor, storages) for name, tensor in tensors.items()}
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    except Exception as error:  # A damaged pickle can raise anything.
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(".")
        raise UserError(
            f"{path} is no file of torch.save, or is damaged; fetch it again ({reason})."
        ) from error
    if all(name.startswith("module.") for name in arrays):
        arrays = {name.removeprefix("module."): array for name, array in arrays.items()}
    return arrays


class _Unpickler(pickle.Unpickler):
    """Runs a pickle that can do nothing but build arrays, containers and records."""

    def __init__(self, file: Any):
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What a file means by a name; nothing is looked up anywhere."""
        if (known := _KNOWN.get((module, name))) is not None:
            return known
        kind, storage, rest = name.partition("Storage")
        if module in ("torch", "torch.cuda") and storage and not rest and kind in _TYPES:
            return _StorageType(np.dtype(_TYPES[kind]))
        return type("Record", (Record,), {"name": f"{module}.{name}", "__slots__": ()})

    def persistent_load(self, identity: Any) -> Any:
        """A storage, of which the pickle has the place alone; or a class, with its source text."""
        kind, *rest = identity
        if kind == "module":  # Of the stream: a class, with its source, which is never run.
            return rest[0]
        if kind != "storage":
            raise UserError(f"it refers to a {kind!r}, which is not known here.")
        storage_type, key, _, size, *view = rest
        if view and view[0] is not None:
            raise UserError("it has a storage that is a view of another, which is not read here.")
        if not isinstance(storage_type, _StorageType):
            what = getattr(storage_type, "name", "storage")
            raise UserError(f"it has a {what}, whose numbers are of no type known here.")
        storage = _Storage(str(key), storage_type.dtype, int(size))
        self.storages[storage.key] = storage
        return storage


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    """A tensor, of which nothing is believed yet."""
    if not isinstance(storage, _Storage):
        raise UserError("it has a tensor of no storage.")
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _rebuild_parameter(tensor: Any, *_: Any) -> Any:
    return tensor


_KNOWN: Mapping[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor"): _Allowed(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Allowed(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): _Allowed(_rebuild_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): _Allowed(_rebuild_parameter),
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
}


def _read_zip(file: Any) -> tuple[Any, Mapping[_Storage, np.ndarray]]:
    """The object in a zip archive, and the numbers of all storages."""
    with zipfile.ZipFile(file) as archive:
        places = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(places) != 1:
            raise UserError("it is a zip archive, but not one of torch.save: it has no data.pkl.")
        root = places[0].removesuffix("data.pkl")
        if archive.getinfo(places[0]).file_size > _MOST_PICKLE_BYTES:
            raise UserError("its data.pkl is too large to be that of a network.")
        unpickler = _Unpickler(io.BytesIO(archive.read(places[0])))
        content = unpickler.load()
        order = "<"
        if f"{root}byteorder" in archive.namelist():
            order = {b"little": "<", b"big": ">"}[archive.read(f"{root}byteorder")]
        arrays = {}
        for key, storage in unpickler.storages.items():
            # As large as it says, or it could be a bomb.
            if archive.getinfo(f"{root}data/{key}").file_size != storage.num_bytes:
                raise UserError(f"its storage {key} is not as large as it says.")
            data = archive.read(f"{root}data/{key}")
            arrays[storage] = np.frombuffer(data, storage.dtype.newbyteorder(order))
    return content, arrays


def _read_stream(file: Any) -> tuple[Any, Mapping[_Storage, np.ndarray]]:
    """The object in a stream of pickles, and the numbers of all storages."""
    if _Unpickler(file).load() != _MAGIC_NUMBER or _Unpickler(file).load() != _PROTOCOL:
        raise UserError("it is a pickle, but not one of torch.save.")
    order = "<" if _Unpickler(file).load().get("little_endian", True) else ">"
    unpickler = _Unpickler(file)
    content = unpickler.load()
    arrays = {}
    for key in map(str, _Unpickler(file).load()):
        storage = unpickler.storages[key]
        if struct.unpack("<q", file.read(8))[0] != storage.size:
            raise UserError(f"its storage {key} is not as large as it says.")
        data = file.read(storage.num_bytes)
        arrays[storage] = np.frombuffer(data, storage.dtype.newbyteorder(order))
    return content, arrays


def _array(tensor: _Tensor, storages: Mapping[_Storage, np.ndarray]) -> np.ndarray:
    """A copy of a tensor's numbers, after a look whether they are all within its storage."""
    data = storages[tensor.storage]
    shape, strides = tensor.shape, tensor.strides
    last = tensor.offset + sum(
        (size - 1) * stride for size, stride in zip(shape, strides, strict=True)
    )
    inside = tensor.offset >= 0 and min((*shape, *strides, 0)) >= 0 and last < data.size
    if math.prod(shape) and not (inside and data.size == tensor.storage.size):
        raise UserError("it has a tensor that reaches out of its storage.")
    if not math.prod(shape):
        return np.zeros(shape, tensor.storage.dtype)
    view = np.lib.stride_tricks.as_strided(
        data[tensor.offset :], shape, [stride * data.itemsize for stride in strides]
    )
    return np.array(view, tensor.storage.dtype)


def _named_tensors(content: Any) -> Iterator[tuple[str, _Tensor]]:
    """The tensors of what a file holds, with their names in a state dictionary."""
    if isinstance(content, Mapping) and "state_dict" in content:
        content = content["state_dict"]
    if isinstance(content, Mapping) and content:
        for name, value in content.items():
            if not (isinstance(name, str) and isinstance(value, _Tensor)):
                raise UserError(
                    f"it holds a dictionary, but not of tensors: {name!r} is {_describe(value)}."
                )
            yield name, value
    elif isinstance(content, Record) and isinstance(content.state, Mapping):
        yield from _module_tensors(content, "", 0)
    else:
        raise UserError(f"it holds no network, but {_describe(content)}.")


def _module_tensors(module: Any, prefix: str, depth: int) -> Iterator[tuple[str, _Tensor]]:
    """The parameters and buffers of a module and of those in it."""
    if depth > _MOST_DEPTH or not (
        isinstance(module, Record) and isinstance(module.state, Mapping)
    ):
        raise UserError(f"{prefix or 'what it holds'} is no module, but {_describe(module)}.")
    own = {**module.state.get("_parameters", {}), **module.state.get("_buffers", {})}
    for name, value in own.items():
        if isinstance(value, _Tensor):  # Where there is none, as without a bias, stands None.
            yield f"{prefix}{name}", value
    for name, child in module.state.get("_modules", {}).items():
        if child is not None:
            yield from _module_tensors(child, f"{prefix}{name}.", depth + 1)


def _describe(value: Any) -> str:
    return (
        f"an object of {value.name}" if isinstance(value, Record) else f"a {type(value).__name__}"
    )
