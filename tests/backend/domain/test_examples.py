"""The paper's studies are whole: every file plans, has the counts of the paper, and names models that timm has."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import yaml

from backend.domain.methods import CeParams
from backend.domain.specs import FinetuneSpec, TransferSpec
from backend.domain.studies import StudySpec, named_pairs, plan_study

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
FILES = sorted(path for path in EXAMPLES.rglob("*.yaml") if path.parent.name != "kdep")
PAPER = EXAMPLES / "fantastic_gains"


def load(path: Path) -> StudySpec:
    return StudySpec.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


def labels(path: Path) -> Counter[str]:
    """How many transfers each label has, controls among them."""
    planned = [child.key for child in plan_study(load(path)) if child.kind == "transfer"]
    assert len(set(planned)) == len(planned)
    return Counter(key.split(" | ")[0] for key in planned)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(EXAMPLES).as_posix())
def test_every_example_can_be_planned(path):
    planned = plan_study(load(path))
    keys = [child.key for child in planned]
    assert len(set(keys)) == len(keys) > 1
    before: set[str] = set()
    for child in planned:
        assert set(child.after) <= before, "a job waits for one that comes later"
        before.add(child.key)
    assert path.read_text(encoding="utf-8").startswith("# ")
    assert f"zoograft study run {path.relative_to(EXAMPLES.parent).as_posix()}" in path.read_text(encoding="utf-8")


def test_466_pairs_of_301_models():
    spec = load(PAPER / "pairs.yaml")
    pairs = named_pairs(spec)
    assert len(set(spec.models)) == 301
    assert len(set(pairs)) == 466
    assert [child.kind for child in plan_study(spec)] == ["register", "scan"]


def test_400_transfers_of_every_method_and_a_control_for_each_training():
    counts = labels(PAPER / "transfers.yaml")
    taught = {label: count for label, count in counts.items() if not label.startswith("control")}
    assert taught == dict.fromkeys(["kl", "xe_kl", "mcl", "kl_dp", "kl_dp unsupervised"], 400)
    assert sorted(count for label, count in counts.items() if label.startswith("control")) == [20, 20]
    specs = [child.spec for child in plan_study(load(PAPER / "transfers.yaml")) if isinstance(child.spec, TransferSpec)]
    assert {spec.method.lr for spec in specs if spec.method.method == "mcl"} == {1e-2}
    others = [spec.method for spec in specs if spec.teachers and spec.method.method != "mcl"]
    assert {(m.lr, m.epochs, m.momentum, m.weight_decay, m.schedule) for m in others} == {
        (1e-4, 20, 0.9, 1e-3, "constant")
    }
    assert {(spec.subset.share, spec.subset.seed) for spec in specs} == {(0.1, 0)}
    assert len({spec.student for spec in specs}) == len({t for spec in specs for t in spec.teachers}) == 20


def test_the_other_counts():
    baselines = labels(PAPER / "baselines.yaml")
    assert baselines["label_smoothing"] == 20
    assert {baselines[one] for one in ("topk_kl", "soft_ce", "cd", "crd", "kl_dp")} == {400}
    full = labels(PAPER / "full_imagenet.yaml")
    assert {full[one] for one in ("kl", "kl_dp", "kl_dp unsupervised")} == {32}
    assert {spec.subset.share for spec in transfers("full_imagenet.yaml")} == {1.0}
    grids = {
        "grid_lr.yaml": ("lr", {1e-2, 1e-3, 1e-4, 1e-5}, 5 * 4),
        "grid_temperature.yaml": ("temperature", {0.1, 1.0, 4.0, 10.0}, 3 * 4),
        "grid_mcl.yaml": ("tau", {0.99, 0.999, 0.9999}, 3 * 4),
        "grid_weight.yaml": ("kd_weight", {0.05, 0.1, 0.25, 0.5, 0.7, 0.75, 0.9, 1.0}, 10),
    }
    for file, (name, values, cells) in grids.items():
        taught = [spec for spec in transfers(file) if spec.teachers]
        assert {getattr(spec.method, name) for spec in taught} == values
        assert len(taught) == cells * 32
    assert {spec.method.interval for spec in transfers("grid_mcl.yaml") if spec.teachers} == {2, 10, 50, 100}


def test_several_teachers_have_their_single_ones_beside_them():
    counts = labels(PAPER / "multi_teacher.yaml")
    several = {label: count for label, count in counts.items() if "×3" in label}
    assert several == {
        **{f"kl_dp sequential {order} ×3": 12 for order in ("ascending", "descending", "random")},
        **{"kl_dp parallel ×3": 12, "kl_dp soup ×3": 12, "kl sequential ascending ×3": 12},
    }
    assert (counts["kl_dp"], counts["kl"]) == (36, 36)
    controls = [spec.method for spec in transfers("multi_teacher.yaml") if isinstance(spec.method, CeParams)]
    assert Counter(method.epochs for method in controls) == {20: 12, 60: 12}


@pytest.mark.parametrize("file", ["cub.yaml", "caltech256.yaml", "cars.yaml"])
def test_other_data_gets_heads_first(file):
    planned = plan_study(load(PAPER / file))
    heads = [child.spec for child in planned if isinstance(child.spec, FinetuneSpec)]
    assert [spec.tune for spec in heads] == ["head"] * 5
    assert labels(PAPER / file)["kl_dp"] == 20 * 3


def test_the_domain_shift_is_in_the_teachers():
    planned = plan_study(load(PAPER / "domain_shift.yaml"))
    learnt = {child.spec.save_as: child.spec.dataset for child in planned if isinstance(child.spec, FinetuneSpec)}
    taught = [spec for spec in transfers("domain_shift.yaml") if spec.teachers]
    assert {learnt[teacher] for spec in taught for teacher in spec.teachers} == {"infograph"}
    assert {learnt[spec.student] for spec in taught} == {spec.dataset for spec in taught} == {"real"}


def transfers(file: str) -> list[TransferSpec]:
    return [child.spec for child in plan_study(load(PAPER / file)) if isinstance(child.spec, TransferSpec)]


def test_every_tag_is_one_of_timms():
    import timm

    wanted = set()
    for path in FILES:
        spec = load(path)
        wanted |= set(spec.models) | {entry.model.architecture for entry in spec.zoo if entry.model.pretrained}
    assert len(wanted) > 301
    assert wanted <= set(timm.list_pretrained())
