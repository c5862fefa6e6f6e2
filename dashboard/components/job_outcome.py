"""What a finished job found, by its kind: numbers, tables, warnings, and where to look on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dash_mantine_components as dmc
from dash import html

from backend.domain.jobs import Job
from backend.domain.kdep import KdepResult
from backend.domain.records import parted
from backend.domain.remem_results import RememResult
from dashboard import formats
from dashboard.components import cards, remem_parts
from dashboard.reads import Reads, to_json
from dashboard.view import link

MOST_CHARACTERS = 20_000
# Analysis → the page that draws it, and (title, field) of the number that sums it up.
ANALYSES: dict[str, tuple[str, str, str]] = {
    "information": ("/plane", "Excess (nats)", "excess_nats"),
    "compactness": ("/kdep", "Compactness", "compactness"),
    "logme": ("/kdep", "LogME", "logme"),
    "embedding": ("/kdep", "", ""),
    "expertness": ("/expertness", "", ""),
    "criticality": ("/neurons", "", ""),
}


@dataclass(frozen=True)
class Outcome:
    """What a kind of job shows of its result, and where its reader may want to go: (text, address)."""

    parts: Sequence[Any] = ()
    links: Sequence[tuple[str, str]] = ()


def outcome(reads: Reads, job: Job) -> Any:
    """What a finished job found: numbers, warnings, and where the student is."""
    if job.result is None:
        return None
    result = job.result
    drawn = KINDS.get(job.kind)
    found = drawn(job, result) if drawn is not None else Outcome()
    links = [
        dmc.Anchor(f"Open the student: {name}", href=link("zoo", name), fw=600, className="open-student")
        for name in reads.made_models(job.id)
    ]
    links += [dmc.Anchor(text, href=href) for text, href in found.links]
    children = [
        *found.parts,
        *(dmc.Text(f"Warning: {text}", className="warning-text", size="sm") for text in result.get("warnings") or ()),
    ]
    if links:
        children.append(dmc.Group(links))
    whole = dmc.Code(to_json({k: v for k, v in result.items() if k != "provenance"})[:MOST_CHARACTERS], block=True)
    if not children:
        return cards.section("Result", whole)
    shown = dmc.Stack(children, gap="xs")
    return html.Div([cards.section("Result", shown), cards.folded("The whole result", whole)])


def _transfer(job: Job, result: Mapping[str, Any]) -> Outcome:
    if "transfer_delta" not in result:
        return Outcome()
    links = []
    if result.get("teacher_names"):
        on = f"{result['dataset']}/{result['split']}"
        links.append(("Back to the pair", link("pairs", result["teacher_names"][0], result["student"], on=on)))
    return Outcome([cards.number_row(_transfer_numbers(result))], links)


def _finetune(job: Job, result: Mapping[str, Any]) -> Outcome:
    if not isinstance(result.get("accuracy"), float):
        return Outcome()
    return Outcome([cards.number_row([cards.number_card("Accuracy", formats.percent(result["accuracy"]))])])


def _scan(job: Job, result: Mapping[str, Any]) -> Outcome:
    return Outcome([_scan_tables(result)], _flips(job, result).links)


def _flips(job: Job, result: Mapping[str, Any]) -> Outcome:
    return Outcome(links=[("Look at the pairs", link("pairs", on=f"{result.get('dataset')}/{result.get('split')}"))])


def _kdep(job: Job, result: Mapping[str, Any]) -> Outcome:
    found, _ = parted(KdepResult, result)
    numbers = [
        cards.number_card(
            "Loss",
            formats.number(found.loss_last),
            f"at first {formats.number(found.loss_first)}; {found.steps:,} steps",
        ),
        cards.number_card("Images", f"{found.n_samples:,}", f"{found.dataset} ({found.train_split})"),
    ]
    numbers += [
        cards.number_card(
            "Spread of the channels",
            formats.number(one.std_ratio_after, 1),
            f"largest std by smallest; before the transform {formats.number(one.std_ratio_before, 1)}",
        )
        for one in found.alignments[:1]
    ]
    tables: list[Any] = []
    if found.downstream is not None:
        average = found.downstream.average
        numbers.append(
            cards.number_card(
                "Downstream average", formats.percent(average.mean), formats.bracket(average.low, average.high)
            )
        )
        rows = [
            [
                one.dataset,
                one.metric,
                f"{one.lr:g}",
                formats.percent(one.test.mean),
                formats.interval(one.test.low, one.test.high),
            ]
            for one in found.downstream.sets
        ]
        tables.append(
            cards.table(("Set", "Metric", "lr", "Test", "95 %"), rows, label="Downstream sets", numeric=(2, 3, 4))
        )
    return Outcome([cards.number_row(numbers), *tables], [("Beside the other runs", "/kdep")])


def _remem(job: Job, result: Mapping[str, Any]) -> Outcome:
    found, _ = parted(RememResult, result)
    parts = [remem_parts.numbers(found), remem_parts.settings_table(found.table), *remem_parts.left_out(found)]
    return Outcome(parts, [("On the information plane", link("plane", of=str(job.id)))])


def _analysis(job: Job, result: Mapping[str, Any]) -> Outcome:
    page, title, field = ANALYSES[job.spec["analysis"]]
    rows = [
        [
            dmc.Anchor(one["model"], href=link("zoo", one["model"]), size="sm"),
            *([formats.number(one.get(field), 4)] if field else []),
        ]
        for one in result.get("items") or ()
    ]
    failed = [
        dmc.Text(f"{one['model']}: {one['message']}", className="warning-text", size="sm")
        for one in result.get("failures") or ()
    ]
    table = cards.table(("Model", *([title] if title else [])), rows, label="Models that were measured", numeric=(1,))
    return Outcome([table, *failed], [("Look at it", page)])


def _transfer_numbers(result: Mapping[str, Any]) -> list[dmc.Paper]:
    def shown(name: str) -> str:
        return formats.bracket(result.get(f"{name}_low"), result.get(f"{name}_high"))

    numbers = [
        cards.number_card("Δ transfer", formats.signed_percent(result["transfer_delta"]), shown("transfer_delta")),
        cards.number_card(
            "Accuracy of the student",
            formats.percent(result["student_accuracy_after"]),
            f"before: {formats.percent(result['student_accuracy_before'])}",
        ),
        cards.number_card("Knowledge gained", formats.percent(result["knowledge_gain"]), shown("knowledge_gain")),
        cards.number_card("Knowledge lost", formats.percent(result["knowledge_loss"]), shown("knowledge_loss")),
    ]
    if result.get("control_delta") is not None:
        numbers.append(
            cards.number_card(
                "Δ above the control",
                formats.signed_percent(result.get("delta_above_control")),
                shown("delta_above_control"),
                f"control without a teacher: {formats.signed_percent(result['control_delta'])}",
            )
        )
    rate = (result.get("transfer_rate") or {}).get("100")
    if rate is not None:
        numbers.append(cards.number_card("Transfer rate", formats.percent(rate, 1), "of the positive flips, now right"))
    return numbers


def _scan_tables(result: Mapping[str, Any]) -> html.Div:
    rows = [
        [
            dmc.Anchor(one["model"], href=link("zoo", one["model"]), size="sm"),
            formats.percent(one.get("accuracy")),
            formats.whole(one.get("n_samples")),
            formats.whole(one.get("images_per_s")),
        ]
        for one in result.get("evaluated") or ()
    ]
    failed = [[one.get("model"), one.get("reason")] for one in result.get("failed") or () if isinstance(one, Mapping)]
    parts = [
        cards.table(("Model", "Accuracy", "Samples", "Images/s"), rows, label="Scanned models", numeric=(1, 2, 3))
        if rows
        else None,
        cards.table(("Model", "Why it failed"), failed, label="Models that failed") if failed else None,
    ]
    return html.Div(parts)


KINDS: dict[str, Callable[[Job, Mapping[str, Any]], Outcome]] = {
    "transfer": _transfer,
    "finetune": _finetune,
    "scan": _scan,
    "flips": _flips,
    "kdep": _kdep,
    "remem": _remem,
    "analysis": _analysis,
}
