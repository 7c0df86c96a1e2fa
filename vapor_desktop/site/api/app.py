"""The application: routers, errors, limits."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI

import vapor_desktop
from vapor_desktop.site.api import (
    drills,
    enrolments,
    guard,
    guardian,
    leases,
    plans,
    problems,
    replicas,
    site,
    tokens,
)
from vapor_desktop.site.api.limits import BodyLimit, FailedTokens
from vapor_desktop.site.services import Services

PREFIX = "/api/v1"


def create_app(services: Services) -> FastAPI:
    """The API over these services; their threads are the caller's."""
    app = FastAPI(
        title="vapor-site",
        version=vapor_desktop.__version__,
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=f"{PREFIX}/docs",
        redoc_url=None,
    )
    app.state.services = services
    app.state.failed_tokens = FailedTokens()
    problems.install(app)
    app.add_middleware(BodyLimit)
    api = APIRouter(prefix=PREFIX)
    for module in (site, tokens, enrolments, leases, replicas, guardian, guard, plans, drills):
        api.include_router(module.router)
    app.include_router(api)
    return app
