"""What the values of the inputs decide is decided as in a real run; what activations decide is bounded and said."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from costmodel.capture import capture
from costmodel.device import load_device
from costmodel.errors import CaptureError, CostmodelError
from costmodel.estimate import estimate
from costmodel.graph import OpGraph, load
from costmodel.lower import lower
from costmodel.report._of_estimate import caveat


class Valued(nn.Module):
    """Every way in which models let inputs decide: item, bool, tolist, masks, unique, counts, views written through."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 4)
        self.register_buffer("limit", torch.tensor(3))

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
        x = self.embed(ids)[mask]  # as many rows as there are tokens
        parts = x.split(lengths.tolist())
        if mask.all():
            return x
        position = mask.long().cumsum(1)
        position[:, 0] = 7  # through a view of it
        if (position.select(1, 0) == 7).all() and int(self.limit) == 3:
            x = torch.cat([self.head(p) for p in parts])
        last = position.max().item()
        kinds = torch.unique(ids)
        return x.sum() * last + self.embed(kinds).sum() + torch.bincount(ids.flatten()).sum()


IDS, LENGTHS = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 1]]), torch.tensor([4, 2])


def counted(model: nn.Module, *inputs: Tensor) -> Counter[str]:
    seen: Counter[str] = Counter()

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen[func.name()] += 1
            return func(*args, **(kwargs or {}))

    with Count(), torch.no_grad():
        model.eval()(*inputs)
    return seen


def traced(graph: OpGraph) -> Counter[str]:
    return Counter(graph.op_name)


@pytest.mark.parametrize("lengths", [torch.tensor([4, 2]), torch.tensor([4, 4]), torch.tensor([1, 3])])
def test_values_of_inputs_decide_as_in_a_real_run(lengths: Tensor) -> None:
    model = Valued()
    graph = capture(model, (IDS, lengths)).check()
    ours, real = traced(graph), counted(model, IDS, lengths)
    for op in ("aten::_local_scalar_dense", "aten::unbind.int"):  # of a list, a real tensor reads all at once
        ours.pop(op, None)
        real.pop(op, None)
    assert ours == real
    assert graph.meta.assumed == ""
    rows = [graph.tensor_shape[o[0]] for n, o in zip(graph.op_name, graph.op_outputs) if n == "aten::index.Tensor"]
    assert rows[0] == (int(lengths.sum()), 4)


def test_inputs_and_buffers_are_left_as_they_were() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros((), dtype=torch.long))
            self.plain = torch.ones(3, dtype=torch.long)

        def forward(self, x: Tensor) -> Tensor:
            x.add_(1)
            self.seen += 1
            return x if int(x.sum() + self.seen + self.plain.sum()) > 0 else -x

    model, x = Writes(), torch.ones(3, dtype=torch.long)
    capture(model, x)
    assert torch.equal(x, torch.ones(3, dtype=torch.long))
    assert int(model.seen) == 0
    assert torch.equal(model.plain, torch.ones(3, dtype=torch.long))


def test_a_value_that_an_activation_was_written_into_is_no_longer_known() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            known = torch.zeros(4)
            known[0] = self.a(x).sum()  # through a view
            return x if known.sum() > 0 else -x

    with pytest.raises(CaptureError, match=r"aten::_local_scalar_dense .* reads a tensor's values"):
        capture(Mixed(), torch.ones(4))


def test_random_draws_decide_as_those_of_one_seed() -> None:
    class Dice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(16):  # layer drop
                if torch.rand(()) > 0.5:
                    x = x + 1
            return x

    before = torch.get_rng_state()
    one, other = capture(Dice(), torch.ones(4)), capture(Dice(), torch.ones(4))
    assert one.op_name == other.op_name
    assert 0 < one.op_name.count("aten::add.Tensor") < 16
    assert torch.equal(torch.get_rng_state(), before)


class Selecting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return (
            self.a(y[y.sum(1) > 0])
            + torch.masked_select(y, y > 0).sum()
            + y.flatten()[(y > 0).flatten().nonzero()].sum()
        )


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_sizes_that_activations_decide_are_the_largest_and_said(mode: str, tmp_path: Any) -> None:
    graph = capture(Selecting(), torch.ones(4, 8), mode=mode).check()
    sizes = "aten::index ×1, aten::masked_select ×1, aten::nonzero ×1"
    assert graph.meta.assumed == f"{sizes} at the largest that activations allow"
    assert lower(graph).unpriced == {}
    gemms = [graph.tensor_shape[o[0]] for n, o in zip(graph.op_name, graph.op_outputs) if n.startswith("aten::addmm")]
    assert gemms[:2] == [(4, 8), (4, 8)], "all rows are kept"
    assert load(graph.save(tmp_path / "t.json.gz")).meta.assumed == graph.meta.assumed
    device = load_device("raspberry-pi-4b")
    assert "where the trace cannot know: aten::index ×1" in caveat(estimate(graph, device))
    assert estimate(graph, device).as_dict()["coverage"]["assumed"] == graph.meta.assumed
    with pytest.raises(CostmodelError, match="was assumed: aten::index"):
        estimate(graph, device, strict=True)


def test_a_mask_that_is_set_one_by_one_has_no_more_true_elements() -> None:
    class Sampler(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            best, worst = y.sum(1).topk(2)[1], (-y.sum(1)).topk(1)[1]
            one, other = (torch.zeros_like(y[:, 0], dtype=torch.bool) for _ in range(2))
            one[best], other[worst] = True, True
            return self.a(y[torch.where(one | other)[0]])

    graph = capture(Sampler(), torch.ones(100, 8))
    assert graph.tensor_shape[graph.op_outputs[-1][0]] == (3, 8)


def test_mixtures_of_experts_trace_in_float32() -> None:
    """``aten::_grouped_mm`` has a float32 kernel on the CPU and a fake that wants bfloat16 (torch 2.13)."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 16, 8))

        def forward(self, x: Tensor, offs: Tensor) -> Tensor:
            return nn.functional.grouped_mm(x, self.weight, offs=offs) ** 2

    x, offs = torch.randn(6, 16, requires_grad=True), torch.tensor([2, 4, 6], dtype=torch.int32)
    graph = capture(Experts(), (x, offs), mode="train").check()
    lowered = lower(graph)
    assert lowered.unpriced == {}
    flops = [c.flops for c, n in zip(lowered.costs, graph.op_name) if n == "aten::_grouped_mm"]
    assert flops[0] == 2 * 6 * 16 * 8, "each row meets one expert"
    assert flops[1] == 2 * 6 * 16 * 8, "and so does each row of a weight's gradient"


class Routed(nn.Module):
    """Experts that each run on the tokens that a router sends them, as a loop over those that are hit."""

    def __init__(self, *, counts: bool) -> None:
        super().__init__()
        self.router = nn.Linear(8, 4)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.counts = counts

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = self.router(x).softmax(-1).topk(2)
        if self.counts:  # split by how many each expert gets, as JetMoe does
            order = chosen.flatten().sort()[1]
            sizes = torch.zeros(len(x), 4).scatter(1, chosen, 1).long().sum(0).tolist()
            parts = x[order // 2].split(sizes)
            return torch.cat([expert(part) for expert, part in zip(self.experts, parts)])
        result = torch.zeros_like(x)
        mask = nn.functional.one_hot(chosen, 4).permute(2, 1, 0)
        for (number,) in mask.sum((-1, -2)).greater(0).nonzero():
            place, token = torch.where(mask[number])
            result.index_add_(0, token, self.experts[int(number)](x[token]) * weight[token, place, None])
        return result


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("mode", ["infer", "train"])
def test_experts_that_activations_choose_get_as_many_tokens_each_and_it_is_said(mode: str, counts: bool) -> None:
    graph = capture(Routed(counts=counts), torch.ones(6, 8), mode=mode).check()
    assert graph.meta.assumed == "aten::topk ×1 with tokens spread evenly over the experts"
    assert lower(graph).unpriced == {}
    named = zip(graph.op_name, graph.op_module, graph.op_outputs)
    gemms = [graph.tensor_shape[o[0]] for n, m, o in named if n.startswith("aten::addmm") and m.startswith("experts")]
    assert gemms == [(3, 8)] * 4, "two experts for each of six tokens are three tokens for each of four experts"


def test_a_choice_that_decides_nothing_is_not_said() -> None:
    class Gathered(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[x.topk(2)[1]]

    assert capture(Gathered(), torch.rand(6, 8)).meta.assumed == ""


class Checked(nn.Module):
    """Checks that a healthy step passes: of finite numbers, of the library of distributions, of torch itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        if not torch.isfinite(y).all() or torch.isnan(y).any() or torch.isinf(y).any():
            y = y.clamp(-1, 1).exp().sin()
        torch._check_tensor_all(y >= y.min(), lambda: "below the least")
        return torch.distributions.Normal(y, torch.nn.functional.softplus(y)).mean


def test_a_step_that_runs_through_has_passed_its_own_checks() -> None:
    model, x = Checked(), torch.randn(3, 4)
    graph = capture(model, x)
    assert Counter(graph.op_name) == {n: c for n, c in counted(model, x).items() if n in set(graph.op_name)}
    assert "aten::sin" not in graph.op_name
    assert graph.meta.assumed == "", "no size depends on it"


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin() if (x > 0).all() else x.cos()


def test_a_branch_by_an_activation_is_still_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Branch())
    with pytest.raises(CaptureError, match="reads a tensor's values to decide"):
        capture(model, torch.randn(2, 4))


class FromList(nn.Module):
    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        longest = torch.tensor([counts[0] * 2, counts[1], 1]).max()
        return x[: int(longest)].exp()


def test_numbers_that_torch_takes_out_of_lists_of_tensors_are_known() -> None:
    plain = torch.tensor
    graph = capture(FromList(), (torch.randn(20, 4), torch.tensor([3, 5])))
    assert graph.tensor_shape[graph.op_outputs[graph.op_name.index("aten::exp")][0]] == (6, 4)
    assert torch.tensor is plain


def test_modules_keep_the_fused_paths_that_they_take_in_a_run() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    graph = capture(layer, torch.randn(2, 5, 16))
    assert "aten::_transformer_encoder_layer_fwd" in graph.op_name


def test_a_value_is_not_taken_for_one_that_died_at_its_address() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            for step in range(20):
                written = torch.zeros(4)
                written += self.a(x)[0]  # no longer known, and its address is free when it dies
                del written
                counted = torch.arange(4) + step
                if int(counted.sum()) == 6:
                    x = self.a(x)
            return x

    graph = capture(Loop(), torch.ones(1, 4))
    assert sum(n.startswith("aten::addmm") for n in graph.op_name) == 21


def test_arrays_of_known_tensors_are_known_and_others_refused() -> None:
    class Prefixed(nn.Module):
        def forward(self, x: Tensor, box: Tensor) -> Tensor:
            counts = (box < 0).sum(-1)
            x[tuple(torch.arange(2)), tuple(counts)] = 0.0  # tensors in a tuple, as zip() leaves them
            return torch.cat([x[row, :n] * 2 for row, n in enumerate(counts.cpu().numpy())])

    class Unknown(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x[: int(super().forward(x).numpy()[0, 0])]

    graph = capture(Prefixed(), (torch.ones(2, 4), torch.tensor([[-1, 1], [-1, -1]])))
    assert graph.tensor_shape[graph.op_outputs[-1][0]] == (3,)
    with pytest.raises(CaptureError, match="reads a tensor's values"):
        capture(Unknown(4, 4), torch.ones(4, 4))
    assert torch.ones(2).numpy().sum() == 2, "outside of a trace it is what it was"


def test_whether_an_image_is_padding_is_known() -> None:
    class Unpadded(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            real = (images == 0.0).sum((-1, -2, -3)) != images.shape[1:].numel()
            return torch.cat([part * 2 for part in images[real].split(real.view(2, 2).sum(1).tolist())])

    images = torch.rand(4, 3, 224, 224)
    images[3] = 0
    graph = capture(Unpadded(), images)
    assert graph.meta.assumed == ""
    assert graph.tensor_shape[graph.op_outputs[-1][0]] == (3, 3, 224, 224)


def test_what_the_inputs_leave_out_is_said() -> None:
    graph = capture(Selecting(), torch.ones(4, 8), assumed="text without the image that the model takes")
    assert graph.meta.assumed.startswith("text without the image that the model takes; aten::index ×1")
