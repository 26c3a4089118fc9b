"""Products of bytes: the one instruction that integer GEMMs are made of, where there is one, and exact where not."""

from __future__ import annotations

import platform
from functools import cache

import llvmlite.binding as llvm
from numba.core import config

from .simd import Simd, Vec

__all__ = ["dot_instruction", "dot_s16", "dot_u8s8"]


def _features() -> dict[str, bool]:
    """Features of the CPU that numba compiles for: the host's, or those that `NUMBA_CPU_FEATURES` lists for another."""
    if getattr(config, "CPU_NAME", None) not in (None, "", "host"):
        listed = (getattr(config, "CPU_FEATURES", None) or "").split(",")
        return {name[1:]: name[0] == "+" for name in listed if name}
    return dict(llvm.get_host_cpu_features())


@cache
def dot_instruction() -> str:
    """How four products of bytes are added: ``vnni`` (AVX-512), ``usdot`` or ``sdot`` (Arm), or ``generic``.

    Asked before anything is compiled: LLVM aborts the process where an instruction is missing. LLVM older than 22 takes
    other operands for the first: the exact generic form runs there.
    """
    machine, has = platform.machine().lower(), _features()
    if machine in ("x86_64", "amd64"):
        wanted = ("avx512f", "avx512bw", "avx512vnni")
        return "vnni" if llvm.llvm_version_info[0] >= 22 and all(has.get(f, False) for f in wanted) else "generic"
    if machine in ("aarch64", "arm64"):
        return "usdot" if has.get("i8mm", False) else "sdot" if has.get("dotprod", False) else "generic"
    return "generic"


def dot_u8s8(s: Simd, acc: Vec, unsigned: Vec, signed: Vec) -> Vec:
    """acc (16 x i32) += 4 products of u8 by s8 a lane, exact, from any vectors of 64 bytes.

    One instruction where there is one (`dot_instruction`); elsewhere even and odd bytes as 16-bit lanes, whose products
    are added in pairs (pmaddwd on x86, smull and addp on Arm).
    """
    how = dot_instruction()
    if how == "vnni":
        u, w = s.bitcast(unsigned, "i8"), s.bitcast(signed, "i8")
        call = s.function("llvm.x86.avx512.vpdpbusd.512", acc.type, [acc.type, u.type, w.type])
        return Vec(s, s.builder.call(call, [acc.value, u.value, w.value]))
    if how in ("usdot", "sdot"):
        return _dot_arm(s, how, acc, s.bitcast(unsigned, "i8"), s.bitcast(signed, "i8"))
    u, w = s.bitcast(unsigned, "i16"), s.bitcast(signed, "i16")
    even = _dot_i16(s, u & 255, (w << 8).shift_signed(8))
    return acc + even + _dot_i16(s, u >> 8, w.shift_signed(8))


def _dot_arm(s: Simd, how: str, acc: Vec, u: Vec, w: Vec) -> Vec:
    """In quarters of 16 bytes; without usdot, u·w = (u - 128)·w + 64·w + 64·w."""
    quarters = []
    name = f"llvm.aarch64.neon.{how}.v4i32.v16i8"
    for q in range(4):
        sums = s.lanes_of(acc, range(4 * q, 4 * q + 4))
        a, b = (s.lanes_of(v, range(16 * q, 16 * q + 16)) for v in (u, w))
        terms = [a] if how == "usdot" else [a ^ -128, s.splat(64, 16, "i8"), s.splat(64, 16, "i8")]
        call = s.function(name, sums.type, [sums.type, b.type, b.type])
        for term in terms:
            sums = Vec(s, s.builder.call(call, [sums.value, term.value, b.value]))
        quarters.append(sums)
    low, high = (s.shuffle(quarters[i], quarters[i + 1], range(8)) for i in (0, 2))
    return s.shuffle(low, high, range(16))


def dot_s16(s: Simd, acc: Vec, a: Vec, b: Vec) -> Vec:
    """acc (16 x i32) += 2 products of s16 by s16 a lane, exact up to overflow of the sum, from vectors of 64 bytes."""
    x, y = s.bitcast(a, "i16"), s.bitcast(b, "i16")
    if dot_instruction() == "vnni":
        call = s.function("llvm.x86.avx512.vpdpwssd.512", acc.type, [acc.type, x.type, y.type])
        return Vec(s, s.builder.call(call, [acc.value, x.value, y.value]))
    return acc + _dot_i16(s, x, y)


def _dot_i16(s: Simd, a: Vec, b: Vec) -> Vec:
    """32 x i16 by 32 x i16: products of neighbours added, 16 x i32."""
    product = s.widen(a, "i16") * s.widen(b, "i16")
    return s.lanes_of(product, range(0, 32, 2)) + s.lanes_of(product, range(1, 32, 2))
