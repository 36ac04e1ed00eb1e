# SPDX-License-Identifier: Apache-2.0
"""Second: carries out the steps of a pickle that build tables of arrays, and no others."""

import pickletools
import struct
from collections import OrderedDict

from paddleseg_deeplab.utils.safe_pickle.names import (
    CALLS,
    OTHER_SPELLINGS,
    Damaged,
    Name,
    PendingArray,
    PendingDtype,
    Refused,
    check_keys,
    make_frozenset,
)

_MAX_STEPS = 2_000_000
_MAX_INT_BYTES = 1024
_COPIED = 1024  # bytes; larger pieces stay views of the file


def run(content: bytes) -> object:
    """The value that a pickle of plain containers and arrays describes.

    Args:
        content (bytes): The file.

    Returns:
        object: Arrays in it are read-only views of ``content``. It may hold itself, or remains of
        unfinished steps: the caller has to check it.

    Raises:
        Refused, Damaged: See `names`.
    """
    return _Machine(content).run()


class _Machine:
    def __init__(self, content):
        self._content = memoryview(content)
        self._at = 0
        self._stack = []
        self._below = []  # stacks under the open marks
        self._memo = {}
        # What calls may make: a piece of the file may be named, and so copied, again and again.
        self._bytes_left = 4 * len(content) + (1 << 20)

    def run(self):
        if bytes(self._content[:1]) != b"\x80":
            raise Damaged("it does not begin like one")
        try:
            for _ in range(_MAX_STEPS):
                code = self._number("<B")
                if code == 0x2E:  # STOP
                    return self._stack.pop()
                step = _STEPS.get(chr(code))
                if step is None:
                    raise Refused(_unknown(code))
                step(self)
        except (IndexError, KeyError, UnicodeError, RecursionError) as error:
            raise Damaged(f"{type(error).__name__} at byte {self._at}") from error
        raise Refused(f"it has more than {_MAX_STEPS} steps")

    def _take(self, count):
        end = self._at + count
        if count < 0 or end > len(self._content):
            raise Damaged(f"it ends at byte {len(self._content)}, {count} more were announced")
        piece = self._content[self._at : end]
        self._at = end
        return piece

    def _number(self, form):
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _text(self, form, encoding="utf-8"):
        errors = "surrogatepass" if encoding == "utf-8" else "strict"
        return str(self._take(self._number(form)), encoding, errors)

    def _line(self):
        for length in range(256):
            if self._content[self._at + length] == 0x0A:
                line = str(self._take(length), "utf-8")
                self._take(1)
                return line
        raise Damaged("a name of more than 255 letters")

    def _push(self, value):
        self._stack.append(value)

    def _since_mark(self):
        items, self._stack = self._stack, self._below.pop()
        return items

    def _target(self, *kinds):
        if type(self._stack[-1]) not in kinds:
            raise Damaged(f"items are put into a {type(self._stack[-1]).__name__}")
        return self._stack[-1]

    def _integer(self, count):
        if count > _MAX_INT_BYTES:
            raise Refused(f"it holds a number of {count} bytes")
        self._push(int.from_bytes(self._take(count), "little", signed=True))

    def _bytes(self, count):
        piece = self._take(count)
        self._push(bytes(piece) if count < _COPIED else piece)

    def _name(self, module, name):
        full = f"{OTHER_SPELLINGS.get(module, module)}.{name}"
        if full not in CALLS:
            raise Refused(f"it asks for {full[:160]}")
        self._push(Name(full))

    def _named(self):
        name, module = self._stack.pop(), self._stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise Damaged("a name that is no text")
        self._name(module, name)

    def _call(self):
        arguments, called = self._stack.pop(), self._stack.pop()
        name = getattr(called, "name", type(called).__name__)
        if type(called) is not Name or CALLS[name] is None or type(arguments) is not tuple:
            raise Refused(f"it asks for a call of {name}")
        try:
            made = CALLS[name](*arguments)
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            if name == "builtins.eval":
                raise Refused("it asks for builtins.eval to be called") from error
            raise Damaged(f"{name}: {str(error)[:120]}") from error
        self._spend(made)
        self._push(made)

    def _spend(self, made):
        if isinstance(made, bytes):
            self._bytes_left -= len(made)
        elif isinstance(made, (tuple, set, frozenset, OrderedDict)):
            self._bytes_left -= 100 * len(made)
        if self._bytes_left < 0:
            raise Refused("it copies its content again and again")

    def _build(self):
        state, target = self._stack.pop(), self._stack.pop()
        if type(target) not in (PendingArray, PendingDtype) or type(state) is not tuple:
            name = getattr(target, "name", type(target).__name__)
            raise Refused(f"it sets attributes of {name}")
        try:
            built = target.build(state)
        except (TypeError, ValueError, OverflowError) as error:
            raise Damaged(str(error)[:120]) from error
        if state and isinstance(state[-1], str):  # it was turned into bytes
            self._bytes_left -= len(state[-1])
            self._spend(None)
        for place in getattr(target, "places", ()):
            self._memo[place] = built
        self._push(built)

    def _remember(self, place):
        self._memo[place] = self._stack[-1]
        if type(self._stack[-1]) is PendingArray:
            self._stack[-1].places.append(place)

    def _put_items(self, items):
        target = self._target(dict, OrderedDict)
        if len(items) % 2:
            raise Damaged("a key without a value")
        check_keys(items[::2], already=len(target))
        target.update(zip(items[::2], items[1::2]))

    def _tuple(self, count):
        if len(self._stack) < count:
            raise Damaged("a tuple of more than there is")
        items = self._stack[-count:]
        del self._stack[-count:]
        self._push(tuple(items))

    def _mark(self):
        self._below.append(self._stack)
        self._stack = []

    def _append_all(self):
        items = self._since_mark()
        self._target(list).extend(items)

    def _add_all(self):
        items = self._since_mark()
        target = self._target(set)
        target.update(check_keys(items, already=len(target)))

    def _set_all(self):
        items = self._since_mark()
        self._put_items(items)

    def _append(self):
        item = self._stack.pop()
        self._target(list).append(item)

    def _set_one(self):
        value, key = self._stack.pop(), self._stack.pop()
        self._put_items([key, value])

    def _protocol(self):
        version = self._number("<B")
        if version > 5:
            raise Damaged(f"protocol {version} is not known")


def _unknown(code):
    known = {ord(op.code): op.name for op in pickletools.opcodes}
    if code not in known:
        raise Damaged(f"there is no step {code:#04x}")
    return f"it asks for the step {known[code]}"


# By the byte that stands for each in a pickle; the names of Python's pickletools beside them.
_STEPS = {
    "\x80": _Machine._protocol,  # PROTO
    "\x95": lambda m: m._take(8),  # FRAME: a hint about sizes
    "(": _Machine._mark,  # MARK
    "N": lambda m: m._push(None),  # NONE
    "\x88": lambda m: m._push(True),  # NEWTRUE
    "\x89": lambda m: m._push(False),  # NEWFALSE
    "J": lambda m: m._push(m._number("<i")),  # BININT
    "K": lambda m: m._push(m._number("<B")),  # BININT1
    "M": lambda m: m._push(m._number("<H")),  # BININT2
    "\x8a": lambda m: m._integer(m._number("<B")),  # LONG1
    "\x8b": lambda m: m._integer(m._number("<I")),  # LONG4
    "G": lambda m: m._push(m._number(">d")),  # BINFLOAT
    "\x8c": lambda m: m._push(m._text("<B")),  # SHORT_BINUNICODE
    "X": lambda m: m._push(m._text("<I")),  # BINUNICODE
    "\x8d": lambda m: m._push(m._text("<Q")),  # BINUNICODE8
    "U": lambda m: m._push(m._text("<B", "latin-1")),  # SHORT_BINSTRING, of Python 2
    "T": lambda m: m._push(m._text("<i", "latin-1")),  # BINSTRING, of Python 2
    "C": lambda m: m._bytes(m._number("<B")),  # SHORT_BINBYTES
    "B": lambda m: m._bytes(m._number("<I")),  # BINBYTES
    "\x8e": lambda m: m._bytes(m._number("<Q")),  # BINBYTES8
    ")": lambda m: m._push(()),  # EMPTY_TUPLE
    "\x85": lambda m: m._tuple(1),  # TUPLE1
    "\x86": lambda m: m._tuple(2),  # TUPLE2
    "\x87": lambda m: m._tuple(3),  # TUPLE3
    "t": lambda m: m._push(tuple(m._since_mark())),  # TUPLE
    "]": lambda m: m._push([]),  # EMPTY_LIST
    "a": _Machine._append,  # APPEND
    "e": _Machine._append_all,  # APPENDS
    "}": lambda m: m._push({}),  # EMPTY_DICT
    "s": _Machine._set_one,  # SETITEM
    "u": _Machine._set_all,  # SETITEMS
    "\x8f": lambda m: m._push(set()),  # EMPTY_SET
    "\x90": _Machine._add_all,  # ADDITEMS
    "\x91": lambda m: m._push(make_frozenset(m._since_mark())),  # FROZENSET
    "q": lambda m: m._remember(m._number("<B")),  # BINPUT
    "r": lambda m: m._remember(m._number("<I")),  # LONG_BINPUT
    "\x94": lambda m: m._remember(len(m._memo)),  # MEMOIZE
    "h": lambda m: m._push(m._memo[m._number("<B")]),  # BINGET
    "j": lambda m: m._push(m._memo[m._number("<I")]),  # LONG_BINGET
    "c": lambda m: m._name(m._line(), m._line()),  # GLOBAL
    "\x93": _Machine._named,  # STACK_GLOBAL
    "R": _Machine._call,  # REDUCE
    "b": _Machine._build,  # BUILD
}
