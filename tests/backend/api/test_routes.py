"""The contracts of DESIGN §5, route by route, on a small real store."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import insert
from starlette.testclient import TestClient

from backend import submission
from backend.settings import Settings
from backend.store import artifacts, tables, tokens
from backend.store.session import Store
from backend.submission import Child

API = "/api/v1"
PAIR_COLUMNS = [
    "teacher",
    "student",
    "dataset",
    "split",
    "n_samples",
    "n_classes",
    "teacher_accuracy",
    "student_accuracy",
    "accuracy_difference",
    "positive_flip_rate",
    "negative_flip_rate",
    "flip_entropy_nats",
    "mcnemar_p_value",
    "accuracy_difference_low",
    "accuracy_difference_high",
    "positive_flip_rate_low",
    "positive_flip_rate_high",
    "negative_flip_rate_low",
    "negative_flip_rate_high",
]
JOB_COLUMNS = [
    "id",
    "kind",
    "state",
    "spec",
    "priority",
    "attempt",
    "progress",
    "cause",
    "message",
    "result",
    "created_at",
    "started_at",
    "finished_at",
    "retry_of",
    "parent",
]
INSTANT = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")


def test_lists_have_one_shape(client: TestClient) -> None:
    for noun in ("models", "datasets", "evaluations", "pairs", "analyses", "jobs", "studies", "artifacts", "methods"):
        answer = client.get(f"{API}/{noun}")
        assert answer.status_code == 200, noun
        assert set(answer.json()) == {"items", "next_cursor"}, noun


def test_pairs(client: TestClient) -> None:
    page = client.get(f"{API}/pairs").json()
    assert len(page["items"]) == 6
    rates = [item["positive_flip_rate"] for item in page["items"]]
    assert rates == sorted(rates, reverse=True)
    for item in page["items"]:
        assert set(PAIR_COLUMNS) == set(item)
        assert item["positive_flip_rate_low"] <= item["positive_flip_rate"] <= item["positive_flip_rate_high"] <= 1
        difference = item["positive_flip_rate"] - item["negative_flip_rate"]
        assert item["accuracy_difference"] == pytest.approx(difference)
    one = client.get(f"{API}/pairs", params={"teacher": "teacher", "student": "student"}).json()["items"]
    assert [(pair["positive_flip_rate"], pair["negative_flip_rate"]) for pair in one] == [(0.5, 0.25)]
    ranged = client.get(f"{API}/pairs", params={"positive_flip_rate_min": 0.4, "accuracy_difference_min": 0}).json()
    assert {(pair["teacher"], pair["student"]) for pair in ranged["items"]} == {
        ("teacher", "student"),
        ("after", "student"),
    }


def test_pages_go_on_where_they_ended(client: TestClient) -> None:
    first = client.get(f"{API}/pairs", params={"limit": 4}).json()
    rest = client.get(f"{API}/pairs", params={"limit": 4, "cursor": first["next_cursor"]}).json()
    assert len(first["items"]) == 4
    assert len(rest["items"]) == 2
    assert rest["next_cursor"] is None


def test_one_pair(client: TestClient) -> None:
    pair = client.get(f"{API}/pairs/teacher/student").json()
    assert (pair["right_both"], pair["positive_flips"], pair["negative_flips"], pair["wrong_both"]) == (2, 6, 3, 1)
    assert pair["flip_entropy_nats"] == pytest.approx(1.011404, abs=1e-6)
    assert client.get(f"{API}/pairs/teacher/student").json() == pair  # seeded
    classes = client.get(f"{API}/pairs/teacher/student/classes").json()["items"]
    assert [(row["class_name"], row["positive_flips"]) for row in classes] == [("cow", 3), ("ant", 2), ("bee", 1)]
    tops = client.get(f"{API}/pairs/teacher/student/top-classes", params={"p": [20, 100]}).json()["items"]
    assert [(row["p"], row["class_names"], row["n_flips_all"]) for row in tops] == [
        (20.0, ["cow"], 6),
        (100.0, ["cow", "ant", "bee"], 6),
    ]
    assert len(client.get(f"{API}/pairs/teacher/student/top-classes").json()["items"]) == 5
    assert client.get(f"{API}/pairs/teacher/student/top-classes", params={"p": 0}).status_code == 422
    assert set(classes[0]) == {
        "class_index",
        "class_name",
        "n_samples",
        "positive_flips",
        "negative_flips",
        "positive_flip_share",
    }
    first = client.get(f"{API}/pairs/teacher/student/classes", params={"limit": 2}).json()
    rest = client.get(
        f"{API}/pairs/teacher/student/classes", params={"limit": 2, "cursor": first["next_cursor"]}
    ).json()
    assert [row["class_index"] for row in first["items"] + rest["items"]] == [row["class_index"] for row in classes]
    samples = client.get(f"{API}/pairs/teacher/student/samples", params={"kind": "positive", "class": 2}).json()[
        "items"
    ]
    assert [row["sample_id"] for row in samples] == ["dir/s09.png", "dir/s10.png", "dir/s11.png"]
    assert {"sample_id", "label", "teacher_top1", "student_top1", "thumbnail"} <= set(samples[0])
    for path, status in (
        ("teacher/nobody", 404),
        ("teacher/teacher", 422),
        ("teacher/student?split=test", 422),
        ("teacher/student?dataset=none", 404),
        ("teacher/student/samples?kind=odd", 422),
        ("teacher/student/samples?class=9", 422),
    ):
        assert client.get(f"{API}/pairs/{path}").status_code == status, path


def test_catalog(client: TestClient) -> None:
    model = client.get(f"{API}/models/student").json()
    assert model["source"] == "external"
    assert INSTANT.match(model["created_at"])
    assert client.get(f"{API}/models", params={"name": "t*"}).json()["items"][0]["name"] == "teacher"
    missing = client.get(f"{API}/models/studnt")
    assert missing.status_code == 404
    assert "student" in missing.json()["detail"]
    assert client.get(f"{API}/datasets/golden").json()["class_names"] == ["ant", "bee", "cow"]
    evaluations = client.get(f"{API}/evaluations", params={"sort": "-accuracy"}).json()["items"]
    assert [row["model"] for row in evaluations] == ["after", "teacher", "student"]
    assert client.get(f"{API}/evaluations/{evaluations[0]['id']}").json() == evaluations[0]


def test_methods_come_with_their_schema(client: TestClient) -> None:
    methods = {item["name"]: item for item in client.get(f"{API}/methods").json()["items"]}
    assert {"kl", "xe_kl", "mcl", "kl_dp", "ce"} <= set(methods)
    properties = methods["kl_dp"]["parameters"]["properties"]
    assert properties["partition"]["enum"] == ["supervised", "unsupervised"]
    assert properties["lr"]["default"] == 1e-4
    assert methods["ce"]["max_teachers"] == 0


def test_adding_is_a_job(client: TestClient) -> None:
    body = {"name": "net", "architecture": "resnet18", "kwargs": {"num_classes": 3}}
    answer = client.post(f"{API}/models", json=body)
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"{API}/jobs/{job['id']}"
    assert (job["kind"], job["state"], job["spec"]["model"]["name"]) == ("register", "queued", "net")
    answer = client.post(f"{API}/datasets", json={"name": "digits", "source": "digits"})
    assert (answer.status_code, answer.json()["kind"]) == (202, "register")
    for path, wrong, field in (
        ("models", {"name": "a b", "architecture": "x"}, "name"),
        ("models", {"name": "a"}, "architecture"),
        ("models", {"name": "a", "architecture": "x", "trust_remote_code": True}, "trust_remote_code"),
        ("datasets", {"name": "a", "source": "ftp"}, "source"),
    ):
        refused = client.post(f"{API}/{path}", json=wrong)
        assert refused.status_code == 422
        assert refused.json()["errors"][0]["field"] == field
    assert len(client.get(f"{API}/jobs").json()["items"]) == 2  # nothing half-written


def test_jobs(client: TestClient) -> None:
    answer = client.post(f"{API}/jobs", json={"kind": "sleep", "spec": {"steps": 3}, "priority": 7})
    assert answer.status_code == 202
    job = answer.json()
    assert set(JOB_COLUMNS) <= set(job)
    assert (job["state"], job["priority"], job["progress"]) == ("queued", 7, {"step": 0, "total": 0})
    assert INSTANT.match(job["created_at"])
    url = answer.headers["location"]
    assert client.get(url).json() == job
    waiting = client.post(f"{API}/jobs", json={"kind": "sleep", "spec": {}, "after": [job["id"]]}).json()
    assert waiting["after"] == [job["id"]]
    assert [row["id"] for row in client.get(f"{API}/jobs").json()["items"]] == [waiting["id"], job["id"]]
    assert client.post(f"{url}/retry").status_code == 409
    cancelled = client.post(f"{url}/cancel")
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    assert client.post(f"{url}/cancel").json() == cancelled.json()  # what has ended stays as it is
    assert client.post(f"{url}/retry", json={"resume": True}).status_code == 409  # it left no checkpoint
    again = client.post(f"{url}/retry")
    assert again.status_code == 202
    assert again.json()["retry_of"] == job["id"]
    assert again.headers["location"] != url
    assert [row["id"] for row in client.get(f"{API}/jobs", params={"state": "cancelled"}).json()["items"]] == [
        waiting["id"],
        job["id"],
    ]
    states = client.get(f"{url}/logs", params={"type": "state"}).json()["items"]
    assert [event["data"]["to"] for event in states] == ["queued", "cancelled"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"kind": "dance", "spec": {}}, "kind"),
        ({"kind": "sleep"}, "spec"),
        ({"kind": "sleep", "spec": {"steps": -1}}, "spec.steps"),
        ({"kind": "sleep", "spec": {"steps": 1e300}}, "spec.steps"),
        ({"kind": "sleep", "spec": {"stepps": 1}}, "spec.stepps"),
        ({"kind": "sleep", "spec": {}, "priority": 10**30}, "priority"),
        ({"kind": "sleep", "spec": {}, "after": ["x"]}, "after.0"),
        ({"kind": "sleep", "spec": {}, "after": [str(uuid4())]}, "after"),
        ({"kind": "sleep", "spec": {}, "owner": "root"}, "owner"),
        ({"kind": "flips", "spec": {"dataset": "none"}}, "spec.dataset"),
        ({"kind": "scan", "spec": {"models": ["nobody"], "dataset": "golden"}}, "spec.models"),
        ({"kind": "transfer", "spec": {"teachers": ["a"], "student": "b", "dataset": "c", "method": "magic"}}, None),
        ({"kind": "study", "spec": {"name": "s"}}, None),
        ([], "body"),
        ("sleep", "body"),
    ],
)
def test_a_job_that_cannot_be_is_refused(client: TestClient, body: object, field: str | None) -> None:
    answer = client.post(f"{API}/jobs", json=body)
    assert answer.status_code == 422
    found = answer.json()["errors"][0]
    assert found["expected"]
    if field is not None:
        assert found["field"] == field
    assert client.get(f"{API}/jobs").json()["items"] == []


def test_nan_is_no_number(client: TestClient) -> None:
    for text in ('{"kind": "sleep", "spec": {"step_s": NaN}}', '{"kind": "sleep", "spec": {"step_s": Infinity}}'):
        answer = client.post(f"{API}/jobs", content=text, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422
        json.loads(answer.text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def test_idempotency(client: TestClient) -> None:
    body = {"kind": "sleep", "spec": {"steps": 3}}
    first = client.post(f"{API}/jobs", json=body, headers={"Idempotency-Key": "k1"})
    second = client.post(f"{API}/jobs", json={"spec": {"steps": 3}, "kind": "sleep"}, headers={"Idempotency-Key": "k1"})
    assert (first.status_code, second.status_code) == (202, 200)
    assert second.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert second.json()["id"] == first.json()["id"]
    assert second.headers["location"] == first.headers["location"]
    other = client.post(f"{API}/jobs", json={"kind": "sleep", "spec": {"steps": 4}}, headers={"Idempotency-Key": "k1"})
    assert other.status_code == 422
    assert len(client.get(f"{API}/jobs").json()["items"]) == 1
    for key in ("x" * 256, "a b"):
        assert client.post(f"{API}/jobs", json=body, headers={"Idempotency-Key": key}).status_code == 422


def test_keys_of_two_owners_do_not_meet(client_of: Callable[..., TestClient], zoo: Store) -> None:
    with zoo.write() as connection:
        secrets = [tokens.create(connection, owner, ["submit"])[1] for owner in ("ann", "bob")]
    client = client_of("10.1.2.3", listen="0.0.0.0")
    ids = {
        client.post(
            f"{API}/jobs",
            json={"kind": "sleep", "spec": {"steps": i}},
            headers={"Idempotency-Key": "k", "Authorization": f"Bearer {secret}"},
        ).json()["id"]
        for i, secret in enumerate(secrets)
    }
    assert len(ids) == 2


def test_studies(client: TestClient, zoo: Store, settings: Settings) -> None:
    done = submission.submit_study(zoo, settings, {"name": "three"}, [Child(str(i), "sleep", {}) for i in range(3)])
    shown = client.get(f"{API}/studies/{done.job.id}").json()
    assert shown["children"] == {"queued": 3}
    assert shown["job"]["kind"] == "study"
    assert len(client.get(f"{API}/jobs", params={"parent": str(done.job.id)}).json()["items"]) == 3
    assert client.get(f"{API}/studies").json()["items"] == [shown]
    assert client.get(f"{API}/studies/{done.children['0']}").status_code == 404
    assert client.get(f"{API}/analyses/{done.job.id}").status_code == 404


def test_artifacts_come_with_their_checksum(client: TestClient, zoo: Store, settings: Settings, tmp_path: Path) -> None:
    data = bytes(range(256)) * 9000
    uri, size, sha256 = artifacts.put(str(tmp_path / "artifacts"), "job/1/model.safetensors", data)
    job = submission.submit(zoo, settings, "sleep", {}).job
    row = {"id": uuid4(), "job_id": job.id, "fence": 1, "uri": uri, "size": size, "sha256": sha256, "created_at": 1.0}
    names = ['../../evil";\r\n.sh', "model/weights.safetensors"]
    ids = [uuid4() for _ in names]
    with zoo.write() as connection:
        for id, name in zip(ids, names, strict=True):
            connection.execute(
                insert(tables.artifacts).values(
                    **{**row, "id": id, "name": name, "media_type": "text/html", "created_at": 1.0}
                )
            )
    listed = client.get(f"{API}/artifacts", params={"job": str(job.id)}).json()["items"]
    assert {item["id"] for item in listed} == {str(id) for id in ids}
    for id in ids:
        answer = client.get(f"{API}/artifacts/{id}")
        assert answer.content == data
        assert hashlib.sha256(answer.content).hexdigest() == answer.headers["x-checksum-sha256"]
        digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
        assert answer.headers["repr-digest"] == f"sha-256=:{digest}:"
        # Never rendered by a browser, whatever a job called it.
        assert answer.headers["content-type"] == "application/octet-stream"
        assert re.fullmatch(r'attachment; filename="[A-Za-z0-9._-]+"', answer.headers["content-disposition"])
    Path(uri.removeprefix("file://")).unlink()
    gone = client.get(f"{API}/artifacts/{ids[0]}")
    assert gone.status_code == 404
    assert str(tmp_path) not in gone.text
    assert client.get(f"{API}/artifacts/{uuid4()}").status_code == 404


def test_readiness(client: TestClient, client_of: Callable[..., TestClient]) -> None:
    assert client.get("/readyz").json() == {"status": "ok", "database": "ok", "migration": "ok", "broker": "none"}
    down = client_of(broker_url="redis://127.0.0.1:1/0").get("/readyz")
    assert down.status_code == 503
    assert down.json()["errors"] == [{"field": "broker", "value": "unreachable", "expected": "ok"}]
    assert client.get("/healthz").json() == {"status": "ok"}


def test_a_broker_that_answers_is_ready(client_of: Callable[..., TestClient], redis_url: str) -> None:
    assert client_of(broker_url=redis_url).get("/readyz").json()["broker"] == "ok"


def test_a_database_without_tables_says_what_to_run(settings: Settings, tmp_path: Path) -> None:
    from backend.api.app import create_app

    empty = settings.model_copy(update={"database_url": f"sqlite:///{tmp_path / 'empty.db'}"})
    empty.__dict__.pop("database", None)
    with TestClient(create_app(empty), base_url="http://localhost") as client:
        assert client.get(f"{API}/models").status_code == 503
        assert "zoograft migrate" in client.get(f"{API}/models").json()["detail"]
        assert "zoograft migrate" in client.get("/readyz").json()["detail"]


def test_compression_where_it_is_wanted(client: TestClient) -> None:
    schema = client.get(f"{API}/openapi.json", headers={"Accept-Encoding": "gzip"})
    assert schema.headers["content-encoding"] == "gzip"
    plain = client.get(f"{API}/openapi.json", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.json() == schema.json()


def test_metrics(client: TestClient) -> None:
    client.post(f"{API}/jobs", json={"kind": "sleep", "spec": {}})
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    values = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
    assert float(values['zoograft_jobs{state="queued"}']) == 1
    assert float(values['zoograft_queue_depth{queue="cpu"}']) == 1
    assert float(values["zoograft_oldest_queued_seconds"]) >= 0
    assert float(values["zoograft_attempts_total"]) == 0
