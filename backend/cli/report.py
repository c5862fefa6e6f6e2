"""`zoograft report`: one pair or one study as a page that needs nothing but a browser."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from uuid import UUID

from backend.cli import report_page
from backend.cli.report_kdep import kdep_page
from backend.cli.report_pair import pair_page
from backend.cli.report_study import study_page
from backend.domain.errors import BadInput
from backend.domain.kdep_studies import is_kdep_study
from backend.settings import Settings
from backend.store.queries import jobs as job_queries
from backend.store.session import Store


def write_report(
    settings: Settings,
    store: Store,
    output: Path,
    *,
    pair: tuple[str, str] | None,
    study: UUID | None,
    dataset: str | None,
    split: str | None,
) -> None:
    """Write the page of a pair, or of a study as far as it is.

    `dataset` and `split` are the pair's; of a pair that shares only one they may be None. A study has its own.

    Raises:
        NotFound: no such pair or study.
        BadInput: both or neither of pair and study; an ambiguous data set; a file that cannot be written.
    """
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    footer = f"Made by Zoograft {version('zoograft')} on {made}. Rates are fractions of the samples compared."
    if pair is not None and study is None:
        page = pair_page(settings, store, *pair, dataset=dataset, split=split, footer=footer)
    elif study is not None and pair is None:
        with store.read() as connection:
            pretraining = is_kdep_study(job_queries.study(connection, study).job.spec)
        page = (kdep_page if pretraining else study_page)(store, study, footer=footer)
    else:
        raise BadInput("report", None, "either a pair or a study")
    report_page.write(page, output)
