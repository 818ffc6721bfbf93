"""The operations of a pickle, carried out on plain values and inert records; see `pickles`."""

import pickle
import struct
from collections.abc import Callable, Mapping
from typing import Any

from polyfuse.checkpoints import pickle_values as values
from polyfuse.checkpoints.base import LIMITS
from polyfuse.checkpoints.pickle_values import Global, Opaque
from polyfuse.errors import printable

_ARGUMENTS = 16


class Machine:
    """The state of a running pickle.

    Attributes:
        at: where the operation begins that is carried out.
        next: the byte to read next.
        stack: what was built since the last mark.
        marks: the stacks below.
        memo: what was built and may be used again.
    """

    __slots__ = ("at", "marks", "memo", "names", "next", "persistent", "raw", "stack")

    def __init__(
        self,
        raw: bytes,
        names: Mapping[tuple[str, str], Any],
        persistent: Callable[[Any], Any] | None,
    ) -> None:
        """Begin at the first byte."""
        self.raw, self.names, self.persistent = raw, names, persistent
        self.at = self.next = 0
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Carry out all operations, and return what is on top at the end."""
        raw, operations, stop = self.raw, OPERATIONS, pickle.STOP[0]
        for _ in range(LIMITS.pickle_operations):
            self.at = self.next
            code = raw[self.at]
            self.next = self.at + 1
            if code == stop:
                return self.stack.pop()
            operations[code](self)
        raise ValueError(f"it has more than {LIMITS.pickle_operations:,} operations")

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        end = self.next + count
        if count < 0 or end > len(self.raw):
            raise ValueError(f"it states {count:,} bytes, more than there are")
        taken = self.raw[self.next : end]
        self.next = end
        return taken

    def byte(self) -> int:
        """Return the next byte."""
        self.next += 1
        return self.raw[self.next - 1]

    def number(self, width: int) -> int:
        """Return the next bytes as a number without a sign."""
        return int.from_bytes(self.take(width), "little")

    def line(self) -> bytes:
        """Return the next line."""
        end = self.raw.index(b"\n", self.next)
        taken = self.take(end - self.next)
        self.next = end + 1
        return taken

    def marked(self) -> list[Any]:
        """Return what is above the last mark, and take both away."""
        items, self.stack = self.stack, self.marks.pop()
        return items


Operation = Callable[[Machine], None]


def _unknown(machine: Machine) -> None:
    raise ValueError("an operation that no saved data need")


def _frame(machine: Machine) -> None:
    machine.take(8)


def _constant(value: object) -> Operation:
    return lambda machine: machine.stack.append(value)


def _new(make: Callable[[], Any]) -> Operation:
    return lambda machine: machine.stack.append(make())


def _parsed(parse: Callable[[bytes], Any]) -> Operation:
    return lambda machine: machine.stack.append(parse(machine.line()))


def _sized(width: int, make: Callable[[bytes], Any]) -> Operation:
    """Push what `make` makes of so many bytes as the next `width` bytes state."""
    return lambda machine: machine.stack.append(make(machine.take(machine.number(width))))


def _packed(code: str) -> Operation:
    """Push a number of fixed width."""
    form = struct.Struct(code)

    def operation(machine: Machine) -> None:
        machine.stack.append(form.unpack_from(machine.raw, machine.next)[0])
        machine.next += form.size

    return operation


def _mark(machine: Machine) -> None:
    if len(machine.marks) >= LIMITS.pickle_depth:
        raise ValueError(f"data nested deeper than {LIMITS.pickle_depth}")
    machine.marks.append(machine.stack)
    machine.stack = []


def _pop(machine: Machine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.marked()


def _pop_mark(machine: Machine) -> None:
    machine.marked()


def _duplicate(machine: Machine) -> None:
    machine.stack.append(machine.stack[-1])


def _put(index: Callable[[Machine], int]) -> Operation:
    def operation(machine: Machine) -> None:
        machine.memo[index(machine)] = machine.stack[-1]

    return operation


def _get(index: Callable[[Machine], int]) -> Operation:
    def operation(machine: Machine) -> None:
        number = index(machine)
        if number not in machine.memo:
            raise ValueError(f"nothing was kept as number {number}")
        machine.stack.append(machine.memo[number])

    return operation


def _tuple1(machine: Machine) -> None:
    machine.stack[-1] = (machine.stack[-1],)


def _tuple2(machine: Machine) -> None:
    last = machine.stack.pop()
    machine.stack[-1] = (machine.stack[-1], last)


def _tuple3(machine: Machine) -> None:
    third, second = machine.stack.pop(), machine.stack.pop()
    machine.stack[-1] = (machine.stack[-1], second, third)


def _collected(make: Callable[[list[Any]], Any]) -> Operation:
    """Push what `make` makes of all that is above the last mark."""

    def operation(machine: Machine) -> None:
        items = machine.marked()
        machine.stack.append(make(items))

    return operation


def _dict(items: list[Any]) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    _set_all(made, items)
    return made


def _frozen(items: list[Any]) -> frozenset[Any]:
    return frozenset(values.key(item) for item in items)


def _append(machine: Machine) -> None:
    item = machine.stack.pop()
    _extend(machine.stack[-1], [item])


def _appends(machine: Machine) -> None:
    items = machine.marked()
    _extend(machine.stack[-1], items)


def _extend(target: Any, items: list[Any]) -> None:
    if type(target) is list:
        target.extend(items)
    elif type(target) is not Opaque:  # an opaque object's items are no one's
        raise ValueError(f"items added to a {type(target).__name__}, which is no list")


def _add_items(machine: Machine) -> None:
    items = machine.marked()
    target = machine.stack[-1]
    if type(target) is set:
        target.update(map(values.key, items))
    elif type(target) is not Opaque:
        raise ValueError(f"items added to a {type(target).__name__}, which is no set")


def _set_item(machine: Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _set_all(machine.stack[-1], [key, value])


def _set_items(machine: Machine) -> None:
    items = machine.marked()
    _set_all(machine.stack[-1], items)


def _set_all(target: Any, items: list[Any]) -> None:
    if len(items) % 2:
        raise ValueError("a key without a value")
    if type(target) is dict:
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key if type(key) is str else values.key(key)] = value
    elif type(target) is not Opaque:
        raise ValueError(f"an item set in a {type(target).__name__}, which is no dict")


def _global(machine: Machine) -> None:
    module, name = machine.line().decode(), machine.line().decode()
    machine.stack.append(_found(machine, module, name))


def _stack_global(machine: Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise ValueError("a name that is no text")
    machine.stack.append(_found(machine, module, name))


def _found(machine: Machine, module: str, name: str) -> Any:
    """Return what stands for a name; a callable is not given away, only called by `_call`."""
    known = machine.names.get((module, name))
    return Global(module, name) if known is None or callable(known) else known


def _call(machine: Machine, function: Any, arguments: Any) -> Any:
    if type(arguments) is not tuple:
        raise ValueError("arguments that are no tuple")
    if type(function) is Opaque:
        return Opaque(function.made_by, arguments)
    if type(function) is not Global:
        raise ValueError(f"a {type(function).__name__} is called")
    make = machine.names.get(function)
    if not callable(make):
        return Opaque(function, arguments)
    if len(arguments) > _ARGUMENTS:  # passing them copies them
        raise ValueError(f"{len(arguments):,} arguments of {printable(function)}")
    return make(*arguments)


def _reduce(machine: Machine) -> None:
    arguments, function = machine.stack.pop(), machine.stack.pop()
    machine.stack.append(_call(machine, function, arguments))


def _new_object_extended(machine: Machine) -> None:
    named, arguments, made_by = (machine.stack.pop() for _ in range(3))
    if type(named) is not dict:
        raise ValueError("named arguments that are no dict")
    machine.stack.append(_call(machine, made_by, arguments))
    if named and type(machine.stack[-1]) is Opaque:
        machine.stack[-1].state = named


def _object(machine: Machine) -> None:
    made_by, *arguments = machine.marked()
    machine.stack.append(_call(machine, made_by, tuple(arguments)))


def _instance(machine: Machine) -> None:
    made_by = _found(machine, machine.line().decode(), machine.line().decode())
    arguments = machine.marked()
    machine.stack.append(_call(machine, made_by, tuple(arguments)))


def _build(machine: Machine) -> None:
    """Keep an opaque object's state; attributes of plain data are not kept."""
    state = machine.stack.pop()
    target = machine.stack[-1]
    if type(target) is Opaque:
        target.state = state
    elif isinstance(target, int | float | str | bytes | type(None)):
        raise ValueError(f"a {type(target).__name__} is filled with state")


def _persistent_text(machine: Machine) -> None:
    machine.stack.append(_referred(machine, machine.line().decode()))


def _persistent(machine: Machine) -> None:
    machine.stack.append(_referred(machine, machine.stack.pop()))


def _referred(machine: Machine, identity: Any) -> Any:
    if machine.persistent is None:
        raise ValueError("data that lie outside of it")
    return machine.persistent(identity)


def _protocol(machine: Machine) -> None:
    if (version := machine.byte()) > 5:
        raise ValueError(f"protocol {version}, above 5")


_OPCODES: dict[bytes, Operation] = {
    pickle.PROTO: _protocol,
    pickle.FRAME: _frame,
    pickle.NONE: _constant(None),
    pickle.NEWTRUE: _constant(True),
    pickle.NEWFALSE: _constant(False),
    pickle.EMPTY_TUPLE: _constant(()),
    pickle.EMPTY_LIST: _new(list),
    pickle.EMPTY_DICT: _new(dict),
    pickle.EMPTY_SET: _new(set),
    pickle.INT: _parsed(values.integer),
    pickle.LONG: _parsed(values.long_line),
    pickle.FLOAT: _parsed(float),
    pickle.STRING: _parsed(values.quoted),
    pickle.UNICODE: _parsed(values.escaped),
    pickle.BININT: _packed("<i"),
    pickle.BININT1: _packed("<B"),
    pickle.BININT2: _packed("<H"),
    pickle.BINFLOAT: _packed(">d"),
    pickle.LONG1: _sized(1, values.long),
    pickle.LONG4: _sized(4, values.long),
    pickle.SHORT_BINSTRING: _sized(1, values.old_text),
    pickle.BINSTRING: _sized(4, values.old_text),
    pickle.SHORT_BINUNICODE: _sized(1, values.text),
    pickle.BINUNICODE: _sized(4, values.text),
    pickle.BINUNICODE8: _sized(8, values.text),
    pickle.SHORT_BINBYTES: _sized(1, bytes),
    pickle.BINBYTES: _sized(4, bytes),
    pickle.BINBYTES8: _sized(8, bytes),
    pickle.BYTEARRAY8: _sized(8, bytearray),
    pickle.MARK: _mark,
    pickle.POP: _pop,
    pickle.POP_MARK: _pop_mark,
    pickle.DUP: _duplicate,
    pickle.PUT: _put(lambda machine: int(machine.line())),
    pickle.BINPUT: _put(Machine.byte),
    pickle.LONG_BINPUT: _put(lambda machine: machine.number(4)),
    pickle.MEMOIZE: _put(lambda machine: len(machine.memo)),
    pickle.GET: _get(lambda machine: int(machine.line())),
    pickle.BINGET: _get(Machine.byte),
    pickle.LONG_BINGET: _get(lambda machine: machine.number(4)),
    pickle.TUPLE1: _tuple1,
    pickle.TUPLE2: _tuple2,
    pickle.TUPLE3: _tuple3,
    pickle.TUPLE: _collected(tuple),
    pickle.LIST: _collected(list),
    pickle.DICT: _collected(_dict),
    pickle.FROZENSET: _collected(_frozen),
    pickle.APPEND: _append,
    pickle.APPENDS: _appends,
    pickle.ADDITEMS: _add_items,
    pickle.SETITEM: _set_item,
    pickle.SETITEMS: _set_items,
    pickle.GLOBAL: _global,
    pickle.STACK_GLOBAL: _stack_global,
    pickle.REDUCE: _reduce,
    pickle.NEWOBJ: _reduce,  # an instance of an inert record is what calling it gives
    pickle.NEWOBJ_EX: _new_object_extended,
    pickle.OBJ: _object,
    pickle.INST: _instance,
    pickle.BUILD: _build,
    pickle.PERSID: _persistent_text,
    pickle.BINPERSID: _persistent,
}
OPERATIONS = [_OPCODES.get(bytes([code]), _unknown) for code in range(256)]
SHOWN = {
    value[0]: name
    for name, value in vars(pickle).items()
    if name.isupper() and isinstance(value, bytes) and len(value) == 1
}
