"""Any class of transformers: settings that its defaults lack, inputs that it needs, images and sounds in its text."""

from __future__ import annotations

from typing import Any

import pytest

from costmodel.capture import capture
from costmodel.models import load_model

pytest.importorskip("transformers")

from costmodel.models import transformers_settings
from costmodel.models._compat import require
from costmodel.models.transformers_classes import names
from costmodel.models.transformers_recipes import RECIPES

pytestmark = pytest.mark.filterwarnings("ignore")


def loaded(name: str, **settings: Any) -> Any:
    return load_model(f"transformers:{name},layers=2", device="meta", input_device="cpu", **settings)


def test_names_in_tables_are_of_the_library() -> None:
    transformers = require("transformers")
    kinds = set(transformers.CONFIG_MAPPING)
    assert [name for name in RECIPES if name not in kinds and not hasattr(transformers, name)] == []
    missing = [name for name in transformers_settings._SETTINGS if not hasattr(transformers, name)]
    inner = {"DeepseekOcr2VisionEncoderConfig", "DeepseekOcr2TextConfig", "BayesianDetectorConfig"}
    assert set(missing) <= inner, "parts that the library does not export at its root"
    assert "xLSTMForCausalLM" in names()


@pytest.mark.parametrize(
    "name",
    [
        "HunYuanDenseV1ForCausalLM",  # a size of heads that is to be derived
        "BridgeTowerForContrastiveLearning",  # a setting that the defaults lack
        "BarkFineModel",  # tokens with a codebook each
        "Blip2QFormerModel",  # what another part would make
        "SplinterForPreTraining",  # a token that must be there
        "Siglip2ForImageClassification",  # patches laid out, with their shapes
        "xLSTMForCausalLM",  # a class whose name begins small
        "UdopForConditionalGeneration",  # numbers that are taken out as an array
        "DiffusionGemmaDecoderModel",  # a cache that another part has filled
    ],
)
def test_classes_get_what_they_need(name: str) -> None:
    model = loaded(name)
    assert len(capture(model.model, model.inputs).check()) > 20


def test_settings_of_a_part_reach_it_and_those_of_the_user_come_first() -> None:
    config = loaded("Glm4vForConditionalGeneration").model.config
    assert config.text_config.rope_parameters["partial_rotary_factor"] == 0.5
    assert load_model("transformers:EsmForMaskedLM,layers=2,vocab_size=40", device="meta").model.config.vocab_size == 40


@pytest.mark.parametrize(
    ("name", "medium", "count"),
    [
        ("LlavaForConditionalGeneration", "pixel_values", (224 // 32) ** 2),
        ("Qwen2VLForConditionalGeneration", "pixel_values", (16 // 2) ** 2),
        ("AudioFlamingo3ForConditionalGeneration", "input_features", 750),
    ],
)
def test_text_has_a_token_for_each_row_of_what_is_in_it(name: str, medium: str, count: int) -> None:
    model = loaded(name, batch=2, seq=10)
    ids, config = model.kwargs["input_ids"], model.model.config
    token = getattr(config, "image_token_id" if medium == "pixel_values" else "audio_token_id")
    assert medium in model.kwargs
    assert ids.shape == (2, 10 + count)
    assert ((ids == token).sum(1) == count).all()
    graph = capture(model.model, model.inputs).check()
    assert any("vision" in m or "visual" in m or "audio" in m for m in graph.op_module), "its encoder runs"
    assert not graph.meta.assumed
