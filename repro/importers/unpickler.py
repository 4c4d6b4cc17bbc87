"""Reading pickles without running them: a small machine that builds plain values and inert records, nothing else.

No object that a file names is imported, called, subclassed or given a state. A global on the caller's list becomes a
`Global`, a call of it a `Call` with arguments and state; the caller's own few routines make arrays and tensors out of
these (`repro.importers.numpy_records` makes numpy's). A global that is not on the list is refused where it is named,
called or not. Time and memory are bounded by the size of the file: declared lengths are compared with the bytes that
are there before anything is allocated, the memo is a dictionary, nesting and opcodes are limited.
"""

from __future__ import annotations

import dataclasses
import struct
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any

from repro.errors import CorruptData
from repro.importers.sources import Memory, Part, Source

MAX_OPCODES = 10_000_000
MAX_DEPTH = 200
MAX_MEMO = 10_000_000
INLINE = 4096
"""Longer byte strings of a file stay there: the value is the `Part` of the source that holds them."""

Name = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Global:
    """A name that a file mentions. Never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclasses.dataclass(eq=False)
class Call:
    """A call that a file asks for: function, arguments and, if the file gives one, the state of its result."""

    function: Global
    args: tuple[Any, ...]
    state: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class Persistent:
    """A persistent id (torch's containers refer to storages by them)."""

    id: Any


class _Refused(Exception):
    """Why a pickle is not read; `load` adds where."""


def loads(data: bytes | Source, allowed: Collection[Name], where: str, *, persistent: bool = False) -> Any:
    """The value of a pickle that is all of `data`.

    Args:
        data: the pickle, protocol 2 to 5.
        allowed: (module, name) of the globals that may occur, as written in the file.
        where: name of the file for messages.
        persistent: whether persistent ids may occur.

    Returns:
        None, bool, int, float, str, bytes, list, tuple, dict, OrderedDict, set, `Global`, `Call`, `Persistent`, nested;
        of a `Source` that is not in memory also `Part`, for long byte strings.

    Raises:
        CorruptData: anything else, with the offset of the opcode.
    """
    source = Memory(data, where) if isinstance(data, bytes) else data
    value, end = load(source, allowed, where, persistent=persistent)
    if end != source.size:
        raise CorruptData(f"{where}: {source.size - end} bytes follow the end of the pickle; not read")
    return value


def load(
    data: bytes | Source, allowed: Collection[Name], where: str, *, offset: int = 0, persistent: bool = False
) -> tuple[Any, int]:
    """The value of the pickle that begins at `offset`, and the offset after its end. Arguments as in `loads`."""
    source = Memory(data, where) if isinstance(data, bytes) else data
    machine = _Machine(source, frozenset(allowed), offset, persistent)
    try:
        value = machine.run()
        _check_tree(value)
    except _Refused as error:
        raise CorruptData(f"{where}: {error} (at byte {machine.at}); nothing of it was run") from None
    return value, machine.position


class _Machine:
    def __init__(self, source: Source, allowed: frozenset[Name], offset: int, persistent: bool) -> None:
        self.source = source
        self.allowed = allowed
        self.persistent = persistent
        self.position = self.at = offset
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.depths: dict[int, tuple[Any, int]] = {}  # id -> (the object, so that the id stays its own; its depth)

    def run(self) -> Any:
        if self.take(1) != b"\x80":
            raise _Refused("not a pickle of protocol 2 or later")
        self.proto()
        for _ in range(MAX_OPCODES):
            self.at = self.position
            code = self.take(1)[0]
            if code == 0x2E:  # STOP
                if len(self.stack) != 1 or self.marks:
                    raise _Refused("the pickle ends with other than one value")
                return self.stack[0]
            action = _ACTIONS.get(code)
            if action is None:
                raise _Refused(f"opcode 0x{code:02x} is not used by such files")
            action(self)
        raise _Refused(f"more than {MAX_OPCODES} opcodes")

    # bytes

    def take(self, count: int) -> bytes:
        self.check(count)
        part = self.source.read(self.position, count)
        self.position += count
        return part

    def check(self, count: int) -> None:
        if count < 0 or count > self.source.size - self.position:
            raise _Refused("the file is truncated")

    def content(self, layout: str) -> None:
        """A byte string; a long one stays where it is, unless all is in memory."""
        count = self.number(layout)
        self.check(count)
        if count <= INLINE or isinstance(self.source, Memory):
            self.push(self.take(count))
        else:
            self.push(Part(self.source, self.position, count))
            self.position += count

    def number(self, layout: str) -> int:
        return int(struct.unpack(layout, self.take(struct.calcsize(layout)))[0])

    def line(self) -> str:
        part = self.source.read(self.position, min(1000, self.source.size - self.position))
        end = part.find(b"\n")
        if end < 0:
            raise _Refused("a name without an end")
        self.position += end + 1
        return _text(part[:end])

    # stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack:
            raise _Refused("a value is taken from an empty stack")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack:
            raise _Refused("a value is taken from an empty stack")
        return self.stack[-1]

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            raise _Refused("a mark is missing")
        items, self.stack = self.stack, self.marks.pop()
        return items

    def nested(self, container: Any, items: Collection[Any]) -> None:
        """Record that a container holds some items; refuse what is nested too deeply."""
        inner = max((self.depths[id(item)][1] for item in items if id(item) in self.depths), default=0)
        known = self.depths.get(id(container), (container, 1))[1]
        depth = max(known, inner + 1)
        if depth > MAX_DEPTH:
            raise _Refused(f"nested more than {MAX_DEPTH} deep")
        self.depths[id(container)] = (container, depth)

    def tuple_of(self, items: list[Any]) -> None:
        value = tuple(items)
        if value:
            self.nested(value, value)
        self.push(value)

    def remember(self, index: int) -> None:
        if index > MAX_MEMO:
            raise _Refused(f"memo index {index}")
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise _Refused(f"memo index {index} was never set")
        self.push(self.memo[index])

    # opcodes

    def proto(self) -> None:
        version = self.take(1)[0]
        if not 2 <= version <= 5:
            raise _Refused(f"pickle protocol {version}")

    def frame(self) -> None:
        self.check(self.number("<Q"))

    def mark(self) -> None:
        if len(self.marks) >= MAX_DEPTH:
            raise _Refused(f"nested more than {MAX_DEPTH} deep")
        self.marks.append(self.stack)
        self.stack = []

    def long1(self) -> None:
        self.push(int.from_bytes(self.take(self.take(1)[0]), "little", signed=True))

    def binfloat(self) -> None:
        self.push(struct.unpack(">d", self.take(8))[0])

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) not in (dict, OrderedDict) or len(items) % 2:
            raise _Refused("items are set on something that is no dict")
        keys = items[::2]
        for key in keys:
            if type(key) not in (str, int, bytes, bool):
                raise _Refused(f"a dict key is a {type(key).__name__}")
            if key in target:
                raise _Refused(f"the dict key {_quoted(str(key))} is set twice")
            target[key] = None
        target.update(zip(keys, items[1::2], strict=True))
        self.nested(target, items)

    def append(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) is not list:
            raise _Refused("items are appended to something that is no list")
        target.extend(items)
        self.nested(target, items)

    def add(self) -> None:
        items, target = self.pop_mark(), self.top()
        if type(target) is not set or any(type(item) not in (str, int, bytes) for item in items):
            raise _Refused("a set of other than texts and numbers")
        target.update(items)

    def named(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise _Refused("a global whose name is no text")
        if (module, name) not in self.allowed:
            raise _Refused(f"names {_quoted(f'{module}.{name}')}, which such a file has no use for")
        self.push(Global(module, name))

    def stack_global(self) -> None:
        name = self.pop()
        self.named(self.pop(), name)

    def call(self) -> None:
        args, function = self.pop(), self.pop()
        if type(function) is not Global or type(args) is not tuple:
            raise _Refused("calls something that is no allowed name")
        self.push(self.result(function, args))

    def result(self, function: Global, args: tuple[Any, ...]) -> Any:
        if (function.module, function.name) == ("_codecs", "encode"):  # bytes, as protocol 2 writes them
            if len(args) != 2 or type(args[0]) is not str or args[1] != "latin1":
                raise _Refused("_codecs.encode of other than a text as latin1")
            try:
                return args[0].encode("latin1")
            except UnicodeEncodeError:
                raise _Refused("a text that is not latin1") from None
        if not args and (function.module, function.name) == ("collections", "OrderedDict"):
            return OrderedDict()
        if not args and (function.module, function.name) == ("dnnlib.util", "EasyDict"):  # a dict with attribute access
            return {}
        made = Call(function, args)
        self.nested(made, args)
        return made

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if type(target) is OrderedDict and type(state) is dict and list(state) == ["_metadata"]:
            return  # versions of modules, which every state dict carries; of no use here
        if type(target) is not Call or target.state is not None or state is None:
            raise _Refused("a state is given to something that takes none")
        target.state = state
        self.nested(target, (state,))

    def persid(self) -> None:
        if not self.persistent:
            raise _Refused("a persistent id in a plain pickle")
        made = Persistent(self.pop())
        self.nested(made, (made.id,))
        self.push(made)


def _sized(layout: str, convert: Callable[[bytes], Any]) -> Callable[[_Machine], None]:
    return lambda m: m.push(convert(m.take(m.number(layout))))


def _int(layout: str) -> Callable[[_Machine], None]:
    return lambda m: m.push(m.number(layout))


def _constant(make: Callable[[], Any]) -> Callable[[_Machine], None]:
    return lambda m: m.push(make())


def _last(count: int) -> Callable[[_Machine], None]:
    return lambda m: m.tuple_of([m.pop() for _ in range(count)][::-1])


def _pair(m: _Machine) -> list[Any]:
    value = m.pop()
    return [m.pop(), value]


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise _Refused("a text that is not UTF-8") from None


def _quoted(text: str) -> str:
    return repr(text[:100])


_ACTIONS: dict[int, Callable[[_Machine], None]] = {
    0x80: _Machine.proto,
    0x95: _Machine.frame,
    ord("("): _Machine.mark,
    ord("}"): _constant(dict),
    ord("]"): _constant(list),
    ord(")"): _constant(tuple),
    0x8F: _constant(set),
    ord("s"): lambda m: m.set_items(_pair(m)),
    ord("u"): lambda m: m.set_items(m.pop_mark()),
    ord("a"): lambda m: m.append([m.pop()]),
    ord("e"): lambda m: m.append(m.pop_mark()),
    0x90: _Machine.add,
    ord("t"): lambda m: m.tuple_of(m.pop_mark()),
    0x85: _last(1),
    0x86: _last(2),
    0x87: _last(3),
    ord("N"): _constant(lambda: None),
    0x88: _constant(lambda: True),
    0x89: _constant(lambda: False),
    ord("J"): _int("<i"),
    ord("K"): _int("<B"),
    ord("M"): _int("<H"),
    0x8A: _Machine.long1,
    ord("G"): _Machine.binfloat,
    ord("X"): _sized("<I", _text),
    0x8C: _sized("<B", _text),
    0x8D: _sized("<Q", _text),
    ord("B"): lambda m: m.content("<I"),
    ord("C"): lambda m: m.content("<B"),
    0x8E: lambda m: m.content("<Q"),
    0x96: lambda m: m.content("<Q"),  # BYTEARRAY8
    ord("q"): lambda m: m.remember(m.number("<B")),
    ord("r"): lambda m: m.remember(m.number("<I")),
    0x94: lambda m: m.remember(len(m.memo)),
    ord("h"): lambda m: m.recall(m.number("<B")),
    ord("j"): lambda m: m.recall(m.number("<I")),
    ord("c"): lambda m: m.named(m.line(), m.line()),
    0x93: _Machine.stack_global,
    ord("R"): _Machine.call,
    0x81: _Machine.call,  # NEWOBJ
    ord("b"): _Machine.build,
    ord("Q"): _Machine.persid,
}


def children(value: Any) -> list[Any]:
    """What a value of `loads` holds directly."""
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, Call):
        return [value.args, value.state]
    return [value.id] if isinstance(value, Persistent) else []


def _check_tree(root: Any) -> None:
    """Refuse a value that contains itself, or nests too deeply through values that were changed later."""
    depth: dict[int, int] = {}
    open_: set[int] = set()
    work: list[tuple[Any, bool]] = [(root, False)]
    while work:
        value, done = work.pop()
        key = id(value)
        inner = children(value)
        if done:
            open_.discard(key)
            depth[key] = 1 + max((depth.get(id(child), 0) for child in inner), default=0)
            if depth[key] > 2 * MAX_DEPTH:  # a call adds the level of its arguments
                raise _Refused(f"nested more than {MAX_DEPTH} deep")
            continue
        if key in depth or not inner:
            continue
        if key in open_:
            raise _Refused("a value contains itself")
        open_.add(key)
        work.append((value, True))
        work += [(child, False) for child in inner]
