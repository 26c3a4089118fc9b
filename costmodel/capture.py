"""A step on fake tensors to an op graph: nothing is computed, every op, shape, alias and lifetime is seen.

The step (forward, loss, backward, optimizer) runs under `FakeTensorMode` inside a `TorchDispatchMode`, below autograd:
custom `autograd.Function`s, hooks and optimizers are recorded as the ops that they run. A storage dies when its last
reference goes, which is when the allocator gets it back in a real run.
"""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, UnsupportedOperatorException
from torch.nn.modules import module as module_hooks
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass

from . import kernels as _kernels  # noqa: F401  registers our custom ops, so that saved models resolve them
from .errors import CaptureError, CostmodelError
from .fakes import DATA_DEPENDENT, Values, fake_inputs, fake_model, numbers_read
from .graph import GraphMeta, OpGraph
from .inplace import accumulate_in_place
from .models.step import Loss, Step, as_call, make_step

__all__ = ["Recorder", "capture"]

# Bookkeeping of the dispatcher and of profilers: no work, no memory.
IGNORED_NAMESPACES = frozenset({"prim", "profiler"})
IGNORED_OPS = frozenset(
    {
        "aten::_record_function_enter_new",
        "aten::is_same_size",
        "aten::sym_size",
        "aten::_assert_tensor_metadata",
    }
)
_ADD = torch.ops.aten.add.Tensor
# Prints tracebacks of what is raised here in one line.
_FAKE_LOG = logging.getLogger("torch._subclasses.fake_tensor")


class Recorder(TorchDispatchMode):
    """Records every op into an `OpGraph`, and every storage's birth and death."""

    def __init__(self, graph: OpGraph, values: Values | None = None) -> None:
        super().__init__()
        self.graph = graph
        self.values = values or Values()
        self.phase = "forward"
        self.modules: list[str] = [""]
        self.paused = False
        self._storages: dict[int, int] = {}  # address of the StorageImpl, unique while it lives -> storage number
        self._finalizers: list[Any] = []
        self._tensors: dict[tuple[Any, ...], int] = {}
        self._schemas: dict[Any, tuple[str, list[str], list[int]] | None] = {}
        self._module_of_node: dict[int, str] = {}
        self._nodes_seen = torch._C._autograd._get_sequence_nr()
        self._dtypes: dict[torch.dtype, str] = {}
        self._accumulated: list[int] = []  # additions that autograd's engine itself asked for

    def close(self) -> None:
        """Stop listening: what is still alive outlives the step."""
        for finalizer in self._finalizers:
            finalizer.detach()
        accumulate_in_place(self.graph, self._accumulated)

    # storages and tensors

    def storage(self, tensor: Tensor, role: str, name: str = "", birth: int | None = None) -> int:
        """The number of the tensor's storage; a new one is born now, or before the step if `birth` is -1."""
        if tensor.layout != torch.strided:
            raise CaptureError(
                f"a tensor in the layout {str(tensor.layout).removeprefix('torch.')} runs in module "
                f"{self.modules[-1] or '(root)'!r}; what a sparse tensor costs depends on its values: trace a dense "
                "twin (.to_dense()), or give the product as an op of yours with @costmodel.cost"
            )
        untyped = tensor.untyped_storage()
        key = untyped._cdata
        number = self._storages.get(key)
        if number is None:
            g = self.graph
            number = self._storages[key] = len(g.storage_bytes)
            g.storage_bytes.append(untyped.nbytes())
            g.storage_role.append(role)
            g.storage_birth.append(len(g) if birth is None else birth)
            g.storage_death.append(-2)
            g.storage_name.append(name)
            self._finalizers.append(weakref.finalize(untyped, self._died, key, number))
        return number

    def _died(self, key: int, number: int) -> None:
        self._storages.pop(key, None)
        self.graph.storage_death[number] = len(self.graph)

    def _tensor(self, tensor: Tensor, birth: int | None) -> int:
        storage = self.storage(tensor, "input" if birth == -1 else "temporary", birth=birth)
        dtype = self._dtypes.get(tensor.dtype)
        if dtype is None:
            dtype = self._dtypes[tensor.dtype] = str(tensor.dtype).removeprefix("torch.")
        strided = tensor.layout == torch.strided
        shape = tuple(tensor.shape)
        stride = tuple(tensor.stride()) if strided else tuple(0 for _ in shape)
        offset = int(tensor.storage_offset()) if strided else 0
        key = (storage, offset, shape, stride, dtype)
        number = self._tensors.get(key)
        if number is None:
            g = self.graph
            number = self._tensors[key] = len(g.tensor_storage)
            g.tensor_storage.append(storage)
            g.tensor_offset.append(offset)
            g.tensor_shape.append(shape)
            g.tensor_stride.append(stride)
            g.tensor_dtype.append(dtype)
            needed = 0 if 0 in shape else offset + sum((d - 1) * s for d, s in zip(shape, stride)) + 1
            g.storage_bytes[storage] = max(g.storage_bytes[storage], needed * tensor.itemsize)  # resized in place
        return number

    # ops

    def _schema(self, func: Any) -> tuple[str, list[str], list[int]] | None:
        """Name, argument names, and which arguments are written; None for what is ignored."""
        if func in self._schemas:
            return self._schemas[func]
        name = func.name()
        found = None
        if name.split("::", 1)[0] not in IGNORED_NAMESPACES and name.split(".", 1)[0] not in IGNORED_OPS:
            arguments = func._schema.arguments
            written = [i for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]
            found = (name, [a.name for a in arguments], written)
        self._schemas[func] = found
        return found

    def _module(self) -> str:
        """The module that runs: from the stack in the forward, from the forward of the node in the backward."""
        if self.phase == "forward":
            # autograd numbers its nodes as they are made, just before the op of each is dispatched
            made = torch._C._autograd._get_sequence_nr()
            for number in range(self._nodes_seen, made):
                self._module_of_node[number] = self.modules[-1]
            self._nodes_seen = max(made, self._nodes_seen)
            return self.modules[-1]
        if self.phase == "backward":
            node = torch._C._current_autograd_node()
            if node is not None:
                return self._module_of_node.get(node._sequence_nr(), self.modules[-1])
        return ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        schema = self._schema(func)
        if schema is None:
            return func(*args, **kwargs)
        name, argument_names, written = schema
        if self.paused:
            return self.values.run(func, args, kwargs, writes=bool(written))
        inputs: list[int] = []
        rewritten: list[int] = []
        attrs: dict[str, Any] = {}
        for i, value in enumerate(args):
            self._argument(argument_names[i], value, inputs, attrs, rewritten if i in written else None)
        for key, value in kwargs.items():
            into = rewritten if argument_names.index(key) in written else None
            self._argument(key, value, inputs, attrs, into)
        try:
            result = self.values.run(func, args, kwargs, writes=bool(written))
        except DATA_DEPENDENT as error:
            raise CaptureError(
                f"{name} in module {self.modules[-1] or '(root)'!r} reads a tensor's values to decide what runs next; "
                "a step whose ops depend on weights and activations has no one cost: make that branch static, or trace "
                "a part without it"
            ) from error
        except UnsupportedOperatorException as error:
            raise CaptureError(
                f"{name} in module {self.modules[-1] or '(root)'!r} has no fake implementation; register one with "
                "torch.library.register_fake"
            ) from error
        outputs = [self._tensor(leaf, None) for leaf in _tensors_in(result)]
        outputs += [t for t in rewritten if t not in outputs]
        g = self.graph
        g.op_name.append(name)
        g.op_phase.append(self.phase)
        g.op_module.append(self._module())
        g.op_inputs.append(tuple(inputs))
        g.op_outputs.append(tuple(outputs))
        g.op_attrs.append(attrs)
        if func is _ADD and self.phase == "backward" and _asked_by_engine():
            self._accumulated.append(len(g) - 1)
        return result

    def _argument(
        self, name: str, value: Any, inputs: list[int], attrs: dict[str, Any], rewritten: list[int] | None
    ) -> None:
        if isinstance(value, Tensor):
            number = self._tensor(value, -1)
            inputs.append(number)
            if rewritten is not None:
                rewritten.append(number)
        elif isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value):
            for v in value:
                if isinstance(v, Tensor):
                    self._argument(name, v, inputs, attrs, rewritten)
            if any(v is None for v in value):  # index(x, [None, i]): which dimensions are indexed is the op's cost
                attrs[name] = [v is not None for v in value]
        else:
            plain = _plain(value)
            if plain is not None:
                attrs[name] = plain


def _asked_by_engine() -> bool:
    """Whether no Python code (a `Function`'s backward, a recomputed forward) stands between autograd and the op."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_name != "_engine_run_backward":
        frame = frame.f_back
        if "torch" not in frame.f_code.co_filename.split("/"):
            return False
    return frame.f_code.co_name == "_engine_run_backward"


def _tensors_in(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, (list, tuple)):
        for item in result:
            yield from _tensors_in(item)


def _plain(value: Any) -> Any:
    """A JSON value of an argument that matters to cost; None for the rest (devices, layouts, generators)."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, torch.memory_format):
        return str(value).removeprefix("torch.")
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None


@contextmanager
def _module_stack(model: nn.Module, recorder: Recorder) -> Iterator[None]:
    """Keep `recorder.modules` at the dotted path of the module whose forward runs."""
    names = {id(module): name for name, module in model.named_modules()}

    def enter(module: nn.Module, _args: Any) -> None:
        recorder.modules.append(names.get(id(module), recorder.modules[-1]))

    def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
        recorder.modules.pop()

    handles = [
        module_hooks.register_module_forward_pre_hook(enter),
        module_hooks.register_module_forward_hook(leave, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def capture(
    model: nn.Module,
    inputs: Any,
    *,
    mode: str = "infer",
    optimizer: str | Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer] = "sgd",
    loss: Loss | None = None,
    seq: int | None = None,
    accumulate: int = 1,
    keep_gradients: bool = False,
    name: str | None = None,
    method: str | None = None,
    assumed: str = "",
) -> OpGraph:
    """Trace one step to an op graph, without computing anything.

    Args:
        model: any `nn.Module`, on the CPU or on the meta device; it is copied, never changed.
        inputs: a tensor, a tuple, or a dict of keyword arguments.
        mode: ``infer``, ``train``, ``prefill`` or ``decode``.
        optimizer: ``sgd``, ``momentum``, ``adamw``, or a function from parameters to an optimizer (``train`` only).
        loss: function of (output, step) to a scalar; the model's own, cross entropy or mean square otherwise.
        seq: tokens of context in ``decode``.
        accumulate: micro-batches a step (``train`` only).
        keep_gradients: gradients are zeroed in place between steps, not given back (``train`` only).
        name, method: what to call the model and the method in reports.
        assumed: what the inputs take for granted, to be said in reports.

    Returns:
        The graph of a step in steady state: the optimizer's state exists before it. What the values of the inputs
        decide is decided; where the size of a result depends on activations (boxes above a threshold), the largest
        that it can be is traced, and where they choose experts, all get as many tokens: `graph.meta.assumed` says so.

    Raises:
        CaptureError: which ops run depends on activations, or an op has no fake implementation; names the op.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    recorder = Recorder(OpGraph(), Values())
    faked = fake_inputs(as_call(inputs), fake, recorder.values)
    copied = fake_model(model, fake, recorder.values)
    recorder.paused = True  # what the step needs before it starts: a cache to decode with
    with fake, recorder, _errors_named(copied, recorder.values):
        step = make_step(
            copied,
            faked,
            mode=mode,
            optimizer=optimizer,
            loss=loss,
            seq=seq,
            accumulate=accumulate,
            keep_gradients=keep_gradients,
        )
    recorder.paused = False
    graph = _record(step, fake, recorder, name=name or type(model).__name__, method=method, optimizer=optimizer)
    said = [text for text in (assumed, recorder.values.assumptions()) if text]
    graph.meta = replace(graph.meta, assumed="; ".join(said))
    return graph


def _record(
    step: Step, fake: FakeTensorMode, recorder: Recorder, *, name: str, method: str | None, optimizer: Any
) -> OpGraph:
    """Trace a step whose tensors are already fake under `fake`."""
    floats = [p.dtype for p in step.model.parameters() if p.is_floating_point()]
    graph = recorder.graph = OpGraph(
        meta=GraphMeta(
            model=name,
            mode=step.mode,
            method=method,
            batch=step.batch,
            dtype=str(max(set(floats), key=floats.count) if floats else torch.float32).removeprefix("torch."),
            optimizer=None
            if step.optimizer is None
            else optimizer
            if isinstance(optimizer, str)
            else type(step.optimizer).__name__.lower(),
            producer=f"torch {torch.__version__}",
        )
    )
    _declare(recorder, step)

    @contextmanager
    def pause() -> Iterator[None]:
        before = recorder.paused  # pauses nest: a step that is run unseen makes its target in a pause of its own
        recorder.paused = True
        try:
            yield
        finally:
            recorder.paused = before

    step.pause = pause
    with (
        fake,
        recorder,
        numbers_read(recorder.values),
        _module_stack(step.model, recorder),
        _errors_named(step.model, recorder.values),
    ):
        if step.optimizer is None:
            result = step.forward()
        else:
            result = _train(recorder, step)
    recorder.close()
    graph.storage_death = [len(graph) if d == -2 else d for d in graph.storage_death]
    del result
    return graph


def _train(recorder: Recorder, step: Step) -> Tensor:
    """A training step in steady state, one of many and not the first: optimizer state and kept gradients exist."""
    if step.keep_gradients:
        with step.pause():
            step.backward(step.forward())
        for parameter in step.model.parameters():
            if parameter.grad is not None:
                recorder.storage(parameter.grad, "gradient", birth=-1)
    recorder.phase = "optimizer"
    step.clear()
    for _ in range(step.accumulate):
        recorder.phase = "forward"
        loss = step.forward()
        _mark_saved(recorder.graph)
        recorder.phase = "backward"
        step.backward(loss)
        _mark_gradients(recorder, step)
    with step.pause():
        step.update()  # creates the optimizer's state
    _declare_optimizer_state(recorder, step)
    recorder.phase = "optimizer"
    step.update()
    return loss


@contextmanager
def _errors_named(model: nn.Module, values: Values) -> Iterator[None]:
    """Turn what torch raises under fake tensors into one line that names the op."""
    _FAKE_LOG.disabled = True
    try:
        yield
    except CostmodelError:
        raise
    except DATA_DEPENDENT as error:
        raise CaptureError(
            f"{type(model).__name__} reads a tensor's values to decide what runs next ({error}); "
            "make that branch static, or trace a part without it"
        ) from error
    except UnsupportedOperatorException as error:
        raise CaptureError(
            f"{error} has no fake implementation; register one with torch.library.register_fake"
        ) from error
    except Exception as error:  # what the model itself raises: wrong inputs, a mistake in it, an op that torch refuses
        said = str(error).strip().partition("\n")[0]
        if values.assumed:
            raise CaptureError(
                f"{type(model).__name__} reads a tensor's values to decide the sizes of others "
                f"({', '.join(values.assumed)}), and the largest that they can be do not fit together ({said}); "
                "trace a part without it"
            ) from error
        raise CaptureError(f"{type(model).__name__} cannot run this step: {type(error).__name__}: {said}") from error
    finally:
        _FAKE_LOG.disabled = False


def _declare(recorder: Recorder, step: Step) -> None:
    """Parameters, buffers and inputs exist before the step."""
    for name, parameter in step.model.named_parameters():
        for part in _inside(parameter):
            recorder.storage(part, "parameter", name, birth=-1)
    for name, buffer in step.model.named_buffers():
        for part in _inside(buffer):
            recorder.storage(part, "buffer", name, birth=-1)
    for leaf in _leaves((step.args, step.kwargs)):
        recorder.storage(leaf, "input", birth=-1)


def _inside(tensor: Tensor) -> Iterator[Tensor]:
    """What a tensor holds memory in: itself, or the parts of a wrapper (codes and scales of a quantized weight)."""
    wrapper: Any = tensor
    if type(tensor) is not FakeTensor and is_traceable_wrapper_subclass(wrapper):
        for name in wrapper.__tensor_flatten__()[0]:
            yield from _inside(getattr(wrapper, name))
    else:
        yield tensor


def _leaves(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """Tensors in nested containers, and in caches, which are objects that hold tensors."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for v in value.values():
            yield from _leaves(v, depth + 1)
    elif isinstance(value, (list, tuple, set)):
        for v in value:
            yield from _leaves(v, depth + 1)
    elif hasattr(value, "__dict__") and not isinstance(value, (nn.Module, type)) and depth < 8:
        yield from _leaves(vars(value), depth + 1)


def _declare_optimizer_state(recorder: Recorder, step: Step) -> None:
    assert step.optimizer is not None
    for state in step.optimizer.state.values():
        for leaf in _leaves(dict(state)):
            recorder.storage(leaf, "optimizer_state", birth=-1)


def _mark_saved(graph: OpGraph) -> None:
    """What the forward made and the backward still finds is a saved activation."""
    for s, death in enumerate(graph.storage_death):
        if death == -2 and graph.storage_role[s] == "temporary":
            graph.storage_role[s] = "activation"


def _mark_gradients(recorder: Recorder, step: Step) -> None:
    for parameter in step.model.parameters():
        if parameter.grad is not None:
            number = recorder.storage(parameter.grad, "gradient")
            recorder.graph.storage_role[number] = "gradient"
