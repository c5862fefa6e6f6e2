"""`zoograft scan`: score models on a data set, then count the flips of every ordered pair."""

from __future__ import annotations

from typing import Annotated

import typer

from backend.cli.follow import Detach, Device, run_job
from backend.cli.opening import read_names
from backend.cli.output import Json


def register(app: typer.Typer) -> None:
    app.command("scan")(scan)


def scan(
    models: Annotated[
        list[str], typer.Option("--models", help="Names, patterns ('resnet*'), or @file with one a line. Repeatable.")
    ],
    dataset: Annotated[str, typer.Option(help="The data set's name.")],
    split: Annotated[str | None, typer.Option(help="The only one, else val, else test.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many samples, class-stratified.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the choice that --limit makes.")] = None,
    device: Device = "auto",
    amp: Annotated[bool, typer.Option("--amp", help="bfloat16 autocast.")] = False,
    batch_size: Annotated[int | None, typer.Option(help="Images per forward pass.")] = None,
    loaders: Annotated[int | None, typer.Option(help="Processes that decode; 0 decodes in this one.")] = None,
    keep_logits: Annotated[
        bool, typer.Option("--keep-logits", help="Store all logits, not only the top five.")
    ] = False,
    detach: Detach = False,
    json: Json = False,
) -> None:
    """Score models on a data set. What was scored before is not run again; a killed scan goes on where it was.

    zoograft scan --models 'resnet*' --models vit_tiny_patch16_224 --dataset digits
    """
    spec = {
        "models": read_names(models, "--models"),
        "dataset": dataset,
        "split": split,
        "limit": limit,
        "seed": seed,
        "device": device,
        "amp": amp,
        "batch_size": batch_size,
        "loaders": loaders,
        "keep_logits": keep_logits,
    }
    run_job("scan", spec, json=json, detach=detach)
