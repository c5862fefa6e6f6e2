"""Samples with their picture, their label and what both models said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dash_mantine_components as dmc
from dash import html

from backend.domain.pairs import FlippedSample
from dashboard import formats


def gallery(
    samples: Sequence[FlippedSample], names: Sequence[str], *, next_page: str | None, first_page: str | None
) -> Any:
    """The samples of one page, and the ways to the next and the first."""
    if not samples:
        return dmc.Text("No sample of this kind here.", c="dimmed", size="sm")
    links = [
        dmc.Anchor(label, href=href, fw=600)
        for label, href in (("Back to the first", first_page), ("More samples", next_page))
        if href
    ]
    pictured = any(one.thumbnail for one in samples)
    return [
        None
        if pictured
        else dmc.Text(
            "There are no pictures: predictions were imported, or scanned before pictures were kept.",
            c="dimmed",
            size="sm",
            mb="sm",
        ),
        html.Div([_sample(one, names) for one in samples], className="gallery"),
        dmc.Group(links, mt="md") if links else None,
    ]


def _sample(sample: FlippedSample, names: Sequence[str]) -> html.Article:
    label = _name(sample.label, names)
    picture = (
        html.Img(src=sample.thumbnail, alt=f"{label}, sample {sample.sample_id}", className="tiny")
        if sample.thumbnail
        else html.Div("no picture", className="no-picture")
    )
    return html.Article(
        [
            picture,
            html.Div([html.H3(label), html.Div(sample.sample_id, className="sample-id")]),
            html.Div(
                [
                    _answers("Teacher", sample.teacher_top1, sample.teacher_top5, sample.teacher_p_top5, sample, names),
                    _answers("Student", sample.student_top1, sample.student_top5, sample.student_p_top5, sample, names),
                ],
                className="answers",
            ),
        ],
        className="sample",
    )


def _answers(
    who: str,
    top1: int,
    top5: Sequence[int] | None,
    p_top5: Sequence[float] | None,
    sample: FlippedSample,
    names: Sequence[str],
) -> html.Div:
    """The five best classes of one model, or only the first where no more was kept."""
    said = list(top5) if top5 else [top1]
    shares: list[float | None] = list(p_top5) if p_top5 else [None] * len(said)
    if not p_top5:
        shares[0] = sample.teacher_p_top1 if who == "Teacher" else sample.student_p_top1
    items = [
        html.Li(
            [
                html.Span(_name(c, names), title=_name(c, names)),
                html.Span(formats.percent(p, 1) if p is not None else "", className="p"),
            ],
            className="right" if c == sample.label else None,
        )
        for c, p in zip(said, shares, strict=True)
    ]
    return html.Div([html.H4(who), html.Ol(items)])


def _name(index: int, names: Sequence[str]) -> str:
    return names[index] if 0 <= index < len(names) else str(index)
