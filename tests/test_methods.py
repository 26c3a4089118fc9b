"""Methods by name: specs, options, errors, baselines, and which layers of real nets each one takes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from costmodel.errors import CostmodelError, UnknownName
from costmodel.methods import apply_method, methods, parse_spec
from costmodel.methods.lbp_wht import LbpConv2d, LbpLinear
from costmodel.methods.mobiletl import ShiftNorm
from costmodel.models.load import load_model


def small_vit(grid: tuple[int, int] = (4, 4), prefix: int = 1) -> nn.Module:
    """A block of two linear layers on tokens, a class token and a head."""

    class Vit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, 16, 8, 8)
            self.cls_token = nn.Parameter(torch.zeros(1, prefix, 16))
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(2)
            )
            self.head = nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
            for block in self.blocks:
                x = x + block(x)
            return self.head(x[:, 0])

    torch.manual_seed(0)
    return Vit()


def image(h: int = 32, w: int = 32, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, h, w, generator=torch.Generator().manual_seed(1))


def test_every_method_describes_itself():
    found = methods()
    assert {"full", "last_layer", "last_stage", "bias", "lora", "lbp_wht", "mobiletl"} <= set(found)
    for method in found.values():
        assert method.description.endswith((".", ")"))
        assert all(option.allowed for option in method.options.values())
    assert found["lbp_wht"].options["tile"].allowed == "4 or 8 or 16"
    assert found["mobiletl"].options["blocks"].allowed == "an integer or all"


def test_spec_is_parsed_into_typed_options():
    _, options = parse_spec("lbp_wht:bases=0.0+0.1+1.0,padding=reflect,tile=4,grid=7x9,layers=fc1+fc2")
    assert options == {
        "bases": ("0.0", "0.1", "1.0"), "padding": "reflect", "tile": 4, "grid": (7, 9), "layers": ("fc1", "fc2"),
    }  # fmt: skip
    assert parse_spec("mobiletl:blocks=all,exact")[1] == {"blocks": "all", "exact": True}
    assert parse_spec("lora:alpha=2.5")[1] == {"alpha": 2.5}
    assert parse_spec("full")[1] == {}


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("lbp-wht", UnknownName, "lbp_wht"),
        ("lbp_wht:ordr=3", UnknownName, "order"),
        ("lbp_wht:order=three", CostmodelError, "an integer"),
        ("lbp_wht:order", CostmodelError, "without a value"),
        ("lbp_wht:order=3,order=4", CostmodelError, "twice"),
        ("lbp_wht:order=16", CostmodelError, "1 to 15"),
        ("lbp_wht:order=9,family=linf", CostmodelError, "1 to 8"),
        ("lbp_wht:order=2,bases=0.0", CostmodelError, "not both"),
        ("lbp_wht:bases=0.8", CostmodelError, "0 to 7"),
        ("lbp_wht:grid=4by4", CostmodelError, "HxW"),
        ("lbp_wht:grid=2x7", CostmodelError, "grid=2x7"),
        ("lbp_wht:tile=6", CostmodelError, "4 or 8 or 16"),
        ("lbp_wht:layers=nothing", CostmodelError, "nothing"),
        ("lbp_wht:layers=embed", CostmodelError, "1×1"),
        ("lora:rank=0", CostmodelError, "at least 1"),
        ("lora:layers=nothing", CostmodelError, "nothing"),
    ],
)
def test_errors_say_what_is_allowed_and_leave_the_model_alone(spec, error, words):
    model = small_vit()
    before, kinds = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    with pytest.raises(error, match=words):
        apply_method(spec, model, image())
    assert [type(m) for m in model.modules()] == kinds
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_the_given_model_is_not_the_one_returned():
    model = small_vit()
    tuned = apply_method("lbp_wht:order=3", model, image())
    assert not any(isinstance(m, LbpLinear) for m in model.modules())
    assert [n for n, m in tuned.named_modules() if isinstance(m, LbpLinear)] == [
        "blocks.0.0", "blocks.0.2", "blocks.1.0", "blocks.1.2",
    ]  # fmt: skip
    assert tuned.blocks[0][0].tiling.grid == (4, 4)
    assert tuned.blocks[0][0].tiling.prefix == 1
    assert tuned.state_dict().keys() == model.state_dict().keys()


def test_a_grid_that_is_not_square_must_be_given():
    model, x = small_vit(), image(32, 48)
    with pytest.raises(CostmodelError, match="grid=HxW"):
        apply_method("lbp_wht", model, x)
    tuned = apply_method("lbp_wht:grid=4x6", model, x)
    assert tuned.blocks[0][0].tiling.grid == (4, 6)
    with pytest.raises(CostmodelError, match="apply the method again"):
        tuned.train()(image(32, 32))


def test_full_rank_trains_as_the_exact_model_and_eval_is_exact():
    model, x = small_vit().train(), image()
    tuned = apply_method("lbp_wht:order=15", model, x).train()
    for net in (model, tuned):
        net(x).square().sum().backward()
    for (name, p), q in zip(model.named_parameters(), tuned.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-5), name
    assert torch.equal(tuned.eval()(x), model.eval()(x))


def trained(model: nn.Module) -> set[str]:
    return {n for n, p in model.named_parameters() if p.requires_grad}


def test_baselines_train_what_their_name_says():
    model, x = small_vit(), image()
    everything = {n for n, _ in model.named_parameters()}
    assert trained(apply_method("full", model, x)) == everything
    assert trained(apply_method("last_layer", model, x)) == {"head.weight", "head.bias"}
    assert trained(apply_method("last_stage", model, x)) == {
        n for n in everything if n.startswith(("blocks.1", "head"))
    }
    assert trained(apply_method("bias", model, x)) == {n for n in everything if n.endswith("bias")} | {"head.weight"}
    assert trained(apply_method("lbp_wht:stage=last", model, x)) == trained(apply_method("last_stage", model, x))


def test_lora_starts_as_the_model_and_trains_two_thin_matrices():
    model, x = small_vit(), image()
    tuned = apply_method("lora:rank=2,layers=all", model, x)
    assert torch.equal(tuned.eval()(x), model.eval()(x))
    names = trained(tuned)
    assert {"head.weight", "head.bias"} <= names
    assert {n.rpartition(".")[0].rpartition(".")[2] for n in names - {"head.weight", "head.bias"}} == {"down", "up"}
    tuned.train()(x).sum().backward()
    assert tuned.blocks[0][0].layer.weight.grad is None
    assert tuned.blocks[0][0].up.weight.grad is not None


def test_bias_only_training_keeps_norms_frozen():
    model = load_model("torchvision:mobilenet_v2").model
    x = image(64, 64)
    tuned = apply_method("bias", model, x)
    assert torch.equal(tuned.eval()(x), model.eval()(x))
    before = copy.deepcopy(tuned.state_dict())
    tuned.train()(x).square().mean().backward()
    assert any(isinstance(m, ShiftNorm) for m in tuned.modules())
    assert all(torch.equal(v, before[k]) for k, v in tuned.state_dict().items())  # no statistics moved


NETS = {
    # layers taken, grids seen, layers that must stay exact
    "timm:vit_tiny_patch16_224": (48, {(14, 14)}, ("patch_embed.proj", "head")),
    "timm:deit_tiny_distilled_patch16_224": (48, {(14, 14)}, ("patch_embed.proj", "head", "head_dist")),
    "timm:swin_tiny_patch4_window7_224": (51, {(7, 7), (14, 14), (28, 28), (56, 56)}, ("patch_embed.proj", "head.fc")),
    "timm:efficientformer_l1": (32, {(7, 7), (14, 14), (28, 28), (56, 56)}, ("stem.conv1", "head", "head_dist")),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NETS))
def test_lbp_wht_takes_the_layers_of_real_nets(name):
    count, grids, exact = NETS[name]
    model = load_model(name).model
    tuned = apply_method("lbp_wht:order=2", model, image(224, 224, 1))
    taken = {n: m for n, m in tuned.named_modules() if isinstance(m, LbpLinear | LbpConv2d)}
    assert len(taken) == count
    assert {m.tiling.grid for m in taken.values()} <= grids
    assert not set(exact) & set(taken)
    out = tuned.train()(image(224, 224, 1))
    (out[0] if isinstance(out, tuple) else out).square().mean().backward()
    assert all(m.weight.grad is not None for m in taken.values())
    last = apply_method("lbp_wht:order=2,stage=last", model, image(224, 224, 1))
    assert 0 < len(trained(last)) < len(trained(tuned))


@pytest.mark.slow
def test_lbp_wht_takes_transformers_vit_and_swin():
    for name in ("transformers:vit-tiny", "transformers:swin-tiny"):
        try:
            loaded = load_model(name)
        except CostmodelError as error:
            pytest.skip(str(error))
        inputs = loaded.kwargs or loaded.args
        tuned = apply_method("lbp_wht:order=2", loaded.model, inputs)
        assert sum(isinstance(m, LbpLinear) for m in tuned.modules()) > 4


def test_shapes_are_enough():
    tuned = apply_method("lbp_wht:order=3", small_vit().to("meta"), image().to("meta"))
    assert sum(isinstance(m, LbpLinear) for m in tuned.modules()) == 4
    assert trained(apply_method("last_layer", small_vit().to("meta"), image().to("meta"))) == {
        "head.weight",
        "head.bias",
    }
