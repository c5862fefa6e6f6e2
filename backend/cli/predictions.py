"""`zoograft predictions …`: predictions of models that were run elsewhere, in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backend.cli.opening import open_store, read_lines
from backend.cli.output import Json, note, print_fields, print_json

app = typer.Typer(no_args_is_help=True, help="Predictions as files: CSV, Parquet, NPZ.")


@app.command("import")
def import_predictions(
    file: Annotated[Path, typer.Argument(help="CSV or Parquet: sample_id, label, top1 …; NPZ: logits [N, C], labels.")],
    model: Annotated[str, typer.Option(help="Whose they are; an unknown name becomes an external model.")],
    dataset: Annotated[str, typer.Option(help="Of which data set; an unknown name becomes an external one.")],
    split: Annotated[
        str | None, typer.Option(help="Of which split; the obvious one, or val of a new data set.")
    ] = None,
    class_names: Annotated[
        Path | None, typer.Option(help="Of a new data set: a text file, one name a line, in the order of the indices.")
    ] = None,
    json: Json = False,
) -> None:
    """Import predictions, and count the pairs with every other model of that split.

    zoograft predictions import alexnet.csv --model alexnet --dataset imagenet --split val
    """
    from backend import predictions

    names = None if class_names is None else read_lines(class_names, "--class-names")
    with open_store() as (settings, store):
        evaluation = predictions.import_predictions(
            store, settings, file, model=model, dataset=dataset, split=split, class_names=names
        )
    if json:
        print_json(evaluation)
    else:
        print_fields(evaluation.model_dump(mode="json"))


@app.command("export")
def export_predictions(
    model: Annotated[str, typer.Option(help="Whose.")],
    dataset: Annotated[str, typer.Option(help="On which data set.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A .csv, .parquet or .npz file.")],
    split: Annotated[str | None, typer.Option(help="The only one, else val, else test.")] = None,
    json: Json = False,
) -> None:
    """Write a model's predictions to a file that `import` reads."""
    from backend import predictions

    with open_store() as (settings, store):
        rows = predictions.export_predictions(store, settings, output, model=model, dataset=dataset, split=split)
    if json:
        print_json({"file": str(output), "rows": rows})
    else:
        note(f"{rows} predictions written to {output}")
