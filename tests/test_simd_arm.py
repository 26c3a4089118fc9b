"""The kernels' vector bodies as Arm code: compiled for NEON always, and run under qemu where it can be had.

`COSTMODEL_ARM_TOOLS` names a folder with ``qemu-aarch64-static``, ``aarch64-linux-gnu-ld`` and ``aarch64-linux-gnu-as``
(what unpacked Debian packages qemu-user-static and binutils-aarch64-linux-gnu hold in usr/bin); else the PATH is asked.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir
from numba import types

from costmodel.kernels import conv_int8, dot, gemm_int4, gemm_int8, hadamard, scan_int8, ssd_chunks, ssd_int8
from costmodel.kernels.dot import dot_u8s8
from costmodel.kernels.simd import Simd

I64, I32, I8 = ir.IntType(64), ir.IntType(32), ir.IntType(8)
TRIPLE = "aarch64-unknown-linux-gnu"
CPUS = {"usdot": ("neoverse-n2", "+neon,+dotprod,+i8mm"), "sdot": ("cortex-a76", "+neon,+dotprod")}
CPUS["generic"] = ("cortex-a53", "+neon")


class Context:
    """What the generators ask of numba's target context."""

    @staticmethod
    def get_dummy_value():
        return ir.Constant(I8, 0)


def emit(builder, intrinsic, *args):
    """Call a numba intrinsic's generator with Python ints (literals) and IR values (int64 or double)."""
    kinds = [
        types.literal(a) if isinstance(a, int) else types.float64 if isinstance(a.type, ir.DoubleType) else types.int64
        for a in args
    ]
    signature, generate = intrinsic._defn(None, *kinds)
    values = [ir.Constant(I64, a) if isinstance(a, int) else a for a in args]
    return generate(Context(), builder, signature, values)


def target(how):
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    cpu, features = CPUS[how]
    return llvm.Target.from_triple(TRIPLE).create_target_machine(cpu=cpu, features=features, opt=3, reloc="static")


def program(body, inputs, sizes):
    """A module of which `body(builder, addresses of inputs, addresses of outputs)` is the code, ``out`` the result."""
    module = ir.Module()
    module.triple = TRIPLE
    addresses = []
    for i, a in enumerate(inputs):
        data = bytearray(np.ascontiguousarray(a).tobytes())
        g = ir.GlobalVariable(module, ir.ArrayType(I8, len(data)), f"in{i}")
        g.initializer, g.align = ir.Constant(g.type.pointee if hasattr(g.type, "pointee") else g.value_type, data), 64
        addresses.append(g)
    total = sum(sizes)
    out = ir.GlobalVariable(module, ir.ArrayType(I8, total), "out")
    out.initializer, out.align = ir.Constant(out.value_type, bytearray(total)), 64
    start = ir.Function(module, ir.FunctionType(ir.VoidType(), []), "body")
    builder = ir.IRBuilder(start.append_basic_block())
    sources = [builder.ptrtoint(g, I64) for g in addresses]
    base = builder.ptrtoint(out, I64)
    targets = [builder.add(base, ir.Constant(I64, sum(sizes[:i]))) for i in range(len(sizes))]
    body(builder, sources, targets)
    builder.ret_void()
    return module


def tool(name):
    folder = os.environ.get("COSTMODEL_ARM_TOOLS")
    return shutil.which(name, path=folder) if folder else shutil.which(name)


def run(module, how, tmp_path: Path, sizes, dots=False):
    """Link and run under qemu; the outputs as bytes. Without the tools: compile, and skip what would run.

    `dots`: the body multiplies bytes, which takes the instruction called `how` where the core has it.
    """
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    machine = target(how)
    assembly = machine.emit_assembly(parsed)
    if dots and how == "generic":
        assert "dot" not in assembly
        assert "smull" in assembly
    elif dots:
        assert f"\t{how}\tv" in assembly
    else:
        assert "fmla" in assembly
    qemu = tool("qemu-aarch64-static") or tool("qemu-aarch64")
    ld, assembler = tool("aarch64-linux-gnu-ld"), tool("aarch64-linux-gnu-as")
    if qemu is None or ld is None or assembler is None:
        pytest.skip("compiled for NEON; no qemu-aarch64 and aarch64 binutils to run it (COSTMODEL_ARM_TOOLS)")
    (tmp_path / "a.o").write_bytes(machine.emit_object(parsed))
    # run the body, write(1, out, size), exit(0)
    size = sum(sizes)
    (tmp_path / "start.s").write_text(
        ".global _start\n_start: bl body\nmov x0, #1\nldr x1, =out\n"
        f"ldr x2, ={size}\nmov x8, #64\nsvc #0\nmov x0, #0\nmov x8, #93\nsvc #0\n"
    )
    libraries = Path(ld).parent.parent / "lib" / "x86_64-linux-gnu"
    environment = os.environ | {"LD_LIBRARY_PATH": str(libraries)}
    objects = [tmp_path / "a.o", tmp_path / "start.o"]
    subprocess.run([assembler, "-o", objects[1], tmp_path / "start.s"], check=True, env=environment)
    subprocess.run([ld, "-o", tmp_path / "a", *objects], check=True, env=environment)
    done = subprocess.run([qemu, tmp_path / "a"], check=True, capture_output=True, timeout=60)
    ends = np.cumsum([0, *sizes])
    return [done.stdout[a:b] for a, b in pairwise(ends)]


@pytest.mark.parametrize("how", CPUS)
def test_dot_products(monkeypatch, tmp_path, how):
    monkeypatch.setattr(dot, "dot_instruction", lambda: how)
    rng = np.random.default_rng(0)
    u, w = rng.integers(0, 256, 64, np.uint8), rng.integers(-128, 128, 64, np.int8)
    u[:8], w[:8] = 255, -128

    def body(builder, sources, targets):
        s = Simd(builder)
        total = dot_u8s8(
            s, s.splat(-7, element="i32"), s.load(sources[0], "u8", lanes=64), s.load(sources[1], "i8", lanes=64)
        )
        s.store(targets[0], total)

    (got,) = run(program(body, [u, w], [64]), how, tmp_path, [64], dots=True)
    want = (u.astype(np.int64) * w).reshape(16, 4).sum(1) - 7
    np.testing.assert_array_equal(np.frombuffer(got, np.int32), want)


@pytest.mark.parametrize("how", CPUS)
def test_integer_gemm_tiles(monkeypatch, tmp_path, how):
    monkeypatch.setattr(dot, "dot_instruction", lambda: how)
    rng = np.random.default_rng(1)
    k = 128
    x = rng.integers(-128, 128, (2, k), dtype=np.int8)
    w = rng.integers(-128, 128, (64, k), dtype=np.int8)
    q = rng.integers(0, 16, (64, k), dtype=np.uint8)
    panels = w.reshape(1, 4, 16, k // 4, 4).transpose(0, 3, 1, 2, 4)
    lanes = q.reshape(4, 16, k // 4, 4).transpose(2, 0, 1, 3)
    nibbles = lanes[:, 0::2] | (lanes[:, 1::2] << 4)
    scale, ones = rng.random(64, np.float32), np.ones(2, np.float32)
    groups, rowsum = rng.random(64).astype(np.float16), w.sum(1, dtype=np.int32)
    sums = (-8 * x.sum(1, dtype=np.int32)).astype(np.int32)
    inputs = [x.view(np.uint8) ^ 0x80, panels, rowsum, ones, scale, x, sums, nibbles, groups]

    def body(builder, p, targets):
        c = [ir.Constant(I64, v) for v in (k, 0, 64, 128)]
        emit(builder, gemm_int8._tile, 2, 0, p[0], c[0], p[1], p[2], p[3], c[1], p[4], c[1], targets[0], c[2], c[2])
        emit(
            builder,
            gemm_int4._tile,
            2,
            0,
            p[5],
            p[6],
            c[0],
            c[3],
            p[7],
            p[8],
            p[3],
            c[1],
            p[4],
            c[1],
            targets[1],
            c[2],
            c[2],
        )

    eight, four = run(program(body, inputs, [512, 512]), how, tmp_path, [512, 512], dots=True)
    want = (x.astype(np.int64) @ w.T) * scale.astype(np.float64)
    np.testing.assert_allclose(np.frombuffer(eight, np.float32).reshape(2, 64), want, rtol=1e-6)
    want = (x.astype(np.int64) @ (q.astype(np.int64) - 8).T) * (groups.astype(np.float64) * scale)
    np.testing.assert_allclose(np.frombuffer(four, np.float32).reshape(2, 64), want, rtol=1e-5)


def test_scan_convolution_rotation_and_state(tmp_path):
    rng = np.random.default_rng(2)
    states = 16
    u, delta, z = (rng.integers(-127, 128, 16, dtype=np.int8) for _ in range(3))
    a2, h = -rng.random((states, 16), np.float32) * 3, rng.standard_normal((states, 16)).astype(np.float32)
    bc, scales = rng.standard_normal((2, states)).astype(np.float32), np.array([0.02, 1, 1, 0.02], np.float32)
    per_channel, skip, bias = (rng.random(16, np.float32) for _ in range(3))
    y128 = rng.standard_normal(128).astype(np.float32)
    inputs = [u, delta, z, per_channel, scales, a2, skip, bias, h, bc, y128]
    sizes = [64, 4 * states * 16, 512, 128]

    def body(builder, p, t):
        s = Simd(builder)
        for i in range(states):
            s.store(t[1], s.load(p[8], "f32", 16 * i), 16 * i)
        for i in range(8):
            s.store(t[2], s.load(p[10], "f32", 16 * i), 16 * i)
        row, one, n = (ir.Constant(I64, v) for v in (16, 1, states))
        emit(
            builder, scan_int8._tile, p[0], row, p[1], row, p[2], row, t[0], row, p[3], p[4], p[5], p[6], p[7], t[1],
            p[9], one, n, 1,
        )  # fmt: skip
        emit(builder, hadamard._transform_run, t[2], 128)
        emit(builder, hadamard.quantize_row, t[2], ir.Constant(I64, 128), ir.Constant(ir.DoubleType(), 2.0), t[3])

    y, state, rotated, quantized = run(program(body, inputs, sizes), "sdot", tmp_path, sizes)
    dt = np.log1p(np.exp(delta * 0.02 + bias.astype(np.float64)))
    x, gate = u * per_channel.astype(np.float64), z * 0.02
    new = np.exp2(dt * a2) * h + (dt * x) * bc[0][:, None]
    want = ((new * bc[1][:, None]).sum(0) + skip * x) * gate / (1 + np.exp(-gate))
    np.testing.assert_allclose(np.frombuffer(state, np.float32).reshape(states, 16), new, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.frombuffer(y, np.float32), want, rtol=1e-4, atol=1e-5)
    transformed = hadamard.hadamard_matrix(128).numpy() @ y128
    np.testing.assert_allclose(np.frombuffer(rotated, np.float32), transformed, rtol=1e-5, atol=1e-5)
    rounded = np.clip(np.rint(np.frombuffer(rotated, np.float32) * 2), -128, 127)
    np.testing.assert_array_equal(np.frombuffer(quantized, np.int8), rounded)


def test_every_step_kernel_compiles_for_neon(monkeypatch):
    """The bodies that the test above does not run."""
    module = ir.Module()
    module.triple = TRIPLE
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * 10), "f")
    builder = ir.IRBuilder(function.append_basic_block())
    a = function.args
    emit(builder, conv_int8._row, *a[:9], 1)
    scalar = Simd(builder).scalar(a[0], "f32")
    _, generate = ssd_int8._step_tile._defn(None, *[types.int64] * 9, types.literal(2))
    generate(Context(), builder, None, [a[0], a[1], scalar, scalar, a[2], a[3], a[4], scalar, a[5], a[6]])
    monkeypatch.setattr(dot, "dot_instruction", lambda: "sdot")
    _, generate = ssd_chunks._advance._defn(None, types.literal(4), *[types.int64] * 8)
    generate(Context(), builder, None, [a[0], a[0], a[1], a[2], a[3], scalar, scalar, a[4], a[5]])
    builder.ret_void()
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    assembly = target("sdot").emit_assembly(parsed)
    assert assembly.count("fmla") > 20
    assert assembly.count("smull") + assembly.count("smlal") > 20
