"""Interpret a pickle without importing or calling anything that it names.

Python's own unpickler calls what the file says. Here a name becomes a `Global`, which is only its text; an object that
it would make becomes an `Inert`, which only remembers what it would have been made from. The few names that stand for
plain data (tensors, ordered dicts, sets, bytes) are made by the functions of ``data``.
"""

from __future__ import annotations

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pickle import decode_long
from struct import unpack_from
from typing import Any

from slim_model.loading.file_bytes import TooMuch
from slim_model.loading.limits import PICKLED_VALUES

Make = Callable[..., Any]

LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""Starts, behind two bytes, every file that torch.save wrote before it wrote zip archives."""


class Damaged(Exception):
    """The bytes are no whole pickle."""


@dataclass(frozen=True, slots=True)
class Global:
    """A ``module.name`` that the pickle mentions, as Python 3 calls it."""

    name: str


class Inert:
    """An object of a class that was not loaded: ``args`` of its constructor, ``attributes`` or other ``state``, and
    what it holds as a kind of dict (``items``) or list (``entries``). It can do nothing."""

    __slots__ = ("args", "attributes", "entries", "items", "name", "state")

    def __init__(self, name: str, args: tuple[Any, ...] = ()) -> None:
        self.name, self.args = name, args
        self.attributes: dict[Any, Any] = {}
        self.items: dict[Any, Any] = {}
        self.entries: list[Any] = []
        self.state: Any = None

    def build(self, state: Any) -> None:
        """What BUILD does to an object: attributes from a dict, or from a pair of dicts where there are slots."""
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        if all(isinstance(part, dict | None) for part in parts):
            for part in parts:
                self.attributes.update(part or {})
        else:
            self.state = state


def run(
    data: bytes, start: int, makers: Mapping[str, Make], storage: Callable[[Any], Any], budget: int = PICKLED_VALUES
) -> tuple[Any, int]:
    """The value of the pickle that begins at ``start``, and where it ends. ``makers``: what is made for a name that is
    called; ``storage``: what a persistent id stands for. Raises `TooMuch` beyond ``budget`` instructions, `Damaged`
    where it is cut or makes no sense."""
    machine = _Machine(data, start, makers, storage)
    try:
        return machine.run(budget), machine.at
    except (IndexError, KeyError, ValueError, TypeError, AttributeError, OverflowError, SyntaxError) as error:
        raise Damaged(f"{type(error).__name__} at byte {machine.at}") from error


class _Mark:
    """Stands in the stack where a MARK was."""


_MARK = _Mark()


class _Machine:
    def __init__(self, data: bytes, start: int, makers: Mapping[str, Make], storage: Callable[[Any], Any]) -> None:
        self.data, self.at, self.makers, self.storage = data, start, makers, storage
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, budget: int) -> Any:
        stack = self.stack
        for _ in range(budget):
            code = self.data[self.at]
            self.at += 1
            if code == _STOP:
                return stack.pop()
            STEPS[code](self)
        raise TooMuch(f"it holds more than {budget:,} pickled values")

    # -- what follows an instruction ---------------------------------------------------------------------------------

    def take(self, count: int) -> bytes:
        end = self.at + count
        if count < 0 or end > len(self.data):
            raise IndexError("cut off")
        taken, self.at = self.data[self.at : end], end
        return taken

    def number(self, form: str, size: int) -> int:
        (value,) = unpack_from(form, self.take(size))
        return int(value)

    def line(self) -> str:
        end = self.data.index(b"\n", self.at)
        text, self.at = self.data[self.at : end], end + 1
        return text.decode("utf-8")

    # -- the stack ---------------------------------------------------------------------------------------------------

    def marked(self) -> list[Any]:
        """What lies above the last mark, taken off together with it."""
        at = next(i for i in range(len(self.stack) - 1, -1, -1) if self.stack[i] is _MARK)
        above = self.stack[at + 1 :]
        del self.stack[at:]
        return above

    def top(self) -> Any:
        return self.stack[-1]

    def call(self, function: Any, args: Any) -> Any:
        """What calling would give: data where ``makers`` know the name, else an `Inert`."""
        if not isinstance(args, tuple):
            raise TypeError("arguments are no tuple")
        if not isinstance(function, Global):
            return Inert(f"the call of {getattr(function, 'name', type(function).__name__)}", args)
        maker = self.makers.get(function.name)
        return Inert(function.name, args) if maker is None else maker(*args)

    def named(self, module: str, name: str) -> None:
        # torch.save writes protocol 2, in which Python 3 modules have their Python 2 names
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        whole = f"{module}.{name}"
        maker = self.makers.get(f"={whole}")  # a name that is itself data, such as torch.float32
        self.stack.append(Global(whole) if maker is None else maker())


def check_key(key: Any, depth: int = 0) -> Any:
    """A key of a dict: hashing tuples that hold each other many times would take for ever."""
    if isinstance(key, tuple):
        if depth > 3 or len(key) > 100:
            raise TooMuch("a key of a dict is nested or long")
        for part in key:
            check_key(part, depth + 1)
    return key


# -- instructions -----------------------------------------------------------------------------------------------------

STEPS: dict[int, Callable[[_Machine], None]] = {}
"""By its byte, what each instruction does to the machine. Those that are not here are refused as damaged."""


def _step(*names: str) -> Callable[[Callable[[_Machine], None]], Callable[[_Machine], None]]:
    def put(function: Callable[[_Machine], None]) -> Callable[[_Machine], None]:
        for name in names:
            STEPS[_CODES[name]] = function
        return function

    return put


_CODES = {opcode.name: ord(opcode.code) for opcode in pickletools.opcodes}
_STOP = _CODES["STOP"]


def _pushing(name: str, value: Callable[[_Machine], Any]) -> None:
    STEPS[_CODES[name]] = lambda machine: machine.stack.append(value(machine))


def _text(count: Callable[[_Machine], int]) -> Callable[[_Machine], str]:
    return lambda m: m.take(count(m)).decode("utf-8", "surrogatepass")


def _bytes(count: Callable[[_Machine], int]) -> Callable[[_Machine], bytes]:
    return lambda m: m.take(count(m))


def _old_string(count: Callable[[_Machine], int]) -> Callable[[_Machine], str]:
    return lambda m: m.take(count(m)).decode("latin1")  # of Python 2: letters or bytes


def _u1(machine: _Machine) -> int:
    return machine.take(1)[0]


def _u4(machine: _Machine) -> int:
    return machine.number("<I", 4)


def _i4(machine: _Machine) -> int:
    return machine.number("<i", 4)


def _u8(machine: _Machine) -> int:
    return machine.number("<Q", 8)


def _whole(text: str) -> int | bool:
    return text == "01" if text in ("00", "01") else int(text.rstrip("L"))


for _name, _value in {
    "NONE": lambda m: None,
    "NEWTRUE": lambda m: True,
    "NEWFALSE": lambda m: False,
    "EMPTY_TUPLE": lambda m: (),
    "EMPTY_LIST": lambda m: [],
    "EMPTY_DICT": lambda m: {},
    "EMPTY_SET": lambda m: set(),
    "MARK": lambda m: _MARK,
    "BININT": _i4,
    "BININT1": _u1,
    "BININT2": lambda m: m.number("<H", 2),
    "INT": lambda m: _whole(m.line()),
    "LONG": lambda m: _whole(m.line()),
    "LONG1": lambda m: decode_long(m.take(_u1(m))),
    "LONG4": lambda m: decode_long(m.take(_i4(m))),
    "FLOAT": lambda m: float(m.line()),
    "BINFLOAT": lambda m: unpack_from(">d", m.take(8))[0],
    "STRING": lambda m: m.line().strip("'\""),
    "BINSTRING": _old_string(_i4),
    "SHORT_BINSTRING": _old_string(_u1),
    "UNICODE": lambda m: m.line(),
    "BINUNICODE": _text(_u4),
    "SHORT_BINUNICODE": _text(_u1),
    "BINUNICODE8": _text(_u8),
    "BINBYTES": _bytes(_u4),
    "SHORT_BINBYTES": _bytes(_u1),
    "BINBYTES8": _bytes(_u8),
    "BYTEARRAY8": lambda m: bytearray(m.take(_u8(m))),
    "TUPLE": lambda m: tuple(m.marked()),
    "LIST": lambda m: m.marked(),
    "FROZENSET": lambda m: frozenset(check_key(x) for x in m.marked()),
    "TUPLE1": lambda m: (m.stack.pop(),),
    "DUP": lambda m: m.top(),
    "GET": lambda m: m.memo[int(m.line())],
    "BINGET": lambda m: m.memo[_u1(m)],
    "LONG_BINGET": lambda m: m.memo[_u4(m)],
    "BINPERSID": lambda m: m.storage(m.stack.pop()),
}.items():
    _pushing(_name, _value)


@_step("TUPLE2")
def _pair(machine: _Machine) -> None:
    machine.stack[-2:] = [(machine.stack[-2], machine.stack[-1])]


@_step("TUPLE3")
def _triple(machine: _Machine) -> None:
    machine.stack[-3:] = [(machine.stack[-3], machine.stack[-2], machine.stack[-1])]


@_step("DICT")
def _dict(machine: _Machine) -> None:
    flat = machine.marked()
    machine.stack.append({check_key(k): v for k, v in zip(flat[::2], flat[1::2], strict=True)})


@_step("POP", "POP_MARK")
def _pop(machine: _Machine) -> None:
    if machine.data[machine.at - 1] == _CODES["POP"]:
        machine.stack.pop()
    else:
        machine.marked()


@_step("PROTO")
def _protocol(machine: _Machine) -> None:
    if machine.take(1)[0] > 5:
        raise ValueError("a protocol that Python does not have")


@_step("FRAME")
def _frame(machine: _Machine) -> None:
    machine.take(8)


@_step("PUT")
def _put(machine: _Machine) -> None:
    machine.memo[int(machine.line())] = machine.top()


@_step("BINPUT")
def _put1(machine: _Machine) -> None:
    machine.memo[_u1(machine)] = machine.top()


@_step("LONG_BINPUT")
def _put4(machine: _Machine) -> None:
    machine.memo[_u4(machine)] = machine.top()


@_step("MEMOIZE")
def _memoize(machine: _Machine) -> None:
    machine.memo[len(machine.memo)] = machine.top()


@_step("GLOBAL")
def _global(machine: _Machine) -> None:
    machine.named(machine.line(), machine.line())


@_step("STACK_GLOBAL")
def _stack_global(machine: _Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise TypeError("a name is no text")
    machine.named(module, name)


@_step("REDUCE", "NEWOBJ")
def _reduce(machine: _Machine) -> None:
    args, function = machine.stack.pop(), machine.stack.pop()
    machine.stack.append(machine.call(function, args))


@_step("NEWOBJ_EX")
def _new_with_names(machine: _Machine) -> None:
    named, args, cls = machine.stack.pop(), machine.stack.pop(), machine.stack.pop()
    machine.stack.append(Inert(getattr(cls, "name", "an object"), (*args, *dict(named).values())))


@_step("INST")
def _instance(machine: _Machine) -> None:
    machine.named(machine.line(), machine.line())
    cls = machine.stack.pop()
    machine.stack.append(machine.call(cls, tuple(machine.marked())))


@_step("OBJ")
def _object(machine: _Machine) -> None:
    cls, *args = machine.marked()
    machine.stack.append(machine.call(cls, tuple(args)))


_TENSORS = ("Tensor", "Parameter")
"""What ``makers`` make; PyTorch is not imported for a look at what a file is."""


@_step("BUILD")
def _build(machine: _Machine) -> None:
    state = machine.stack.pop()
    if isinstance(machine.top(), Inert):
        machine.top().build(state)
    elif not isinstance(machine.top(), OrderedDict) and type(machine.top()).__name__ not in _TENSORS:
        raise TypeError("state for what has none")  # that of an ordered dict or a tensor is of no use


@_step("APPEND")
def _append(machine: _Machine) -> None:
    _extend(machine, [machine.stack.pop()])


@_step("APPENDS")
def _appends(machine: _Machine) -> None:
    _extend(machine, machine.marked())


def _extend(machine: _Machine, values: list[Any]) -> None:
    entries = machine.top().entries if isinstance(machine.top(), Inert) else machine.top()
    if type(entries) is not list:
        raise TypeError("values for what is no list")
    entries.extend(values)


@_step("ADDITEMS")
def _add(machine: _Machine) -> None:
    values = machine.marked()
    if isinstance(machine.top(), Inert):
        machine.top().entries.extend(values)
    else:
        machine.top().update(check_key(value) for value in values)


@_step("SETITEM")
def _set_item(machine: _Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _update(machine, [key, value])


@_step("SETITEMS")
def _set_items(machine: _Machine) -> None:
    _update(machine, machine.marked())


def _update(machine: _Machine, flat: list[Any]) -> None:
    items = machine.top().items if isinstance(machine.top(), Inert) else machine.top()
    if not isinstance(items, dict):
        raise TypeError("items for what is no dict")
    items.update(zip(map(check_key, flat[::2]), flat[1::2], strict=True))
