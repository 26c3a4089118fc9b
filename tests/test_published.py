"""Shipped profiles against published runs, where the tables are at hand (../shared/reference, $COSTMODEL_REFERENCE)."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("torch")

from costmodel.device import load_device
from costmodel.measure.against import validate_runs

REFERENCE = Path(os.environ.get("COSTMODEL_REFERENCE", Path(__file__).parents[2] / "shared" / "reference"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not REFERENCE.is_dir(), reason="published tables are not part of the project"),
    pytest.mark.skipif(not (find_spec("timm") and find_spec("transformers")), reason="needs costmodel[models]"),
]


@pytest.mark.parametrize(
    ("file", "device", "fit", "rows", "mape"),
    [
        ("torch_train_rpi4.csv", "raspberry-pi-4b", None, 28, 0.10),
        ("torch_train_rpi4.csv", "raspberry-pi-4b", 3, 25, 0.10),
        ("neusight_transformer_e2e.csv", "h100", None, 14, 0.05),
        ("neusight_transformer_e2e.csv", "tesla-v100", 1, 7, 0.08),
    ],
)
def test_latency(file: str, device: str, fit: int | None, rows: int, mape: float) -> None:
    found = validate_runs(REFERENCE / file, load_device(device), fit=fit)
    latency = found.summary["latency_s"]
    assert latency.n == rows
    assert latency.mape < mape
    assert latency.interval_coverage >= 0.8
    assert latency.baseline_mape is not None
    assert (
        latency.mape < 1.1 * latency.baseline_mape
    )  # on whole transformers one constant is as good (V100: 5.2, 5.2 %)
    assert all(why for why in found.skipped.values())
