"""`zoograft analyse KIND`: why some teachers teach badly."""

from __future__ import annotations

from typing import Annotated

import typer

from backend.cli.follow import Detach, Device, run_job
from backend.cli.opening import parse_settings, read_names
from backend.cli.output import Json
from backend.cli.transfers import Dataset, Samples, Set, Share, Split, SubsetSeed, spec_of, subset


def register(app: typer.Typer) -> None:
    app.command("analyse")(analyse)


def analyse(
    kind: Annotated[str, typer.Argument(help="expertness, information, compactness, logme, criticality or embedding.")],
    dataset: Dataset,
    model: Annotated[
        list[str] | None, typer.Option("--model", help="A name, or @file with one a line. Repeatable.")
    ] = None,
    teacher: Annotated[list[str] | None, typer.Option("--teacher", help="Where the analysis is of a pair.")] = None,
    student: Annotated[str | None, typer.Option(help="Where the analysis is of a pair.")] = None,
    settings: Set = None,
    split: Split = None,
    share: Share = None,
    limit: Samples = None,
    subset_seed: SubsetSeed = None,
    device: Device = "auto",
    detach: Detach = False,
    json: Json = False,
) -> None:
    """Measure what a model is like as a teacher.

    zoograft analyse information --model vit_tiny --dataset digits

    zoograft analyse expertness --model vit_tiny --dataset digits --limit 2000
    """
    options = {
        "analysis": kind,
        "model": read_names(model, "--model") if model else None,
        "teacher": teacher or None,
        "student": student,
        "dataset": dataset,
        "split": split,
        "subset": subset(share, limit, subset_seed),
        "device": device,
    }
    run_job("analysis", spec_of("analysis", options, parse_settings(settings or [])), json=json, detach=detach)
