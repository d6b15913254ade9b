"""The HTTP application: search, health, readiness, metrics, and the release that answers.

Each answer names its release. What a request gets wrong is told as JSON with what, why and fix.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from reembed.errors import (
    EncoderError,
    IntegrityError,
    ProviderError,
    ReembedError,
    SpaceMismatch,
    UsageError,
)
from reembed.redact import redacted
from reembed.serving.http.guard import Guard
from reembed.serving.http.metrics import Metrics
from reembed.serving.http.options import ServeOptions
from reembed.serving.index import Index
from reembed.serving.live import EncodedQueries, OpenRelease, shown

_STATUS: tuple[tuple[type[ReembedError], int], ...] = (
    (SpaceMismatch, 409),
    (ProviderError, 503),
    (IntegrityError, 503),
    (UsageError, 400),
    (EncoderError, 400),
)
_PLAIN = "text/plain; version=0.0.4; charset=utf-8"


class Search(BaseModel):
    """A search; exactly one of `queries` and `vectors` is given."""

    model_config = ConfigDict(extra="forbid", strict=True)

    queries: list[str] | None = None
    """Texts, which the model of the release embeds."""
    vectors: list[list[float]] | None = None
    """Vectors [Q, dim]; `space` says of which space."""
    space: str | None = None
    """Id of the space of `vectors`: another one is refused."""
    k: int = 10
    columns: list[str] = []
    filter: str | None = None


def create_app(index: Index, options: ServeOptions, token: str | None) -> Guard:
    """Return the application over an open index, which the caller closes.

    `token` is what requests must carry; None: nothing.
    """
    app = FastAPI(title="reembed", docs_url=None, redoc_url=None)
    metrics = Metrics(index)

    _tell_errors(app)

    @app.post("/search")
    def search(asked: Search) -> Response:
        started = time.perf_counter()
        current = index.current
        hits = current.search(
            _queries(asked, current, options), asked.k, asked.columns, asked.filter
        )
        metrics.seconds.observe(time.perf_counter() - started)
        metrics.queries.inc(len(hits))
        metrics.empty.inc(sum(not found for found in hits))
        release = current.release
        return _json(
            {
                "release": release.id,
                "model": release.model,
                "space": release.query_model.id,
                "results": [{"hits": [shown(hit) for hit in found]} for found in hits],
            }
        )

    @app.get("/release")
    def release() -> Response:
        error = index.refresh_error
        return _json(
            asdict(index.release.summary()) | {"refresh_error": error and redacted(str(error))}
        )

    @app.get("/health")
    async def health() -> Response:
        return _json({"status": "ok"})

    @app.get("/ready")
    async def ready() -> Response:
        return _json({"ready": True, "release": index.release.id})

    @app.get("/metrics")
    def metrics_text() -> Response:
        return Response(metrics.text(), media_type=_PLAIN)

    paths = {getattr(route, "path", "") for route in app.routes}

    def counted(path: str, status: int) -> None:
        known = path if path in paths else "other"  # others may be anything
        metrics.requests.labels(known, status).inc()

    return Guard(app, token, options.max_request_bytes, counted)


def _tell_errors(app: FastAPI) -> None:
    """Answer what went wrong as JSON with what, why and fix."""

    @app.exception_handler(ReembedError)
    async def refused(_: Request, error: ReembedError) -> Response:
        status = next((code for kind, code in _STATUS if isinstance(error, kind)), 500)
        return _json(_told(type(error).__name__, error.what, error.why, error.fix), status)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> Response:
        return _json(_told("UsageError", *_malformed(error.errors()[0]), None), 422)

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> Response:
        return _json(_told("UsageError", str(error.detail), None, None), error.status_code)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return _json(_told(type(error).__name__, "the request failed", None, None), 500)


def _malformed(first: dict[str, Any]) -> tuple[str, str | None]:
    """Return what is wrong with a body, and perhaps why."""
    if first["type"] == "json_invalid":
        return f"the body is not JSON: {first['ctx']['error']}", None
    if where := ".".join(map(str, first["loc"][1:])):
        return f"{where}: {first['msg']}", None
    return (
        f"the body: {first['msg']}",
        "it is read as JSON if content-type is application/json, and must be an object",
    )


def _queries(asked: Search, current: OpenRelease, options: ServeOptions) -> Any:
    """Return what is searched for.

    Raises:
        UsageError: the request asks for more than the limits, or does not say what to search for.
    """
    if (asked.queries is None) == (asked.vectors is None):
        why = "queries are texts, vectors are of the release's space"
        raise UsageError("give either queries or vectors", why, '{"queries": ["some words"]}')
    found = asked.queries if asked.vectors is None else asked.vectors
    assert found is not None
    _require_at_most("queries", len(found), options.max_queries)
    _require_at_most("k", asked.k, options.max_k)
    if asked.vectors is None:
        return asked.queries
    if asked.space is None:
        why = "vectors of another space would get hits without meaning"
        fix = f'"space": "{current.release.query_model.id}"     # query_space of GET /release'
        raise UsageError("vectors need the id of their space", why, fix)
    if len({len(v) for v in asked.vectors}) > 1:
        raise UsageError(
            "the vectors have several lengths", None, f"{current.release.space.dim} numbers each"
        )
    dim = current.release.space.dim
    vectors = (
        np.asarray(asked.vectors, np.float32) if asked.vectors else np.empty((0, dim), np.float32)
    )
    return EncodedQueries(vectors, asked.space)


def _require_at_most(what: str, given: int, most: int) -> None:
    if given > most:
        raise UsageError(f"{what}: {given:,}, and this server allows {most:,} at most", None, None)


def _told(error: str, what: str, why: str | None, fix: str | None) -> dict[str, Any]:
    return {"error": error, "what": what, "why": why, "fix": fix}


def _json(value: Any, status: int = 200) -> Response:
    """Return JSON; numbers that it does not have were replaced, other values are written as text."""
    body = json.dumps(value, default=str, allow_nan=False)
    return Response(body, status, media_type="application/json")
