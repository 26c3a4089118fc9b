"""MobileTL ops and method: invariants of METHODS.md §2, against autograd, float64 twins and saved_tensors_hooks."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from costmodel.errors import CostmodelError
from costmodel.kernels import mobiletl as op
from costmodel.kernels.mobiletl_simd import CLAMP, EXACT_HARDSWISH, HARDSWISH, act_planes, mask_planes
from costmodel.methods import apply_method
from costmodel.methods.mobiletl import KeptNorm, ShiftNorm, inverted_residuals
from costmodel.models.load import load_model

from .naive import mobiletl as naive

shapes = st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 9), st.integers(1, 9))
acts = st.sampled_from(sorted(op.ACTIVATIONS))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def vectors(channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """γ, β, μ, σ² of a norm."""
    gamma, beta, mean, var = (random(channels, seed=s) for s in (1, 2, 3, 4))
    return gamma, beta, mean, var.square() + 0.1


def as64(*tensors: Tensor) -> list[np.ndarray]:
    return [t.detach().double().numpy() for t in tensors]


@settings(deadline=None, max_examples=60)
@given(numel=st.integers(1, 300))
def test_mask_packs_to_one_bit_and_comes_back(numel):
    bits = random(numel) > 0
    packed = op.pack(bits)
    assert packed.shape == (op.mask_bytes(numel),)
    assert torch.equal(op.unpack(packed, (numel,)), bits)


@settings(deadline=None, max_examples=60)
@given(shape=shapes, act=acts)
def test_signed_activation_is_exact_forward_and_a_mask_backward(shape, act):
    a = random(*shape)
    a.view(-1)[::7] = 0.0  # ties
    a.requires_grad_()
    y, mask = op.signed_act(a, act, True)
    assert torch.equal(y, op.ACTIVATIONS[act](a))
    assert np.array_equal(mask.numpy(), naive.packed(a.detach().numpy(), act))
    g = random(*shape, seed=5)
    (g_a,) = torch.autograd.grad(y, a, g)
    assert torch.equal(g_a, g * (a > 0 if act == "relu" else a >= 0))


@settings(deadline=None, max_examples=60)
@given(shape=shapes, kind=st.sampled_from([HARDSWISH, EXACT_HARDSWISH, CLAMP]))
def test_whole_vectors_over_the_end_of_a_plane_stay_inside_the_tensor(shape, kind):
    """Both passes write over the start of the next plane, which is then written; nothing behind the last one is."""
    images, channels, *plane = shape
    numel, count = math.prod(shape), math.prod(plane)
    if numel <= 56:  # left to torch
        return
    x, guarded = torch.randn(shape), torch.full((2, numel + 32), 7.5)
    bits = torch.full((op.mask_bytes(numel) + 32,), 165, dtype=torch.uint8)
    size = len(bits) - 32
    gain, shift = np.linspace(0.5, 2, channels, dtype=np.float32), np.linspace(-1, 1, channels, dtype=np.float32)
    act_planes(
        kind, x.data_ptr(), guarded[0].data_ptr(), bits.data_ptr(), size, images, count, gain, shift, 6.0, 0.0
    )  # fmt: skip
    mask_planes(x.data_ptr(), guarded[1].data_ptr(), bits.data_ptr(), size, images, count, gain, 0)
    assert (guarded[:, numel:] == 7.5).all()
    assert (bits[size:] == 165).all()
    factor = torch.from_numpy(gain).view(1, -1, 1, 1)
    pre = x.double() * factor + torch.from_numpy(shift).view(1, -1, 1, 1)
    wanted = F.hardswish(pre) if kind != CLAMP else pre.clamp(0, 6)
    assert torch.allclose(guarded[0, :numel].view(shape).double(), wanted, atol=1e-5)
    kept = op.unpack(bits[:size], shape)
    assert (kept == (pre >= 0))[pre.abs() > 1e-5].all()
    assert torch.equal(guarded[1, :numel].view(shape), torch.where(kept, x * factor, torch.zeros(())))


def test_mask_slope_is_within_a_half_of_the_true_one_and_exact_beyond_three():
    a = torch.linspace(-6, 6, 4801, requires_grad=True)
    (true,) = torch.autograd.grad(F.hardswish(a).sum(), a)
    (signed,) = torch.autograd.grad(op.signed_act(a, "hardswish", True)[0].sum(), a)
    near = a.detach().abs() <= 3
    assert float((signed - true)[near].abs().max()) <= 0.5 + 1e-6
    assert torch.equal(signed[~near], true[~near])
    (true,) = torch.autograd.grad(F.relu6(a).sum(), a)
    (signed,) = torch.autograd.grad(op.signed_act(a, "relu6", True)[0].sum(), a)
    inside = (a.detach() > 0) & (a.detach() < 6)
    assert torch.equal(signed[inside], true[inside])


@settings(deadline=None, max_examples=40)
@given(shape=shapes)
def test_shift_norm_is_autograd_of_an_eval_mode_norm(shape):
    x, g = random(*shape).requires_grad_(), random(*shape, seed=5)
    gamma, beta, mean, var = vectors(shape[1])
    beta.requires_grad_()
    y = op.shift_norm(x, gamma, beta, mean, var, 1e-3)
    reference = F.batch_norm(x, mean, var, gamma, beta, training=False, eps=1e-3)
    assert torch.equal(y, reference)
    for got, want in zip(torch.autograd.grad(y, (x, beta), g), torch.autograd.grad(reference, (x, beta), g)):
        assert torch.allclose(got, want, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=80)
@given(shape=shapes, act=acts, exact=st.booleans(), keep=st.booleans())
def test_fused_norm_and_activation_equal_the_pair(shape, act, exact, keep):
    x, g = random(*shape).requires_grad_(), random(*shape, seed=5)
    gamma, beta, mean, var = vectors(shape[1])
    beta.requires_grad_()
    y, mask = op.shift_norm_act(x, gamma, beta, mean, var, 1e-3, act, keep, exact)
    pre = F.batch_norm(x, mean, var, gamma, beta, training=False, eps=1e-3)
    if exact:
        assert torch.equal(y, op.ACTIVATIONS[act](pre))
        assert not keep or np.array_equal(mask.numpy(), naive.packed(pre.detach().numpy(), act))
    twin = naive.activation(naive.shift_norm(*as64(x, gamma, beta, mean, var), 1e-3), act)
    np.testing.assert_allclose(y.detach().numpy(), twin, rtol=1e-5, atol=1e-5)
    if not keep:
        assert mask.numel() == 0
        return
    passed = g * op.unpack(mask, shape)
    want_x, want_b = naive.shift_norm_backward(*as64(passed, gamma, var), 1e-3)
    g_x, g_b = torch.autograd.grad(y, (x, beta), g)
    np.testing.assert_allclose(g_x.numpy(), want_x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(g_b.numpy(), want_b, rtol=1e-5, atol=1e-5 * np.prod(shape) ** 0.5)


@settings(deadline=None, max_examples=40)
@given(shape=shapes, shift=st.sampled_from([0.0, 30.0]))
def test_trained_norm_is_batch_norm(shape, shift):
    if shape[0] * shape[2] * shape[3] == 1:
        return  # torch refuses a batch of one value a channel
    x, g = (random(*shape) + shift).requires_grad_(), random(*shape, seed=5)
    plain = nn.BatchNorm2d(shape[1], eps=1e-3, momentum=0.01)
    kept = KeptNorm(shape[1], eps=1e-3, momentum=0.01)
    outs = [norm(x) for norm in (plain, kept)]
    assert torch.equal(*outs)
    for a, b in zip(plain.buffers(), kept.buffers()):
        assert torch.allclose(a, b, rtol=1e-6)
    twin = naive.train_norm_backward(*as64(g, x, kept.weight), 1e-3)
    for got, want in zip(torch.autograd.grad(outs[1], (x, kept.weight, kept.bias), g), twin):
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-3, atol=2e-4 * np.abs(want).max() + 1e-5)


@settings(deadline=None, max_examples=30)
@given(shape=shapes)
def test_squeeze_excite_product_equals_autograd(shape):
    x, g = random(*shape).requires_grad_(), random(*shape, seed=5)
    z = (3 * random(*shape[:2], 1, 1, seed=6)).requires_grad_()
    y, reference = op.se_scale(x, z), x * F.hardsigmoid(z)
    assert torch.allclose(y, reference, rtol=1e-6)
    for got, want in zip(torch.autograd.grad(y, (x, z), g), torch.autograd.grad(reference, (x, z), g)):
        assert torch.allclose(got, want, rtol=1e-4, atol=1e-5)


def test_an_activation_without_a_one_bit_backward_is_refused():
    with pytest.raises(CostmodelError, match="hardswish, relu6, relu"):
        op.signed_act(torch.ones(3), "gelu", True)


def calls() -> dict[str, tuple]:
    """One call of each op on float32 tensors."""
    x, g, z = random(2, 5, 3, 3), random(2, 5, 3, 3, seed=5), random(2, 5, 1, 1)
    gamma, beta, mean, var = vectors(5)
    mask = op.pack(x >= 0)
    return {
        "signed_act": (x, "relu6", True),
        "signed_act_backward": (g, mask),
        "shift_norm": (x, gamma, beta, mean, var, 1e-3),
        "shift_norm_backward": (g, gamma, var, 1e-3, [True, True]),
        "shift_norm_act": (x, gamma, beta, mean, var, 1e-3, "hardswish", True, False),
        "shift_norm_act_backward": (g, mask, gamma, var, 1e-3, [True, False]),
        "train_norm": (x, gamma, beta, 1e-3),
        "train_norm_backward": (g, x, gamma, 1e-3, [True, True, True]),
        "se_scale": (x, z),
        "se_scale_backward": (g, x, z),
    }


@pytest.mark.parametrize("name", sorted(calls()))
def test_fake_shapes_are_real_shapes(name):
    function, args = getattr(torch.ops.costmodel, name), calls()[name]
    torch.library.opcheck(function.default, args, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", sorted(calls()))
def test_direct_call_and_dispatched_op_give_the_same_bits(name):
    """The wrapper runs the kernel itself; the op, what a mode sees. Gradients too, and the leaves they go to."""
    direct, args = getattr(op, name), calls()[name]

    def run(function):
        leaves = [a.clone().requires_grad_(a.is_floating_point()) if isinstance(a, torch.Tensor) else a for a in args]
        with torch.set_grad_enabled(not name.endswith("backward")):
            out = function(*leaves)
        out = out if isinstance(out, tuple) else (out,)
        if not name.endswith("backward"):
            out[0].backward(torch.ones_like(out[0]))
            out += tuple(a.grad for a in leaves if isinstance(a, torch.Tensor) and a.grad is not None)
        return out

    assert direct.op is getattr(torch.ops.costmodel, name).default
    for a, b in zip(run(direct), run(direct.op), strict=True):
        assert torch.equal(a, b)


def test_whoever_watches_sees_the_op():
    """A profiler gets the op, as dispatch modes do; without one there is no dispatcher."""
    x, gamma, beta, mean, var = random(2, 5, 3, 3), *vectors(5)
    args = (x, gamma, beta, mean, var, 1e-3, "relu6", True, False)
    with torch.profiler.profile() as seen:
        op.shift_norm_act(*args)
    assert "costmodel::shift_norm_act" in {event.key for event in seen.key_averages()}
    with torch.profiler.profile() as seen:
        op._shift_norm_act(*args)  # what the direct call runs
    assert "costmodel::shift_norm_act" not in {event.key for event in seen.key_averages()}


# --- the method on whole nets ----------------------------------------------------------------------------------------

NETS = ["torchvision:mobilenet_v2", "torchvision:mobilenet_v3_small", "torchvision:mobilenet_v3_large",
        "torchvision:mnasnet1_0", "timm:mobilenetv3_small_100", "timm:mobilenetv2_100", "timm:mnasnet_100",
        "timm:fbnetc_100", "timm:tf_efficientnet_lite0", "proxyless-nas", "ncnn-mobilenet-v3"]  # fmt: skip


def net(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = load_model(name).model
    for module in model.modules():  # statistics and norms that are not the identity
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model


def step(model: nn.Module, x: Tensor, lr: float = 0.1) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    model.train()
    model(x).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", NETS)
def test_exact_forward_same_state_and_a_step_changes_only_what_trains(name):
    model, x = net(name).eval(), random(2, 3, 64, 64)
    before = copy.deepcopy(model.state_dict())
    exact = apply_method("mobiletl:blocks=2,exact", model, x)
    fused = apply_method("mobiletl:blocks=2", model, x)
    assert exact.state_dict().keys() == before.keys()
    with torch.no_grad():
        y = model(x)
        assert torch.equal(exact.eval()(x), y)
        assert torch.allclose(fused.eval()(x), y, rtol=1e-3, atol=1e-4 * float(y.abs().max()))
    exact.load_state_dict(before)
    order, first = list(before), inverted_residuals(model)[-2]
    frozen = set(order[: next(i for i, key in enumerate(order) if key.startswith(f"{first}."))])
    inner = {n for n, m in exact.named_modules() if isinstance(m, ShiftNorm)}
    step(exact, x)
    assert all(p.grad is not None for p in exact.parameters() if p.requires_grad)
    changed = {k for k, v in exact.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert not changed & frozen
    for key in changed:
        owner, _, leaf = key.rpartition(".")
        assert owner not in inner or leaf == "bias"  # never γ or statistics, and that after train()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # the model given is as it was


def stored_by_formula(model: nn.Module, x: Tensor) -> int:
    """METHODS.md's stored bytes of a MobileTL model, from the shapes of its modules."""
    from costmodel.methods.mobiletl import OneBit, SqueezeExcite

    total = 0

    def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal total
        numel = args[0].numel()
        match module:
            case nn.Conv2d() | nn.Linear() | KeptNorm() if module.weight.requires_grad:
                total += 4 * numel
            case ShiftNorm() if module.act and out.requires_grad:
                total += -(-numel // 8)
            case OneBit():
                total += -(-numel // 8)
            case SqueezeExcite():  # its map, and z; pooled and hidden vectors are inputs of its convolutions
                total += 4 * numel + 4 * args[0].shape[0] * args[0].shape[1]
            case nn.Hardswish() if out.requires_grad:  # after the blocks: exact
                total += 4 * numel
            case nn.ReLU6() if out.requires_grad:  # torch keeps its input or result, not two bits
                total += 4 * numel
            case nn.Dropout() if out.requires_grad and module.p > 0:
                total += 4 * numel  # torch's mask on a CPU: fp32, scaled

    handles = [m.register_forward_hook(hook) for m in model.modules()]
    model(x)
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize("blocks", [1, 3, 5])
@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "torchvision:mobilenet_v3_large"])
def test_stored_bytes_are_the_formulas(name, blocks):
    x = random(2, 3, 96, 96)
    model = apply_method(f"mobiletl:blocks={blocks}", net(name), x).train()
    known = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        alive = model(x)
    assert alive.requires_grad
    assert sum(kept.values()) == stored_by_formula(model, x)


class Names(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_a_block_traces_to_our_nodes_on_fake_tensors():
    x = random(2, 3, 64, 64)
    model = apply_method("mobiletl:blocks=1", net("torchvision:mobilenet_v3_small"), x).train()
    fake = copy.deepcopy(model)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for module in fake.modules():
            for key, value in list(module._parameters.items()):
                if value is not None:
                    module._parameters[key] = nn.Parameter(mode.from_tensor(value), value.requires_grad)
            for key, value in list(module._buffers.items()):
                if value is not None:
                    module._buffers[key] = mode.from_tensor(value)
        with Names() as seen:
            fake(mode.from_tensor(x)).square().mean().backward()
    ours = [n.removeprefix("costmodel::") for n in seen.names if n.startswith("costmodel::")]
    assert ours.count("shift_norm_act_backward") == 2
    assert ours.count("se_scale") == ours.count("se_scale_backward") == 1
    assert ours.count("train_norm") == ours.count("train_norm_backward") == 2  # after the projection, and the head's


@pytest.mark.parametrize(
    ("spec", "words"),
    [("mobiletl:blocks=12", "1 to 11"), ("mobiletl:blocks=some", "an integer or all"), ("mobiletl:block=2", "blocks")],
)
def test_wrong_options_say_what_is_allowed(spec, words):
    with pytest.raises(CostmodelError, match=words):
        apply_method(spec, net("torchvision:mobilenet_v3_small"), random(1, 3, 64, 64))


def test_a_net_without_inverted_residuals_is_refused():
    with pytest.raises(CostmodelError, match="InvertedResidual"):
        apply_method("mobiletl", nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2))
