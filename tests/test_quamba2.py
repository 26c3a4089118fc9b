"""Quamba2: the invariants of METHODS.md §4 on small tame models, sizes of the published ones, the dead band."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.errors import CostmodelError
from costmodel.kernels.scan_int8 import scan_quantized
from costmodel.kernels.selective_scan import decay_panels
from costmodel.methods import apply_method, quamba2
from costmodel.methods.quamba.clusters import cluster_mamba2, cut_sorted, sort_mamba1
from costmodel.methods.quamba.floats import read_model
from costmodel.methods.quamba.model import QuantizedMamba
from costmodel.methods.quamba.quantizer import dequantize_int4, int4_groups
from costmodel.methods.quamba.recipe import Sizes
from costmodel.methods.quamba2.gptq import gptq_int4
from costmodel.methods.quamba2.search import search_blocks

from .test_quamba import CALIBRATION, HELD_OUT, error, mamba, mamba2, tokens, transformers

MAKERS = pytest.mark.parametrize("make", [mamba, mamba2])


@MAKERS
@pytest.mark.parametrize(("bits", "limit"), [("w8a8", 0.1), ("w4a8", 0.4), ("w4a16", 0.4)])
def test_close_to_the_float_model(make, bits, limit):
    model = make()
    quantized = quamba2.apply(model, CALIBRATION, bits=bits)
    assert error(quantized, model) < limit
    packed = torch.uint8 if bits != "w8a8" else torch.int8
    assert all(block.in_proj.panels.dtype == packed for block in quantized.blocks)


@MAKERS
def test_prefill_equals_steps_where_the_state_is_not_rounded(make):
    model = quamba2.apply(make(), CALIBRATION, bits="w4a8", state="float32")
    cache, whole = model.init_cache(2), model.init_cache(2)
    with torch.no_grad():
        logits = model(HELD_OUT, whole).logits
        steps = [model(HELD_OUT[:, t : t + 1], cache).logits for t in range(HELD_OUT.shape[1])]
    assert torch.equal(torch.cat(steps, 1), logits)
    for a, b in zip((*cache.conv, *cache.ssm), (*whole.conv, *whole.ssm)):
        assert torch.equal(a, b)


@MAKERS
@pytest.mark.parametrize("bits", ["w8a8", "w4a16"])
def test_prefill_and_steps_agree_with_a_rounded_state(make, bits):
    model = quamba2.apply(make(), CALIBRATION, bits=bits)
    cache = model.init_cache(2)
    with torch.no_grad():
        logits = model(HELD_OUT).logits
        steps = torch.cat([model(HELD_OUT[:, t : t + 1], cache).logits for t in range(HELD_OUT.shape[1])], 1)
    assert float((steps - logits).norm() / logits.norm()) < (0.04 if bits == "w8a8" else 1e-3)


@MAKERS
def test_reorder_and_rotation_leave_the_float_output_unchanged(make):
    model = make()
    with torch.no_grad():
        for layer in model.backbone.layers:
            layer.norm.weight.uniform_(0.5, 1.5)
            if hasattr(layer.mixer, "norm"):
                layer.mixer.norm.weight.uniform_(0.5, 1.5)
        model.backbone.norm_f.weight.uniform_(0.5, 1.5)
        want = model(HELD_OUT[:1]).logits
        floats = read_model(model)
        floats.fold_norms()
        floats.rotate_residual()
        largest = torch.rand(256)
        for block in floats.blocks:
            if make is mamba:
                sort_mamba1(block, largest, 4)
            else:
                cluster_mamba2(block, largest, 2, 4)
        hidden = floats.embedding[HELD_OUT[:1]]
        for block in floats.blocks:
            hidden = block.forward(hidden, lambda name, value: None)
        scale = torch.rsqrt(hidden.square().mean(-1, keepdim=True) + floats.eps)
        got = hidden * scale * floats.norm @ floats.head.T
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * float(want.abs().max()))


@given(length=st.integers(1, 40), runs=st.integers(1, 6), step=st.sampled_from([1, 4]))
@settings(max_examples=50, deadline=None)
def test_runs_cover_every_channel_once(length, runs, step):
    values = torch.rand(length * step).sort(descending=True).values
    ends = cut_sorted(values, runs, step)
    assert len(ends) == runs
    assert ends == sorted(ends)
    assert ends[-1] == len(values)
    assert all(end % step == 0 for end in ends)


def test_cutting_is_the_best_of_all_cuts():
    values = torch.rand(9, generator=torch.Generator().manual_seed(3)).sort(descending=True).values.double()

    def deviation(cuts):
        parts = [values[a:b] for a, b in zip((0, *cuts), (*cuts, 9))]
        return sum(float(((p - p.mean()) ** 2).sum()) for p in parts)

    ends = cut_sorted(values, 3, 1)
    every = [(a, b) for a in range(1, 8) for b in range(a + 1, 9)]
    assert deviation(ends[:2]) == pytest.approx(min(map(deviation, every)))


def test_group_ranges_of_the_model_cover_every_channel_once():
    block = quamba2.apply(mamba2(), CALIBRATION, bits="w8a8").blocks[0]
    rows = block._rows()
    assert rows.shape == (256,)
    per_group = rows.reshape(2, 128)
    assert (per_group[0] < 16).all()
    assert (per_group[1] >= 16).all()
    assert torch.equal(rows[::4].repeat_interleave(4), rows)  # four channels share a row


@MAKERS
def test_one_run_equals_per_tensor(make):
    plain = quamba2.apply(make(), CALIBRATION, bits="w8a8", cluster=False)
    for block in plain.blocks:
        scales = block.u_groups if make is mamba else block.x_groups
        assert scales.numel() == (1 if make is mamba else 2)


def test_clusters_help_where_channels_differ():
    model = mamba2()
    with torch.no_grad():
        for layer in model.backbone.layers:
            scale = torch.logspace(-1.5, 1, 256)[torch.randperm(256, generator=torch.Generator().manual_seed(0))]
            layer.mixer.conv1d.bias[:256] += scale
            layer.mixer.out_proj.weight /= scale
    plain, sorted_ = (quamba2.apply(model, CALIBRATION, bits="w8a8", cluster=c) for c in (False, True))
    assert error(sorted_, model) < error(plain, model)


@given(n=st.integers(1, 9), groups=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_w4_error_is_half_a_step(n, groups, seed):
    w = torch.randn(n, groups * 16, generator=torch.Generator().manual_seed(seed))
    q, scale = int4_groups(w, 16)
    assert int(q.max()) <= 15
    error_ = (dequantize_int4(q, scale) - w).abs().reshape(n, groups, 16)
    # q - 8 reaches -8 … 7: the largest positive value lies 7.5 steps out and is clamped by half a step
    assert (error_ <= scale.float()[..., None] * 0.51 + 1e-6).all()


def test_gptq_beats_rounding_on_what_it_minimises():
    g = torch.Generator().manual_seed(0)
    mix = torch.randn(128, 128, generator=g) * torch.logspace(0, -2, 128)
    x, w = torch.randn(2000, 128, generator=g) @ mix, torch.randn(64, 128, generator=g)
    moment = x.double().T @ x.double()

    def loss(q, scale):
        return float(((dequantize_int4(q, scale) - w) @ x.T).norm())

    assert loss(*gptq_int4(w, moment, 64, None)) < 0.75 * loss(*int4_groups(w, 64))


def test_search_finds_the_blocks_that_matter():
    weights = [0.1, 5.0, 0.2, 3.0, 0.1, 0.3, 4.0, 0.2]
    best = search_blocks(8, 3, lambda c: -sum(w for w, wide in zip(weights, c) if wide), 20, 8, seed=0)
    assert [i for i, wide in enumerate(best) if wide] == [1, 3, 6]
    assert search_blocks(4, 0, lambda c: 0.0, 4, 2, seed=0) == (False,) * 4


def test_w4ax_mixes_blocks_and_round_trips(tmp_path):
    model = mamba(num_hidden_layers=3)
    mixed = quamba2.apply(model, CALIBRATION[:3], bits="w4ax", wide_share=0.34, population=4, generations=2)
    assert [block.recipe.wide for block in mixed.blocks].count(True) == 1
    path = tmp_path / "mixed.safetensors"
    quamba2.save(mixed, path)
    with torch.no_grad():
        assert torch.equal(quamba2.load(path)(HELD_OUT).logits, mixed(HELD_OUT).logits)


@pytest.mark.parametrize("decay", [0.99, 0.999])
def test_dead_band_of_an_int8_state_and_its_remedy(decay):
    """|q| < 0.5/(1 - a) never decays in int8; fp16 and fp32 states do."""
    a = torch.full((16, 16), float(torch.log(torch.tensor(decay))) / 1.3132616875182228)  # dt = softplus(1)
    zeros, ones = torch.zeros(1, 1, 16, dtype=torch.int8), torch.ones(16)
    start = torch.arange(16).repeat(16, 1).t().reshape(1, 1, 16, 16) * 7 + 1.0
    kept = {}
    for dtype in (torch.int8, torch.float16, torch.float32):
        state = start.to(dtype, copy=True, memory_format=torch.contiguous_format)
        for _ in range(1024):
            scan_quantized(
                zeros, zeros, zeros, zeros, zeros, ones, torch.ones(4), decay_panels(a)[0], ones, ones, state,
                torch.ones(1, 16, 16),
            )  # fmt: skip
        kept[dtype] = state.float()
    band = 0.5 / (1 - decay)
    stuck = torch.where(start < band, start, torch.full_like(start, band)).floor()
    assert (kept[torch.int8] - stuck).abs().max() <= 1
    exact = start * decay**1024
    assert (kept[torch.float32] - exact).abs().max() < 1e-3 * start.max()
    assert (kept[torch.float16] - exact).abs().max() < 0.05 * start.max()


@pytest.mark.slow
@MAKERS
def test_four_thousand_tokens_stay_stable(make):
    """Generation over 4,096 tokens: the float16 state follows the float32 one, the int8 state stays bounded."""
    ids = tokens(1, 4096, seed=9)
    outputs = {}
    for state in ("int8", "float16", "float32"):
        model = quamba2.apply(make(), CALIBRATION, bits="w8a8", state=state)
        cache = model.init_cache(1)
        with torch.no_grad():
            logits = [model(ids[:, t : t + 1], cache).logits[0, 0] for t in range(4096)]
        outputs[state] = torch.stack(logits[-512:])
        assert torch.isfinite(outputs[state]).all()
    reference = outputs["float32"]
    drift = {s: float((outputs[s] - reference).norm() / reference.norm()) for s in ("int8", "float16")}
    assert drift["float16"] < 0.03  # flips of int8 activations
    assert drift["float16"] < drift["int8"] < 0.2, drift


PUBLISHED = {  # paper's Table 4, GB = MiB / 1000
    "mamba-2.8b": (5.3, 2.8, 1.5, 1.5),
    "mamba2-2.7b": (5.2, 2.7, 1.4, 1.4),
    "mamba2-8b": (15.7, 7.9, 4.0, 4.0),
}


def published(name):
    with torch.device("meta"):
        if name == "mamba-2.8b":
            config = transformers.MambaConfig(hidden_size=2560, num_hidden_layers=64, vocab_size=50280)
            return transformers.MambaForCausalLM(config)
        sizes = {"hidden_size": 4096, "num_hidden_layers": 56, "vocab_size": 256000, "num_heads": 128, "n_groups": 8}
        if name == "mamba2-2.7b":
            sizes = {"hidden_size": 2560, "num_hidden_layers": 64, "vocab_size": 50288, "num_heads": 80, "n_groups": 1}
            sizes["tie_word_embeddings"] = True
        return transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**sizes, head_dim=64, state_size=128))


def gigabytes(state_dict):
    return round(sum(t.nbytes for t in state_dict.values()) / 2**20 / 1000, 1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_of_table_4_to_the_printed_digit(name):
    model = published(name)
    parameters = sum(p.numel() for p in model.parameters())
    sizes = [round(2 * parameters / 2**20 / 1000, 1)]
    sizes += [gigabytes(quamba2.apply(model, None, bits=b).state_dict()) for b in ("w8a8", "w4a8", "w4a16")]
    assert tuple(sizes) == PUBLISHED[name]


def test_refusals():
    with pytest.raises(CostmodelError, match="not Linear"):
        quamba2.apply(torch.nn.Linear(2, 2), CALIBRATION)
    with pytest.raises(CostmodelError, match="not divisible by the group of 96"):
        quamba2.apply(mamba(), CALIBRATION, group=96)
    with pytest.raises(CostmodelError, match="needs a8"):
        quamba2.apply(mamba(), CALIBRATION, bits="w4a16", state="int8")
    with pytest.raises(CostmodelError, match="at least two"):
        quamba2.apply(mamba2(), tokens(2, 1))


def test_by_name_and_ablations():
    model = mamba2()
    spec = "quamba2:bits=w4a8,rotate=false,gptq=false,state_groups=false,cluster=false"
    plain = apply_method(spec, copy.deepcopy(model), CALIBRATION)
    assert isinstance(plain, QuantizedMamba)
    block = plain.blocks[0]
    assert block.b_scale.unique().numel() == 1
    assert not block.recipe.rotate
    full = quamba2.apply(model, CALIBRATION, bits="w4a8").blocks[0]
    assert full.b_scale.unique().numel() == 2
    assert replace(full.recipe, rotate=False, folded=False, clusters=(1, 1)) == block.recipe
    assert isinstance(plain.sizes, Sizes)
