"""The pages of what jobs measured: drawn from records, empty with the command that fills them, CSV, pictures."""

from __future__ import annotations

import io
import json
from typing import Any
from uuid import uuid4

import pytest
from dash.development.base_component import Component
from PIL import Image
from plotly.utils import PlotlyJSONEncoder

from backend import thumbnails
from backend.domain.kdep import AlignmentReport, DownstreamResult, DownstreamSet, KdepParams, KdepResult, estimate
from backend.domain.kdep_studies import KdepStudySpec, plan_kdep_study
from backend.domain.remem import StudentDistillation, TeacherTuning
from backend.domain.remem_protocol import information_plane, setting_table
from backend.domain.remem_results import (
    BlockCriticality,
    BlockExpertness,
    CoCluster,
    CriticalityResult,
    CriticalNeuron,
    ExpertnessResult,
    InfluencedImage,
    InformationResult,
    RememResult,
    StudentScore,
    TeacherSnapshot,
    TunedTeacher,
)
from backend.domain.specs import dump_spec
from backend.settings import Settings
from backend.store import artifacts, catalog
from backend.store.job_records import FileRecord
from backend.store.queries import jobs as job_queries
from backend.store.session import Store
from dashboard import routing
from dashboard.app import create_app
from dashboard.components import job_outcome
from dashboard.reads import Reads
from tests.services.driver import Driver

PAGES = ("/plane", "/expertness", "/neurons", "/kdep")

NOBODY = "00000000-0000-7000-8000-000000000001"


def information(model: str, excess: float) -> InformationResult:
    return InformationResult(
        model=model,
        data="pets/val",
        loss_nats=0.3 + excess,
        floor_nats=0.3,
        excess_nats=excess,
        feature_width=8,
        feature_grid=(2, 2),
        image_size=(8, 8),
        n_images=8,
        n_heldout=2,
        updates=5,
        batch_size=4,
    )


def expertness(model: str, value: float) -> ExpertnessResult:
    blocks = tuple(
        BlockExpertness(
            block=i,
            name=f"blocks.{i}.mlp",
            expertness=value + 0.1 * i,
            n_clusters=4,
            nonempty_clusters=4,
            complete_clusters=3,
            cluster_sizes=(CoCluster(neurons=5, inputs=1), CoCluster(neurons=3, inputs=3)),
            n_neurons=8,
            n_inputs=4,
            dead_neurons=0,
            dead_inputs=0,
            sparsity=0.25,
            zero_share=0.0,
            bound_bits=10.0,
            expected_bound_bits=5.0,
        )
        for i in range(2)
    )
    return ExpertnessResult(model=model, data="pets/val", n_images=4, n_clusters=4, blocks=blocks)


def criticality() -> CriticalityResult:
    neurons = tuple(
        CriticalNeuron(
            block=0,
            neuron=number,
            criticality=0.5 - number / 100,
            images=(InfluencedImage(index=3, influence=0.5 - number / 100), InfluencedImage(index=4, influence=0.1)),
        )
        for number in (7, 9)
    )
    block = BlockCriticality(block=0, n_neurons=16, n_examined=8, mean=0.1, maximum=0.43, neurons=neurons)
    return CriticalityResult(model="vit_a", data="pets/val", n_images=8, blocks=(block,))


def remem() -> RememResult:
    distillation = StudentDistillation(steps=10, warmup_steps=1)
    teachers = tuple(
        TunedTeacher(
            tuning=TeacherTuning(lr=0.01, rho=rho, steps=20, warmup_steps=1, stop_points=(20,)),
            setting="sam" if rho else "baseline",
            snapshots=(
                TeacherSnapshot(
                    stop_point=20,
                    validation_error=0.2,
                    test_error=0.2 + rho,
                    information=information("vit_a", 0.1 + rho),
                    expertness=expertness("vit_a", 0.3),
                    students=(StudentScore(distillation=distillation, validation_error=0.3 - rho, test_error=0.3),),
                ),
            ),
            best_stop_point=20,
            best_distillation=distillation,
        )
        for rho in (0.0, 0.05)
    )
    return RememResult(
        model="vit_a",
        student="cnn_a",
        dataset="pets",
        metric="top1",
        n_train=8,
        n_validation=2,
        n_test=10,
        teachers=teachers,
        table=setting_table(teachers),
        plane=information_plane(teachers),
        best=1,
    )


def kdep(model: str) -> KdepResult:
    sets = (DownstreamSet(dataset="pets", lr=0.1, validation={"0.1": 0.5}, test=estimate([0.5, 0.6])),)
    return KdepResult(
        model=model,
        weights_hash="0" * 64,
        teacher="vit_a",
        student="cnn_a",
        architecture="test_resnet",
        dataset="pets",
        train_split="val",
        n_samples=10,
        params=KdepParams(),
        alignments=(
            AlignmentReport(
                teacher_width=8,
                student_width=4,
                aligned_width=4,
                expanded=False,
                teacher_std_ratio=3.0,
                std_ratio_before=20.0,
                std_ratio_after=2.0,
            ),
        ),
        steps=3,
        loss_first=2.0,
        loss_last=1.0,
        downstream=DownstreamResult(model=model, seeds=(0, 1), sets=sets, average=estimate([0.5, 0.6])),
    )


def png() -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture
def measured(zoo_store: Store, settings: Settings) -> Reads:
    driver = Driver(zoo_store)

    def analyse(name: str, items: list[Any], files: list[FileRecord] | None = None) -> None:
        driver.add_one(kind="analysis", spec={"analysis": name, "dataset": "pets", "models": ["*"]})
        told = [item if isinstance(item, dict) else item.model_dump(mode="json") for item in items]
        result = {"analysis": name, "dataset": "pets", "split": "val", "n_images": 8, "items": told, "failures": []}
        driver.publish(driver.claimed(), {**result, "sample_ids": {"3": "3", "4": "4"}}, files or ())

    reads = Reads(zoo_store, settings)
    board = reads.board()
    assert board is not None
    assert (board.dataset, board.split) == ("pets", "val")
    common = {"dataset": "pets", "n_samples": 40, "n_classes": 4}
    scatter = {"between_scatter": 2.0, "within_scatter": 1.0, "compactness": 2.0}
    analyse("information", [information("vit_a", 0.2), information("cnn_a", 0.1)])
    analyse("expertness", [expertness("vit_a", 0.2), expertness("vit_b", 0.4)])
    files = []
    for name, data, media_type in (
        ("pictures/vit_a/block-0-neuron-7.png", png(), "image/png"),
        ("student/model.safetensors", b"weights", "application/octet-stream"),
    ):
        uri, size, sha256 = artifacts.put(settings.artifacts, name, data)
        files.append(FileRecord(name=name, uri=uri, size=size, sha256=sha256, media_type=media_type))
    analyse("criticality", [criticality()], files)
    analyse("compactness", [{"model": "vit_a", **common, **scatter}])
    analyse("logme", [{"model": "vit_a", **common, "logme": 0.5}, {"model": "cnn_a", **common, "logme": 0.2}])
    points = {"points": [[0.0, 1.0], [2.0, 3.0]], "labels": [0, 3]}
    analyse("embedding", [{"model": "vit_a", "dataset": "pets", "n_samples": 2, **points}])
    for kind, result in (("remem", remem()), ("kdep", kdep("new")), ("kdep", kdep("newer"))):
        spec = {"model": "vit_a", "student": "cnn_a", "dataset": "pets"}
        driver.add_one(kind=kind, spec=spec)
        driver.publish(driver.claimed(), {**result.model_dump(mode="json"), "published_teacher": None})
    with zoo_store.read() as connection:
        fingerprint = catalog.get_dataset(connection, "pets").splits["val"].fingerprint
    thumbnails.pack(settings, fingerprint, {"3": thumbnails.make(Image.new("RGB", (8, 8), "blue"))})
    return reads


def parts(component: Any) -> list[Component]:
    """All components of a layout."""
    if isinstance(component, list | tuple):
        return [found for one in component for found in parts(one)]
    if not isinstance(component, Component):
        return []
    below = [getattr(component, name, None) for name in component._prop_names if name != "figure"]
    return [component, *(found for one in below if isinstance(one, list | tuple | Component) for found in parts(one))]


def said(component: Any) -> str:
    return json.dumps(component, cls=PlotlyJSONEncoder, ensure_ascii=False)


def fire(reads: Reads, output: str, path: str, search: str = "", scheme: str = "light") -> dict[str, Any]:
    """Answer of the callback that fills `output`, as the browser would ask for it."""
    app = create_app(reads.settings, reads.store)
    key = next(name for name in app.callback_map if f"{output}." in name)
    names = [one.split(".") for one in key.strip(".").split("...")]
    outputs = [{"id": id, "property": property} for id, property in names]
    given = {"url": search, "scheme": scheme, "study-version": ""}
    body = {
        "output": key,
        "outputs": outputs if key.startswith("..") else outputs[0],
        "inputs": [{**one, "value": given[one["id"]]} for one in app.callback_map[key]["inputs"]],
        "state": [{"id": "url", "property": "pathname", "value": path}],
        "changedPropIds": ["scheme.data"],
    }
    with app.server.test_client() as client:
        answer = client.post("/_dash-update-component", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.get_json()["response"]
    return found


def figures(answer: dict[str, Any]) -> dict[str, Any]:
    """Figures of an answer by the id of their graph."""
    found: dict[str, Any] = {}

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            props = value.get("props", {})
            if value.get("type") == "Graph":
                found[props["id"]] = props["figure"]
            for one in value.values():
                walk(one)
        elif isinstance(value, list):
            for one in value:
                walk(one)

    walk(answer)
    return found


@pytest.mark.parametrize("path", PAGES)
def test_an_empty_store_says_which_command_fills_the_page(path: str, empty_store: Store, settings: Settings) -> None:
    content, title = routing.draw(Reads(empty_store, settings), path, "")
    assert "yet" in said(content)
    assert "zoograft analyse" in said(content)
    assert title


def test_a_remem_run_on_the_plane(measured: Reads) -> None:
    answer = fire(measured, "plane-body", "/plane")
    drawn = figures(answer)
    assert set(drawn) == {"plane-points", "plane-settings", "plane-sweep-rho"}
    points = [trace for trace in drawn["plane-points"]["data"] if trace["mode"] == "markers"]
    assert [trace["name"] for trace in points] == ["Fine-tuned", "SAM"]
    job = str(measured.remem_runs()[0].job_id)
    assert points[1]["customdata"] == [f"/jobs/{job}"]
    assert "95 %" in drawn["plane-sweep-rho"]["layout"]["yaxis"]["title"]["text"]
    dark = figures(fire(measured, "plane-body", "/plane", scheme="dark"))
    assert dark["plane-points"]["layout"]["template"] != drawn["plane-points"]["layout"]["template"]


def test_the_zoo_on_the_plane(measured: Reads) -> None:
    (plane,) = measured.planes()
    drawn = figures(fire(measured, "plane-body", "/plane", f"?of=zoo-{plane.key}"))
    named = {name for trace in drawn["plane-points"]["data"] for name in trace.get("text", ())}
    assert named == {"vit_a", "cnn_a"}
    links = [point[-1] for trace in drawn["plane-points"]["data"] for point in trace.get("customdata", ())]
    assert sorted(links) == ["/zoo/cnn_a", "/zoo/vit_a"]


def test_expertness_of_models_and_of_a_run(measured: Reads) -> None:
    answer = fire(measured, "expertness-body", "/expertness")
    drawn = figures(answer)
    assert [trace["name"] for trace in drawn["expertness-blocks"]["data"]] == ["vit_a", "vit_b"]
    assert drawn["expertness-blocks"]["data"][0]["y"] == pytest.approx([20, 30])
    only = figures(fire(measured, "expertness-body", "/expertness", "?models=*_b"))
    assert [trace["name"] for trace in only["expertness-sparsity"]["data"]] == ["vit_b"]
    none = fire(measured, "expertness-body", "/expertness", "?models=nobody")
    assert "No model fits" in said(none)
    run = measured.remem_runs()[0].job_id
    lines = figures(fire(measured, "expertness-body", "/expertness", f"?of={run}"))["expertness-blocks"]["data"]
    assert [trace["name"].split(",")[0] for trace in lines] == ["Fine-tuned", "SAM"]


def outcomes(reads: Reads) -> dict[str, str]:
    """What the page of each finished job says of its result, by its kind or analysis."""
    with reads.store.read() as connection:
        jobs = job_queries.jobs(connection, limit=50).items
    return {job.spec.get("analysis") or job.kind: said(job_outcome.outcome(reads, job)) for job in jobs}


def test_the_pages_of_jobs_say_what_was_measured_and_where_to_look(measured: Reads) -> None:
    told = outcomes(measured)
    for name, page in (
        ("information", "/plane"),
        ("expertness", "/expertness"),
        ("criticality", "/neurons"),
        ("compactness", "/kdep"),
        ("logme", "/kdep"),
        ("embedding", "/kdep"),
    ):
        assert f'"href": "{page}"' in told[name]
        assert '"/zoo/vit_a"' in told[name]
    assert "0.2000" in told["information"]
    assert "2.0000" in told["compactness"]
    assert "SAM" in told["remem"]
    assert f"/plane?of={measured.remem_runs()[0].job_id}" in told["remem"]
    assert "Downstream average" in told["kdep"]
    assert "55.00 %" in told["kdep"]
    assert all("The whole result" in one for one in told.values())


def test_neurons_with_their_pictures(measured: Reads) -> None:
    answer = fire(measured, "neurons-body", "/neurons")
    assert set(figures(answer)) == {"neurons-blocks", "neurons-ranking"}
    text = said(answer)
    assert text.count("/thumbnails/3") == 2
    assert "not drawn" in text
    address = text[text.index("/pictures/") :].split('"')[0]
    app = create_app(measured.settings, measured.store)
    with app.server.test_client() as client:
        picture = client.get(address)
        assert (picture.status_code, picture.mimetype, picture.data) == (200, "image/png", png())
        assert "immutable" in picture.headers["Cache-Control"]
        assert client.get(f"/pictures/{uuid4()}.png").status_code == 404
        job = measured.measured("criticality")[0].job_id
        (weights,) = [one for one in measured.artifacts(job) if one.name.startswith("student/")]
        assert client.get(f"/pictures/{weights.id}.png").status_code == 404


def test_pretraining(measured: Reads) -> None:
    teachers = figures(fire(measured, "kdep-teachers", "/kdep"))["kdep-candidates"]
    assert teachers["data"][0]["y"] == ["vit_a", "cnn_a"]  # the one with a compactness first
    assert teachers["data"][1]["x"] == [0.5, 0.2]
    runs = fire(measured, "kdep-runs", "/kdep")
    drawn = figures(runs)
    assert [trace["name"] for trace in drawn["kdep-downstream"]["data"]] == ["newer", "new"]
    assert drawn["kdep-std"]["data"][2]["x"] == [2.0, 2.0]
    assert "svd + pts" in said(runs)
    embedded = fire(measured, "kdep-embedding", "/kdep")["kdep-embedding"]["figure"]
    assert [trace["name"] for trace in embedded["data"]] == ["cat", "owl"]


def test_a_kdep_study_draws_its_figures(zoo_store: Store, settings: Settings) -> None:
    spec = KdepStudySpec.model_validate(
        {
            "name": "small",
            "student": {"name": "tiny", "architecture": "test_resnet"},
            "teachers": ["vit_a"],
            "dataset": "pets",
            "methods": [{"label": "SVD+PTS"}, {"label": "random", "method": "none"}],
            "seeds": [0],
            "downstream": ["pets"],
        }
    )
    driver = Driver(zoo_store)
    parent = driver.add_one(kind="study", spec=spec.model_dump(mode="json"))
    for child in plan_kdep_study(spec):
        if child.kind == "kdep":
            driver.add_one(kind="kdep", spec=dump_spec(child.spec), parent=parent)
            driver.publish(driver.claimed(), kdep("new").model_dump(mode="json"))
    reads = Reads(zoo_store, settings)
    drawn = figures(fire(reads, "study-pretraining", f"/studies/{parent}"))
    assert {trace["name"] for trace in drawn["study-shares"]["data"]} == {"SVD+PTS, vit_a", "random, vit_a"}
    assert drawn["study-sets"]["data"][0]["y"] == pytest.approx([55])


def test_downloads(measured: Reads) -> None:
    app = create_app(measured.settings, measured.store)
    lines = {"plane-points": 3, "plane-settings": 3, "plane-sweeps": 3, "expertness": 5, "expertness-sizes": 9}
    lines |= {"neurons": 5, "kdep-candidates": 3, "kdep-runs": 3, "kdep-embedding": 3}
    with app.server.test_client() as client:
        seen = set()
        for path in PAGES:
            page, _ = routing.find(path, "")
            for name in page.TABLES:
                answer = client.get(f"/download/{name}.csv?path={path}")
                assert answer.status_code == 200, name
                assert len(answer.text.strip().splitlines()) == lines[name], (name, answer.text)
                seen.add(name)
    assert seen == set(lines)


@pytest.mark.parametrize("path", PAGES)
def test_every_download_button_has_its_table(path: str, measured: Reads) -> None:
    page, _ = routing.find(path, "")
    content, _ = routing.draw(measured, path, "")
    outputs = {"/plane": ["plane-body"], "/expertness": ["expertness-body"], "/neurons": ["neurons-body"]}
    answers = [fire(measured, output, path) for output in outputs.get(path, ["kdep-teachers", "kdep-runs"])]
    wanted = {
        part.split('"')[0]
        for text in (said(content), *map(said, answers))
        for part in text.split('"data-table": "')[1:]
    }
    assert wanted
    assert wanted <= set(page.TABLES)


@pytest.mark.parametrize(
    ("output", "path", "search", "text"),
    [
        ("plane-body", "/plane", "?of=zoo-gone", "That plane is not there"),
        ("plane-body", "/plane", "?of=nonsense", "Not found"),
        ("plane-body", "/plane", f"?of={NOBODY}", "Not found"),
        ("expertness-body", "/expertness", f"?of={NOBODY}", "Not found"),
        ("expertness-body", "/expertness", "?of=pets/nowhere", "No model fits"),
        ("neurons-body", "/neurons", "?of=x/y", "No model fits"),
        ("kdep-teachers", "/kdep", "?on=pets/nowhere", "No candidate has been measured here"),
        ("kdep-runs", "/kdep", "?data=nowhere", "No run on this data set"),
    ],
)
def test_what_is_not_there_says_so(output: str, path: str, search: str, text: str, measured: Reads) -> None:
    assert text in said(fire(measured, output, path, search))


@pytest.mark.parametrize("search", ["?of=nonsense", "?of=00000000-0000-7000-8000-000000000001"])
def test_unknown_runs(search: str, measured: Reads) -> None:
    app = create_app(measured.settings, measured.store)
    with app.server.test_client() as client:
        answer = client.get(f"/download/plane-points.csv?path=/plane&{search[1:]}")
    assert answer.status_code == 404
