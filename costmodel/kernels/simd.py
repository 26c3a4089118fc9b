"""Vector code for numba: emit the SIMD body of a loop instead of hoping for auto-vectorisation.

A kernel is a plain `@njit` loop that calls a module-level `@intrinsic`; the intrinsic's code generator writes
its body with `Simd`, sixteen lanes at a time. The IR is generic: LLVM splits the vectors for AVX2 and NEON. What needs
an instruction of its own is in `dot.py`.

    @intrinsic
    def axpy16(typingctx, a, x, y):                       # y[0:16] += a * x[0:16]; x and y are addresses
        def codegen(context, builder, signature, args):
            s = Simd(builder)
            scale, x, y = args
            s.store(y, s.fma(s.splat(scale), s.load(x, "f32"), s.load(y, "f32")))
            return context.get_dummy_value()
        return types.void(a, x, y), codegen

Addresses are int64 (`tensor.data_ptr()`, `array.ctypes.data`); an `index` counts elements of the dtype.
Element types: f32 f16 bf16 f64 i8 u8 i16 i32 i64 (``i8`` or ``u8`` by how a widening load extends a byte).

numba's cache looks at the file that defines a kernel, not at this one: every kernel file calls `require(n)`
with the `VERSION` it was written for, so that a new emitter means an edit, and a rebuild, of each kernel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import extending
from numba.core import cgutils

from ..errors import CostmodelError

__all__ = ["LANES", "VERSION", "Cell", "Simd", "Vec", "intrinsic", "require"]

intrinsic: Any = extending.intrinsic  # the typing context that it adds is not in its static type

VERSION = 1
LANES = 16

_I1, _I8, _I16, _I32, _I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
_F16, _F32, _F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()
_ELEMENT: dict[str, tuple[ir.Type, int]] = {
    "f64": (_F64, 8), "f32": (_F32, 4), "f16": (_F16, 2), "bf16": (_I16, 2),
    "i8": (_I8, 1), "u8": (_I8, 1), "i16": (_I16, 2), "i32": (_I32, 4), "i64": (_I64, 8),
}  # fmt: skip

LOG2E = 1.4426950408889634
LN2 = 0.6931471805599453
# Polynomials interpolated at Chebyshev nodes, errors below fp32's.
# 2^f on [-1/2, 1/2], its constant fixed to 1 so that 2^0 is exact: 5e-9.
_EXP2 = (
    1.0,
    0.69314718802623,
    0.24022650760568,
    0.05550357114219,
    0.0096180825572833,
    0.0013390863364696,
    0.00015453162943362,
)
# atanh(s)/s in s² on [0, 1/9]: log1p(u) = 2 atanh(u / (2 + u)) keeps relative accuracy for small u: 1e-10.
_ATANH = (
    0.9999999999045,
    0.33333339513213,
    0.19999355623645,
    0.14310103700078,
    0.10699280287452,
    0.1219695393961,
)


def require(version: int) -> None:
    """Refuse kernels that were written for another emitter and would come stale out of numba's cache."""
    if version != VERSION:
        raise CostmodelError(
            f"kernels written for emitter version {version}, simd.py is {VERSION}: "
            f"write require({VERSION}) in their file, so that numba compiles them again"
        )


@dataclass(frozen=True)
class Vec:
    """A vector value in the function being emitted; operands are vectors of its type or numbers."""

    simd: Simd
    value: ir.Value

    @property
    def type(self) -> ir.VectorType:
        return self.value.type

    @property
    def lanes(self) -> int:
        return int(self.type.count)

    @property
    def is_float(self) -> bool:
        return isinstance(self.type.element, (ir.FloatType, ir.DoubleType, ir.HalfType))

    def _with(self, other: Vec | float) -> ir.Value:
        if isinstance(other, Vec):
            return other.value
        return ir.Constant(self.type, [other] * self.lanes)

    def _op(self, float_op: str, int_op: str, a: ir.Value, b: ir.Value) -> Vec:
        emit = getattr(self.simd.builder, float_op if self.is_float else int_op)
        return Vec(self.simd, emit(a, b))

    def __add__(self, other: Vec | float) -> Vec:
        return self._op("fadd", "add", self.value, self._with(other))

    def __radd__(self, other: float) -> Vec:
        return self + other

    def __sub__(self, other: Vec | float) -> Vec:
        return self._op("fsub", "sub", self.value, self._with(other))

    def __rsub__(self, other: float) -> Vec:
        return self._op("fsub", "sub", self._with(other), self.value)

    def __mul__(self, other: Vec | float) -> Vec:
        return self._op("fmul", "mul", self.value, self._with(other))

    def __rmul__(self, other: float) -> Vec:
        return self * other

    def __truediv__(self, other: Vec | float) -> Vec:
        return Vec(self.simd, self.simd.builder.fdiv(self.value, self._with(other)))

    def __rtruediv__(self, other: float) -> Vec:
        return Vec(self.simd, self.simd.builder.fdiv(self._with(other), self.value))

    def __neg__(self) -> Vec:
        if self.is_float:
            return Vec(self.simd, self.simd.builder.fneg(self.value))
        return 0 - self

    def __and__(self, other: Vec | int) -> Vec:
        return Vec(self.simd, self.simd.builder.and_(self.value, self._with(other)))

    def __or__(self, other: Vec | int) -> Vec:
        return Vec(self.simd, self.simd.builder.or_(self.value, self._with(other)))

    def __xor__(self, other: Vec | int) -> Vec:
        return Vec(self.simd, self.simd.builder.xor(self.value, self._with(other)))

    def __lshift__(self, bits: Vec | int) -> Vec:
        return Vec(self.simd, self.simd.builder.shl(self.value, self._with(bits)))

    def __rshift__(self, bits: Vec | int) -> Vec:
        """Logical shift: zeros come in."""
        return Vec(self.simd, self.simd.builder.lshr(self.value, self._with(bits)))

    def shift_signed(self, bits: int) -> Vec:
        """Arithmetic shift to the right: copies of the sign come in."""
        return Vec(self.simd, self.simd.builder.ashr(self.value, self._with(bits)))

    def compare(self, relation: str, other: Vec | float) -> Vec:
        """A mask of i1; `relation` is one of < <= > >= == != (NaN is in no relation)."""
        emit = self.simd.builder.fcmp_ordered if self.is_float else self.simd.builder.icmp_signed
        return Vec(self.simd, emit(relation, self.value, self._with(other)))

    def where(self, yes: Vec | float, no: Vec) -> Vec:
        """This vector is a mask: `yes` where it is set, else `no`."""
        return Vec(self.simd, self.simd.builder.select(self.value, no._with(yes), no.value))

    def lane(self, i: int) -> ir.Value:
        """One lane as a scalar."""
        return self.simd.builder.extract_element(self.value, ir.Constant(_I32, i))

    def narrow(self, element: str) -> Vec:
        """Integer lanes to fewer bits; the high ones are dropped."""
        return Vec(self.simd, self.simd.builder.trunc(self.value, ir.VectorType(_ELEMENT[element][0], self.lanes)))

    def bits(self) -> ir.Value:
        """This vector is a mask: its lanes as the bits of one integer, lane 0 lowest (i16 for 16 lanes)."""
        return self.simd.builder.bitcast(self.value, ir.IntType(self.lanes))


@dataclass(frozen=True)
class Cell:
    """A variable of the emitted function: what a loop carries. LLVM turns it into a register."""

    simd: Simd
    pointer: ir.Value

    def get(self) -> Vec:
        return Vec(self.simd, self.simd.builder.load(self.pointer))

    def set(self, value: Vec) -> None:
        self.simd.builder.store(value.value, self.pointer)


@dataclass(frozen=True)
class Simd:
    """Emits vector instructions at the place where `builder` stands."""

    builder: ir.IRBuilder

    # ---- values ----------------------------------------------------------------------------------------

    def i64(self, value: ir.Value | int) -> ir.Value:
        """An int64 IR value from a Python int, or from an integer value of any width (sign-extended)."""
        if isinstance(value, int):
            return ir.Constant(_I64, value)
        if value.type.width == 64:
            return value
        return self.builder.sext(value, _I64)

    def splat(self, value: ir.Value | float, lanes: int = LANES, element: str = "f32") -> Vec:
        """All lanes the same: a scalar IR value (of its own type) or a number (of type `element`)."""
        if isinstance(value, (int, float)):
            return Vec(self, ir.Constant(ir.VectorType(_ELEMENT[element][0], lanes), [value] * lanes))
        undefined = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
        first = self.builder.insert_element(undefined, value, ir.Constant(_I32, 0))
        mask = ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes)
        return Vec(self, self.builder.shuffle_vector(first, undefined, mask))

    def constant(self, values: Sequence[float], element: str = "f32") -> Vec:
        """A literal vector, one number a lane."""
        return Vec(self, ir.Constant(ir.VectorType(_ELEMENT[element][0], len(values)), list(values)))

    def cell(self, start: Vec) -> Cell:
        """A variable that a loop may change, set to `start`."""
        pointer = cgutils.alloca_once(self.builder, start.value.type)
        self.builder.store(start.value, pointer)
        return Cell(self, pointer)

    # ---- memory ----------------------------------------------------------------------------------------

    def pointer(self, address: ir.Value, element: str, index: ir.Value | int = 0) -> ir.Value:
        """Pointer to element `index` counted from an int64 address."""
        if not (isinstance(index, int) and index == 0):
            size = ir.Constant(_I64, _ELEMENT[element][1])
            address = self.builder.add(address, self.builder.mul(self.i64(index), size))
        return self.builder.inttoptr(address, ir.PointerType())

    def address(self, base: ir.Value, element: str, index: ir.Value | int) -> ir.Value:
        """The int64 address of element `index` counted from `base`."""
        return self.builder.add(base, self.builder.mul(self.i64(index), self.i64(_ELEMENT[element][1])))

    def scalar(self, address: ir.Value, element: str, index: ir.Value | int = 0) -> ir.Value:
        """One element as it is stored."""
        kind, size = _ELEMENT[element]
        return self.builder.load(self.pointer(address, element, index), typ=kind, align=size)

    def prefetch(self, address: ir.Value, write: bool = False) -> None:
        """Fetch the cache line of an address into L1, for writing if asked; any address will do."""
        kind = ir.FunctionType(ir.VoidType(), [ir.PointerType(), _I32, _I32, _I32])
        fetch = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        hints = [ir.Constant(_I32, hint) for hint in (int(write), 3, 1)]  # of data, to be kept
        self.builder.call(fetch, [self.builder.inttoptr(address, ir.PointerType()), *hints])

    def word(self, address: ir.Value) -> ir.Value:
        """Four neighbouring bytes as one i32, at any alignment."""
        return self.builder.load(self.pointer(address, "i32"), typ=_I32, align=1)

    def load(self, address: ir.Value, element: str, index: ir.Value | int = 0, lanes: int = LANES) -> Vec:
        """`lanes` neighbours as they are stored; any alignment."""
        kind, size = _ELEMENT[element]
        pointer = self.pointer(address, element, index)
        return Vec(self, self.builder.load(pointer, typ=ir.VectorType(kind, lanes), align=size))

    def store(self, address: ir.Value, value: Vec, index: ir.Value | int = 0) -> None:
        """Write all lanes; `index` counts elements of the vector's own type."""
        size = _bytes_of(value.type.element)
        if not (isinstance(index, int) and index == 0):
            address = self.builder.add(address, self.builder.mul(self.i64(index), ir.Constant(_I64, size)))
        self.builder.store(value.value, self.builder.inttoptr(address, ir.PointerType()), align=size)

    def load_masked(
        self, address: ir.Value, element: str, mask: Vec, index: ir.Value | int = 0, fill: float = 0
    ) -> Vec:
        """Lanes outside the mask are `fill` and are not touched in memory."""
        kind, size = _ELEMENT[element]
        vector, pointer_type = ir.VectorType(kind, mask.lanes), ir.PointerType()
        load = self.function(f"llvm.masked.load.{_mangle(vector)}.p0", vector, [pointer_type, _I32, mask.type, vector])
        empty = ir.Constant(vector, [fill] * mask.lanes)
        args = [self.pointer(address, element, index), ir.Constant(_I32, size), mask.value, empty]
        return Vec(self, self.builder.call(load, args))

    def store_masked(self, address: ir.Value, value: Vec, mask: Vec, index: ir.Value | int = 0) -> None:
        """Write the lanes that the mask sets."""
        size = _bytes_of(value.type.element)
        address = self.builder.add(address, self.builder.mul(self.i64(index), ir.Constant(_I64, size)))
        store = self.function(
            f"llvm.masked.store.{_mangle(value.type)}.p0",
            ir.VoidType(),
            [value.type, ir.PointerType(), _I32, mask.type],
        )
        pointer = self.builder.inttoptr(address, ir.PointerType())
        self.builder.call(store, [value.value, pointer, ir.Constant(_I32, size), mask.value])

    def first_lanes(self, n: ir.Value, lanes: int = LANES) -> Vec:
        """The mask of lanes below `n` (int64; negative is none): for tails."""
        steps = self.constant(range(lanes), "i64")
        return steps.compare("<", self.splat(self.i64(n), lanes))

    def mask_from_bits(self, bits: ir.Value) -> Vec:
        """The inverse of `Vec.bits`: an i16 (i8, i32, ...) becomes a mask of as many lanes."""
        return Vec(self, self.builder.bitcast(bits, ir.VectorType(_I1, bits.type.width)))

    # ---- conversion ------------------------------------------------------------------------------------

    def load_f32(
        self,
        address: ir.Value,
        element: str,
        index: ir.Value | int = 0,
        lanes: int = LANES,
        mask: Vec | None = None,
    ) -> Vec:
        """Load f32, f16, bf16, i8, u8, i16 or i32 and widen to f32."""
        if mask is None:
            raw = self.load(address, element, index, lanes)
        else:
            raw = self.load_masked(address, element, mask, index)
        return self.to_f32(raw, element)

    def to_f32(self, raw: Vec, element: str) -> Vec:
        """Widen lanes that were loaded as `element`."""
        target = ir.VectorType(_F32, raw.lanes)
        if element == "f32":
            return raw
        if element == "f16":
            return Vec(self, self.builder.fpext(raw.value, target))
        if element == "bf16":
            wide = self.widen(raw, "u16") << 16
            return Vec(self, self.builder.bitcast(wide.value, target))
        return Vec(self, self.builder.sitofp(self.widen(raw, element).value, target))

    def widen(self, raw: Vec, element: str) -> Vec:
        """Integer lanes to i32; a name that starts with ``u`` extends by zeros."""
        target = ir.VectorType(_I32, raw.lanes)
        if raw.type.element.width == 32:
            return raw
        extend = self.builder.zext if element.startswith("u") else self.builder.sext
        return Vec(self, extend(raw.value, target))

    def to_i8(self, value: Vec) -> Vec:
        """f32 to int8: round half to even, clamp to [-128, 127], narrow. NaN becomes -128."""
        clamped = self.minimum(self.maximum(self.rint(value), -128.0), 127.0)
        return self.to_i32(clamped).narrow("i8")

    def to_i32(self, value: Vec) -> Vec:
        """f32 to int32 by truncation (round first); the value must fit."""
        return Vec(self, self.builder.fptosi(value.value, ir.VectorType(_I32, value.lanes)))

    def to_f16(self, value: Vec) -> Vec:
        """f32 to fp16, round half to even."""
        return Vec(self, self.builder.fptrunc(value.value, ir.VectorType(_F16, value.lanes)))

    def from_f32(self, value: Vec, element: str) -> Vec:
        """Narrow lanes to what `to_f32` widens: f32, f16 or i8."""
        return {"f32": lambda v: v, "f16": self.to_f16, "i8": self.to_i8}[element](value)

    def bitcast(self, value: Vec, element: str) -> Vec:
        """The same bits as lanes of another type."""
        kind, size = _ELEMENT[element]
        lanes = value.lanes * _bytes_of(value.type.element) // size
        return Vec(self, self.builder.bitcast(value.value, ir.VectorType(kind, lanes)))

    # ---- arithmetic ------------------------------------------------------------------------------------

    def fma(self, a: Vec, b: Vec | float, c: Vec | float) -> Vec:
        """a·b + c, rounded once."""
        call = self.function(f"llvm.fma.{_mangle(a.type)}", a.type, [a.type] * 3)
        return Vec(self, self.builder.call(call, [a.value, a._with(b), a._with(c)]))

    def maximum(self, a: Vec, b: Vec | float) -> Vec:
        """The larger lane; `b` where `a` is NaN."""
        return a.compare(">", b).where(a, Vec(self, a._with(b)))

    def minimum(self, a: Vec, b: Vec | float) -> Vec:
        """The smaller lane; `b` where `a` is NaN."""
        return a.compare("<", b).where(a, Vec(self, a._with(b)))

    def rint(self, a: Vec) -> Vec:
        """Round to the nearest integer, halves to even."""
        return self._unary("llvm.rint", a)

    def abs(self, a: Vec) -> Vec:
        return self._unary("llvm.fabs", a)

    def sqrt(self, a: Vec) -> Vec:
        return self._unary("llvm.sqrt", a)

    def exp2(self, x: Vec) -> Vec:
        """2^x, relative error below 2e-7; below -126 it stays at 2^-126, above 127 at 2^127."""
        x = self.minimum(self.maximum(x, -126.0), 127.0)
        whole = self.rint(x)
        part = x - whole
        series = self._horner(part, _EXP2)
        exponent = self.to_i32(whole) << 23
        return self.bitcast(self.bitcast(series, "i32") + exponent, "f32")

    def exp(self, x: Vec) -> Vec:
        """e^x, relative error about 2e-7 · (1 + |x|/3) from the product with log2 e."""
        return self.exp2(x * LOG2E)

    def sigmoid(self, x: Vec) -> Vec:
        """1 / (1 + e^-x)."""
        return 1.0 / (1.0 + self.exp2(x * -LOG2E))

    def silu(self, x: Vec) -> Vec:
        """x · sigmoid(x)."""
        return x / (1.0 + self.exp2(x * -LOG2E))

    def softplus(self, x: Vec) -> Vec:
        """log(1 + e^x) = max(x, 0) + log1p(e^-|x|), relative error below 1e-6 on both tails."""
        u = self.exp2(self.abs(x) * -LOG2E)
        s = u / (u + 2.0)
        return self.maximum(x, 0.0) + (s + s) * self._horner(s * s, _ATANH)

    def sum(self, a: Vec) -> ir.Value:
        """All lanes added, as a tree: lane i to lane i + half."""
        total = a
        while total.lanes > 1:
            half = total.lanes // 2
            total = self.lanes_of(total, range(half)) + self.lanes_of(total, range(half, 2 * half))
        return total.lane(0)

    def max(self, a: Vec) -> ir.Value:
        """The largest lane."""
        top = a
        while top.lanes > 1:
            half = top.lanes // 2
            top = self.maximum(self.lanes_of(top, range(half)), self.lanes_of(top, range(half, 2 * half)))
        return top.lane(0)

    def sums(self, a: Vec, b: Vec, c: Vec, d: Vec) -> Vec:
        """The horizontal sums of four vectors of 16 lanes, as four lanes, at the price of two."""
        ab, cd = (self.shuffle(*self._halves(p, q), range(16)) for p, q in ((a, b), (c, d)))
        quarters = (0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27)
        v = self.shuffle(ab, cd, quarters) + self.shuffle(ab, cd, [i + 4 for i in quarters])
        pairs = (0, 1, 4, 5, 8, 9, 12, 13)
        v = self.lanes_of(v, pairs) + self.lanes_of(v, [i + 2 for i in pairs])
        return self.lanes_of(v, (0, 2, 4, 6)) + self.lanes_of(v, (1, 3, 5, 7))

    def _halves(self, a: Vec, b: Vec) -> tuple[Vec, Vec]:
        low, high = range(8), range(8, 16)
        return self.lanes_of(a, low) + self.lanes_of(a, high), self.lanes_of(b, low) + self.lanes_of(b, high)

    def shuffle(self, a: Vec, b: Vec, lanes: Sequence[int]) -> Vec:
        """Pick lanes out of `a` (0 …) and `b` (lanes of a …)."""
        mask = ir.Constant(ir.VectorType(_I32, len(lanes)), list(lanes))
        return Vec(self, self.builder.shuffle_vector(a.value, b.value, mask))

    # ---- control ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def loop(self, start: ir.Value | int, stop: ir.Value | int, step: int = 1) -> Iterator[ir.Value]:
        """A counted loop; yields the int64 counter. What changes inside must be a `Cell` or memory."""
        bounds = (self.i64(start), self.i64(stop), ir.Constant(_I64, step))
        with cgutils.for_range_slice(self.builder, *bounds, intp=_I64) as (index, _):
            yield index

    # ---- helpers ---------------------------------------------------------------------------------------

    def _horner(self, x: Vec, coefficients: Sequence[float]) -> Vec:
        value = self.splat(coefficients[-1], x.lanes)
        for c in reversed(coefficients[:-1]):
            value = self.fma(value, x, c)
        return value

    def lanes_of(self, a: Vec, lanes: Sequence[int]) -> Vec:
        """Pick lanes out of one vector."""
        return self.shuffle(a, a, lanes)

    def _unary(self, name: str, a: Vec) -> Vec:
        call = self.function(f"{name}.{_mangle(a.type)}", a.type, [a.type])
        return Vec(self, self.builder.call(call, [a.value]))

    def function(self, name: str, result: ir.Type, arguments: Sequence[ir.Type]) -> ir.Function:
        """An LLVM intrinsic by its full name, declared once in the module."""
        return cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(result, arguments), name)


def _bytes_of(element: ir.Type) -> int:
    if isinstance(element, ir.IntType):
        return int(element.width) // 8
    return {ir.HalfType: 2, ir.FloatType: 4, ir.DoubleType: 8}[type(element)]


def _mangle(vector: ir.VectorType) -> str:
    element = vector.element
    if isinstance(element, ir.IntType):
        return f"v{vector.count}i{element.width}"
    return f"v{vector.count}f{8 * _bytes_of(element)}"
