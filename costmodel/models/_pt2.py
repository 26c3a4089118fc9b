"""Is a ``.pt2`` only data? Asked before torch reads it, because torch would run what it finds.

``torch.export.load`` (2.13) unpickles tensor subclasses and objects with ``weights_only=False``, falls back to the same
for sample inputs, loads compiled libraries, evaluates shape expressions with sympy (which is Python's eval), looks ops
up as any attribute under ``torch`` (``torch.os.system`` is one), and writes names into Python source. A program that
``torch.export`` made of plain tensors and registered ops needs none of this, so whatever does is refused.
"""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.utils._sympy import functions as sympy_functions

from ..errors import FileError

__all__ = ["check_archive", "is_arithmetic"]

_DATA = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+|data/weights/\w+\.json|data/constants/\w+\.json"
    r"|data/sample_inputs/\w+\.pt|models/\w+\.json|extra/[\w./-]+|\.data/\w+|archive_format|archive_version|version|byteorder"
)
_OP = re.compile(
    r"torch\.ops(\.\w+){2,4}|torch\.sym_\w+|_operator\.[a-z]+_?|math\.[a-z0-9]+|torch\._C\._functorch\.\w+"
)
# builders of callables, not arithmetic on sizes
_NOT_ARITHMETIC = {"_operator.attrgetter", "_operator.itemgetter", "_operator.methodcaller", "_operator.call"}
# ops that reach for a file or the terminal, whatever they compute
_REACHES_OUT = re.compile(r"torch\.ops\.(aten\.(from_file|save|_print)|debugprims|profiler|inductor)(\.\w+)*")
_NAME = re.compile(r"[A-Za-z_]\w*")
# sympy's classes in a shape expression, beside torch's own; a name such as S would evaluate the string that it is given
_SYMPY = (
    "Symbol Integer Rational Float Add Mul Pow Max Min And Or Not Eq Ne Le Lt Ge Gt Equality Unequality LessThan"
    " StrictLessThan GreaterThan StrictGreaterThan Piecewise"
)
_FUNCTIONS = frozenset(_SYMPY.split()) | frozenset(sympy_functions.__all__)
_POWERS = {"Pow", "PowByNatural", "FloatPow", "LShift"}
_MAX_EXPRESSION = 10_000
_MAX_EXPONENT = 16
_MAX_HEADER_BYTES = 256 << 20


def check_archive(path: Path) -> None:
    """Raise `FileError` unless the file is an uncompressed ``torch.export`` archive of nothing but data."""
    if not path.is_file():
        raise FileError(path, "", "no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(path, archive)
            for member, info in members.items():
                if member.endswith(".json"):
                    _check_json(path, member, _parse(path, member, archive, info))
                elif member.endswith(".pt"):
                    _check_pickle(path, member, archive.read(info))
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        raise FileError(path, "", f"is not a .pt2 archive of torch.export.save ({error})") from error


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Members without the folder that all of them are in; refuses what is compressed, repeated, outside or unknown."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        _, _, member = info.filename.partition("/")
        if ".." in PurePosixPath(info.filename).parts or info.filename.startswith("/"):
            raise FileError(path, info.filename, "points outside the archive")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise FileError(
                path, info.filename, "is compressed; torch.export.save stores, so this file was not made by it"
            )
        if member in members:
            raise FileError(path, info.filename, "is in the archive twice")
        if member.startswith("data/aotinductor/"):
            raise FileError(path, info.filename, "holds compiled code; give the file that torch.export.save wrote")
        if not _DATA.fullmatch(member):
            raise FileError(path, info.filename, "is not plain data (a pickled object or an old format); export again")
        members[member] = info
    if not any(m.startswith("models/") for m in members):
        raise FileError(path, "models/", "no exported program in the archive; make it with torch.export.save")
    return members


def _parse(path: Path, member: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Any:
    if info.file_size > _MAX_HEADER_BYTES:
        raise FileError(path, member, f"is {info.file_size} bytes of JSON; more than {_MAX_HEADER_BYTES} is refused")
    try:
        return json.loads(archive.read(info))
    except (ValueError, RecursionError) as error:
        raise FileError(path, member, f"is not JSON ({error})") from error


def _check_pickle(path: Path, member: str, data: bytes) -> None:
    """torch falls back to a full unpickling when the safe one fails; so the safe one has to succeed."""
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, AttributeError, TypeError) as error:
        raise FileError(path, member, "holds more than tensors: it does not load with weights_only=True") from error


def _check_json(path: Path, member: str, document: Any) -> None:
    """Refuse pickled payloads, unknown callables, expressions that are not arithmetic, and names that are not names."""
    for key, value in _pairs(document):
        if key == "use_pickle" and value is not False:
            raise FileError(
                path, f"{member}: {key}", "a tensor is stored as a pickle, which would be executed; refused"
            )
        if not isinstance(value, str):
            continue
        if key in {"target", "as_operator"} and value and not _is_op(value):
            problem = f"{value[:80]!r} is not a registered operator that only computes"
            raise FileError(path, f"{member}: {key}", problem)
        if key == "expr_str" and not is_arithmetic(value):
            raise FileError(path, f"{member}: {key}", f"{value[:80]!r} is not an arithmetic expression")
        if key == "name" and value and member.startswith("models/") and not _NAME.fullmatch(value):
            raise FileError(path, f"{member}: {key}", f"{value[:80]!r} is not a name")


def _is_op(target: str) -> bool:
    return (
        _OP.fullmatch(target) is not None
        and "__" not in target
        and target not in _NOT_ARITHMETIC
        and _REACHES_OUT.fullmatch(target) is None
    ) or _NAME.fullmatch(target) is not None  # a name of a parameter, or an op that torch itself reports as unknown


def is_arithmetic(text: str) -> bool:
    """Whether `text` is numbers, names and sympy classes of them, as torch writes shape expressions."""
    if len(text) > _MAX_EXPRESSION:
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(_is_arithmetic_node(node) for node in ast.walk(tree.body))


def _is_arithmetic_node(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return _NAME.fullmatch(node.value) is not None
        return isinstance(node.value, (bool, int, float))
    if isinstance(node, ast.Name):
        return "__" not in node.id
    if isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        return name in _FUNCTIONS and (name not in _POWERS or _is_small_exponent(node.args[1:]))
    if isinstance(node, ast.BinOp):
        return not isinstance(node.op, ast.Pow) or _is_small_exponent([node.right])
    structure = (ast.UnaryOp, ast.Compare, ast.BoolOp, ast.keyword, ast.operator, ast.unaryop, ast.cmpop, ast.boolop)
    return isinstance(node, (*structure, ast.expr_context))


def _is_small_exponent(arguments: list[ast.expr]) -> bool:
    numbers = [n.value for a in arguments for n in ast.walk(a) if isinstance(n, ast.Constant)]
    return all(isinstance(n, (int, float)) and abs(n) <= _MAX_EXPONENT for n in numbers)


def _pairs(document: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value of a nested document, without recursion."""
    pending = [document]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            yield from node.items()
            pending += node.values()
        elif isinstance(node, list):
            pending += node
