"""An interpreter of pickles that runs no code: it builds tensors, containers and inert stubs.

A pickle is a program for a stack machine. ``pickletools`` of the standard library takes it apart
into instructions without executing anything; this interpreter executes those that ``torch.save``
writes. What Python's own would import and call is here a name (``Global``); calls of a name give
what the table of builders says, or a ``Stub`` for classes of the packages that models are made of.
All other names are refused, and so are instructions that torch does not write.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Iterator
from typing import Any

from clebsch.errors import ModelFileError
from clebsch.interop.inert import Global, Stub

#: Instructions of one pickle. A model of mace-torch has some ten thousand.
MAX_INSTRUCTIONS = 2_000_000

#: Packages whose classes and functions may be named; they become stubs.
PACKAGES = ("mace", "e3nn", "torch.nn", "torch.fx", "argparse")

#: Single names beside those: they become stubs or mean what ``builders`` says.
NAMES = frozenset(
    {
        "builtins.object",
        "builtins.slice",
        "builtins.int",
        "builtins.float",
        "builtins.str",
        "builtins.bool",
        "builtins.list",
        "builtins.dict",
        "builtins.tuple",
        "numpy.dtype",
        "numpy.ndarray",
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "torch.tanh",
        "torch.abs",
        "torch.sigmoid",
        *(f"torch.{name}" for name in ("float16", "bfloat16", "float32", "float64")),
        *(f"torch.{name}" for name in ("int8", "int16", "int32", "int64", "uint8", "bool")),
        *(f"torch.{kind}Storage" for kind in ("Half", "BFloat16", "Float", "Double", "Bool")),
        *(f"torch.{kind}Storage" for kind in ("Char", "Short", "Int", "Long", "Byte")),
    }
)

_CONVERTED = "it was converted for {0}; convert it back with mace-torch's {1}, or use the file it "
_CONVERTED += "was made from"

_WRAPPED = "a wrapper of the model; save model.module with mace-torch instead"

#: What names of other programs mean, and what to do.
ADVICE = {
    "cuequivariance": _CONVERTED.format("cuequivariance", "mace_cueq_to_e3nn"),
    "cuequivariance_torch": _CONVERTED.format("cuequivariance", "mace_cueq_to_e3nn"),
    "openequivariance": _CONVERTED.format("openequivariance", "mace_oeq_to_e3nn"),
    "builtins.getattr": "nothing is looked up by name; gates of torch.tanh and torch.abs are "
    "written like this, but no gate other than silu is supported",
    "mace.calculators": "an export for LAMMPS, or a calculator; use the .model file that it was "
    "made from",
    "mace.modules.lora": "its weights are apart in those of before and low-rank changes (LoRA); "
    "merge them with mace-torch's merge_lora_weights and save the model again",
    "torch._dynamo": "compiled by torch.compile; save model._orig_mod with mace-torch instead",
    "torch.optim.swa_utils": _WRAPPED,
    "torch.nn.parallel": _WRAPPED,
}

#: Python's old names of what is in ``builtins`` and ``copyreg``.
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}

Builder = Callable[[tuple[Any, ...]], Any]
_MARK = object()


class PickleReader:
    """One pickle's interpretation.

    Args:
        builders: what calls of a name give, by the name; each checks its arguments.
        persistent: what a persistent id stands for: a storage of the archive.
        place: names the file in errors.
    """

    def __init__(
        self, builders: dict[str, Builder], persistent: Callable[[Any], Any], place: str
    ) -> None:
        self.builders = {**_builders(place), **builders}
        self.persistent = persistent
        self.place = place
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def read(self, data: bytes) -> Any:
        """The object that a pickle describes.

        Raises:
            ModelFileError: it is damaged, names what must not be named, or is too large.
        """
        try:
            for count, (opcode, argument) in enumerate(_instructions(data)):
                if count >= MAX_INSTRUCTIONS:
                    raise self._error(f"more than {MAX_INSTRUCTIONS} instructions")
                if opcode == "STOP":
                    break
                self._execute(opcode, argument)
            if len(self.stack) != 1 or self.stack[0] is _MARK:
                raise self._error("it ends in the middle")
            return self.stack[0]
        except (ValueError, IndexError, KeyError, TypeError, struct.error, OverflowError) as error:
            # a KeyError's text is the bare key
            raise self._error(f"damaged ({type(error).__name__}: {error})") from None

    def _error(self, reason: str) -> ModelFileError:
        return ModelFileError(f"{self.place}: refused: {reason}")

    def _execute(self, opcode: str, argument: Any) -> None:
        if opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _LITERALS:
            self.stack.append(argument)
        elif opcode in _EMPTY:
            self.stack.append(_EMPTY[opcode]())
        elif opcode in _TUPLES:
            parts = [self._pop() for _ in range(_TUPLES[opcode])]
            self.stack.append(tuple(reversed(parts)))
        elif opcode in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self._top()
        elif opcode == "MEMOIZE":
            self.memo[len(self.memo)] = self._top()
        elif opcode == "GLOBAL":
            module, _, name = argument.partition(" ")
            self.stack.append(self._global(module, name))
        elif opcode in _ACTIONS:
            _ACTIONS[opcode](self)
        elif opcode not in ("PROTO", "FRAME"):
            raise self._error(f"instruction {opcode}, which torch does not write")

    def _top(self) -> Any:
        value = self.stack[-1]
        if value is _MARK:
            raise ValueError("a value is missing")
        return value

    def _pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a value is missing")
        return value

    def _pop_to_mark(self) -> list[Any]:
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise ValueError("a mark is missing")
        values = self.stack[place + 1 :]
        del self.stack[place:]
        return values

    def _global(self, module: str, name: str) -> Global:
        """A name, if it is one of those that models are made of.

        Raises:
            ModelFileError: it is not.
        """
        found = Global(_RENAMED.get(module, module), name)
        for package, advice in ADVICE.items():
            if f"{found}.".startswith(f"{package}."):
                raise self._error(f"{found}: {advice}")
        known = any(f"{found.module}.".startswith(f"{package}.") for package in PACKAGES)
        if known or str(found) in NAMES or str(found) in self.builders:
            return found
        raise self._error(
            f"the pickle names {found}, which is no part of a mace-torch model; nothing was run"
        )

    # --- what instructions do with the stack ---

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise ValueError("a name that is no text")
        self.stack.append(self._global(module, name))

    def _call(self) -> None:
        args, callee = self._pop(), self._pop()
        if not (isinstance(callee, Global) and isinstance(args, tuple)):
            raise ValueError("a call of what is no name")
        builder = self.builders.get(str(callee))
        self.stack.append(Stub(callee, args) if builder is None else builder(args))

    def _build(self) -> None:
        state, built = self._pop(), self._top()
        if isinstance(built, dict):
            return  # attributes of an OrderedDict, such as the versions in a state dict
        if not isinstance(built, Stub) or built.state:
            raise ValueError("attributes of what has none")
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
            state = state[1] if state[0] is None else state[0]
        built.state = state if isinstance(state, dict) else {"": state}

    def _append(self) -> None:
        value = self._pop()
        self._list().append(value)

    def _appends(self) -> None:
        values = self._pop_to_mark()
        self._list().extend(values)

    def _list(self) -> list[Any]:
        listed = self._top()
        if not isinstance(listed, list):
            raise ValueError("items of what is no list")
        return listed

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._store([key, value])

    def _set_items(self) -> None:
        self._store(self._pop_to_mark())

    def _store(self, flat: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(flat) % 2:
            raise ValueError("items of what is no dictionary")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            target[_key(key)] = value

    def _add_items(self) -> None:
        values, target = self._pop_to_mark(), self._top()
        if not isinstance(target, set):
            raise ValueError("items of what is no set")
        target.update(_key(value) for value in values)

    def _tuple(self) -> None:
        self.stack.append(tuple(self._pop_to_mark()))

    def _persistent(self) -> None:
        self.stack.append(self.persistent(self._pop()))


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "MARK": _MARK}
_LITERALS = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"}
    | {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
)
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_ACTIONS: dict[str, Callable[[PickleReader], None]] = {
    "STACK_GLOBAL": PickleReader._stack_global,
    "REDUCE": PickleReader._call,
    "NEWOBJ": PickleReader._call,
    "BUILD": PickleReader._build,
    "APPEND": PickleReader._append,
    "APPENDS": PickleReader._appends,
    "SETITEM": PickleReader._set_item,
    "SETITEMS": PickleReader._set_items,
    "ADDITEMS": PickleReader._add_items,
    "TUPLE": PickleReader._tuple,
    "BINPERSID": PickleReader._persistent,
}


def _instructions(data: bytes) -> Iterator[tuple[str, Any]]:
    for opcode, argument, _ in pickletools.genops(data):
        yield opcode.name, argument


def _key(value: Any) -> Any:
    """A key of a dictionary: only kinds whose hashes nobody can make collide at will."""
    if isinstance(value, str) or (isinstance(value, int) and abs(value) < 2**31):
        return value
    if value is None or isinstance(value, Stub | Global):
        return value
    raise ValueError(f"a key of type {type(value).__name__}")


def _builders(place: str) -> dict[str, Builder]:
    """Calls that give plain containers."""

    def ordered(args: tuple[Any, ...]) -> Any:
        if args:
            raise ModelFileError(f"{place}: refused: an OrderedDict with arguments")
        return {}

    def a_set(args: tuple[Any, ...]) -> Any:
        values = args[0] if args else []
        if len(args) > 1 or not isinstance(values, list):
            raise ModelFileError(f"{place}: refused: a set of what is no list")
        return {_key(value) for value in values}

    def encode(args: tuple[Any, ...]) -> Any:
        text, encoding = args
        if not isinstance(text, str) or encoding != "latin1":
            raise ModelFileError(f"{place}: refused: bytes in the encoding {encoding!r}")
        return text.encode("latin1")

    def reconstructed(args: tuple[Any, ...]) -> Any:
        if not args or not isinstance(args[0], Global):
            raise ModelFileError(f"{place}: refused: an object of no class")
        return Stub(args[0])

    def size(args: tuple[Any, ...]) -> Any:
        return args[0] if args else ()

    return {
        "collections.OrderedDict": ordered,
        "builtins.set": a_set,
        "_codecs.encode": encode,
        "copyreg._reconstructor": reconstructed,
        "torch.Size": size,
        "torch.device": lambda args: Stub(Global("torch", "device"), args),
    }
