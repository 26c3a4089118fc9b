"""What each op costs: pure functions of shapes, one file a family, each with a `FORMULAS` dict.

A formula takes an `OpSpec` and returns a `Cost`. The table is the union of the `FORMULAS` of the files in this folder
and of what users register with `cost`; an op that is in neither is a gap, and every report lists it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps

from ..errors import CostmodelError
from .spec import Cost, OpSpec, TensorSpec, op

__all__ = ["Cost", "Formula", "OpSpec", "TensorSpec", "cost", "formula_for", "formulas", "op", "rewritten"]

Formula = Callable[[OpSpec], Cost]
_USERS: dict[str, Formula] = {}


@cache
def _shipped() -> dict[str, Formula]:
    table: dict[str, Formula] = {}
    for module in sorted(m.name for m in pkgutil.iter_modules(__path__)):
        for name, formula in getattr(importlib.import_module(f"{__name__}.{module}"), "FORMULAS", {}).items():
            if name in table:
                raise CostmodelError(f"two formulas for {name}: in costs/{module}.py and in {table[name].__module__}")
            table[name] = formula
    return table


def formulas() -> dict[str, Formula]:
    """Every formula by op name, users' own ones last (they win)."""
    return _shipped() | _USERS


def formula_for(name: str) -> Formula | None:
    """The formula of ``ns::op`` (overload names are ignored), or None: a gap, for the report to list."""
    base = name.split(".", 1)[0]
    return _USERS.get(base) or _shipped().get(base)


def cost(name: str) -> Callable[[Formula], Formula]:
    """Register the cost of your own op, in five lines.

    >>> @cost("mylib::twice")
    ... def twice(op):
    ...     n = op.outputs[0].numel
    ...     return Cost(flops=n, kind="elementwise")
    >>> formula_for("mylib::twice.default")(op("mylib::twice", [(4,)], [(4,)])).flops
    4
    """
    if "::" not in name or "." in name:
        raise CostmodelError(f"an op is named 'namespace::op' without an overload, not {name!r}")

    def register(formula: Formula) -> Formula:
        _USERS[name] = formula
        return formula

    return register


@contextmanager
def rewritten(change: Callable[[Cost], Cost]) -> Iterator[None]:
    """Every formula followed by `change` while the context lasts: how a term is taken out to see what it buys."""
    own = dict(_USERS)

    def changed(formula: Formula) -> Formula:
        @wraps(formula)
        def both(op: OpSpec) -> Cost:
            return change(formula(op))

        return both

    _USERS.update({name: changed(formula) for name, formula in formulas().items()})
    try:
        yield
    finally:
        _USERS.clear()
        _USERS.update(own)
