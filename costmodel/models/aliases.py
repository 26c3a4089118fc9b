"""What published tables call a model, and the spec that rebuilds it, or why it cannot be rebuilt.

A rule is a pattern of the name and a spec (``\\g<…>`` takes groups), or a reason. Where a table has parameters and
multiply-accumulates, the rebuilt net was checked against them: to the digit for ncnn (batch norm folded), within 2 %
of the rounded figures of the others, or the rule's note says what differs. ncnn and TFLite fold batch norm
into the convolution before it; what is rebuilt here has it still.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import CostmodelError, UnknownName
from .inputs import unknown

__all__ = ["Alias", "Unresolvable", "find_alias", "resolve_alias"]


@dataclass(frozen=True)
class Alias:
    """A spec for `costmodel.load_model`, and what is known to differ from what was measured (empty: nothing)."""

    spec: str
    note: str = ""


class Unresolvable(UnknownName):
    """A published name that is known and cannot be rebuilt: says why."""

    def __init__(self, source: str, name: str, reason: str) -> None:
        CostmodelError.__init__(self, f"{source}'s {name!r} cannot be rebuilt: {reason}")


@dataclass(frozen=True)
class _Rule:
    pattern: str
    spec: str = ""
    note: str = ""
    cannot: str = ""


def _same(pattern: str, spec: str, note: str = "") -> _Rule:
    return _Rule(pattern, spec, note)


def _cannot(pattern: str, reason: str) -> _Rule:
    return _Rule(pattern, cannot=reason)


_DETECTOR = "a detector whose layers no installed library defines"
_VARIANT = "the table does not say which of several variants was measured"
_NO_LIBRARY = "no installed library defines it"
_PADDLE_V3 = "Paddle keeps the classifier 1280 wide at every width; no library does"
_MOBILENET_V1 = "caffe-mobilenet-v1,width=\\g<w>"
_MOBILENET_V2 = "torchvision:mobilenet_v2,width_mult=\\g<w>"
_TF_V3 = "timm:tf_mobilenetv3_\\g<s>"
_V3_SIZES = "tables give V3-Small 2.9 M parameters; the checkpoint of that name, which timm ported, has 2.54 M"
_PADDING = "padded symmetrically; TensorFlow pads 'same', which moves the padding and not the work"

_PI = [
    _same("vit_(?P<s>tiny|small)", "timm:vit_\\g<s>_patch16_224"),
    _same("mlpmixer_b16", "timm:mixer_b16_224"),
    _same("swin_tiny", "timm:swin_tiny_patch4_window7_224"),
    _same("(?P<n>.+)", "timm:\\g<n>"),
]

_NCNN = [
    _same("squeezenet", "caffe-squeezenet"),
    _same("mobilenet", "caffe-mobilenet-v1"),
    _same("mobilenet_v2", "caffe-mobilenet-v2"),
    _same("mobilenet_v3", "ncnn-mobilenet-v3"),
    _same("shufflenet", "caffe-shufflenet"),
    _same("shufflenet_v2", "torchvision:shufflenet_v2_x1_0"),
    _same("mnasnet", "torchvision:mnasnet1_0"),
    _same("proxylessnasnet", "proxyless-nas"),
    _same("efficientnet_b0", "timm:efficientnet_b0"),
    _same("efficientnetv2_b0", "timm:tf_efficientnetv2_b0"),
    _same("regnety_400m", "torchvision:regnet_y_400mf"),
    _same("googlenet", "caffe-googlenet"),
    _same("alexnet", "caffe-alexnet"),
    _same("resnet18", "caffe-resnet18"),
    _same("resnet50", "caffe-resnet50"),
    _same("vgg16", "torchvision:vgg16"),
    _same(
        "vision_transformer",
        "timm:vit_base_patch16_384",
        "the table's parameters and work are those of patch 16; one layer list of ncnn's has patch 32",
    ),
    _cannot(".*(ssd|yolo|nanodet|FastestDet|blazeface).*", _DETECTOR),
]

_MLPERF = [
    _same("resnet50", "torchvision:resnet50"),
    _same("bert-99", "transformers:bert-large-squad", "SQuAD 1.1, 384 tokens"),
    _same("efficientnet-lite(?P<k>[0-4])", "timm:tf_efficientnet_lite\\g<k>"),
    _same("mobilenet-v1-(?P<w>[\\d.]+)-\\d+", _MOBILENET_V1, _PADDING),
    _same("mobilenet-v2-(?P<w>[\\d.]+)-\\d+", _MOBILENET_V2, _PADDING),
    _same("mobilenet-v3-(?P<s>large|small)-minimalistic_224_1.0", _TF_V3 + "_minimal_100", _V3_SIZES),
    _same("mobilenet-v3-(?P<s>large|small)_224_0.75", _TF_V3 + "_075", _V3_SIZES),
    _same("mobilenet-v3-(?P<s>large|small)_224_1.0", _TF_V3 + "_100", _V3_SIZES),
    _cannot("ssd-.*", _DETECTOR),
    _cannot("3d-unet.*|rnnt", _NO_LIBRARY),
]

_NEUSIGHT = [
    _same("bert_large", "transformers:bert-large,attn_implementation=eager"),
    _same("gpt2_large", "transformers:gpt2-large,attn_implementation=eager"),
    _same("gpt3_xl", "transformers:gpt3-xl,attn_implementation=eager"),
    _same("gpt3_27", "transformers:gpt3-2.7b,attn_implementation=eager"),
    _same("opt_13", "transformers:opt-1.3b,attn_implementation=eager"),
    _cannot("switchxl4", "the width of its feed-forward layers and the number of heads are not published"),
]

_ZEUS = [
    _same("bert_base_uncased@sentiment140", "transformers:bert-base"),
    _same("bert_base_uncased@squad", "transformers:bert-base-squad"),
    _same("resnet50@imagenet", "torchvision:resnet50"),
    _cannot("shufflenetv2@cifar100", "a variant for 32×32 images whose strides are not published with the rows"),
    _cannot("deepspeech2@.*|ncf@.*", _NO_LIBRARY),
]

_EFFICIENTNET_LITE = [_same("efficientnet_lite(?P<k>[0-4])", "timm:tf_efficientnet_lite\\g<k>")]

_MOBILENET_README = [
    _same("mobilenet_v2_(?P<w>[\\d.]+)_\\d+", _MOBILENET_V2, _PADDING),
    _same("mobilenet_v3_(?P<s>large|small)_1.0", _TF_V3 + "_100", _V3_SIZES),
    _same("mobilenet_v3_(?P<s>large|small)_0.75", _TF_V3 + "_075", _V3_SIZES),
    _same("mobilenet_v3_(?P<s>large|small)_minimalistic", _TF_V3 + "_minimal_100", _V3_SIZES),
]

_TFLITE_HOSTED = [
    _same("Mobilenet_V1_(?P<w>[\\d.]+)_\\d+", _MOBILENET_V1, _PADDING),
    _same("Mobilenet_V2_(?P<w>[\\d.]+)_\\d+", _MOBILENET_V2, _PADDING),
    _same("MnasNet_0.50_224", "torchvision:mnasnet0_5", _PADDING),
    _same("MnasNet_0.75_224", "torchvision:mnasnet0_75", _PADDING),
    _same("MnasNet_1.0_\\d+", "torchvision:mnasnet1_0", _PADDING),
    _same("MnasNet_1.3_224", "torchvision:mnasnet1_3", _PADDING),
    _same("Inception_V(?P<k>[34])", "timm:inception_v\\g<k>", _PADDING),
    _same("Inception_ResNet_V2", "timm:inception_resnet_v2", _PADDING),
    _cannot("DenseNet|SqueezeNet", _VARIANT),
    _cannot("Inception_V[12]|ResNet_V2_101|NASNet.*", "no installed library defines TensorFlow's version"),
]

_TNN = [
    _same("Mobile[Nn]et[ _]v1", "caffe-mobilenet-v1"),
    _same("Mobile[Nn]et[ _]v2", "torchvision:mobilenet_v2", "layer list not published"),
    _same("ResNet50 v1", "caffe-resnet50"),
    _same("ShuffleNet v2", "torchvision:shufflenet_v2_x1_0"),
    _same("(SqueezeNet |squeezenet_v)1\\.(?P<k>[01])", "torchvision:squeezenet1_\\g<k>"),
    _same("DenseNet 121", "torchvision:densenet121"),
    _same("Inception v(?P<k>[34])", "timm:inception_v\\g<k>"),
    _same("MnasNet", "torchvision:mnasnet1_0"),
    _same("Bert-Based", "transformers:bert-base", "the number of tokens is not published"),
    _same("Bert-Squad10", "transformers:bert-base-squad", "the number of tokens is not published"),
    _cannot("YoloV5", _DETECTOR),
    _cannot("Resnet50|ResNet50 v2", _VARIANT),
]

_MNN = [
    _same("MobileNetV2_224", "torchvision:mobilenet_v2"),
    _same("SqueezeNetV1.0", "torchvision:squeezenet1_0"),
    _same("inception-v3", "timm:inception_v3"),
    _same("mobilenet-v1-1.0", "caffe-mobilenet-v1"),
    _same("vgg16", "torchvision:vgg16"),
    _cannot("resnet-v2-50", "no installed library defines TensorFlow's version"),
]

_TENGINE = [
    _same("squeezenet_v1.1", "caffe-squeezenet"),
    _same("mobilenetv1", "caffe-mobilenet-v1"),
    _same("shufflenetv2", "torchvision:shufflenet_v2_x1_0"),
    _same("googlenet", "caffe-googlenet"),
    _same("inceptionv3", "timm:inception_v3"),
    _same("vgg16", "torchvision:vgg16"),
    _cannot("resnet18|resnet50|mobilenetv2|mobilenetv3", _VARIANT),
    _cannot("mssd|retinaface|yolov3_tiny", _DETECTOR),
    _cannot("mobilefacenets", _NO_LIBRARY),
]

_PADDLE_LITE = [
    _same("MobileNetV1", "caffe-mobilenet-v1"),
    _same("MobileNetV2", "torchvision:mobilenet_v2"),
    _same("MobileNetV3_large_x1_0", "torchvision:mobilenet_v3_large"),
    _cannot("MobileNetV3_small_x1_0", _PADDLE_V3),
    _same("ResNet50", "torchvision:resnet50"),
    _same("HRNet_w18", "timm:hrnet_w18"),
    _cannot("MobileNetV3", "its weights are sparse"),
    _cannot("SSD_.*|picodet|humanseg", _DETECTOR),
]

_PADDLE_CLAS = [
    _same("AlexNet", "torchvision:alexnet"),
    _same("DLA(?P<k>\\d+)(?P<v>x2?|)(?P<c>_c|)", "timm:dla\\g<k>\\g<v>\\g<c>"),
    _same("DPN(?P<k>\\d+)", "timm:dpn\\g<k>"),
    _same("DarkNet53", "timm:darknet53"),
    _same("DeiT_(?P<n>(tiny|small|base)(_distilled)?_patch16_\\d+)", "timm:deit_\\g<n>"),
    _same("DenseNet(?P<k>121|161|169|201)", "torchvision:densenet\\g<k>"),
    _same("EfficientNetB(?P<k>[0-7])", "timm:efficientnet_b\\g<k>"),
    _same("GhostNet_x0_5", "timm:ghostnet_050"),
    _same("GhostNet_x1_(?P<k>[03])", "timm:ghostnet_1\\g<k>0"),
    _same("HRNet_W(?P<k>\\d+)_C", "timm:hrnet_w\\g<k>"),
    _same("InceptionV(?P<k>[34])", "timm:inception_v\\g<k>"),
    _same("MixNet_S", "timm:mixnet_s"),
    _same("MixNet_M", "timm:mixnet_m"),
    _same("MixNet_L", "timm:mixnet_l"),
    _same("MobileNetV1(_ssld)?", "caffe-mobilenet-v1"),
    _same("MobileNetV1_x0_(?P<w>\\d+)", "caffe-mobilenet-v1,width=0.\\g<w>"),
    _same("MobileNetV2(_ssld)?", "torchvision:mobilenet_v2"),
    _same("MobileNetV2_x(?P<a>\\d)_(?P<w>\\d+)", "torchvision:mobilenet_v2,width_mult=\\g<a>.\\g<w>"),
    _same("MobileNetV3_large_x1_0", "torchvision:mobilenet_v3_large"),
    _cannot("MobileNetV3_.*", _PADDLE_V3),
    _same("PPHGNet_(?P<s>tiny|small)", "timm:hgnet_\\g<s>"),
    _same("ReXNet_(?P<a>\\d)_(?P<w>\\d)", "timm:rexnet_\\g<a>\\g<w>0"),
    _same("RegNetX_4GF", "timm:regnetx_040"),
    _same("Res2Net50_(?P<n>14w_8s|26w_4s)", "timm:res2net50_\\g<n>"),
    _same("ResNeSt50", "timm:resnest50d"),
    _same("ResNeXt(?P<n>50_32x4d|101_32x4d|101_64x4d)", "timm:resnext\\g<n>"),
    _same("ResNeXt101_(?P<n>32x8d|32x16d|32x32d)_wsl", "timm:resnext101_\\g<n>"),
    _same("ResNet(?P<k>18|34|50|101|152)", "torchvision:resnet\\g<k>"),
    _same("ResNet(?P<k>18|34|50|101|152)_vd(_ssld)?", "timm:resnet\\g<k>d"),
    _same("ResNet50_vc", "timm:resnet50c"),
    _same("SE_ResNeXt(?P<n>50_32x4d|101_32x4d)", "timm:seresnext\\g<n>"),
    _same("ShuffleNetV2", "torchvision:shufflenet_v2_x1_0"),
    _same("ShuffleNetV2_x(?P<n>0_5|1_5|2_0)", "torchvision:shufflenet_v2_x\\g<n>"),
    _same("SqueezeNet1_(?P<k>[01])", "torchvision:squeezenet1_\\g<k>"),
    _same("SwinTransformer_(?P<n>\\w+?)(\\[1\\])?", "timm:swin_\\g<n>"),
    _same("VGG(?P<k>11|13|16|19)", "torchvision:vgg\\g<k>"),
    _same("ViT_(?P<n>(base|large)_patch(16|32)_\\d+)", "timm:vit_\\g<n>"),
    _same("Xception(?P<k>41|65)_deeplab", "timm:xception\\g<k>"),
    _same("alt_gvt_(?P<s>\\w+)", "timm:twins_svt_\\g<s>"),
    _same("pcpvt_(?P<s>\\w+)", "timm:twins_pcpvt_\\g<s>"),
    _cannot("GoogLeNet", "measured with its two side classifiers, 11.5 M parameters"),
    _cannot("ViT_small_patch16_224", "48.6 M parameters: an older definition than timm's"),
    _cannot(
        "(DenseNet264|EfficientNetB0_small|ESNet|Fix_ResNeXt|HarDNet|PPLCNet|RedNet|Res2Net|ResNeSt|ResNeXt|SENet|SE_"
        "|ShuffleNetV2|Xception|ResNet200).*",
        _NO_LIBRARY,
    ),
]

_MMDEPLOY = [
    _same("resnet50", "torchvision:resnet50"),
    _same("resnext50_32x4d", "timm:resnext50_32x4d"),
    _same("se_resnet50", "timm:seresnet50"),
    _same("shufflenet_v2_x1_0", "torchvision:shufflenet_v2_x1_0"),
]

# What people write in files of their own; in lower case, with hyphens.
_COMMON = [
    _same("resnet-(?P<k>18|34|50|101|152)(-v1)?|resnet(?P<m>18|34|50|101|152)-v1", "timm:resnet\\g<k>\\g<m>"),
    _same("vit-(?P<s>tiny|small|base|large)(-patch16)?(-224)?", "timm:vit_\\g<s>_patch16_224"),
    _same("vit-(?P<s>b|l)-(?P<k>16|32)", "torchvision:vit_\\g<s>_\\g<k>"),
    _same("bert-(?P<s>base|large)(-(un)?cased)?", "transformers:bert-\\g<s>"),
]

_RULES: dict[str, list[_Rule]] = {
    "flower-rpi-train": _PI,
    "timm": [_same("(?P<n>.+)", "timm:\\g<n>")],
    "ncnn": _NCNN,
    "mlperf": _MLPERF,
    "neusight": _NEUSIGHT,
    "zeus": _ZEUS,
    "efficientnet-lite": _EFFICIENTNET_LITE,
    "mobilenet-readme": _MOBILENET_README,
    "tflite-hosted": _TFLITE_HOSTED,
    "tnn": _TNN,
    "mnn": _MNN,
    "tengine": _TENGINE,
    "paddlelite": _PADDLE_LITE,
    "paddleclas": _PADDLE_CLAS,
    "mmdeploy": _MMDEPLOY,
}

# The row's dtype column says it; the layers are the same.
_QUANTIZED = re.compile(r"([-_]int8|_quant|-non-quantized|-quantized|_float|_uint8)$|^(non-)?quantized-")


def resolve_alias(name: str, source: str | None = None) -> str:
    """The spec of what `source` calls `name`.

    Args:
        name: as in the column ``model`` of a runs table; a suffix that says a dtype is ignored.
        source: as in the column ``source`` (``ncnn``, ``flower-rpi-train``, ``mlperf-v1.1``, …). None: any, if all that
            know the name mean the same.

    Raises:
        UnknownName: no rule for the name; near names are listed.
        Unresolvable: the name is known and no honest rebuild exists; the reason is in the message.

    >>> resolve_alias("resnet50", "ncnn")
    'caffe-resnet50'
    >>> resolve_alias("mobilenet-v2-0.5-160-quantized", "mlperf-v0.7")
    'torchvision:mobilenet_v2,width_mult=0.5'
    """
    return find_alias(name, source).spec


def find_alias(name: str, source: str | None = None) -> Alias:
    """As `resolve_alias`, with a note on what is known to differ."""
    if source is None:
        return _from_any(name)
    family = re.sub(r"-v\d+(\.\d+)*$", "", source)
    if family not in _RULES:
        raise UnknownName("source of published runs", source, _RULES)
    bare = _QUANTIZED.sub("", name)
    for rule in _RULES[family]:
        match = re.fullmatch(rule.pattern, bare)
        if match is None:
            continue
        if rule.cannot:
            raise Unresolvable(source, name, rule.cannot)
        return Alias(_current(match.expand(rule.spec)), rule.note)
    raise UnknownName(f"model of {source}", name, _plain_names(family))


def _from_any(name: str) -> Alias:
    """The one meaning of `name` in all sources but timm's (whose names are specs already); several are an error."""
    found: dict[str, Alias] = {}
    reasons: list[str] = []
    for family in _RULES:
        if family in {"timm", "flower-rpi-train"}:
            continue
        try:
            found[family] = find_alias(name, family)
        except Unresolvable as error:
            reasons.append(str(error))
        except UnknownName:
            continue
    specs = {alias.spec for alias in found.values()}
    if len(specs) == 1:
        return next(iter(found.values()))
    if specs:
        listed = ", ".join(f"{family}: {alias.spec}" for family, alias in sorted(found.items()))
        raise Unresolvable("a table", name, f"tables mean different nets by it ({listed}); say the source")
    if reasons:
        raise Unresolvable("a table", name, "; ".join(reasons))
    plain = re.sub(r"[ _-]+", "-", name.lower())
    for rule in _COMMON:
        if match := re.fullmatch(rule.pattern, plain):
            return Alias(_current(match.expand(rule.spec)), rule.note)
    return find_alias(name, "flower-rpi-train")


def _current(spec: str) -> str:
    """`spec` under the name that the installed timm has for it; tables name models of older and newer ones."""
    family, _, name = spec.partition(":")
    if family != "timm":
        return spec
    from .timm_zoo import current_name, names

    current = current_name(name)
    if current is None:
        unknown("timm model", name, names(), "timm")
    return f"timm:{current}"


def _plain_names(family: str) -> list[str]:
    """Names of a source that are written out, for the near names of a message."""
    return [rule.pattern for rule in _RULES[family] if re.fullmatch(r"[\w.@ -]+", rule.pattern)]
