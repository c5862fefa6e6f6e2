"""`zoograft transfer`, `finetune`, `remem`, `kdep`: training a student."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from backend.cli.follow import Detach, Device, run_job
from backend.cli.opening import parse_settings
from backend.cli.output import Json
from backend.domain.errors import BadInput

Dataset = Annotated[str, typer.Option(help="The data set's name.")]
Split = Annotated[str | None, typer.Option(help="Where it is measured: the only one, else val, else test.")]
TrainSplit = Annotated[str | None, typer.Option(help="What is learnt from: the only one, else train.")]
Share = Annotated[float | None, typer.Option(help="Only this share of each class is learnt from, 0 to 1.")]
Samples = Annotated[int | None, typer.Option("--limit", help="Only so many samples are learnt from, class-stratified.")]
SubsetSeed = Annotated[int | None, typer.Option(help="Of the choice that --share or --limit makes.")]
SaveAs = Annotated[str | None, typer.Option(help="Name of the result in the zoo; made up by itself.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="key=value of the method, value a JSON scalar. Repeatable.")
]


def register(app: typer.Typer) -> None:
    app.command("transfer")(transfer)
    app.command("finetune")(finetune)
    app.command("remem")(remem)
    app.command("kdep")(kdep)


def transfer(
    student: Annotated[str, typer.Option(help="The model that learns; the zoo keeps it as it is.")],
    dataset: Dataset,
    teacher: Annotated[list[str] | None, typer.Option("--teacher", help="Who it learns from. Repeatable.")] = None,
    method: Annotated[
        str, typer.Option(help="kl_dp, kl, xe_kl, mcl, topk_kl, soft_ce, cd, crd; ce, self_kl, label_smoothing.")
    ] = "kl_dp",
    settings: Set = None,
    train_split: TrainSplit = None,
    split: Split = None,
    share: Share = None,
    limit: Samples = None,
    subset_seed: SubsetSeed = None,
    unlabelled: Annotated[bool, typer.Option("--unlabelled", help="Do not use the labels to learn from.")] = False,
    control: Annotated[bool, typer.Option(help="Train the same student without a teacher too, to compare.")] = True,
    save_as: SaveAs = None,
    device: Device = "auto",
    detach: Detach = False,
    json: Json = False,
) -> None:
    """Graft what teachers know onto a student, and report what it gained and lost.

    zoograft transfer --teacher resnet18 --student vit_tiny --dataset digits --method kl_dp --set lr=0.01

    zoograft transfer --teacher a --teacher b --student c --dataset digits --set multi=parallel --set epochs=5
    """
    from backend.domain.methods import parse_method

    chosen = parse_settings(settings or [])
    parse_method(method, chosen)
    spec = {
        "teachers": list(teacher or []),
        "student": student,
        "dataset": dataset,
        "method": {"method": method, **chosen},
        "train_split": train_split,
        "split": split,
        "subset": subset(share, limit, subset_seed),
        "labelled": not unlabelled,
        "control": control,
        "save_as": save_as,
        "device": device,
    }
    run_job("transfer", spec, json=json, detach=detach)


def finetune(
    model: Annotated[str, typer.Option(help="The model to train.")],
    dataset: Dataset,
    settings: Set = None,
    tune: Annotated[str | None, typer.Option(help="all weights, or only the head.")] = None,
    train_split: TrainSplit = None,
    split: Split = None,
    share: Share = None,
    limit: Samples = None,
    subset_seed: SubsetSeed = None,
    save_as: SaveAs = None,
    device: Device = "auto",
    detach: Detach = False,
    json: Json = False,
) -> None:
    """Train a model on labels: a head for a new data set, or all of it. A head that does not fit is replaced.

    zoograft finetune --model test_resnet --dataset digits --set epochs=10 --set lr=0.05
    """
    chosen = parse_settings(settings or [])
    spec = {
        "model": model,
        "dataset": dataset,
        "params": chosen or None,
        "tune": tune,
        "train_split": train_split,
        "split": split,
        "subset": subset(share, limit, subset_seed),
        "save_as": save_as,
        "device": device,
    }
    run_job("finetune", spec, json=json, detach=detach)


def remem(
    model: Annotated[str, typer.Option(help="The transformer to fine-tune as a teacher.")],
    dataset: Dataset,
    student: Annotated[str | None, typer.Option(help="Also distil into this student.")] = None,
    settings: Set = None,
    train_split: TrainSplit = None,
    split: Split = None,
    share: Share = None,
    limit: Samples = None,
    subset_seed: SubsetSeed = None,
    save_as: SaveAs = None,
    device: Device = "auto",
    detach: Detach = False,
    json: Json = False,
) -> None:
    """Fine-tune a transformer so that it teaches well: sharpness-aware, with its MLP blocks reweighted (ReMem).

    zoograft remem --model vit_tiny --student resnet10t --dataset digits --set rho=0.05
    """
    options = {
        "model": model,
        "student": student,
        "dataset": dataset,
        "train_split": train_split,
        "split": split,
        "subset": subset(share, limit, subset_seed),
        "save_as": save_as,
        "device": device,
    }
    run_job("remem", spec_of("remem", options, parse_settings(settings or [])), json=json, detach=detach)


def kdep(
    student: Annotated[str, typer.Option(help="The model that learns them, usually untrained.")],
    dataset: Dataset,
    teacher: Annotated[
        str | None, typer.Option(help="The model whose features are learnt; none with method=supervised or none.")
    ] = None,
    downstream: Annotated[
        list[str] | None,
        typer.Option(
            "--downstream",
            help="Also fine-tune on this, to measure: NAME, segmentation:FOLDER or detection:FOLDER. Repeatable.",
        ),
    ] = None,
    settings: Set = None,
    train_split: TrainSplit = None,
    split: Split = None,
    share: Share = None,
    limit: Samples = None,
    subset_seed: SubsetSeed = None,
    save_as: SaveAs = None,
    device: Device = "auto",
    detach: Detach = False,
    json: Json = False,
) -> None:
    """Pretrain a student on a teacher's features, without labels (KDEP).

    zoograft kdep --teacher resnet18 --student mobilenetv3_small_050 --dataset digits --set epochs=5

    zoograft kdep --teacher big --student small --dataset photos --set align=svd --downstream birds --downstream cars

    zoograft kdep --student small --dataset photos --set method=none --downstream segmentation:streets
        --set downstream_params.lrs=0.1,0.03
    """
    options = {
        "teacher": teacher,
        "student": student,
        "dataset": dataset,
        "downstream": [_located(one) for one in downstream] if downstream else None,
        "train_split": train_split,
        "split": split,
        "subset": subset(share, limit, subset_seed),
        "save_as": save_as,
        "device": device,
    }
    run_job("kdep", spec_of("kdep", options, parse_settings(settings or [])), json=json, detach=detach)


def _located(source: str) -> str:
    """`TASK:FOLDER` with the folder's whole path, because the worker may run elsewhere; a name as it is."""
    task, colon, folder = source.partition(":")
    return f"{task}:{Path(folder).expanduser().resolve()}" if colon and folder else source


def subset(share: float | None, limit: int | None, seed: int | None) -> dict[str, Any] | None:
    """The spec's `subset`, or None where all is meant."""
    given = {"share": share, "limit": limit, "seed": seed}
    chosen = {key: value for key, value in given.items() if value is not None}
    return chosen if share is not None or limit is not None else None


def spec_of(kind: str, options: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The spec of a job kind from options and `--set`: settings go into its `params`, or are its own fields; with a
    dot, as in `downstream_params.lrs`, into that field.

    Raises:
        BadInput: an option or setting that this kind does not have.
    """
    from backend.domain.specs import SPECS

    if kind not in SPECS:
        raise BadInput("kind", kind, f"one of {', '.join(SPECS)}")
    fields = SPECS[kind].model_fields
    spec: dict[str, Any] = {}
    for name, value in options.items():
        if value is None:
            continue
        if name in fields:
            spec[name] = value
        elif f"{name}s" in fields:
            spec[f"{name}s"] = list(value) if isinstance(value, (list, tuple)) else [value]
        elif (name, value) != ("device", "auto"):
            raise BadInput(f"--{name.replace('_', '-')}", value, f"{kind} takes {_names(fields)}")
    for name, value in settings.items():
        part, dot, inner = name.partition(".")
        if dot and part in fields and part not in options:
            spec.setdefault(part, {})[inner] = value
        elif "params" in fields:
            spec.setdefault("params", {})[name] = value
        elif name in fields and name not in options:
            spec[name] = value
        else:
            raise BadInput("--set", f"{name}={value}", f"{kind} takes {_names(set(fields) - set(options))}")
    return spec


def _names(fields: Iterable[str]) -> str:
    return ", ".join(sorted(name for name in fields if name != "kind"))
