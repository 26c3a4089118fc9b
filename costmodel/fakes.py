"""Fake tensors whose small values are known: of the inputs, of constants, and of what is made of both.

A step's ops may depend on values: a mask that is all ones, positions that are counted, boxes above a threshold. What
the given inputs decide is decided here as in a real run, by computing the small integer, boolean and scalar part of a
step beside its fake tensors; random draws decide as those of one seed do. What weights and activations decide is not
known; where only the size of a result depends on it, the result is taken as large as it can be, and that is counted.
Which experts a router chooses is not known either: where a step asks, tokens are spread evenly over them, and that is
said. A step that runs through passes its own checks: numbers are finite, and what is asserted holds. Everything else
is refused by name.
"""

from __future__ import annotations

import copy
import math
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._library.custom_ops import CustomOpDef
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeCopyMode,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from .errors import CaptureError

__all__ = ["DATA_DEPENDENT", "Values", "fake_inputs", "fake_model", "numbers_read", "run_unrecorded"]

DATA_DEPENDENT = (DataDependentOutputException, DynamicOutputShapeException)
# Elements up to which a value of a model is given (positions and boxes), up to which one is followed (masks of a
# sequence, anchors) or given as an input (an image), and of all that is followed in one trace: tenths of a second.
_MOST_GIVEN, _MOST_FOLLOWED, _MOST_IN_ALL = 1 << 16, 1 << 22, 1 << 26
_SHARED = (CustomOpDef, torch.Generator)
_VALUE = "_costmodel_value"
_TRUE = "_costmodel_true"  # of a mask whose values are not known: how many elements are true, at most
_ROUTED = "_costmodel_routed"  # of what follows from experts chosen evenly: the number of that choice
_MOST_EXPERTS = 1024  # a best of more is a search, not a router
_aten = torch.ops.aten


class Values:
    """Runs ops on fake tensors, follows the values that are known, and says what depends on the others.

    Attributes:
        assumed: how often an op's result was taken as large as it can be, by op name.
        routed: numbers of the choices among experts that were read, and so decided what runs.
    """

    def __init__(self) -> None:
        self.assumed: Counter[str] = Counter()
        self.routed: set[int] = set()
        self._choices = 0
        self._stale: set[int] = set()  # storages of values that an op with unknown operands wrote into
        self._left = _MOST_IN_ALL
        self._draws: dict[Any, bool] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._generator = torch.get_rng_state()

    def assumptions(self) -> str:
        """What was taken for granted in a trace, in words; empty for most."""
        said = []
        if self.assumed:
            sizes = ", ".join(f"{op} ×{n}" for op, n in self.assumed.most_common())
            said.append(f"{sizes} at the largest that activations allow")
        if self.routed:
            said.append(f"aten::topk ×{len(self.routed)} with tokens spread evenly over the experts")
        return "; ".join(said)

    def give(self, tensor: Tensor, value: Tensor, most: int = 0) -> None:
        """Say what `tensor`, a fake one, holds; `value` is copied if it has at most `most` elements, else forgotten."""
        if value.numel() <= (most or _MOST_GIVEN) and value.device.type == "cpu" and value.layout == torch.strided:
            with unset_fake_temporarily(), torch.no_grad():
                setattr(tensor, _VALUE, value.detach().clone())

    def of(self, tensor: Tensor) -> Tensor | None:
        """The value of a tensor, None if it is not known."""
        if not isinstance(tensor, FakeTensor):
            plain = tensor.device.type == "cpu" and tensor.numel() <= _MOST_GIVEN
            return tensor if plain else None
        value: Tensor | None = tensor.__dict__.get(_VALUE)
        if value is None:
            return tensor.constant
        return None if self._stale and value.untyped_storage()._cdata in self._stale else value

    def run(self, func: Any, args: Any, kwargs: Any, *, writes: bool = False) -> Any:
        """`func` on fake tensors, whatever of it depends on values resolved.

        Raises:
            DataDependentOutputException, DynamicOutputShapeException: it depends on values that are not known.
        """
        own = _OWN_FAKES.get(func)
        if own is not None:
            return own(*args, **kwargs)
        try:
            result = func(*args, **kwargs)
        except DATA_DEPENDENT:
            return self._resolve(func, args, kwargs)
        if self._known(args) and (not kwargs or self._known(kwargs.values())):
            self._follow(func, args, kwargs, result, writes)
        else:
            if writes:
                self._forget(args)
            if func in _MASKS:
                self._count(func, args, result)
            elif func is _aten.topk.default:
                self._route(*args, chosen=result[1])
            elif func in _CHECKS and result.numel() <= _MOST_FOLLOWED:
                self._pass(func, args, result)
            elif func in _CONSTANTS and result.numel() <= min(_MOST_FOLLOWED, self._left):
                with unset_fake_temporarily():
                    setattr(result, _VALUE, torch.full(result.shape, _CONSTANTS[func], dtype=result.dtype))
        return result

    def _known(self, args: Any) -> bool:
        for arg in args:
            if isinstance(arg, Tensor):
                if self.of(arg) is None:
                    return False
            elif isinstance(arg, (list, tuple)) and not self._known(arg):
                return False
        return True

    def _follow(self, func: Any, args: Any, kwargs: Any, result: Any, writes: bool) -> None:
        """Compute `func` on the values of its operands, and remember the result if it is small."""
        outputs = result if isinstance(result, (list, tuple)) else (result,)
        most = min(_MOST_IN_ALL if func.is_view else _MOST_FOLLOWED, self._left)  # a view of a value is no copy of it
        if not all(isinstance(t, FakeTensor) and t.numel() <= most and t.device.type == "cpu" for t in outputs):
            if writes:
                self._forget(args)
            return
        self._left -= 0 if func.is_view else sum(t.numel() for t in outputs)
        if writes and not all(isinstance(a, FakeTensor) for a in args if isinstance(a, Tensor)):
            return  # a tensor of the user's: it is not ours to write
        value = self._compute(func, args, kwargs)
        choice = self._choice(args)
        for tensor, known in zip(outputs, value if isinstance(value, (list, tuple)) else (value,)):
            if isinstance(known, Tensor):
                setattr(tensor, _VALUE, known)
                if choice:
                    setattr(tensor, _ROUTED, choice)

    def _compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        draws = self._draws.get(func)
        if draws is None:
            draws = self._draws[func] = torch.Tag.nondeterministic_seeded in func.tags
        with unset_fake_temporarily(), torch.no_grad():
            args, kwargs = pytree.tree_map_only(Tensor, self.of, (args, kwargs))
            try:
                return self._draw(func, args, kwargs) if draws else func(*args, **kwargs)
            except (RuntimeError, NotImplementedError, IndexError, ValueError):  # no kernel, or an index of nowhere
                return None

    def _draw(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A random op, by a generator of our own."""
        before = torch.get_rng_state()
        torch.set_rng_state(self._generator)
        try:
            return func(*args, **kwargs)
        finally:
            self._generator = torch.get_rng_state()
            torch.set_rng_state(before)

    def _forget(self, args: Any) -> None:
        for arg in args:
            value = arg.__dict__.get(_VALUE) if isinstance(arg, FakeTensor) else None
            if value is not None:
                storage = value.untyped_storage()
                self._stale.add(storage._cdata)
                weakref.finalize(storage, self._stale.discard, storage._cdata)  # another one may get its address

    # experts, chosen by scores that are not known

    def _route(self, scores: Tensor, _k: int, dim: int = -1, *_: Any, chosen: Tensor) -> None:
        """The best of each row of scores [..., experts]: the next experts in turn, so that all get as many."""
        last = scores.dim() - 1
        if last < 1 or dim not in (-1, last) or scores.shape[last] > _MOST_EXPERTS or chosen.numel() > self._left:
            return
        self._choices += 1
        self._left -= chosen.numel()
        with unset_fake_temporarily():
            value = (torch.arange(chosen.numel()) % scores.shape[last]).reshape(chosen.shape)
        setattr(chosen, _VALUE, value)
        setattr(chosen, _ROUTED, self._choices)

    def _choice(self, args: Any) -> int:
        """The number of the choice among experts that one of the operands follows from; 0 for most."""
        if not self._choices:
            return 0
        tensors = (t for t in pytree.tree_leaves(args) if isinstance(t, FakeTensor))
        return max((int(t.__dict__.get(_ROUTED, 0)) for t in tensors), default=0)

    def _read(self, args: Any) -> int:
        """Note that operands decide what runs, if they follow from a choice among experts; its number."""
        choice = self._choice(args)
        if choice:
            self.routed.add(choice)
        return choice

    # masks of which it is known how many elements are true at most: those that are set one by one, as samplers do

    def _true(self, mask: Tensor) -> int:
        value = self.of(mask)
        if value is not None:
            with unset_fake_temporarily():
                return int(value.count_nonzero())
        return min(int(mask.__dict__.get(_TRUE, mask.numel())), mask.numel())

    def _count(self, func: Any, args: Any, result: Tensor) -> None:
        into, *rest = args
        if func is _aten.index_put_.default:
            value = into.__dict__.get(_VALUE)  # written by now, and what it held is what counts
            if value is not None and into.dtype in (torch.bool, torch.uint8):
                with unset_fake_temporarily():
                    setattr(into, _TRUE, int(value.count_nonzero()) + rest[0][0].numel())
        elif into.dtype in (torch.bool, torch.uint8):
            setattr(result, _TRUE, self._true(into) + self._true(rest[0]))

    # checks that a step which runs through has passed

    def _pass(self, func: Any, args: Any, result: Tensor) -> None:
        """Numbers that are not known are finite: equal to themselves, unequal to infinity, and numbers."""
        x, *rest = args
        itself = bool(rest) and rest[0] is x
        infinity = bool(rest) and isinstance(rest[0], float) and math.isinf(rest[0])
        if x.is_floating_point() and (itself or infinity or not rest):
            with unset_fake_temporarily():
                held = itself if func in _EQUAL else infinity if func in _UNEQUAL else False
                setattr(result, _VALUE, torch.tensor(held).expand(result.shape))

    # what depends on values

    def _resolve(self, func: Any, args: Any, kwargs: Any) -> Any:
        if self._known(args) and self._known(kwargs.values()):
            value = self._compute(func, args, kwargs)
            if value is not None:
                choice = self._read(args)
                return pytree.tree_map_only(Tensor, lambda t: self._fake(t, choice), value)
        if func is _aten._local_scalar_dense.default and args[0].dtype is torch.bool and _asserted():
            return True
        most = _AT_MOST.get(func.name())
        if most is None:
            raise
        return most(self, *args, **kwargs)

    def _fake(self, value: Tensor, choice: int = 0) -> Tensor:
        fake = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
        setattr(fake, _VALUE, value)
        if choice:
            setattr(fake, _ROUTED, choice)
        return fake

    def _assume(self, name: str) -> None:
        self.assumed[name] += 1

    def _nonzero(self, x: Tensor) -> Tensor:
        self._assume("aten::nonzero")
        return torch.empty((x.dim(), self._true(x)), dtype=torch.long).t()  # the strides of the real one

    def _masked_select(self, x: Tensor, mask: Tensor) -> Tensor:
        self._assume("aten::masked_select")
        return x.new_empty(torch.broadcast_shapes(x.shape, mask.shape).numel())

    def _index(self, x: Tensor, indices: list[Tensor | None]) -> Any:
        """Boolean masks as the positions where they are true."""
        plain: list[Tensor | None] = []
        for index in indices:
            if index is None or index.dtype not in (torch.bool, torch.uint8):
                plain.append(index)
                continue
            value = self.of(index)
            if value is None:
                self._assume("aten::index")
                plain += [torch.empty(self._true(index), dtype=torch.long) for _ in range(index.dim())]
            else:
                with unset_fake_temporarily():
                    found = [i.clone() for i in value.nonzero().unbind(1)]
                choice = self._read([index])
                plain += [self._fake(i, choice) for i in found]
        return _aten.index.Tensor(x, plain)

    def _unique(self, x: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        """Every value a different one; (values, where each went, how often each came)."""
        self._assume("aten::_unique2")
        n = x.numel()
        return x.new_empty(n), torch.empty(x.shape, dtype=torch.long), torch.empty(n, dtype=torch.long)

    def _nms(self, _boxes: Tensor, scores: Tensor, _threshold: float) -> Tensor:
        self._assume("torchvision::nms")
        return torch.empty(scores.numel(), dtype=torch.long)


_AT_MOST: dict[str, Callable[..., Any]] = {
    "aten::nonzero": Values._nonzero,
    "aten::masked_select": Values._masked_select,
    "aten::index.Tensor": Values._index,
    "aten::_unique2": Values._unique,
    "torchvision::nms": Values._nms,
}


# Results that have the shape of an operand, whatever that holds.
_CONSTANTS = {
    _aten.zeros_like.default: 0, _aten.new_zeros.default: 0, _aten.ones_like.default: 1, _aten.new_ones.default: 1
}  # fmt: skip
_EQUAL = frozenset({_aten.eq.Tensor, _aten.eq.Scalar})
_UNEQUAL = frozenset({_aten.ne.Tensor, _aten.ne.Scalar})
_CHECKS = _EQUAL | _UNEQUAL | {_aten.isnan.default, _aten.isinf.default}
# Functions of torch that raise unless a tensor is true.
_ASSERTIONS = frozenset(
    {
        torch._check_with.__code__,
        torch._check_tensor_all_with.__code__,
        torch.distributions.Distribution.__init__.__code__,
        torch.distributions.Distribution._validate_sample.__code__,
    }
)
_MASKS = frozenset({_aten.index_put_.default, _aten.bitwise_or.Tensor, _aten.logical_or.default})


def _asserted() -> bool:
    """Whether a value is read by an assertion of torch, and only to raise if it is false."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code in _ASSERTIONS:
            return True
        frame = frame.f_back
    return False


def _grouped_mm(a: Tensor, b: Tensor, offs: Tensor | None = None, *_bias: Any, **_kwargs: Any) -> Tensor:
    """The result of ``aten::_grouped_mm``: its CPU kernel takes float32, torch's own fake does not (2.13)."""
    if a.dim() == 2 and b.dim() == 2:
        assert offs is not None
        return a.new_empty(offs.shape[0], a.shape[0], b.shape[1])
    if a.dim() == 3 and b.dim() == 3:
        return a.new_empty(a.shape[0], a.shape[1], b.shape[2])
    return a.new_empty(a.shape[-2], b.shape[-1])


_OWN_FAKES: dict[Any, Callable[..., Any]] = {
    op: fake for op, fake in ((getattr(_aten, "_grouped_mm", None), _grouped_mm),) if op is not None
}
_OWN_FAKES = {op.default: fake for op, fake in _OWN_FAKES.items()}


# The model and its inputs on fake tensors


def fake_model(model: nn.Module, mode: FakeTensorMode, values: Values | None = None) -> nn.Module:
    """A copy of the model whose parameters, buffers and other tensors are fake; meta tensors become CPU ones.

    Values of small buffers and other tensors that are no parameters are given to `values`.
    """
    memo: dict[int, Any] = {}
    with mode:
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.device.type != "cpu" and id(tensor) not in memo:
                like = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
                if isinstance(tensor, nn.Parameter):
                    like = nn.Parameter(like, requires_grad=tensor.requires_grad)
                memo[id(tensor)] = like
    for module in model.modules():  # an op is one in the process, a generator has state: torch copies neither
        memo |= {id(value): value for value in vars(module).values() if isinstance(value, _SHARED)}
    with _Copy(mode, values):
        try:
            copied: nn.Module = copy.deepcopy(model, memo)
        except (TypeError, RuntimeError) as error:
            raise CaptureError(
                f"{type(model).__name__} cannot be copied onto fake tensors ({error}); "
                "detach the tensors and open files that it holds"
            ) from error
    return copied


class _Copy(FakeCopyMode):
    """Copies tensors to fake ones; the values of those that are no parameters are given to `values`."""

    def __init__(self, mode: FakeTensorMode, values: Values | None) -> None:
        super().__init__(mode)
        self.values = values

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        copied: Any = super().__torch_function__(func, types, args, kwargs or {})
        plain = isinstance(copied, FakeTensor) and not isinstance(copied, nn.Parameter)
        if self.values is not None and plain and func == Tensor.__deepcopy__:
            self.values.give(copied, args[0])
        return copied


def fake_inputs(inputs: Any, mode: FakeTensorMode, values: Values | None = None) -> Any:
    """The inputs as fake tensors; those on the CPU have values, which are given to `values`."""

    def convert(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf.device.type == "meta":
            with mode:
                return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="cpu")
        fake = mode.from_tensor(leaf, static_shapes=True)
        if values is not None:
            values.give(fake, leaf, _MOST_FOLLOWED)  # an image may be looked at: whether it is one, or padding
        return fake

    return pytree.tree_map(convert, inputs)


@contextmanager
def numbers_read(values: Values) -> Iterator[None]:
    """Numbers that ``torch.tensor``, ``.numpy()``, ``x[rows, columns] = y`` read below the dispatcher, read above it.

    A mode of torch functions would see them too, and would keep modules off the fused paths that they take in a run.
    """
    plain, array, write = torch.tensor, Tensor.numpy, Tensor.__setitem__

    def numpy(self: Tensor, *, force: bool = False) -> Any:
        if not isinstance(self, FakeTensor):
            return array(self, force=force)
        value = values.of(self)
        if value is None:
            raise DataDependentOutputException(_aten._local_scalar_dense.default)
        with unset_fake_temporarily():
            return array(value, force=force)

    def tensor(data: Any, *args: Any, **kwargs: Any) -> Tensor:
        if isinstance(data, (list, tuple)):
            data = pytree.tree_map_only(FakeTensor, lambda t: t.item() if t.dim() == 0 else t, data)
        return plain(data, *args, **kwargs)

    def setitem(self: Tensor, index: Any, value: Any) -> None:
        if isinstance(index, tuple):
            index = tuple(tensor(i) if _numbers(i) else i for i in index)
        write(self, index, value)

    torch.tensor, Tensor.numpy = tensor, numpy  # type: ignore[method-assign, assignment]
    Tensor.__setitem__ = setitem  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.tensor = plain
        del Tensor.numpy, Tensor.__setitem__  # those of its base class are back


def _numbers(index: Any) -> bool:
    """Whether a part of an index is a list of numbers each of which is a tensor."""
    return isinstance(index, (list, tuple)) and any(isinstance(n, FakeTensor) for n in index)


class _Followed(TorchDispatchMode):
    """Runs every op by `Values`."""

    def __init__(self, values: Values) -> None:
        super().__init__()
        self.values = values

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.values.run(func, args, kwargs or {}, writes=func._schema.is_mutable)


def run_unrecorded(model: nn.Module, call: Callable[[Any, Any], Any], inputs: Any) -> Any:
    """What ``call(model, inputs)`` returns on fake tensors, in evaluation mode: shapes, for no work.

    Raises:
        DataDependentOutputException, DynamicOutputShapeException: it depends on values that are not known.
    """
    mode, values = FakeTensorMode(allow_non_fake_inputs=True), Values()
    given = fake_inputs(inputs, mode, values)
    copied = fake_model(model, mode, values).eval()
    with mode, _Followed(values), numbers_read(values), torch.no_grad():
        return call(copied, given)
