"""What a PyTorch model will cost on an edge device, before you deploy it.

    import costmodel as cm

    graph = cm.capture(model, inputs, mode="train")            # an OpGraph; graph.nx is the networkx graph
    estimate = cm.estimate(graph, cm.load_device("raspberry-pi-4b"))
    print(estimate.latency_s.low, estimate.latency_s.point, estimate.latency_s.high)

Importing costs neither torch, numba nor matplotlib: each name below is loaded when it is first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "apply_method": "methods",
    "calibrate": "calibrate",
    "capture": "capture",
    "compare": "compare",
    "cost": "costs",
    "Cost": "costs",
    "CostmodelError": "errors",
    "estimate": "estimate",
    "Estimate": "estimate",
    "load": "graph",
    "load_device": "device",
    "load_model": "models",
    "measure": "measure",
    "OpGraph": "graph",
    "pareto": "pareto",
    "render": "report",
    "request": "job",
    "Run": "runs",
    "training_job": "job",
    "validate": "validate",
}
__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from .capture import capture as capture
    from .costs import Cost as Cost
    from .costs import cost as cost
    from .device import load_device as load_device
    from .errors import CostmodelError as CostmodelError
    from .estimate import Estimate as Estimate
    from .estimate import estimate as estimate
    from .graph import OpGraph as OpGraph
    from .graph import load as load


class _Package(ModuleType):
    """A file and its function share a name (name is file): `costmodel.capture` is the function, whatever was
    imported before, so the import system may not put the file's module in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'costmodel' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


def _show_in_notebooks() -> None:
    """Register the HTML of our types where an IPython shell runs."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    if shell is not None:
        import_module(".jupyter", __name__).load_ipython_extension(shell)


_show_in_notebooks()
