"""Errors as ``application/problem+json``; the class of ``model.errors`` travels in ``code``."""

from __future__ import annotations

import json
import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from vapor_desktop.model import errors

_log = logging.getLogger("vapor.api")

STATUS: dict[type[errors.VaporError], int] = {
    errors.TokenInvalid: 401,
    errors.TokenExpired: 401,
    errors.TokenRevoked: 401,
    errors.NotAllowed: 403,
    errors.TooManyAttempts: 429,
    errors.InvalidRequest: 422,
    errors.NotReplicable: 422,
    errors.DiskShrunk: 422,
    errors.NotFound: 404,
    errors.DomainNotFound: 404,
    errors.Conflict: 409,
    errors.LeaseHeld: 409,
    errors.StaleLease: 409,
    errors.EpochMoved: 409,
    errors.ParentMoved: 409,
    errors.EditOutdated: 409,
    errors.PointPinned: 409,
    errors.DomainBusy: 409,
    errors.ManifestInvalid: 409,
    errors.CheckpointInconsistent: 409,
    errors.IllegalTransition: 409,
    errors.ReplicaFull: 507,
    errors.ScratchFull: 507,
    errors.HypervisorUnreachable: 503,
    errors.SiteUnreachable: 502,
}


def problem(error: errors.VaporError, status: int | None = None) -> JSONResponse:
    """The answer for an error of ours."""
    number = status or STATUS.get(type(error), 500)
    wire = json.loads(json.dumps(error.to_wire(), default=str))  # details may hold paths and times
    body: dict[str, Any] = {
        "type": f"urn:vapor:error:{error.code}",
        "title": HTTPStatus(number).phrase,
        "status": number,
        "detail": str(error),
        **wire,
    }
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "60"}}.get(number)
    return JSONResponse(body, number, headers, media_type="application/problem+json")


def install(app: FastAPI) -> None:
    """Every way out of the API that is not success leads through ``problem``."""

    @app.exception_handler(errors.VaporError)
    async def _ours(request: Request, error: errors.VaporError) -> JSONResponse:
        if STATUS.get(type(error), 500) >= 500:
            _log.error("%s %s: %s", request.method, request.url.path, error)
        return problem(error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return problem(errors.InvalidRequest(f"The request does not fit at {where}", why=str(first["msg"])))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 404:
            return problem(errors.NotFound(f"There is no {request.url.path} here"))
        answer = problem(errors.InvalidRequest(str(error.detail)), error.status_code)
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> JSONResponse:
        _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem(errors.Unexpected("The site service failed", why=type(error).__name__))
