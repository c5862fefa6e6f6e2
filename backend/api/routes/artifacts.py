"""Files that jobs published. Clients name ids, never paths."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import Any
from uuid import UUID

from fastapi import APIRouter
from starlette.responses import Response, StreamingResponse

from backend.api.deps import Cursor, PageLimit, PathId, Serving, json_of
from backend.domain.errors import NotFound
from backend.domain.jobs import Artifact
from backend.store import artifacts as artifact_store
from backend.store.queries import jobs as queries
from backend.store.queries.paging import Page

router = APIRouter(tags=["artifacts"])

CHUNK = 1 << 20


@router.get("/artifacts", response_model=Page[Artifact])
def list_artifacts(serving: Serving, job: UUID | None = None, limit: PageLimit = 50, cursor: Cursor = None) -> Response:
    """Published files, the newest first, or those of one job."""
    with serving.store.read() as connection:
        return json_of(queries.artifacts(connection, job_id=job, limit=limit, cursor=cursor))


@router.get(
    "/artifacts/{id}",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "The file, with its checksum"}},
)
def download(serving: Serving, id: PathId) -> Response:
    """The file. `Repr-Digest` and `ETag` carry its SHA-256."""
    with serving.store.read() as connection:
        artifact = queries.artifact(connection, id)
    try:
        file = artifact_store.open(artifact.uri)
    except FileNotFoundError:
        raise NotFound("artifact", str(id), "its file is gone from the artifact store") from None
    digest = base64.b64encode(bytes.fromhex(artifact.sha256)).decode()
    filename = re.sub(r"[^A-Za-z0-9._-]+", "_", artifact.name.rsplit("/", 1)[-1]) or "artifact"
    return StreamingResponse(
        _chunks(file),
        media_type="application/octet-stream",
        headers={
            "Content-Length": str(artifact.size),
            "Content-Disposition": f'attachment; filename="{filename}"',
            "ETag": f'"{artifact.sha256}"',
            "Repr-Digest": f"sha-256=:{digest}:",
            "X-Checksum-SHA256": artifact.sha256,
        },
    )


def _chunks(file: Any) -> Iterator[bytes]:
    with file:
        while chunk := file.read(CHUNK):
            yield chunk
