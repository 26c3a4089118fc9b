"""FLOPs of five named architectures, derived by hand from their papers' dimensions, equal what is counted to the last.

Counted are matrix products and convolutions, one multiply-add being two; biases, norms and activations are not. Each
derivation is written out layer by layer, from the published sizes alone, and never asks the model.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from costmodel.capture import capture
from costmodel.graph import OpGraph
from costmodel.lower import lower
from costmodel.models import load_model

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "linear", "convolution_backward", "_grouped_mm")


def products(graph: OpGraph) -> int:
    """FLOPs of matrix products, convolutions and attention's two products."""
    total = 0
    for name, c in zip(graph.op_name, lower(graph).costs):
        base = name.split("::")[1].split(".")[0]
        assert "scaled_dot_product" not in base, "attention is written out here"
        total += c.flops if base in PRODUCTS else 0
    return total


def traced(name: str, mode: str = "infer", **options: object) -> OpGraph:
    loaded = load_model(name, mode=mode, device="meta", input_device="cpu", **options)  # type: ignore[arg-type]
    seq = options.get("seq")
    return capture(loaded.model, loaded.inputs, mode=mode, seq=seq if isinstance(seq, int) else None)


def linear(rows: int, fan_in: int, fan_out: int) -> int:
    return 2 * rows * fan_in * fan_out


def conv(side: int | tuple[int, int], kernel: int, fan_in: int, fan_out: int, groups: int = 1) -> int:
    """A convolution with a result of side × side."""
    height, width = (side, side) if isinstance(side, int) else side
    return 2 * height * width * kernel**2 * (fan_in // groups) * fan_out


# 1. An LLM decoder: SmolLM-135M, Llama's block (Touvron et al. 2023): d 576, 30 layers, 9 heads of 64 with 3 of keys
# and values, MLP 1,536 with a gate, vocabulary 49,152, tied.


def smollm(tokens: int, context: int) -> int:
    d, kv, mlp, vocab = 576, 3 * 64, 1536, 49152
    project = linear(tokens, d, d) + 2 * linear(tokens, d, kv) + linear(tokens, d, d)  # q; k, v; output
    attend = 2 * (2 * 9 * tokens * context * 64)  # q·kᵀ and p·v, a head of 64 each
    feed = 3 * linear(tokens, d, mlp)  # gate, up, down
    return 30 * (project + attend + feed) + linear(tokens, d, vocab)


def test_llm_decoder() -> None:
    name = "transformers:smollm-135m,attn_implementation=eager"
    assert products(traced(name, seq=64)) == smollm(64, 64)
    assert products(traced(name, "decode", seq=64)) == smollm(1, 65), "one token, to 64 before it and itself"


# 2. An encoder: BERT-base (Devlin et al. 2019): 12 layers, d 768, 12 heads of 64, MLP 3,072; a pooler and 2 labels.


def test_encoder() -> None:
    n, d = 128, 768
    layer = 4 * linear(n, d, d) + 2 * (2 * 12 * n * n * 64) + 2 * linear(n, d, 4 * d)
    head = linear(1, d, d) + linear(1, d, 2)
    assert products(traced("transformers:bert-base,attn_implementation=eager", seq=n)) == 12 * layer + head


def test_encoders_training_step_is_three_forwards_less_what_nobody_asks_for() -> None:
    n, d, batch = 128, 768, 2
    layer = batch * (4 * linear(n, d, d) + 2 * (2 * 12 * n * n * 64) + 2 * linear(n, d, 4 * d))
    head = linear(batch, d, d) + linear(batch, d, 2)
    graph = traced("transformers:bert-base,attn_implementation=eager", "train", seq=n, batch=batch)
    assert products(graph) == 3 * (12 * layer + head), "of each product, a gradient of either side"


# 3. A diffusion UNet: the noise predictor of DDPM on 32×32 (Ho et al. 2020, appendix B): widths 128, 256, 256, 256,
# two residual blocks a level, attention at 16×16, time embedding of 512.


class Residual(nn.Module):
    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(32, fan_in), nn.Conv2d(fan_in, fan_out, 3, padding=1)
        self.time = nn.Linear(512, fan_out)
        self.norm2, self.conv2 = nn.GroupNorm(32, fan_out), nn.Conv2d(fan_out, fan_out, 3, padding=1)
        self.skip = nn.Conv2d(fan_in, fan_out, 1) if fan_in != fan_out else nn.Identity()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(t))[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(y)))


class SelfAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, width)
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).chunk(3, 1)
        a = torch.softmax(q.transpose(1, 2) @ k * x.shape[1] ** -0.5, -1)
        return x + self.out((v @ a.transpose(1, 2)).view_as(x))


class UNet(nn.Module):
    WIDTHS = (128, 256, 256, 256)

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(128, 512), nn.SiLU(), nn.Linear(512, 512))
        self.first = nn.Conv2d(3, 128, 3, padding=1)
        widths, down, skips = 128, [], [128]
        for level, width in enumerate(self.WIDTHS):
            for _ in range(2):
                down.append(
                    nn.ModuleList([Residual(widths, width), SelfAttention(width) if level == 1 else nn.Identity()])
                )
                widths = width
                skips.append(width)
            if level < 3:
                down.append(nn.ModuleList([nn.Conv2d(width, width, 3, 2, 1)]))
                skips.append(width)
        self.down = nn.ModuleList(down)
        self.middle = nn.ModuleList([Residual(256, 256), SelfAttention(256), Residual(256, 256)])
        up = []
        for level, width in reversed(list(enumerate(self.WIDTHS))):
            for _ in range(3):
                up.append(
                    nn.ModuleList(
                        [Residual(widths + skips.pop(), width), SelfAttention(width) if level == 1 else nn.Identity()]
                    )
                )
                widths = width
            if level:
                up.append(nn.ModuleList([nn.Conv2d(width, width, 3, padding=1)]))
        self.up, self.norm, self.last = nn.ModuleList(up), nn.GroupNorm(32, 128), nn.Conv2d(128, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = self.time(t)
        x = self.first(x)
        kept = [x]
        for block in self.down:
            x = block[0](x) if len(block) == 1 else block[1](block[0](x, t))
            kept.append(x)
        x = self.middle[2](self.middle[1](self.middle[0](x, t)), t)
        for block in self.up:
            if len(block) == 1:
                x = block[0](F.interpolate(x, scale_factor=2.0))
            else:
                x = block[1](block[0](torch.cat([x, kept.pop()], 1), t))
        return self.last(F.silu(self.norm(x)))


def residual(side: int, fan_in: int, fan_out: int) -> int:
    skip = conv(side, 1, fan_in, fan_out) if fan_in != fan_out else 0
    return conv(side, 3, fan_in, fan_out) + conv(side, 3, fan_out, fan_out) + skip + linear(1, 512, fan_out)


def attention(side: int, width: int) -> int:
    n = side * side
    return conv(side, 1, width, 3 * width) + conv(side, 1, width, width) + 2 * (2 * n * n * width)


def test_diffusion_unet() -> None:
    total = linear(1, 128, 512) + linear(1, 512, 512) + conv(32, 3, 3, 128)
    # down: 32×32 at 128; 16×16 at 256 with attention; 8×8 and 4×4 at 256; a strided convolution between levels
    total += 2 * residual(32, 128, 128) + conv(16, 3, 128, 128)
    total += residual(16, 128, 256) + residual(16, 256, 256) + 2 * attention(16, 256) + conv(8, 3, 256, 256)
    total += 2 * residual(8, 256, 256) + conv(4, 3, 256, 256)
    total += 2 * residual(4, 256, 256)
    total += 2 * residual(4, 256, 256) + attention(4, 256)  # the middle
    # up: three blocks a level, each beside what the way down left; a convolution after each doubling
    total += 3 * residual(4, 512, 256) + conv(8, 3, 256, 256)
    total += 3 * residual(8, 512, 256) + conv(16, 3, 256, 256)
    total += 2 * residual(16, 512, 256) + residual(16, 256 + 128, 256) + 3 * attention(16, 256) + conv(32, 3, 256, 256)
    total += residual(32, 256 + 128, 128) + 2 * residual(32, 128 + 128, 128) + conv(32, 3, 128, 3)
    graph = capture(UNet(), (torch.randn(1, 3, 32, 32), torch.randn(1, 128)))
    assert products(graph) == total
    assert total == pytest.approx(12.1e9, rel=0.05), "35.7 M parameters, some 6 GMAC"


# 4. Speech recognition: Whisper tiny (Radford et al. 2023): 80 mel bins × 3,000 frames, two convolutions of 3 (the
# second strides by 2), 4 + 4 layers of d 384, 6 heads, MLP 1,536, vocabulary 51,865, tied.


def test_speech_recogniser() -> None:
    d, frames, tokens, vocab = 384, 1500, 16, 51865
    stem = 2 * 3000 * 3 * 80 * d + 2 * frames * 3 * d * d
    mlp_of = lambda n: 2 * linear(n, d, 4 * d)  # noqa: E731
    attend = lambda q, k: 2 * (2 * q * k * d)  # noqa: E731  all heads together are d wide
    encoder = 4 * (4 * linear(frames, d, d) + attend(frames, frames) + mlp_of(frames))
    own = 4 * linear(tokens, d, d) + attend(tokens, tokens)
    cross = 2 * linear(tokens, d, d) + 2 * linear(frames, d, d) + attend(tokens, frames)
    decoder = 4 * (own + cross + mlp_of(tokens))
    graph = traced("transformers:whisper-tiny,attn_implementation=eager", seq=tokens)
    assert products(graph) == stem + encoder + decoder + linear(tokens, d, vocab)


# 5. A detector: RetinaNet (Lin et al. 2017) on ResNet-50 with a pyramid of five levels, torchvision's, at 800×800,
# which its transform pads to a multiple of 32 (800 is one): levels of 100, 50, 25, 13 and 7.


def resnet50(side: int) -> int:
    total = conv(side // 2, 7, 3, 64)
    fan_in, side = 64, side // 4
    for blocks, width, stride in ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2)):
        for block in range(blocks):
            wide, step = side, stride if block == 0 else 1
            side //= step
            # the stride is in the 3×3 (torchvision's "v1.5")
            total += conv(wide, 1, fan_in, width) + conv(side, 3, width, width) + conv(side, 1, width, 4 * width)
            total += conv(side, 1, fan_in, 4 * width) if block == 0 else 0
            fan_in = 4 * width
    return total


def test_detector() -> None:
    levels = (100, 50, 25, 13, 7)
    pyramid = sum(conv(s, 1, c, 256) + conv(s, 3, 256, 256) for s, c in zip(levels, (512, 1024, 2048)))
    pyramid += conv(13, 3, 256, 256) + conv(7, 3, 256, 256)  # P6 from P5 in these weights, P7 from P6
    # 9 anchors; 91 classes, 4 offsets; four convolutions of 256 in each head
    heads = sum(2 * 4 * conv(s, 3, 256, 256) + conv(s, 3, 256, 9 * 91) + conv(s, 3, 256, 9 * 4) for s in levels)
    graph = traced("torchvision:retinanet_resnet50_fpn", input_size="3x800x800")
    assert products(graph) == resnet50(800) + pyramid + heads
    assert graph.meta.assumed, "how many boxes pass the threshold is not known"
