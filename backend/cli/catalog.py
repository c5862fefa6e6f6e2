"""`zoograft models …` and `zoograft datasets …`: what is in the zoo, and what it can be scanned on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from backend.cli.follow import Detach, run_job
from backend.cli.opening import open_store, parse_json_settings, parse_numbers
from backend.cli.output import Json, Limit, count, pages, percent, print_fields, print_items, print_json, print_table
from backend.domain.errors import BadInput

models_app = typer.Typer(no_args_is_help=True, help="The zoo: list, show and add models, or catalog all of timm's.")
datasets_app = typer.Typer(no_args_is_help=True, help="Labelled image collections: list, show and add.")

SOURCES = {".npz": "npz", ".parquet": "parquet", ".zip": "imagefolder", ".tar": "webdataset"}


@models_app.command("ls")
def list_models(
    name: Annotated[str | None, typer.Argument(help="A pattern (resnet*) or a part of the name.")] = None,
    family: Annotated[str | None, typer.Option(help="cnn, transformer, mlp, hybrid or unknown.")] = None,
    source: Annotated[str | None, typer.Option(help="timm, factory or external (predictions only).")] = None,
    sort: Annotated[str, typer.Option(help="name, param_count or created_at; a leading - turns it round.")] = "name",
    limit: Limit = None,
    json: Json = False,
) -> None:
    """List the zoo."""
    from backend.store.queries import catalog as queries

    with open_store() as (_, store), store.read() as connection:
        items = pages(
            lambda size, cursor: queries.models(
                connection, name=name, family=family, source=source, sort=sort, limit=size, cursor=cursor
            ),
            limit,
        )
        if json:
            print_items(items)
            return
        print_table(
            ("name", "family", "parameters", "input", "classes", "source"),
            (
                (
                    model.name,
                    model.family,
                    count(model.param_count),
                    "×".join(map(str, model.preprocessing.input_size)) if model.preprocessing else "",
                    model.num_classes,
                    model.source,
                )
                for model in items
            ),
        )


@models_app.command("show")
def show_model(name: Annotated[str, typer.Argument(help="The model's name.")], json: Json = False) -> None:
    """Show one model: architecture, weights, preprocessing, lineage, and where it was scanned."""
    from backend.store import catalog
    from backend.store.queries import catalog as queries

    with open_store() as (_, store), store.read() as connection:
        model = catalog.get_model(connection, name)
        if json:
            print_json(model)
            return
        print_fields(model.model_dump(mode="json"))
        scores = list(
            pages(lambda size, cursor: queries.evaluations(connection, model=name, limit=size, cursor=cursor), None)
        )
    if scores:
        print()
        print_table(
            ("data set", "split", "accuracy", "samples", "state"),
            ((s.dataset, s.split, percent(s.accuracy), s.n_samples, s.reason or s.state) for s in scores),
        )


@models_app.command("add")
def add_model(
    name: Annotated[str, typer.Argument(help="How it is called here: letters, digits, . _ -")],
    arch: Annotated[str, typer.Option("--arch", help="A timm architecture, or a factory as module:callable.")],
    kwargs: Annotated[
        list[str] | None, typer.Option("--kwarg", help="key=value for the architecture, value as JSON. Repeatable.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Weights: safetensors, or a torch file of tensors.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="timm's own weights for this architecture.")] = False,
    init_seed: Annotated[int | None, typer.Option(help="Seed of random weights, where there are no others.")] = None,
    input_size: Annotated[str | None, typer.Option(help="Channels, height, width: 3,224,224.")] = None,
    mean: Annotated[str | None, typer.Option(help="Of each channel: 0.485,0.456,0.406.")] = None,
    std: Annotated[str | None, typer.Option(help="Of each channel.")] = None,
    interpolation: Annotated[str | None, typer.Option(help="bilinear, bicubic, nearest, …")] = None,
    crop_pct: Annotated[float | None, typer.Option(help="Share of the resized image that is kept.")] = None,
    crop_mode: Annotated[str | None, typer.Option(help="center, squash or border.")] = None,
    label_space: Annotated[str | None, typer.Option(help="What the head's outputs mean, such as imagenet-1k.")] = None,
    family: Annotated[str | None, typer.Option(help="cnn, transformer, mlp or hybrid; found out by itself.")] = None,
    detach: Detach = False,
    json: Json = False,
) -> None:
    """Add a model: it is built once with its weights, and catalogued if they fit.

    zoograft models add mine --arch resnet18 --checkpoint best.safetensors --kwarg num_classes=10

    zoograft models add tiny --arch mynets:resnet20 --checkpoint resnet20.th --input-size 3,32,32
    """
    spec: dict[str, Any] = {
        "name": name,
        "architecture": arch,
        "kwargs": parse_json_settings(kwargs, "--kwarg") if kwargs else None,
        "checkpoint": None if checkpoint is None else _file(checkpoint, "--checkpoint"),
        "pretrained": pretrained or None,
        "init_seed": init_seed,
        "input_size": parse_numbers(input_size, "--input-size", int),
        "mean": parse_numbers(mean, "--mean"),
        "std": parse_numbers(std, "--std"),
        "interpolation": interpolation,
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
        "label_space": label_space,
        "family": family,
    }
    given = {key: value for key, value in spec.items() if value is not None}
    run_job("register", {"model": given}, json=json, detach=detach, what="models add")


@models_app.command("sync")
def sync_models(
    results: Annotated[
        list[Path] | None, typer.Option("--results", help="timm's results CSV with accuracies. Repeatable.")
    ] = None,
    filter: Annotated[str | None, typer.Option("--filter", help="Only tags that match: 'resnet*'.")] = None,
    detach: Detach = False,
    json: Json = False,
) -> None:
    """Catalog timm's pretrained models with their metadata. No weights are downloaded."""
    files = [_file(path, "--results") for path in results or []]
    run_job("sync", {"results": files, "filter": filter}, json=json, detach=detach, what="models sync")


@datasets_app.command("ls")
def list_datasets(limit: Limit = None, json: Json = False) -> None:
    """List the data sets."""
    from backend.store.queries import catalog as queries

    with open_store() as (_, store), store.read() as connection:
        items = pages(lambda size, cursor: queries.datasets(connection, limit=size, cursor=cursor), limit)
        if json:
            print_items(items)
            return
        print_table(
            ("name", "source", "classes", "splits"),
            (
                (d.name, d.source, d.n_classes, ", ".join(f"{k} {v.n_samples}" for k, v in sorted(d.splits.items())))
                for d in items
            ),
        )


@datasets_app.command("show")
def show_dataset(name: Annotated[str, typer.Argument(help="The data set's name.")], json: Json = False) -> None:
    """Show one data set: splits, fingerprints, class names."""
    from backend.store import catalog

    with open_store() as (_, store), store.read() as connection:
        dataset = catalog.get_dataset(connection, name)
    if json:
        print_json(dataset)
    else:
        print_fields(dataset.model_dump(mode="json"))


@datasets_app.command("add")
def add_dataset(
    name: Annotated[str, typer.Argument(help="How it is called here: letters, digits, . _ -")],
    location: Annotated[
        str | None, typer.Argument(help="A folder, zip, npz, tar or Parquet file, or a hub name; none for digits.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(help="digits, imagefolder, npz, huggingface, torchvision, webdataset or parquet; else guessed."),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", help="key=value for the reader, value as JSON. Repeatable.")
    ] = None,
    label_space: Annotated[
        str | None, typer.Option(help="A known space that the folders' names are mapped into: imagenet-1k.")
    ] = None,
    detach: Detach = False,
    json: Json = False,
) -> None:
    """Add a data set: it is read once, every file and label checked, and catalogued.

    zoograft datasets add digits

    zoograft datasets add flowers ./flowers        (folders split/class/image.jpg, or class/image.jpg)
    """
    path = None if location is None else Path(location).expanduser()
    if source is None:
        source = _guess_source(name, location, path)
    if path is not None and path.exists() and source not in ("huggingface", "torchvision"):
        location = str(path.resolve())
    spec = {
        "name": name,
        "source": source,
        "location": location,
        "options": parse_json_settings(option, "--option") if option else None,
        "label_space": label_space,
    }
    given = {key: value for key, value in spec.items() if value is not None}
    run_job("register", {"dataset": given}, json=json, detach=detach, what="datasets add")


def _guess_source(name: str, location: str | None, path: Path | None) -> str:
    if path is None:
        if name == "digits":
            return "digits"
        raise BadInput("location", None, "a folder or a file; only digits comes with scikit-learn")
    if path.is_dir():
        return "webdataset" if any(path.glob("*.tar")) else "imagefolder"
    known = SOURCES.get(path.suffix.lower())
    if known is None or not path.exists():
        raise BadInput(
            "location",
            location,
            "an existing folder, .zip, .npz, .tar or .parquet file, or a hub name with --source huggingface",
        )
    return known


def _file(path: Path, option: str) -> str:
    """An absolute path: the supervisor may work in another folder."""
    whole = path.expanduser()
    if not whole.exists():
        raise BadInput(option, str(path), "an existing file")
    return str(whole.resolve())
