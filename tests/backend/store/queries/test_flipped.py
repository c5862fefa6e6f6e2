from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from backend.domain.errors import BadInput, NotFound
from backend.predictions import import_predictions
from backend.settings import Settings
from backend.store.queries import flipped, pairs
from backend.store.session import Store


def test_the_golden_pair(zoo: Store, settings: Settings) -> None:
    with zoo.read() as connection:
        pair = pairs.pair(connection, "teacher", "student")
    assert (pair.positive_flip_rate, pair.negative_flip_rate) == (0.5, 0.25)
    assert pair.flip_entropy_nats == pytest.approx(1.011404, abs=1e-6)
    rows = flipped.classes(zoo, settings, "teacher", "student")
    assert [(row.class_name, row.positive_flips, row.negative_flips) for row in rows] == [
        ("cow", 3, 1),
        ("ant", 2, 1),
        ("bee", 1, 1),
    ]
    assert [row.positive_flip_share for row in rows] == [0.75, 0.5, 0.25]
    assert sum(row.positive_flips for row in rows) == pair.positive_flips


def test_positive_of_a_pair_is_negative_of_the_pair_turned_round(zoo: Store, settings: Settings) -> None:
    forth = {row.class_index: row for row in flipped.classes(zoo, settings, "teacher", "student")}
    for row in flipped.classes(zoo, settings, "student", "teacher"):
        assert row.positive_flips == forth[row.class_index].negative_flips
        assert row.negative_flips == forth[row.class_index].positive_flips


def walk(zoo: Store, settings: Settings, **query: object) -> list[str]:
    ids: list[str] = []
    cursor = None
    while True:
        page = flipped.samples(zoo, settings, "teacher", "student", limit=2, cursor=cursor, **query)  # type: ignore[arg-type]
        ids += [item.sample_id for item in page.items]
        cursor = page.next_cursor
        if cursor is None:
            return ids


def test_samples_of_every_kind_are_the_whole_split(zoo: Store, settings: Settings) -> None:
    by_kind = {kind: walk(zoo, settings, kind=kind) for kind in flipped.KINDS}
    assert {kind: len(ids) for kind, ids in by_kind.items()} == {
        "positive": 6,
        "negative": 3,
        "both_right": 2,
        "both_wrong": 1,
    }
    everyone = [sample for ids in by_kind.values() for sample in ids]
    assert sorted(everyone) == sorted(walk(zoo, settings)) == [f"dir/s{i:02d}.png" for i in range(12)]
    assert walk(zoo, settings, kind="positive", class_index=0) == ["dir/s02.png", "dir/s03.png"]


def test_a_sample_carries_both_predictions(zoo: Store, settings: Settings) -> None:
    sample = flipped.samples(zoo, settings, "teacher", "student", kind="positive", limit=1).items[0]
    assert (sample.label, sample.teacher_top1, sample.student_top1) == (0, 0, 1)
    likely = float(np.exp(2) / (np.exp(2) + 2 * np.exp(-1)))
    assert sample.teacher_p_top1 == pytest.approx(likely, abs=1e-6)
    assert sample.teacher_p_label == pytest.approx(likely, abs=1e-6)
    assert sample.student_p_label == pytest.approx((1 - likely) / 2, abs=1e-6)
    assert sample.teacher_top5 is not None
    assert sample.teacher_top5[0] == 0
    assert sample.thumbnail is None


BAD: list[tuple[Callable[..., object], str]] = [
    (lambda z, s: flipped.samples(z, s, "teacher", "student", kind="both"), "kind"),
    (lambda z, s: flipped.samples(z, s, "teacher", "student", class_index=3), "class"),
    (lambda z, s: flipped.samples(z, s, "teacher", "student", class_index=-1), "class"),
    (lambda z, s: flipped.samples(z, s, "teacher", "student", cursor="x"), "cursor"),
    (lambda z, s: flipped.classes(z, s, "teacher", "teacher"), "student"),
    (lambda z, s: flipped.classes(z, s, "teacher", "nobody"), "model"),
    (lambda z, s: flipped.classes(z, s, "teacher", "student", split="test"), "split"),
]


def test_bad_questions(zoo: Store, settings: Settings) -> None:
    for ask, field in BAD:
        with pytest.raises(BadInput) as caught:
            ask(zoo, settings)
        assert caught.value.field == field


def test_models_that_answered_other_samples_meet_on_the_common_ones(
    zoo: Store, settings: Settings, tmp_path: Path
) -> None:
    path = tmp_path / "late.npz"
    # Four of the twelve, in another order: three right, one wrong.
    np.savez(
        path,
        top1=np.array([2, 0, 1, 1]),
        labels=np.array([2, 0, 1, 0]),
        sample_ids=np.array(["dir/s11.png", "dir/s00.png", "dir/s06.png", "dir/s02.png"]),
    )
    import_predictions(zoo, settings, path, model="late", dataset="golden", split="val")
    with zoo.read() as connection:
        pair = pairs.pair(connection, "late", "student")
    rows = flipped.classes(zoo, settings, "late", "student")
    assert pair.n_samples == sum(row.n_samples for row in rows) == 4
    assert pair.positive_flips == sum(row.positive_flips for row in rows) == 2
    found = flipped.samples(zoo, settings, "late", "student", kind="positive")
    assert sorted(item.sample_id for item in found.items) == ["dir/s06.png", "dir/s11.png"]
    assert {item.sample_id: item.student_top1 for item in found.items} == {"dir/s06.png": 0, "dir/s11.png": 1}


def test_nothing_in_common_is_not_found(zoo: Store, settings: Settings) -> None:
    from datetime import UTC, datetime
    from uuid import uuid4

    from backend.domain.catalog import Model
    from backend.store import catalog

    with zoo.write() as connection:
        model = Model(id=uuid4(), name="unscored", source="external", created_at=datetime.now(UTC))
        catalog.add_model(connection, model)
    with pytest.raises(NotFound, match="scan both"):
        flipped.classes(zoo, settings, "teacher", "unscored")
