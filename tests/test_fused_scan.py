"""The fused scan in transformers' models: same outputs, gradients, cache and state_dict; one node a scan."""

from __future__ import annotations

import copy

import pytest
import torch

from costmodel.errors import CostmodelError
from costmodel.methods import fused_scan
from costmodel.models._compat import require

transformers = require("transformers")


def tiny(kind, **changes):
    torch.manual_seed(0)
    if kind == "mamba":
        config = transformers.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, **changes)
        return transformers.MambaForCausalLM(config).eval()
    sizes = {"hidden_size": 32, "num_heads": 4, "head_dim": 16, "n_groups": 2, "state_size": 16, "chunk_size": 16}
    config = transformers.Mamba2Config(vocab_size=64, num_hidden_layers=2, **(sizes | changes))
    return transformers.Mamba2ForCausalLM(config).eval()


def pair(kind, **changes):
    model = tiny(kind, **changes)
    return model, fused_scan.apply(copy.deepcopy(model))


IDS = torch.randint(0, 64, (2, 21), generator=torch.Generator().manual_seed(1))
KINDS = pytest.mark.parametrize("kind", ["mamba", "mamba2"])


@KINDS
def test_same_logits_and_state_dict(kind):
    model, fused = pair(kind)
    with torch.no_grad():
        torch.testing.assert_close(fused(IDS).logits, model(IDS).logits, rtol=0, atol=1e-5)
    assert list(fused.state_dict()) == list(model.state_dict())


@KINDS
def test_same_generation_through_the_cache(kind):
    model, fused = pair(kind)
    with torch.no_grad():
        ours, theirs = fused(IDS, use_cache=True), model(IDS, use_cache=True)
        for i in range(4):
            token = IDS[:, i : i + 1]
            ours = fused(token, cache_params=ours.cache_params, use_cache=True)
            theirs = model(token, cache_params=theirs.cache_params, use_cache=True)
            torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=1e-5)


@KINDS
def test_same_gradients(kind):
    model, fused = (m.train() for m in pair(kind))
    model(IDS, labels=IDS).loss.backward()
    fused(IDS, labels=IDS).loss.backward()
    for (name, p), q in zip(model.named_parameters(), fused.parameters(), strict=True):
        error = (p.grad - q.grad).abs().max() / p.grad.abs().max()
        assert error < 1e-4, name


@KINDS
def test_padding_mask(kind):
    model, fused = pair(kind)
    mask = torch.ones_like(IDS)
    mask[0, :5] = 0
    with torch.no_grad():
        ours, theirs = (m(IDS, attention_mask=mask, use_cache=False).logits for m in (fused, model))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@KINDS
def test_exports_with_one_node_a_scan(kind):
    _, fused = pair(kind)
    program = torch.export.export(fused, (IDS,), {"use_cache": False})
    names = [str(node.target) for node in program.graph.nodes]
    scan = "selective_scan" if kind == "mamba" else "ssd_scan"
    assert sum(f"costmodel.{scan}.default" in name for name in names) == 2


def test_refusals_come_before_any_change():
    with pytest.raises(CostmodelError, match="no mixer"):
        fused_scan.apply(torch.nn.Linear(2, 2))
    model = tiny("mamba").half()
    with pytest.raises(CostmodelError, match="float32"):
        fused_scan.apply(model)
    assert type(model.backbone.layers[0].mixer).__name__ == "MambaMixer"
    model = tiny("mamba", hidden_act="gelu")
    with pytest.raises(CostmodelError, match="SiLU"):
        fused_scan.apply(model)
