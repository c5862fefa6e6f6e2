"""The paper's statements on real predictions: 12 ImageNet models, CIFAR-10 ResNets, EuroSAT, ReaL labels."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from backend.domain.correctness import class_of, correctness, has_label
from backend.domain.flips import class_flips, count_flips, flip_pairs, top_classes
from backend.domain.intervals import benjamini_hochberg
from backend.domain.similarity import embedding_table, top_class_similarity


@pytest.fixture(scope="module")
def imagenet(shared_data: Path) -> dict[str, Any]:
    folder = shared_data / "imagenet-zoo-preds"
    val, reference = np.load(folder / "val_top1_12models.npz"), np.load(folder / "reference_flips_counts.npz")
    labels, top1 = val["labels"].astype(np.int64), val["top1"]
    correct = correctness(top1, labels)
    return {
        "folder": folder,
        "models": val["models"].tolist(),
        "top1": top1,
        "labels": labels,
        "correct": correct,
        "reference": reference,
        "pairs": flip_pairs(correct, labels, 1000),
    }


def row(imagenet: dict[str, Any], teacher: str, student: str) -> int:
    t, s = imagenet["models"].index(teacher), imagenet["models"].index(student)
    (found,) = np.flatnonzero((imagenet["pairs"].teacher == t) & (imagenet["pairs"].student == s))
    return int(found)


def test_counts_of_twelve_imagenet_models_are_the_reference_counts(imagenet):
    flips, reference = count_flips(imagenet["correct"]), imagenet["reference"]
    order = [imagenet["models"].index(name) for name in reference["models"].tolist()]
    np.testing.assert_array_equal(flips.positive[np.ix_(order, order)], reference["pos_flips"])
    np.testing.assert_array_equal(flips.right[order], reference["correct"])


def test_resnet18_teaches_resnet50(imagenet):
    pairs, i = imagenet["pairs"], row(imagenet, "resnet18", "resnet50")
    assert pairs.teacher_accuracy[i] == pytest.approx(0.6976, abs=5e-5)
    assert pairs.student_accuracy[i] == pytest.approx(0.7613, abs=5e-5)
    assert pairs.positive_flip_rate[i] == pytest.approx(0.03946, abs=5e-6)
    assert pairs.negative_flip_rate[i] == pytest.approx(0.10318, abs=5e-6)
    assert (pairs.n_samples[i], pairs.n_classes[i]) == (50_000, 1000)
    assert pairs.mcnemar_p_value[i] < 1e-300


def test_even_alexnet_knows_what_pnasnet_does_not(imagenet):
    pairs = imagenet["pairs"]
    smallest = int(np.argmin(pairs.positive_flip_rate))
    assert smallest == row(imagenet, "alexnet", "pnasnet5large")
    assert pairs.positive_flip_rate[smallest] == pytest.approx(0.02114, abs=5e-6)
    # With false-discovery control over all 132 listed pairs, all differences of accuracy but two are real.
    assert (benjamini_hochberg(pairs.mcnemar_p_value) >= 0.05).sum() == 2 * 2


def test_flips_concentrate_as_the_teacher_gets_weaker(imagenet):
    pairs = imagenet["pairs"]
    assert spearmanr(pairs.accuracy_difference, pairs.flip_entropy_nats).statistic == pytest.approx(0.944, abs=1e-3)
    assert pairs.flip_entropy_nats.max() < math.log(1000)


def test_pair_table_equals_a_loop_over_real_pairs(imagenet):
    pairs, correct, labels = imagenet["pairs"], imagenet["correct"], imagenet["labels"]
    for i in range(0, len(pairs), 17):
        flipped = correct[pairs.teacher[i]] & ~correct[pairs.student[i]]
        share = np.bincount(labels[flipped], minlength=1000) / flipped.sum()
        assert pairs.flip_entropy_nats[i] == pytest.approx(-(share[share > 0] * np.log(share[share > 0])).sum())
        assert pairs.positive_flip_rate[i] == flipped.mean()


def test_top_classes_are_more_alike_than_classes_are(imagenet, shared_data):
    folder = shared_data / "clip-text-embeddings"
    vectors = np.load(folder / "clip_vitb32_text_a_cname.npz")
    at = {name: i for i, name in enumerate(vectors["names"].tolist())}
    names = json.loads((folder / "class_to_name.json").read_text())["imagenet1k"]
    embeddings = embedding_table({int(c): vectors["embedding"][at[name]] for c, name in names.items()}, 1000)
    pairs, relative, covered = imagenet["pairs"], {2: [], 5: [], 20: [], 50: []}, {2: [], 5: [], 20: [], 50: []}
    for t, s in zip(pairs.teacher, pairs.student, strict=True):
        counts = class_flips(imagenet["correct"][t], imagenet["correct"][s], imagenet["labels"], 1000)
        for p, found in relative.items():
            similarity = top_class_similarity(embeddings, counts.positive, p)
            assert similarity.n_covered_all == 341
            if similarity.relative is not None:
                found.append(similarity.relative)
                covered[p].append(similarity.coverage)
    means = {p: float(np.mean(found)) for p, found in relative.items()}
    for p, found in relative.items():
        print(
            f"top {p} %: {len(found)} of {len(pairs)} pairs have two classes with a vector, mean coverage "
            f"{np.mean(covered[p]):.2f}, similarity {means[p]:+.4f} of the average, above it in {np.mean(np.array(found) > 0):.0%}"
        )
    # Only 341 classes have a vector, so the few classes of the top 2 % are a handful: more alike, but noisier.
    assert min(means.values()) > 0
    assert means[5] > means[20] > means[50]
    assert np.mean(np.array(relative[20]) > 0) > 0.9
    assert len(relative[20]) == len(relative[50]) == len(pairs)
    assert 0.25 < np.mean(covered[20]) < 0.5


def test_top_classes_cover_what_they_say(imagenet):
    t, s = imagenet["models"].index("alexnet"), imagenet["models"].index("pnasnet5large")
    counts = class_flips(imagenet["correct"][t], imagenet["correct"][s], imagenet["labels"], 1000).positive
    for p in (2, 5, 20, 50, 100):
        chosen = top_classes(counts, p)
        assert counts[chosen].sum() >= p / 100 * counts.sum() > counts[chosen[:-1]].sum()


def test_real_labels_leave_out_3163_images(imagenet):
    sets = json.loads((imagenet["folder"] / "real.json").read_text())
    assert sum(not labels for labels in sets) == 3163
    assert sum(len(labels) > 1 for labels in sets) == 7443
    correct = correctness(imagenet["top1"], sets)
    classes = class_of(sets, preferred=imagenet["labels"])
    assert (has_label(sets) == (classes >= 0)).all()
    pairs = flip_pairs(correct, classes, 1000)
    assert set(pairs.n_samples.tolist()) == {50_000 - 3163}
    i = row(imagenet, "resnet18", "resnet50")
    # Beyer et al. (arXiv:2006.07159): ReaL accuracy of ResNet-50 82.94 %, higher than on the original labels.
    assert pairs.student_accuracy[i] == pytest.approx(0.829, abs=5e-3)
    assert pairs.student_accuracy[i] == np.mean(
        [
            p in labels
            for p, labels in zip(imagenet["top1"][imagenet["models"].index("resnet50")], sets, strict=True)
            if labels
        ]
    )


def test_imagenet_v2_pairs(imagenet):
    v2 = np.load(imagenet["folder"] / "v2_matched_frequency_top1_12models.npz")
    labels = v2["labels"].astype(np.int64)
    pairs = flip_pairs(correctness(v2["top1"], labels), labels, 1000)
    assert (pairs.n_samples == 10_000).all()
    assert (pairs.positive_flip_rate > 0.02).all()


def test_cifar_resnets(shared_data):
    data = np.load(shared_data / "cifar10" / "test_logits_akamaster_resnet20_56.npz")
    labels = data["labels"].astype(np.int64)
    correct = correctness(np.stack([data["resnet20"].argmax(1), data["resnet56"].argmax(1)]), labels)
    pairs = flip_pairs(correct, labels, 10)
    assert pairs.teacher_accuracy[0] == pytest.approx(0.9173, abs=1e-9)
    assert pairs.student_accuracy[0] == pytest.approx(0.9339, abs=1e-9)
    assert pairs.positive_flip_rate[0] == pytest.approx(0.0249, abs=1e-9)
    assert pairs.positive_flip_rate[1] == pytest.approx(0.0415, abs=1e-9)


def test_eurosat_pairs(shared_data):
    data = np.load(shared_data / "eurosat-logits" / "eurosat_test_logits_2models.npz")
    labels = data["labels"].astype(np.int64)
    pairs = flip_pairs(correctness(np.stack([data["ms"].argmax(1), data["rgb"].argmax(1)]), labels), labels, 10)
    assert pairs.n_samples[0] == 7589
    assert sorted(pairs.teacher_accuracy.round(4).tolist()) == [0.8988, 0.9369]
    assert pairs.positive_flip_rate[0] == pytest.approx(0.0407, abs=5e-5)
    # 500 and more samples of each class: beyond one machine word.
    flipped = class_flips(*correctness(np.stack([data["ms"].argmax(1), data["rgb"].argmax(1)]), labels), labels, 10)
    share = flipped.positive[flipped.positive > 0] / flipped.positive.sum()
    assert pairs.flip_entropy_nats[0] == pytest.approx(-(share * np.log(share)).sum())
