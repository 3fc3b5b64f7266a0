"""Pickles of plain values and stored tensors, read without running them.

A pickle is a program. This reads its opcodes with `pickletools` and interprets the few that build dictionaries, lists,
numbers, strings and tensors: no name in the file is ever imported or called, so there is nothing to exploit. It accepts
less than `torch.load(weights_only=True)` does. The writer makes what `torch.load(weights_only=True)` reads.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
from dataclasses import dataclass
from typing import Any

STORAGES = {
    "torch.DoubleStorage": "F64",
    "torch.FloatStorage": "F32",
    "torch.HalfStorage": "F16",
    "torch.BFloat16Storage": "BF16",
    "torch.LongStorage": "I64",
    "torch.IntStorage": "I32",
    "torch.ShortStorage": "I16",
    "torch.CharStorage": "I8",
    "torch.ByteStorage": "U8",
    "torch.BoolStorage": "BOOL",
    "torch.ComplexFloatStorage": "C64",
    "torch.ComplexDoubleStorage": "C128",
}
ORDERED_DICT, SIZE, DEVICE = "collections.OrderedDict", "torch.Size", "torch.device"
REBUILD, REBUILD_OLD = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"
PARAMETER = "torch._utils._rebuild_parameter"
UNUSUAL = {
    "torch._utils._rebuild_qtensor": "a quantised tensor",
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_tensor_v3": "a tensor of an unusual dtype, such as float8",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without values",
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
KNOWN = {*STORAGES, ORDERED_DICT, SIZE, DEVICE, REBUILD, REBUILD_OLD, PARAMETER}


@dataclass(frozen=True)
class StoredTensor:
    """A view of a storage: elements from `offset` on, with `stride`, all in elements."""

    storage: str
    dtype: str
    storage_size: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class _Name:
    """A global that the pickle names: only ever compared."""

    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str
    size: int


class Refused(ValueError):
    """The pickle holds something other than plain values and tensors; the message says what."""


def shown(value: Any) -> str:
    """A value from a file, for a message: short, and only numbers and text (a list may be huge by reference)."""
    if isinstance(value, str | float | bool | None):
        return repr(value)[:40]
    if isinstance(value, int):
        return str(value) if abs(value) < 10**15 else "an enormous number"
    return f"a {type(value).__name__}"


def read_pickle(data: bytes) -> Any:
    """The value of a pickle.

    Raises:
        Refused: it is damaged, or asks for anything else than plain values and tensors.
    """
    try:
        return _interpret(data)
    except Refused:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, UnicodeError, OverflowError) as error:
        raise Refused(f"the pickle is damaged ({type(error).__name__}: {error})") from None


def _interpret(data: bytes) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    argument: Any
    for opcode, argument, _ in pickletools.genops(data):
        match name := opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                (value,) = stack
                return value
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append(CONSTANTS[name])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append(EMPTY[name]())
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8":
                stack.append(argument)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                if count > len(stack):
                    raise IndexError("stack is empty")
                stack[-count:] = [tuple(stack[-count:])]
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "APPEND" | "APPENDS":
                items = since_mark() if name == "APPENDS" else [stack.pop()]
                _list(stack[-1]).extend(items)
            case "SETITEM" | "SETITEMS":
                items = since_mark() if name == "SETITEMS" else [stack.pop(), stack.pop()][::-1]
                target = _dict(stack[-1])
                for key, item in zip(items[::2], items[1::2], strict=True):
                    target[_key(key)] = item
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_name(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(_name(f"{module}.{attribute}"))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_reduce(function, arguments))
            case "BUILD":
                stack.pop()
                _dict(stack[-1])  # an ordered dictionary's attributes (`_metadata`) say nothing about tensors
            case _:
                raise Refused(f"it holds something other than plain values and tensors (opcode {name})")
    raise ValueError("no end")


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise TypeError("not a list")
    return value


def _dict(value: Any) -> dict[Any, Any]:
    if type(value) is not dict:
        raise Refused("it sets the state of an object")
    return value


def _key(value: Any) -> Any:
    # Nothing that could be deep: hashing nested tuples can take exponential time.
    if not isinstance(value, str | int | float | None):
        raise Refused(f"it has a dictionary key of type {type(value).__name__}")
    return value


def _name(name: str) -> _Name:
    if name in UNUSUAL:
        raise Refused(f"it holds {UNUSUAL[name]} ({name})")
    if name not in KNOWN:
        raise Refused(f"it asks Python to import {name[:80]!r}, which no checkpoint of plain tensors needs")
    return _Name(name)


def _storage(identifier: Any) -> _Storage:
    kind, storage, key, _, size = identifier
    if kind != "storage" or not isinstance(key, str) or type(size) is not int:
        raise TypeError("not a storage")
    return _Storage(key, STORAGES[storage.name], size)


def _reduce(function: Any, arguments: Any) -> Any:
    if not isinstance(function, _Name) or type(arguments) is not tuple:
        raise Refused("it calls something other than a known name")
    match function.name, arguments:
        case "collections.OrderedDict", ():
            return {}
        case "collections.OrderedDict", (list(pairs),):
            return {_key(key): value for key, value in pairs}
        case "torch.Size", (tuple(sizes),):
            return sizes
        case "torch.device", (str(device), *_):
            return device
        case (
            "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor",
            (_Storage() as storage, int(offset), tuple(shape), tuple(stride), *_),
        ):
            numbers = (offset, *shape, *stride)
            if len(shape) != len(stride) or any(type(n) is not int or n < 0 for n in numbers):
                where = f"shape {shape}, strides {stride}, offset {offset}"
                raise Refused(f"the tensor in data/{storage.key} has {where}".replace("StoredTensor", "")[:300])
            return StoredTensor(storage.key, storage.dtype, storage.size, offset, shape, stride)
        case "torch._utils._rebuild_parameter", (StoredTensor() as tensor, *_):
            return tensor
    raise Refused(f"it calls {function.name} in a way that makes no tensor")


def write_pickle(value: Any) -> bytes:
    """A pickle (protocol 2) of dictionaries, lists, tuples, strings, numbers, None and stored tensors."""
    return pickle.PROTO + b"\x02" + b"".join(_parts(value)) + pickle.STOP


def _parts(value: Any) -> list[bytes]:
    match value:
        case None:
            return [pickle.NONE]
        case bool():
            return [pickle.NEWTRUE if value else pickle.NEWFALSE]
        case int() if -(2**31) <= value < 2**31:
            return [pickle.BININT, struct.pack("<i", value)]
        case int():
            encoded = pickle.encode_long(value)
            return [pickle.LONG1, bytes([len(encoded)]), encoded]
        case float():
            return [pickle.BINFLOAT, struct.pack(">d", value)]
        case str():
            text = value.encode("utf-8", "surrogatepass")
            return [pickle.BINUNICODE, struct.pack("<I", len(text)), text]
        case tuple():
            return [pickle.MARK, *(part for item in value for part in _parts(item)), pickle.TUPLE]
        case list():
            return [pickle.EMPTY_LIST, pickle.MARK, *(p for item in value for p in _parts(item)), pickle.APPENDS]
        case dict():
            parts = [part for pair in value.items() for item in pair for part in _parts(item)]
            return [pickle.EMPTY_DICT, pickle.MARK, *parts, pickle.SETITEMS]
        case StoredTensor():
            storage = next(name for name, dtype in STORAGES.items() if dtype == value.dtype)
            identifier = ["storage", _Name(storage), value.storage, "cpu", value.storage_size]
            parts = [pickle.MARK, *(p for item in identifier for p in _parts(item)), pickle.TUPLE, pickle.BINPERSID]
            hooks = [*_parts(_Name(ORDERED_DICT)), pickle.EMPTY_TUPLE, pickle.REDUCE]
            rest = [part for item in (value.offset, value.shape, value.stride, False) for part in _parts(item)]
            return [*_parts(_Name(REBUILD)), pickle.MARK, *parts, *rest, *hooks, pickle.TUPLE, pickle.REDUCE]
        case _Name(name):
            module, _, attribute = name.rpartition(".")
            return [pickle.GLOBAL, f"{module}\n{attribute}\n".encode()]
    raise TypeError(f"cannot pickle {type(value).__name__}")
