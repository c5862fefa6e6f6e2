"""Whether anything has happened: numbers that differ when an answer about the store might."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, func, select

from backend.store.tables import datasets as dataset_table
from backend.store.tables import evaluations as evaluation_table
from backend.store.tables import job_events as event_table
from backend.store.tables import jobs as job_table
from backend.store.tables import models as model_table


def stamp(connection: Connection) -> tuple[int, ...]:
    """The last event of any job, then the last evaluation, model and data set; read off the ends of the keys."""
    tables = (event_table, evaluation_table, model_table, dataset_table)
    row = connection.execute(select(*(select(func.max(one.c.id)).scalar_subquery() for one in tables))).one()
    return tuple(int(value or 0) for value in row)


def outcomes(connection: Connection) -> tuple[Any, ...]:
    """How many jobs are in each state; with the number of all state events, since one may leave as another comes."""
    c, v = job_table.c, event_table.c
    counts = connection.execute(select(c.state, func.count()).group_by(c.state).order_by(c.state)).all()
    last = connection.execute(select(func.max(v.id)).where(v.type == "state")).scalar()
    return (*((row[0], int(row[1])) for row in counts), int(last or 0))
