"""Tasks: small real data, fair training, results kept by content."""

from __future__ import annotations

import gzip
import json
import math
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from costmodel.errors import CostmodelError, FileError, UnknownName
from costmodel.tasks import data, debian, families, family, result, train
from costmodel.tasks.result import TaskResult
from costmodel.tasks.train import ImageTask, Recipe, Split, Stage

FAMILIES = ("irb", "ssm", "vit")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, nothing committed, no network, no data but what is inside packages."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COSTMODEL_OFFLINE", "1")
    monkeypatch.delenv("COSTMODEL_DATA", raising=False)
    monkeypatch.setattr(result, "_COMMITTED", tmp_path / "committed")
    _forget()
    yield tmp_path
    _forget()


def _forget() -> None:
    data.forget()
    result._committed_by_key.cache_clear()


def tiny_net() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 8, 4, stride=4), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(8 * 49, 32), nn.ReLU()),
        nn.Linear(32, 10),
    )


def tiny_task(**changes: Any) -> ImageTask:
    """A task on the digits whose base is a small convolutional net; its arms freeze by name."""

    def base(images: data.Images, _seed: int, _budget: str) -> nn.Module:
        assert images.classes == 10
        return tiny_net()

    def adapt(model: nn.Module, arm: str, _batch: int) -> nn.Module:
        if arm == "head":
            model[:-1].requires_grad_(False)
            norm = model[0][1].eval()
            norm.train = lambda _mode=True: norm
        return model

    defaults: dict[str, Any] = {
        "family": "tiny",
        "version": 1,
        "model": "tiny",
        "recipes": {
            "demo": Recipe(train=256, search_train=128, val=100, test=200, epochs=4, batch=32, lrs=(1e-3, 1e-2))
        },
        "base": base,
        "adapt": adapt,
        "stages": lambda model: [Stage(part, (part,)) for part in model],
        "prepare": lambda x: x.unsqueeze(1).float() / 255,
        "notes": lambda _images, _budget: {"pretrained": "no"},
    }
    return ImageTask(**{**defaults, **changes})


# ---- data


def test_the_last_resort_has_its_own_name(cache: Path) -> None:
    if Path("/usr/share/datasets/fashion-mnist").exists():
        pytest.skip("Fashion-MNIST is installed")
    images = data.images()
    assert images.name == "digits"
    assert "Fashion" not in images.provenance
    assert "1,797" in images.provenance
    assert len(images.train_y) + len(images.test_y) == 1797


def test_digits_train_and_test_share_no_position() -> None:
    images = data.digits()
    assert images.train_x.shape[1:] == (28, 28)
    seen = {x.tobytes() for x in images.train_x}
    again = sum(x.tobytes() in seen for x in images.test_x)
    assert again == 0


def write_fashion(folder: Path, train_n: int = 50, test_n: int = 20) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, n in (("train", train_n), ("t10k", test_n)):
        pixels = rng.integers(0, 256, (n, 28, 28), np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))


def test_costmodel_data_comes_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fashion(cache / "mine" / "fashion-mnist")
    monkeypatch.setenv("COSTMODEL_DATA", str(cache / "mine"))
    images = data.images()
    assert images.train_x.shape == (50, 28, 28)
    assert images.test_y.tolist()[:3] == [0, 1, 2]
    assert "$COSTMODEL_DATA" in images.provenance
    assert images.digest in images.provenance


@pytest.mark.parametrize("damage", ["not gzip", "wrong size", "not idx"])
def test_a_broken_file_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    folder = cache / "mine"
    write_fashion(folder)
    file = folder / "train-labels-idx1-ubyte.gz"
    content = {
        "not gzip": b"hello",
        "wrong size": gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 9, 1])),
        "not idx": gzip.compress(b"PNG....."),
    }
    file.write_bytes(content[damage])
    monkeypatch.setenv("COSTMODEL_DATA", str(folder))
    with pytest.raises(FileError, match="train-labels"):
        data.images()


def test_offline_says_what_to_do(cache: Path) -> None:
    with pytest.raises(CostmodelError, match="COSTMODEL_DATA"):
        debian.unpacked("dataset-of-nobody", (Path("a"),))


def test_a_failed_download_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COSTMODEL_OFFLINE")
    monkeypatch.setattr(debian.shutil, "which", lambda tool: f"/usr/bin/{tool}")

    def offline(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 100, "", "E: Could not connect\n")

    monkeypatch.setattr(debian.subprocess, "run", offline)
    with pytest.raises(debian.PackageUnavailable, match="Could not connect"):
        debian.unpacked("dataset-of-nobody", (Path("a"),))
    assert not [p for p in (cache / "cache").rglob("*") if p.is_file() or p.name.startswith(".part")]


def test_stdlib_sources_are_python() -> None:
    source = data.stdlib_sources()
    assert b"import " in source.raw.tobytes()
    assert source.raw.size > 1_000_000
    assert "standard library" in source.provenance


# ---- results


def a_result(**changes: Any) -> TaskResult:
    values: dict[str, Any] = {
        "family": "tiny", "arm": "full", "seed": 0, "budget": "demo", "metric": "accuracy", "value": 0.5,
        "higher_is_better": True, "train_s": 1.0, "train_cpu_s": 1.0, "data": "none", "model": "tiny",
        "settings": {"lr": 0.1},
    }  # fmt: skip
    return TaskResult(**{**values, **changes})


def test_cached_computes_once_and_round_trips(cache: Path) -> None:
    calls = []

    def compute() -> TaskResult:
        calls.append(1)
        return a_result(per_item=[1.5, 2.5])

    assert result.cached("k", compute) == result.cached("k", compute) == a_result(per_item=[1.5, 2.5], key="k")
    assert len(calls) == 1


def test_a_killed_write_leaves_no_result(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(_from: object, _to: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        result.cached("k", a_result)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "cache"))
    assert not [p for p in (cache / "cache").rglob("*") if p.is_file()]


def test_a_damaged_result_is_named(cache: Path) -> None:
    file = result.cache_folder() / "results" / "k.json"
    result.write_json(file, {**asdict(a_result()), "value": "high"})
    with pytest.raises(FileError, match=r"k\.json: value"):
        result.cached("k", a_result)


def test_published_results_are_found_by_key(cache: Path) -> None:
    result.publish("tiny", "demo", [a_result(value=0.7, key="k")])

    def compute() -> TaskResult:
        raise AssertionError("it is published")

    assert result.cached("k", compute).value == 0.7
    assert [r.value for r in result.committed("tiny")] == [0.7]
    assert result.committed("tiny", "full") == []


def test_a_point_of_the_wide_grid_is_the_quick_one(cache: Path) -> None:
    quick = a_result(budget="quick", key="k")
    wide = result.widened(quick)
    assert replace(wide, budget="quick", key="k") == quick
    assert (wide.budget, wide.key) == ("wide", "k-wide")
    result.publish("tiny", "quick", [quick])
    result.publish("tiny", "wide", [wide])
    assert [result.committed("tiny", budget) for budget in ("quick", "wide")] == [[quick], [wide]]
    assert result.kept_file(wide).is_file()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_wide_grid_runs_no_quick_point_again(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = family(name)
    monkeypatch.setattr(module, "cached", lambda _key, _compute: a_result(key="q"), raising=False)
    monkeypatch.setattr(module, "run_arm", lambda *_: a_result(key="q"), raising=False)
    monkeypatch.setattr(module, "images", lambda: None, raising=False)
    monkeypatch.setattr(module, "text", lambda: data.Text("t", "t", "d", np.zeros(0, np.uint8)), raising=False)
    arm, seed = module.grid("wide")[0]
    assert module.run(arm, seed=seed, budget="wide") == a_result(budget="wide", key="q-wide")


def test_an_older_schema_is_refused(cache: Path) -> None:
    file = result.publish("tiny", "demo", [])
    file.write_text(json.dumps({"schema": 0, "results": []}))
    with pytest.raises(FileError, match="schema"):
        result.committed("tiny")


def test_summary_is_mean_and_standard_error() -> None:
    runs = [a_result(seed=s, value=v) for s, v in enumerate((0.7, 0.8, 0.9))]
    point, one = result.summary([*runs, a_result(arm="head", value=0.4)])
    assert (point.arm, point.seeds) == ("full", 3)
    assert point.mean == pytest.approx(0.8)
    assert point.stderr == pytest.approx(np.std([0.7, 0.8, 0.9], ddof=1) / math.sqrt(3))
    assert math.isnan(one.stderr)


def test_paired_differences_drop_what_seeds_share() -> None:
    runs = [
        a_result(arm=arm, seed=s, value=s + more) for arm, more in (("fp32", 0.0), ("int8", 0.25)) for s in (0, 1, 2)
    ]
    runs.append(a_result(arm="int8", seed=9, value=50.0))
    base, other = result.paired(runs, "fp32")
    assert (base.mean, base.stderr) == (0.0, 0.0)
    assert (other.mean, other.stderr, other.seeds) == (0.25, 0.0, 3)
    assert result.summary(runs[:6])[1].stderr > 0.5


def shipped() -> list[TaskResult]:
    return [r for name in FAMILIES for r in result.committed(name)]


def test_shipped_results_are_of_the_grid_and_say_what_data_they_are_from() -> None:
    """What reports/ starts from. A grid may be incomplete (`run` goes on with it), never something else."""
    assert shipped()
    for one in shipped():
        assert (one.arm, one.seed) in family(one.family).grid(one.budget)
        assert "sha256" in one.data
        assert one.settings["version"] >= 1


@pytest.mark.parametrize("name", FAMILIES)
def test_shipped_results_are_found_and_not_run_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their keys are those of today's recipes: a change that makes them stale must be seen here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    module: Any = family(name)
    for one in result.committed(name):
        named, digest = one.data.split(",")[0], one.data.rpartition(" ")[2]
        nothing = np.zeros(0, np.uint8)
        images = data.Images(named, one.data, digest, nothing, nothing, nothing, nothing)
        text = data.Text(named, one.data, digest, nothing)
        monkeypatch.setattr(module, "images", lambda images=images: images, raising=False)
        monkeypatch.setattr(module, "text", lambda text=text: text, raising=False)
        assert module.run(one.arm, seed=one.seed, budget=one.budget) == one


# ---- training


def test_splits_are_disjoint_and_drawn_by_seed() -> None:
    images = replace(data.digits(), train_x=np.arange(1437, dtype=np.int64).reshape(-1, 1))
    val = set(train.val_split(images, 200).x.flatten().tolist())
    draws = [train.train_split(images, 500, seed).x.flatten().tolist() for seed in (0, 1, 0)]
    assert len(val) == 200
    assert all(not val & set(draw) for draw in draws)
    assert draws[0] == draws[2] != draws[1]


def test_only_asked_classes_are_drawn() -> None:
    images = data.digits()
    assert set(train.train_split(images, 300, 0, (1, 7)).y.tolist()) == {1, 7}
    assert set(train.val_split(images, 300, (1, 7)).y.tolist()) == {1, 7}


def test_same_seed_same_result(cache: Path) -> None:
    images = data.digits()
    first = train.run_arm(tiny_task(), "full", 3, "demo", images)
    for file in (cache / "cache").rglob("*.json"):
        file.unlink()
    again = train.run_arm(tiny_task(), "full", 3, "demo", images)
    assert replace(first, train_s=0.0, train_cpu_s=0.0) == replace(again, train_s=0.0, train_cpu_s=0.0)
    assert train.run_arm(tiny_task(), "full", 4, "demo", images).value != first.value
    assert first.data == images.provenance
    assert first.value > 0.5


def test_resume_trains_only_what_is_missing(cache: Path) -> None:
    made = []
    task = tiny_task()

    def counted(images: data.Images, seed: int, budget: Any) -> nn.Module:
        made.append(seed)
        return task.base(images, seed, budget)

    counting = replace(task, base=counted)
    images = data.digits()
    train.run_arm(counting, "full", 0, "demo", images)
    searched = made.count(train.SEARCH_SEED)
    assert searched in (2, 3)  # two rates, and one more beyond the end where the best is
    train.run_arm(counting, "full", 0, "demo", images)
    train.run_arm(counting, "full", 1, "demo", images)
    assert made[searched:] == [0, 1]
    train.run_arm(replace(counting, version=2), "full", 0, "demo", images)
    assert made.count(train.SEARCH_SEED) == 2 * searched


def test_the_test_set_has_no_say_in_the_learning_rate(cache: Path) -> None:
    images = data.digits()
    shuffled = np.random.default_rng(5).permutation(images.test_y)
    honest = train.run_arm(tiny_task(), "full", 0, "demo", images)
    poisoned = train.run_arm(tiny_task(), "full", 0, "demo", replace(images, test_y=shuffled, digest="poisoned"))
    assert poisoned.settings["lr_search"] == honest.settings["lr_search"]
    assert poisoned.settings["lr"] == honest.settings["lr"]
    assert poisoned.value < 0.3 < honest.value  # the poison is real: it was used to evaluate


def test_the_test_set_is_read_once_after_training(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fit, test_split = train.fit, train.test_split
    monkeypatch.setattr(train, "fit", lambda *a, **k: (events.append("fit"), fit(*a, **k))[1])
    monkeypatch.setattr(train, "test_split", lambda *a: (events.append("test"), test_split(*a))[1])
    train.run_arm(tiny_task(), "full", 0, "demo", data.digits())
    assert events[-1] == "test"
    assert events.count("test") == 1


def test_frozen_stages_change_no_result() -> None:
    """Running the frozen part once per image gives the weights that running it every step gives."""
    images, recipe = data.digits(), Recipe(128, 0, 0, 0, 2, 32, (1e-2,))
    split = train.train_split(images, 128, 0)
    weights = []
    for whole in (False, True):
        torch.manual_seed(0)
        model = tiny_task().adapt(tiny_net(), "head", 32)
        stages = [Stage(model, (model,))] if whole else tiny_task().stages(model)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        train.fit(model, stages, tiny_task().prepare, split, recipe, 1e-2, 0)
        after = model.state_dict()
        assert {k for k in before if not torch.equal(before[k], after[k])} == {"2.weight", "2.bias"}
        weights.append(after["2.weight"])
    torch.testing.assert_close(weights[0], weights[1])


def test_a_norm_in_training_is_not_frozen() -> None:
    model = tiny_net()
    model.requires_grad_(False)
    model[-1].requires_grad_(True)
    model.train()
    frozen, live = train.split_frozen(tiny_task().stages(model))
    assert (len(frozen), len(live)) == (0, 3)


def test_stages_that_are_not_the_model_are_not_used() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = tiny_task().adapt(tiny_net(), "head", 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.net(x)

    torch.manual_seed(0)
    model = Twice()
    reference = Twice()
    reference.load_state_dict(model.state_dict())
    split = Split(*(t[:64] for t in (lambda s: (s.x, s.y))(train.train_split(data.digits(), 64, 0))))
    recipe = Recipe(64, 0, 0, 0, 1, 32, (1e-2,))
    train.fit(model, tiny_task().stages(model.net), tiny_task().prepare, split, recipe, 1e-2, 0)
    train.fit(reference, [Stage(reference, (reference,))], tiny_task().prepare, split, recipe, 1e-2, 0)
    torch.testing.assert_close(model.state_dict(), reference.state_dict())


def test_search_goes_beyond_an_end_while_it_pays() -> None:
    tried = []

    def trial(lr: float) -> float:
        tried.append(lr)
        return -abs(lr - floor)

    floor = 0.2
    best, scores = train.search_lr(trial, (1.0, 4.0, 16.0))
    assert tried == [1.0, 4.0, 16.0, 0.25, 0.0625]
    assert best == 0.25
    floor, tried = 1e9, []
    best, scores = train.search_lr(trial, (1.0, 4.0, 16.0))
    assert best == 1024.0
    assert len(tried) == 6
    assert scores[16.0] == -1e9 + 16
    assert train.search_lr(trial, (2.0,)) == (2.0, {})


# ---- families


def test_families_are_found_by_name() -> None:
    assert tuple(families()) == FAMILIES
    with pytest.raises(UnknownName, match="irb"):
        family("irbs")


@pytest.mark.parametrize("name", FAMILIES)
def test_grids_have_seeds_and_grow(name: str) -> None:
    module = family(name)
    demo, quick, wide, full = (module.grid(budget) for budget in ("demo", "quick", "wide", "full"))
    assert set(wide) == set(full) > set(quick), "every arm and seed of full, trained as quick"
    assert 3 <= len(demo) <= 4
    assert len({seed for _, seed in quick}) >= 3
    assert len(full) > len(quick)
    assert len(set(full)) == len(full)


WHAT_TRAINS = {
    ("irb", "full"): lambda name: True,
    ("irb", "last_layer"): lambda name: name.startswith("classifier"),
    ("irb", "bias"): lambda name: name.endswith("bias") or name.startswith("classifier"),
    ("irb", "mobiletl:blocks=1"): lambda name: (
        name.startswith(("blocks.6", "conv_head", "bn2", "classifier"))
        and name not in {"blocks.6.0.bn1.weight", "blocks.6.0.bn2.weight"}
    ),
    ("vit", "last_layer"): lambda name: name.startswith("head"),
    ("vit", "lora"): lambda name: name.startswith("head") or ".up." in name or ".down." in name,
    ("vit", "lbp_wht:order=2"): lambda name: True,
}


@pytest.mark.parametrize(("name", "arm"), sorted(WHAT_TRAINS))
def test_an_arm_trains_what_it_says(name: str, arm: str) -> None:
    """One epoch of two steps: exactly the arm's parameters move; frozen norms keep their statistics."""
    module: Any = family(name)
    model, (example,), mode = module.build(arm)
    assert mode == "train"
    assert example.shape[0] == module.RECIPES["quick"].batch
    before = {k: v.clone() for k, v in model.state_dict().items()}
    split = train.train_split(data.digits(), 16, 0)
    recipe = Recipe(16, 0, 0, 0, 1, 8, (1e-2,))
    train.fit(model, module._stages(model), module._prepare, split, recipe, 1e-2, 0)
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    parameters = {k for k, _ in model.named_parameters()}
    assert moved & parameters == {k for k in parameters if WHAT_TRAINS[name, arm](k)}
    for k in moved - parameters:  # statistics of norms
        assert model.get_parameter(k.rpartition(".")[0] + ".weight").requires_grad


@pytest.mark.parametrize("name", ["irb", "vit"])
@pytest.mark.parametrize("arm", ["full", "last_layer"])
def test_the_stages_are_the_model(name: str, arm: str) -> None:
    module: Any = family(name)
    model, _, _ = module.build(arm)
    x = module._prepare(train.train_split(data.digits(), 4, 0).x)
    stages = module._stages(model)
    assert len(stages) > 5
    assert train._same(model, stages, x)
    model.train()
    frozen, _ = train.split_frozen(stages)
    assert (len(frozen) > 0) == (arm == "last_layer")


def test_irb_runs_on_what_there_is_and_says_so(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    irb: Any = family("irb")
    monkeypatch.setitem(irb.RECIPES, "demo", Recipe(64, 0, 0, 100, 1, 32, (2e-3,)))
    monkeypatch.setattr(irb, "images", data.digits)
    point = irb.run("last_layer", seed=0, budget="demo")
    assert point.value > 0.2
    assert "digits" in point.data
    assert "Fashion" not in json.dumps(asdict(point))


def test_vit_pretrains_once_on_the_old_classes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vit: Any = family("vit")
    seen = []
    fit = train.fit
    monkeypatch.setattr(vit, "fit", lambda *a, **k: (seen.append(set(a[3].y.tolist())), fit(*a, **k))[1])
    monkeypatch.setitem(vit.RECIPES, "demo", Recipe(64, 0, 0, 100, 1, 32, (2e-3,)))
    monkeypatch.setitem(vit.PRETRAIN, "demo", Recipe(128, 0, 50, 0, 1, 64, (1e-3,)))
    monkeypatch.setattr(vit, "images", data.digits)
    points = [vit.run(arm, seed=0, budget="demo") for arm in ("last_layer", "lbp_wht:order=2")]
    assert seen == [set(vit.OLD_CLASSES)]
    assert all("classes 0-4 of digits" in str(p.settings["pretrained"]) for p in points)


def a_text(seed: int = 0, blocks: int = 20) -> data.Text:
    """Random words over a small alphabet: enough to have something to learn."""
    rng = np.random.default_rng(seed)
    raw = rng.choice(np.frombuffer(b"abcde    ", np.uint8), blocks * 65_536)
    return data.Text("letters", f"random letters, generated; sha256 {seed}", f"letters{seed}", raw)


def test_test_windows_come_from_blocks_that_nothing_else_reads() -> None:
    ssm: Any = family("ssm")
    blocks = np.repeat(np.arange(40) % 256, 65_536).astype(np.uint8)  # each byte says which block it is in
    source = data.Text("blocks", "generated", "blocks", blocks)
    recipe = ssm.Recipe(1, 1, 8, 1e-3, 200, 16, 100, 32)
    tested = set(ssm._test_windows(source, recipe).flatten().tolist())
    trained = set(ssm._share(source, "train").flatten().tolist())
    calibrated = set(ssm._calibration(source, recipe, 0).flatten().tolist())
    assert tested <= {19, 39}
    assert calibrated <= trained
    assert not trained & {9, 19, 29, 39}


def test_bits_per_byte_of_a_uniform_model_are_eight() -> None:
    class Uniform(nn.Module):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return torch.zeros(*input_ids.shape, 256)

    ssm: Any = family("ssm")
    assert ssm.bits_per_byte(Uniform(), torch.randint(0, 256, (3, 9))) == pytest.approx([8.0] * 3)


@pytest.mark.parametrize("base", ["mamba", "mamba2"])
def test_ssm_trains_once_a_seed_and_is_evaluated_by_arm(
    base: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssm: Any = family("ssm")
    recipe = ssm.Recipe(12, 4, 32, 1e-2, 2, 32, 4, 32)
    monkeypatch.setitem(ssm.RECIPES, "demo", recipe)
    monkeypatch.setattr(ssm, "text", a_text)
    fits = []
    fit = ssm._fit
    monkeypatch.setattr(ssm, "_fit", lambda *a: (fits.append(a[3]), fit(*a))[1])
    prefix = "" if base == "mamba" else f"{base}/"
    full, half = (ssm.run(f"{prefix}{arm}", seed=0, budget="demo") for arm in ("fp32", "bf16"))
    assert fits == [0]
    assert full.value < 7.5  # it has learnt something
    assert half.value == pytest.approx(full.value, abs=0.1)
    assert len(full.per_item) == recipe.windows
    assert "generated" in full.data


# The cost side of an arm


@pytest.mark.parametrize(("name", "arm"), [("irb", "last_layer"), ("vit", "lbp_wht:order=4")])
def test_the_shipped_trace_of_an_arm_is_of_the_step_that_is_trained(cache: Path, name: str, arm: str) -> None:
    from costmodel.lower import lower
    from costmodel.tasks.arms import arm_trace, trace_file

    shipped = arm_trace(name, arm, shipped=True)
    assert shipped.file == str(trace_file(name, arm))
    now = arm_trace(name, arm)
    assert Path(now.file).is_relative_to(cache)
    assert (now.meta.method, now.meta.mode, now.meta.optimizer) == (arm, "train", "adamw")
    assert sum(c.flops for c in lower(now).costs) == sum(c.flops for c in lower(shipped).costs)
    assert arm_trace(name, arm).file == now.file, "the second time it comes from the cache"


def test_every_arm_of_the_quick_grids_ships_its_trace_and_three_seeds() -> None:
    from costmodel.tasks import families, family
    from costmodel.tasks.arms import trace_file

    for name in families():
        grid = family(name).grid("quick")
        for arm in {arm for arm, _ in grid}:
            assert trace_file(name, arm).is_file()
        kept = {(r.arm, r.seed) for r in result.committed(name, "quick")}
        assert kept >= set(grid)


def test_a_run_of_an_arm_is_kept_and_found(cache: Path) -> None:
    from costmodel.tasks.arms import arm_run, kept_runs

    run = arm_run("vit", "last_layer", "some-device")
    assert kept_runs("vit", "some-device")["last_layer"][0].latency_s == pytest.approx(run.latency_s, rel=1e-6)
    assert kept_runs("irb", "some-device") == {}
    shipped = kept_runs("irb", "epyc-zen4-vm-2c")
    assert shipped["full"][0].latency_s > shipped["last_layer"][0].latency_s > 0
