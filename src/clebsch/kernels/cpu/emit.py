"""A small language for straight-line vector code, on LLVM's instruction builder.

Kernels are written as Python functions that emit instructions: Python loops and conditions unroll,
``Emitter.loop`` and ``Emitter.when`` stay in the compiled code. Addresses count elements of the
kernel's real type, whatever that type is; an offset is a Python int or an integer value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from llvmlite import ir

INTEGER = ir.IntType(64)
POINTER = ir.PointerType()

Index: TypeAlias = ir.Value | int

#: Instructions of a basic block after which straight-line code goes on in a new one: the time that
#: LLVM takes grows with the square of a block's length.
LONG_BLOCK = 4000


class Emitter:
    """Emits one function of pointers and 64-bit integers, which returns nothing.

    Args:
        name: of the function.
        pointers: names of its pointer arguments, which come first; no two of them overlap.
        integers: names of its integer arguments.
        bits: of the real type, 32 or 64.
    """

    def __init__(
        self, name: str, pointers: Sequence[str], integers: Sequence[str], bits: int
    ) -> None:
        self.module = ir.Module(name=name)
        self.real = ir.FloatType() if bits == 32 else ir.DoubleType()
        self.bytes = bits // 8
        types = [POINTER] * len(pointers) + [INTEGER] * len(integers)
        self.function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), types), name)
        self.function.attributes.add("nounwind")
        self.arguments = dict(zip([*pointers, *integers], self.function.args, strict=True))
        for argument in self.function.args[: len(pointers)]:
            argument.add_attribute("noalias")
        self._entry = self.function.append_basic_block("entry")
        self._builder = ir.IRBuilder(self.function.append_basic_block("body"))
        self._body = self._builder.block
        self._never: ir.Block | None = None
        self._breaks = 0

    def __getitem__(self, name: str) -> ir.Value:
        return self.arguments[name]

    def finish(self, work: int) -> str:
        """The module as LLVM assembly; ``work`` is how many elements of scratch memory it needs."""
        size = ir.GlobalVariable(self.module, INTEGER, "work")
        size.global_constant = True
        size.initializer = INTEGER(work)
        self._builder.ret_void()
        ir.IRBuilder(self._entry).branch(self._body)
        return str(self.module)

    def may_break(self) -> None:
        """Go on in a new basic block if this one has ``LONG_BLOCK`` instructions.

        It begins behind a branch out of the function that is never taken, for integers are not
        negative; LLVM does not know, and so keeps the blocks apart.
        """
        if len(self._builder.block.instructions) < LONG_BLOCK:
            return
        if self._never is None:
            self._never = self.function.append_basic_block("never")
            ir.IRBuilder(self._never).ret_void()
        following = self._builder.append_basic_block()
        self._breaks += 1
        number = self.integer(-self._breaks)
        impossible = self._builder.icmp_signed("==", self.function.args[-1], number)
        self._builder.cbranch(impossible, self._never, following)
        self._builder.position_at_end(following)

    # --- integers, addresses and control ---

    def integer(self, value: Index) -> ir.Value:
        """A Python int as a constant; values pass through."""
        return INTEGER(value) if isinstance(value, int) else value

    def plus(self, a: Index, b: Index) -> Index:
        """a + b."""
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        return self._builder.add(self.integer(a), self.integer(b), flags=("nsw",))

    def minus(self, a: Index, b: Index) -> ir.Value:
        """a - b."""
        return self._builder.sub(self.integer(a), self.integer(b), flags=("nsw",))

    def times(self, a: Index, b: Index) -> Index:
        """a * b."""
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        return self._builder.mul(self.integer(a), self.integer(b), flags=("nsw",))

    def remainder(self, a: Index, b: int) -> ir.Value:
        """a mod b."""
        return self._builder.srem(self.integer(a), self.integer(b))

    def quotient(self, a: Index, b: Index) -> tuple[ir.Value, ir.Value]:
        """a // b and a mod b, of numbers that are not negative."""
        whole = self._builder.sdiv(self.integer(a), self.integer(b))
        return whole, self.minus(a, self.times(whole, b))

    def smaller(self, a: Index, b: Index) -> ir.Value:
        """min(a, b)."""
        left, right = self.integer(a), self.integer(b)
        return self._builder.select(self.less(left, right), left, right)

    def less(self, a: Index, b: Index) -> ir.Value:
        """a < b."""
        return self._builder.icmp_signed("<", self.integer(a), self.integer(b))

    def choose(self, condition: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        """a where the condition holds, else b."""
        return self._builder.select(condition, a, b)

    def at(self, base: ir.Value, *offsets: Index) -> ir.Value:
        """The address of an element of the real type."""
        for offset in offsets:
            if not (isinstance(offset, int) and offset == 0):
                base = self._builder.gep(
                    base, [self.integer(offset)], inbounds=True, source_etype=self.real
                )
        return base

    def integer_at(self, base: ir.Value, offset: Index) -> ir.Value:
        """Read one 64-bit integer."""
        address = self._builder.gep(
            base, [self.integer(offset)], inbounds=True, source_etype=INTEGER
        )
        return self._builder.load(address, typ=INTEGER)

    @contextmanager
    def loop(self, start: Index, stop: Index, step: int = 1) -> Iterator[ir.Value]:
        """``for index in range(start, stop, step)``."""
        first, last = self.integer(start), self.integer(stop)
        before = self._builder.block
        body = self._builder.append_basic_block()
        after = self._builder.append_basic_block()
        self._builder.cbranch(self.less(first, last), body, after)
        self._builder.position_at_end(body)
        index = self._builder.phi(INTEGER)
        index.add_incoming(first, before)
        yield index
        following = self._builder.add(index, INTEGER(step), flags=("nsw",))
        index.add_incoming(following, self._builder.block)
        self._builder.cbranch(self.less(following, last), body, after)
        self._builder.position_at_end(after)

    @contextmanager
    def when(self, condition: ir.Value) -> Iterator[None]:
        """``if condition``."""
        with self._builder.if_then(condition):
            yield

    # --- numbers ---

    def variable(self, lanes: int) -> ir.Value:
        """A vector that can be assigned to; it lives in a register."""
        builder = ir.IRBuilder(self._entry)
        return builder.alloca(ir.VectorType(self.real, lanes))

    def zero(self, lanes: int) -> ir.Value:
        """A vector of zeros."""
        return ir.Constant(ir.VectorType(self.real, lanes), None)

    def constant(self, value: float, lanes: int) -> ir.Value:
        """A vector of one number."""
        return ir.Constant(
            ir.VectorType(self.real, lanes), [ir.Constant(self.real, float(value))] * lanes
        )

    def get(self, variable: ir.Value, lanes: int) -> ir.Value:
        """The value of a variable."""
        return self._builder.load(variable, typ=ir.VectorType(self.real, lanes))

    def put(self, value: ir.Value, variable: ir.Value) -> None:
        """Assign to a variable."""
        self._builder.store(value, variable)

    def load(self, address: ir.Value, lanes: int) -> ir.Value:
        """Read consecutive elements."""
        return self._builder.load(address, typ=ir.VectorType(self.real, lanes), align=self.bytes)

    def store(self, value: ir.Value, address: ir.Value) -> None:
        """Write consecutive elements."""
        self._builder.store(value, address, align=self.bytes)

    def prefetch(self, address: ir.Value, *, to_write: bool = False) -> None:
        """Have a cache line brought in that will be read, or written, soon."""
        types = [POINTER, *[ir.IntType(32)] * 3]
        if "llvm.prefetch.p0" not in self.module.globals:
            ir.Function(self.module, ir.FunctionType(ir.VoidType(), types), "llvm.prefetch.p0")
        numbers = [int(to_write), 3, 1]  # for writing; to be kept; data
        self._builder.call(
            self.module.globals["llvm.prefetch.p0"],
            [address, *(kind(n) for kind, n in zip(types[1:], numbers, strict=True))],
        )

    def spread(self, address: ir.Value, lanes: int) -> ir.Value:
        """Read one element into all lanes."""
        number = self._builder.load(address, typ=self.real, align=self.bytes)
        kind = ir.VectorType(self.real, lanes)
        single = self._builder.insert_element(
            ir.Constant(kind, ir.Undefined), number, ir.IntType(32)(0)
        )
        order = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
        return self._builder.shuffle_vector(single, ir.Constant(kind, ir.Undefined), order)

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """a + b."""
        return self._builder.fadd(a, b, flags=("contract",))

    def sub(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """a - b."""
        return self._builder.fsub(a, b, flags=("contract",))

    def negative(self, a: ir.Value) -> ir.Value:
        """-a."""
        return self._builder.fneg(a)

    def divide(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """a / b."""
        return self._builder.fdiv(a, b)

    def square_root(self, a: ir.Value) -> ir.Value:
        """The square root."""
        return self._builder.call(self._intrinsic("sqrt", a.type, 1), [a])

    def minimum(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """The smaller of each pair; a where that is no number."""
        return self._builder.select(self._builder.fcmp_ordered(">", a, b), b, a)

    def maximum(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """The larger of each pair; a where that is no number."""
        return self._builder.select(self._builder.fcmp_ordered("<", a, b), b, a)

    def nearest(self, a: ir.Value) -> ir.Value:
        """The nearest whole number."""
        return self._builder.call(self._intrinsic("rint", a.type, 1), [a])

    def whole_part(self, a: ir.Value) -> ir.Value:
        """The integer below a number that is not negative; ``a`` has one lane."""
        number = self._builder.extract_element(a, ir.IntType(32)(0))
        return self._builder.fptosi(number, INTEGER)

    def from_integer(self, a: Index) -> ir.Value:
        """An integer as a number, in one lane."""
        number = self._builder.sitofp(self.integer(a), self.real)
        kind = ir.VectorType(self.real, 1)
        return self._builder.insert_element(
            ir.Constant(kind, ir.Undefined), number, ir.IntType(32)(0)
        )

    def widened(self, a: ir.Value, lanes: int) -> ir.Value:
        """A vector of one lane in all lanes."""
        order = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
        return self._builder.shuffle_vector(a, a, order)

    def lane_sum(self, a: ir.Value, lanes: int) -> ir.Value:
        """The sum of all lanes, in one lane."""
        while lanes > 1:
            lanes //= 2
            kind = ir.VectorType(ir.IntType(32), lanes)
            low = self._builder.shuffle_vector(a, a, ir.Constant(kind, list(range(lanes))))
            high = ir.Constant(kind, list(range(lanes, 2 * lanes)))
            a = self.add(low, self._builder.shuffle_vector(a, a, high))
        return a

    def power_of_two(self, n: ir.Value) -> ir.Value:
        """2^n of whole numbers n in the range of the exponent."""
        bias, digits = (127, 23) if self.bytes == 4 else (1023, 52)
        lanes = n.type.count
        integers = ir.VectorType(ir.IntType(8 * self.bytes), lanes)
        exponent = self._builder.fptosi(n, integers)
        exponent = self._builder.add(exponent, ir.Constant(integers, [bias] * lanes))
        shifted = self._builder.shl(exponent, ir.Constant(integers, [digits] * lanes))
        return self._builder.bitcast(shifted, n.type)

    def mul(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """a b."""
        return self._builder.fmul(a, b, flags=("contract",))

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value | None) -> ir.Value:
        """a b + c, rounded once where the machine can; a b without c."""
        if c is None:
            return self.mul(a, b)
        return self._builder.call(self._intrinsic("fmuladd", a.type, 3), [a, b, c])

    def _intrinsic(self, name: str, kind: ir.VectorType, n_arguments: int) -> ir.Function:
        full = f"llvm.{name}.v{kind.count}f{8 * self.bytes}"
        if full not in self.module.globals:
            ir.Function(self.module, ir.FunctionType(kind, [kind] * n_arguments), full)
        return self.module.globals[full]

    def row_sums(self, vectors: Sequence[ir.Value], lanes: int) -> ir.Value:
        """The vector whose lane i is the sum of the lanes of ``vectors[i]``; as many as lanes."""
        level, bits = list(vectors), ir.VectorType(ir.IntType(32), lanes)
        even = ir.Constant(bits, list(range(0, 2 * lanes, 2)))
        odd = ir.Constant(bits, list(range(1, 2 * lanes, 2)))
        while len(level) > 1:
            level = [
                self.add(
                    self._builder.shuffle_vector(a, b, even),
                    self._builder.shuffle_vector(a, b, odd),
                )
                for a, b in zip(level[::2], level[1::2], strict=True)
            ]
        return level[0]


class Workspace:
    """Hands out places in a kernel's scratch memory, in elements, each on a cache line."""

    def __init__(self) -> None:
        self.size = 0

    def take(self, size: int) -> int:
        """The offset of ``size`` elements."""
        start, self.size = self.size, self.size + -(-size // 16) * 16
        return start
