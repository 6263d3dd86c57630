"""The OpenAPI document: FastAPI's own, corrected to what the server does."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

_KEY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
_OPEN_PATHS = ("/", "/health", "/page/{name}")


def document(app: FastAPI, *, has_key: bool) -> None:
    """Make `app.openapi()` say what is true of every route."""
    original = app.openapi

    def corrected() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _corrected(original(), has_key=has_key)
        return app.openapi_schema

    app.openapi = corrected  # type: ignore[method-assign]


def _corrected(document: dict[str, Any], *, has_key: bool) -> dict[str, Any]:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            # A body that does not fit is a 400 in the API's own shape, not FastAPI's 422.
            operation["responses"].pop("422", None)
            if has_key and path not in _OPEN_PATHS:
                operation["security"] = [{name: []} for name in _KEY_SCHEMES]
    components = document.setdefault("components", {})
    schemas = components.get("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    if has_key:
        components["securitySchemes"] = _KEY_SCHEMES
    return document
