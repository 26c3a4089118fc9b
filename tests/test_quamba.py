"""Quamba: the invariants of METHODS.md §3 on a small tame Mamba, and what must be refused."""

from __future__ import annotations

import copy

import pytest
import torch

from costmodel.errors import CostmodelError, FileError
from costmodel.kernels.hadamard import hadamard_matrix, rotate_quantize
from costmodel.methods import apply_method, naive_w8a8, quamba
from costmodel.methods.quamba.calibration import LayerStatistics, calibrate, token_rows
from costmodel.methods.quamba.floats import read_model
from costmodel.methods.quamba.rotation import fold_rotation
from costmodel.models._compat import require

transformers = require("transformers")


def tame(model):
    """Default initialisation is chaotic: every quantized run decorrelates and says nothing (KERNELS.md §1)."""
    with torch.no_grad():
        for layer in model.backbone.layers:
            layer.mixer.in_proj.weight.mul_(0.5)
            layer.mixer.out_proj.weight.mul_(0.5)
            if hasattr(layer.mixer, "x_proj"):
                layer.mixer.x_proj.weight.mul_(0.2)
    return model.eval()


def mamba(**changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": 128, "hidden_size": 128, "num_hidden_layers": 2} | changes
    return tame(transformers.MambaForCausalLM(transformers.MambaConfig(**sizes)))


def mamba2(**changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": 128, "hidden_size": 128, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 32}
    sizes |= {"n_groups": 2, "state_size": 32, "chunk_size": 32} | changes
    return tame(transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**sizes)))


def tokens(rows, length, seed=0):
    return torch.randint(0, 128, (rows, length), generator=torch.Generator().manual_seed(seed))


CALIBRATION, HELD_OUT = tokens(8, 64, 1), tokens(2, 24, 2)


def error(model, reference, ids=HELD_OUT):
    with torch.no_grad():
        want, got = reference(ids).logits, model(ids).logits
    return float((got - want).norm() / want.norm())


@pytest.fixture(scope="module")
def original():
    return mamba()


@pytest.fixture(scope="module")
def quantized(original):
    return quamba.apply(original, CALIBRATION, state="float32")


def test_close_to_the_float_model_on_held_out_tokens(original, quantized):
    assert error(quantized, original) < 0.03
    with torch.no_grad():
        agree = quantized(HELD_OUT).logits.argmax(-1) == original(HELD_OUT).logits.argmax(-1)
    assert agree.float().mean() > 0.9


def test_the_original_is_not_changed(original):
    before = copy.deepcopy(original.state_dict())
    quamba.apply(original, CALIBRATION)
    for name, value in original.state_dict().items():
        assert torch.equal(value, before[name])


def test_weights_are_bytes_and_nothing_float_is_multiplied(quantized):
    for name, t in quantized.state_dict().items():
        if "panels" in name:
            assert t.dtype == torch.int8
    floats = sum(t.numel() for n, t in quantized.state_dict().items() if t.is_floating_point() and "table" not in n)
    assert floats < 0.02 * sum(t.numel() for t in quantized.state_dict().values())


def test_prefill_of_l_tokens_equals_l_steps(quantized):
    cache, whole = quantized.init_cache(2), quantized.init_cache(2)
    with torch.no_grad():
        logits = quantized(HELD_OUT, whole).logits
        steps = [quantized(HELD_OUT[:, t : t + 1], cache).logits for t in range(HELD_OUT.shape[1])]
    for a, b in zip((*cache.conv, *cache.ssm), (*whole.conv, *whole.ssm)):
        assert torch.equal(a, b)
    torch.testing.assert_close(torch.cat(steps, 1), logits, rtol=0, atol=2e-5)  # the fp16 head is the only fp32 sum


def test_prefill_in_two_parts_equals_one(quantized):
    cache, whole = quantized.init_cache(2), quantized.init_cache(2)
    with torch.no_grad():
        quantized(HELD_OUT, whole)
        quantized(HELD_OUT[:, :2], cache)
        quantized(HELD_OUT[:, 2:], cache)
    for a, b in zip((*cache.conv, *cache.ssm), (*whole.conv, *whole.ssm)):
        assert torch.equal(a, b)


def test_state_is_constant_in_the_context(original):
    model = quamba.apply(original, CALIBRATION)
    width, states, layers = 256, 16, 2
    assert model.init_cache(3).nbytes == 3 * layers * width * (2 * states + 3)
    with torch.no_grad():
        cache = model(tokens(1, 50), use_cache=True).cache_params
    assert cache.nbytes == layers * width * (2 * states + 3)


def test_rotation_leaves_the_block_output_unchanged():
    block = read_model(mamba()).blocks[0]
    y = torch.randn(5, block.width)
    rotated = (y.double() @ hadamard_matrix(block.width).T).float() @ fold_rotation(block.out_proj).T
    torch.testing.assert_close(rotated, y @ block.out_proj.T, rtol=0, atol=1e-5)


def test_float_reference_is_the_original(original):
    floats = read_model(original)
    seen = []
    hidden = floats.embedding[HELD_OUT[:1]]
    with torch.no_grad():
        for block in floats.blocks:
            hidden = block.forward(hidden, lambda name, value: seen.append(name))
        want = original(HELD_OUT[:1], output_hidden_states=True).hidden_states[-2]
        got = original.backbone.norm_f(hidden)
        torch.testing.assert_close(
            got, original(HELD_OUT[:1], output_hidden_states=True).hidden_states[-1], atol=1e-5, rtol=0
        )
    assert want.shape == hidden.shape
    assert {"input", "x", "z", "u", "dt_low", "B", "C", "delta", "y", "h"} <= set(seen)


def test_calibration_does_not_depend_on_order(original):
    floats = read_model(original)
    rows = list(CALIBRATION.split(1))
    first, second = calibrate(floats, rows), calibrate(floats, rows[::-1])
    for a, b in zip(first.layers, second.layers):
        assert a.largest.keys() == b.largest.keys()
        assert all(torch.equal(a.largest[k], b.largest[k]) for k in a.largest)
        assert torch.equal(a.counts, b.counts)


@pytest.mark.parametrize("percent", [99.0, 99.9, 99.99])
def test_saturated_fraction_is_one_minus_the_percentile(percent):
    values = torch.randn(1, 500, 400).exp()
    seen = LayerStatistics()
    seen.watch("u", values)
    saturated = float((values > seen.percentile(percent)).double().mean())
    assert saturated == pytest.approx(1 - percent / 100, rel=0.15, abs=2e-6)
    assert seen.percentile(100.0) == values.max()


def test_percentile_takes_more_than_two_to_the_24_values():
    seen = LayerStatistics()
    for _ in range(3):
        seen.watch("u", torch.rand(1, 2**12, 2**11))
    assert int(seen.counts.sum()) > 2**24
    assert float(seen.percentile(99.0)) == pytest.approx(0.99, rel=2e-3)


def test_samples_are_drawn_by_seed():
    rows = tokens(30, 8, 5)
    a, b, c = (token_rows(rows, 10, seed) for seed in (0, 0, 1))
    assert all(torch.equal(x, y) for x, y in zip(a, b))
    assert not all(torch.equal(x, y) for x, y in zip(a, c))


def test_massive_outliers_are_what_the_rotation_is_for():
    """One channel with a hundredfold y and a hundredth of its weight: the same product, a harder quantizer."""
    g = torch.Generator().manual_seed(0)
    y, w = torch.randn(64, 256, generator=g), torch.randn(32, 256, generator=g)
    y[:, 7] *= 100
    w[:, 7] /= 100
    want = y @ w.T
    h = hadamard_matrix(256).float()
    plain, rotated = y.abs().max() / 127, (y @ h.T).abs().max() / 127
    naive = rotate_quantize(y, plain.reshape(1), False) * plain @ w.T
    ours = rotate_quantize(y, rotated.reshape(1), True) * rotated @ fold_rotation(w).T
    assert (ours - want).norm() < 0.25 * (naive - want).norm()


def test_saves_and_loads_with_a_version(tmp_path, quantized):
    path = tmp_path / "model.safetensors"
    quamba.save(quantized, path)
    again = quamba.load(path)
    with torch.no_grad():
        assert torch.equal(again(HELD_OUT).logits, quantized(HELD_OUT).logits)
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(str(path), "pt") as file:
        metadata = file.metadata()
    tensors = dict(quantized.state_dict())
    save_file(tensors, str(path), {"costmodel": metadata["costmodel"].replace('"version": 1', '"version": 99')})
    with pytest.raises(FileError, match="is 99"):
        quamba.load(path)
    tensors.pop("norm")
    save_file(tensors, str(path), metadata)
    with pytest.raises(FileError, match="norm"):
        quamba.load(path)
    save_file({"a": torch.zeros(1)}, str(path))
    with pytest.raises(FileError, match="no recipe"):
        quamba.load(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(FileError, match="safetensors"):
        quamba.load(path)


def test_refusals():
    with pytest.raises(CostmodelError, match="not Linear"):
        quamba.apply(torch.nn.Linear(2, 2), CALIBRATION)
    with pytest.raises(CostmodelError, match="see quamba2"):
        quamba.apply(mamba2(), CALIBRATION)
    with pytest.raises(CostmodelError, match="at least two"):
        quamba.apply(mamba(), tokens(3, 1))
    with pytest.raises(CostmodelError, match="pass token ids"):
        quamba.apply(mamba(), None)
    with pytest.raises(CostmodelError, match="percentile=0"):
        quamba.apply(mamba(), CALIBRATION, percentile=0)
    with pytest.raises(CostmodelError, match="no Hadamard matrix of size 224"):
        quamba.apply(mamba(hidden_size=112), CALIBRATION)
    bad = mamba()
    with torch.no_grad():
        bad.backbone.layers[1].mixer.D[0] = float("nan")
    with pytest.raises(CostmodelError, match="block 1 gives NaN"):
        quamba.apply(bad, CALIBRATION)


def test_exports_and_traces_as_ops(quantized):
    program = torch.export.export(quantized, (HELD_OUT,))
    names = [str(n.target) for n in program.graph.nodes if "costmodel" in str(n.target)]
    assert sum("scan_quantized" in n for n in names) == 2
    step = torch.export.export(quantized, (HELD_OUT[:, :1], quantized.init_cache(2)))
    names = [str(n.target) for n in step.graph.nodes if "costmodel" in str(n.target)]
    assert sum("mamba_step" in n for n in names) == 2


def test_by_name_and_on_the_meta_device():
    with torch.device("meta"):
        model = transformers.MambaForCausalLM(transformers.MambaConfig(num_hidden_layers=2))
    big = apply_method("quamba", model, None)
    blocks = sum(t.nbytes for n, t in big.state_dict().items() if n.startswith("blocks"))
    parameters = sum(p.numel() for n, p in model.named_parameters() if ".layers." in n)
    assert blocks == pytest.approx(parameters, rel=0.03)


def test_without_its_ingredients_it_is_the_naive_baseline():
    bare = quamba.apply(mamba(), CALIBRATION, percentile=100.0, rotate=False)
    naive = naive_w8a8.apply(mamba(), CALIBRATION)
    assert torch.equal(bare(HELD_OUT).logits, naive(HELD_OUT).logits)


def test_naive_takes_both_architectures():
    for model in (mamba(), mamba2()):
        assert error(naive_w8a8.apply(model, CALIBRATION), model) < 0.1
