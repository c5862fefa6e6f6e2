"""The columns of a board are what SQL has, are read again when that changes, and big ones come from disk."""

import time

import numpy as np
import pytest

from backend.store.queries import boards as module
from backend.store.queries import pairs as pair_queries
from backend.store.queries.boards import Boards
from backend.store.queries.density import PairFilter
from tests.backend.store.queries.conftest import put_pairs


def board_of(store):
    with store.read() as connection:
        return pair_queries.boards(connection)[0]


def test_columns_are_the_rows_of_the_table(pets, tmp_path):
    boards = Boards(pets, tmp_path)
    columns = boards.columns(board_of(pets))
    with pets.read() as connection:
        page = pair_queries.pairs(connection, dataset="pets", split="val", limit=200)
    order = boards.chosen(columns, PairFilter(), ("positive_flip_rate", True))
    from backend.store.queries.board_columns import pair_records

    ours = {(p.teacher, p.student): p for p in pair_records(columns, order)}
    assert len(ours) == len(page.items) == 6
    for pair in page.items:
        mine = ours[(pair.teacher, pair.student)]
        assert mine.model_dump(exclude={"flip_entropy_nats"}) == pytest.approx(
            pair.model_dump(exclude={"flip_entropy_nats"})
        )
        assert mine.flip_entropy_nats == pytest.approx(pair.flip_entropy_nats, abs=1e-6)
    rates = columns.positive_flip_rate[order]
    assert (np.diff(rates) <= 0).all()


def test_new_pairs_are_seen(pets, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHECK_S", 0.0)
    boards = Boards(pets, tmp_path)
    board = board_of(pets)
    assert len(boards.columns(board)) == 6
    put_pairs(pets, ["resnet_a", "vit_a", "mixer", "unseen"], seed=1)
    assert len(boards.columns(board)) == 12
    assert "unseen" in boards.columns(board).names


def settle(boards):
    """Wait for what is read in the background: a thread must not outlive its test's database."""
    for thread in list(boards._loading.values()):
        thread.join()


def test_a_big_board_is_read_in_the_background_and_kept_on_disk(pets, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SMALL", 3)
    monkeypatch.setattr(module, "CHECK_S", 0.0)
    board = board_of(pets)
    boards = Boards(pets, tmp_path)
    assert boards.columns(board) is None
    for _ in range(200):
        columns = boards.columns(board)
        if columns is not None and list(tmp_path.glob("*.npz")):
            break
        time.sleep(0.02)
    settle(boards)
    assert len(columns) == 6

    def never(*_):
        raise AssertionError("read from SQL although the file is there")

    monkeypatch.setattr(module.board_columns, "load", never)
    again = Boards(pets, tmp_path).columns(board)
    assert again.names == columns.names
    assert (again.positive_flips == columns.positive_flips).all()


def test_a_broken_file_is_read_anew(pets, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SMALL", 3)
    board = board_of(pets)
    Boards(pets, tmp_path).columns(board, wait=True)
    [kept] = tmp_path.glob("*.npz")
    kept.write_bytes(b"not a zip")
    boards = Boards(pets, tmp_path)
    assert boards.columns(board) is None
    assert len(boards.columns(board, wait=True)) == 6
    settle(boards)


def test_selections_are_remembered_by_what_they_ask(pets, tmp_path):
    boards = Boards(pets, tmp_path)
    columns = boards.columns(board_of(pets))
    first = boards.chosen(columns, PairFilter(teacher="vit"))
    assert boards.chosen(columns, PairFilter(teacher="vit")) is first
    assert len(boards.chosen(columns, PairFilter(teacher="vit", student="mixer"))) == 1
