"""Every op of the eight models has a formula, in every mode and with every optimizer, and it takes what was traced."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from costmodel.capture import capture
from costmodel.costs import OpSpec, TensorSpec, formula_for
from costmodel.models._compat import require

VISION = (
    "mobilenetv2_050",
    "mobilenetv3_small_050",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "resnet18",
)
LANGUAGE = ("bert", "mamba", "mamba2")
CASES = [
    (name, mode)
    for name in (*VISION, *LANGUAGE)
    for mode in ("infer", "sgd", "momentum", "adamw", *(("prefill", "decode") if "mamba" in name else ()))
]


def build(name: str):
    if name in VISION:
        return require("timm").create_model(name, num_classes=10), torch.empty(2, 3, 224, 224)
    t = require("transformers")
    small = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64}
    if name == "bert":
        config = t.BertConfig(**small, num_attention_heads=2, intermediate_size=64)
        model = t.BertForSequenceClassification(config)
    elif name == "mamba":
        model = t.MambaForCausalLM(t.MambaConfig(**small, state_size=4))
    else:
        model = t.Mamba2ForCausalLM(
            t.Mamba2Config(**small, state_size=8, head_dim=8, num_heads=8, n_groups=1, chunk_size=8)
        )
    return model, {"input_ids": torch.zeros(2, 16, dtype=torch.long)}


def priced(graph) -> list[tuple[str, int, int]]:
    """Phase, FLOPs and bytes of every op."""
    specs = [
        TensorSpec(shape, dtype, stride)
        for shape, dtype, stride in zip(graph.tensor_shape, graph.tensor_dtype, graph.tensor_stride)
    ]
    rows = []
    for k, name in enumerate(graph.op_name):
        formula = formula_for(name)
        assert formula is not None, f"no formula for {name} in {graph.op_module[k]}"
        inputs, outputs = (tuple(specs[t] for t in column[k]) for column in (graph.op_inputs, graph.op_outputs))
        op = OpSpec(name.split(".")[0], inputs, outputs, graph.op_attrs[k])
        cost = formula(op)
        assert isinstance(cost.flops, int), name
        assert cost.flops >= 0, name
        assert cost.work is None or cost.work >= cost.flops, name
        assert all(value >= 0 for value in cost.terms.values()), name
        assert len(cost.bytes_read(op)) == len(inputs), name
        assert len(cost.bytes_written(op)) == len(outputs), name
        assert cost.workspace >= 0, name
        rows.append((graph.op_phase[k], cost.flops, sum(cost.bytes_read(op)) + sum(cost.bytes_written(op))))
    return rows


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "mode"), CASES)
def test_no_op_is_without_a_price(name, mode):
    model, inputs = build(name)
    optimizer = mode if mode in ("sgd", "momentum", "adamw") else "sgd"
    graph = capture(model, inputs, mode="train" if mode == optimizer else mode, optimizer=optimizer)
    by_phase: Counter[str] = Counter()
    for phase, flops, _ in priced(graph):
        by_phase[phase] += flops
    assert by_phase["forward"] > 0
    if mode == optimizer:
        sizes = [p.numel() for p in model.parameters()]
        counters = len(sizes) if mode == "adamw" else 0  # one addition a tensor counts its steps
        assert by_phase["optimizer"] == {"sgd": 2, "momentum": 4, "adamw": 14}[mode] * sum(sizes) + counters
        assert 1 < by_phase["backward"] / by_phase["forward"] < 3
