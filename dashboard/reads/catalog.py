"""What is in the zoo: models, data sets, and how models scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from backend.domain.catalog import Model
from backend.domain.datasets import Dataset
from backend.domain.errors import NotFound
from backend.domain.evaluations import Evaluation
from backend.store import catalog
from backend.store.queries import catalog as catalog_queries
from backend.store.queries import pairs as pair_queries
from backend.store.queries import zoo as zoo_queries
from backend.store.queries.pairs import Board
from backend.store.queries.zoo import ZooRow
from dashboard.reads.door import Door


class CatalogReads(Door):
    """Questions about models and data sets."""

    def boards(self) -> list[Board]:
        """Splits on which models were scored."""
        with self.store.read() as connection:
            return pair_queries.boards(connection)

    def board(self, dataset: str = "", split: str = "") -> Board | None:
        """The board that is meant: the one named, else the first of that data set, else the first; None without any.

        Raises:
            NotFound: a data set or split on which nothing was scored.
        """
        found = self.boards()
        if not dataset:
            return found[0] if found else None
        matching = [one for one in found if one.dataset == dataset and (not split or one.split == split)]
        if not matching:
            known = ", ".join(f"{one.dataset}/{one.split}" for one in found) or "nothing yet"
            raise NotFound("board", f"{dataset}/{split}" if split else dataset, f"models were scored on: {known}")
        return matching[0]

    def dataset(self, name: str) -> Dataset:
        with self.store.read() as connection:
            return catalog.get_dataset(connection, name)

    def datasets(self) -> list[Dataset]:
        with self.store.read() as connection:
            return list(catalog_queries.datasets(connection, limit=200).items)

    def model(self, name: str) -> Model:
        with self.store.read() as connection:
            return catalog.get_model(connection, name)

    def models(self, names: Sequence[str]) -> dict[str, Model]:
        """Entries by name; names that are gone are left out."""
        with self.store.read() as connection:
            known = set(catalog.model_names(connection))
            return {model.name: model for model in catalog.get_models(connection, [n for n in names if n in known])}

    def students_of(self, name: str) -> list[ZooRow]:
        """Models that were made from this one."""
        wanted = {"student": {"filterType": "text", "type": "equals", "filter": name}}
        with self.store.read() as connection:
            return zoo_queries.zoo(connection, filters=wanted, limit=200)[0]

    def possible_teachers(self, dataset: str, split: str, n_classes: int) -> list[tuple[str, float]]:
        """Models that can be run and were scored on a split, with their accuracy, the most accurate first."""
        with self.store.read() as connection:
            return zoo_queries.runnable(connection, dataset, split, n_classes)

    def evaluations(self, model: str) -> list[Evaluation]:
        with self.store.read() as connection:
            return list(catalog_queries.evaluations(connection, model=model, limit=200).items)

    def no_model(self) -> bool:
        with self.store.read() as connection:
            return zoo_queries.is_empty(connection)

    def zoo(
        self,
        board: Board | None,
        *,
        search: str = "",
        filters: Mapping[str, Any] | None = None,
        sort: Sequence[Mapping[str, Any]] | None = None,
        offset: int = 0,
        limit: int = 100,
    ) -> tuple[list[ZooRow], int]:
        with self.store.read() as connection:
            return zoo_queries.zoo(
                connection,
                dataset=board.dataset if board else None,
                split=board.split if board else None,
                search=search,
                filters=filters,
                sort=sort,
                offset=offset,
                limit=limit,
            )
