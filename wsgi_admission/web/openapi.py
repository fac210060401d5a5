"""The description of the queue API in OpenAPI 3.1: what programs can generate clients from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from wsgi_admission.web.access import COOKIE
from wsgi_admission.web.schemas import SCHEMAS, SECONDS, TEXT, Schema


def _ref(kind: str, name: str) -> Schema:
    return {"$ref": f"#/components/{kind}/{name}"}


def _answer(text: str, schema: str, *kinds: str, **headers: str) -> Schema:
    content: dict[str, Any] = {"application/json": {"schema": _ref("schemas", schema)}}
    content.update({kind: {"schema": TEXT} for kind in kinds})
    found: Schema = {"description": text, "content": content}
    if headers:
        found["headers"] = {
            name.replace("_", "-"): {"description": why, "schema": TEXT} for name, why in headers.items()
        }
    return found


def _problem(text: str) -> Schema:
    content = {"application/problem+json": {"schema": _ref("schemas", "Problem")}, "text/html": {"schema": TEXT}}
    return {"description": text, "content": content}


_LATER = "Whole seconds after which to ask again."
_PENDING = _answer(
    "It waits or runs; for a browser the waiting room.",
    "Status",
    "text/html",
    Location="The address of the result.",
    Retry_After=_LATER,
    Admission_Status="Its state.",
)
_FAILED = {
    "404": _problem("There is no such ticket, or it is another account's."),
    "410": _problem("Its retention is over; for a result also: it was cancelled."),
    "503": _problem("The store cannot be read just now; Retry-After says when to come back."),
}
_LEADS = {"description": "Another address has it.", "content": {"text/plain": {"schema": TEXT}}}
_PAGE = {"description": "A page.", "content": {"text/html": {"schema": TEXT}}}
_NO_WAIT = {"400": _problem("The wait is no whole number of seconds.")}
_SEE = {"description": "The same state as the ETag names."}


_ANYBODY: Schema = {}
_OPERATOR: list[Schema] = [{"token": []}, {"cookie": []}]
#: A form of the dashboard says whose it is; a program that sends the admin token leaves that out.
_FORM_TOKEN: Schema = {**TEXT, "description": "With the cookie: what stands in the page's form."}


def _call(name: str, text: str, answers: dict[str, Schema], **more: Any) -> Schema:
    return {"operationId": name, "summary": text, "responses": answers, **more}


def _form(*required: str, **fields: Schema) -> Schema:
    schema: Schema = {"type": "object", "properties": fields}
    if required:
        schema["required"] = list(required)
    content = {"application/x-www-form-urlencoded": {"schema": schema}}
    return {"content": content, "required": bool(required)}


def _paths() -> dict[str, Any]:
    """Return the calls by address below the prefix."""
    ticket = [{"name": "id", "in": "path", "required": True, "schema": TEXT, "description": "The ticket's id."}]
    wait = {"name": "wait", "in": "query", "schema": SECONDS, "description": "Seconds to be held until it changes."}
    kind = {"name": "format", "in": "query", "schema": {"type": "string", "enum": ["json", "prometheus"]}}
    status = _answer("How it stands.", "Status", "text/html", Retry_After=_LATER, ETag="Names what is told.")
    cancelled = {"200": _answer("How it stands now.", "Status"), "409": _problem("It is final."), **_FAILED}
    accepted = _answer(
        "It is in the line again, as a new ticket.", "Accepted", Location="The result.", Retry_After=_LATER
    )
    redirect = {"name": "redirect", "in": "query", "schema": {"type": "string", "enum": ["manual"]}}
    result = {
        "202": _PENDING,
        "204": {"description": "For redirect=manual: the app's 307 or 308 leads to Location, on this host."},
        "303": _LEADS,
        "default": {"description": "The app's own answer, as it was recorded.", "content": {"*/*": {}}},
        **_NO_WAIT,
        **_FAILED,
    }
    stream = {"description": "Events named status.", "content": {"text/event-stream": {"schema": TEXT}}}
    health = _answer("What this host can do.", "Health")
    figures = _answer("The figures.", "Metrics", "text/plain", "application/openmetrics-text")
    description = {"description": "OpenAPI 3.1.", "content": {"application/json": {"schema": {"type": "object"}}}}
    script = {"description": "A script for pages.", "content": {"text/javascript": {"schema": TEXT}}}
    kinds = ("text/javascript", "text/css", "image/svg+xml")
    file = {"description": "What our pages load.", "content": {name: {"schema": TEXT} for name in kinds}}
    name = [{"name": "name", "in": "path", "required": True, "schema": TEXT, "description": "The file's name."}]
    return {
        "/status/{id}": {
            "parameters": ticket,
            "get": _call(
                "status", "Where a ticket stands", {"200": status, "303": _LEADS, "304": _SEE, **_NO_WAIT, **_FAILED},
                parameters=[wait],
            ),
            "delete": _call("cancel", "Cancel a ticket, or ask for that", cancelled),
        },
        "/status/{id}/cancel": {
            "parameters": ticket,
            "post": _call(
                "cancelForm", "What delete does, for a form", {"303": _LEADS, "403": _problem("Foreign."), **_FAILED}
            ),
        },
        "/status/{id}/retry": {
            "parameters": ticket,
            "post": _call(
                "retry", "Run a failed request again",
                {
                    "202": accepted, "303": _LEADS, "403": _problem("It is a form of another site."),
                    "409": _problem("It is not kept."), **_FAILED,
                    "default": {"description": "The answer, if it was asked for before.", "content": {"*/*": {}}},
                },
            ),
        },
        "/result/{id}": {
            "parameters": ticket,
            "get": _call("result", "The app's answer", result, parameters=[wait, redirect]),
        },
        "/result/{id}/{address}": {
            "parameters": [
                *ticket,
                {
                    "name": "address", "in": "path", "required": True, "schema": TEXT,
                    "description": "A path of the site, as it is, slashes included.",
                },
            ],
            **{method: _call(f"{method}BelowResult", text, below) for method, text, below in _below_result()},
        },
        "/events/{id}": {
            "parameters": ticket,
            "get": _call(
                "events", "Its changes, for an EventSource",
                {"200": stream, "204": {"description": "Nothing more will come."}, **_FAILED},
            ),
        },
        "/metrics": {
            "get": _call(
                "metrics", "The figures of the line",
                {
                    "200": figures, "401": _problem("It needs the admin token."),
                    "406": _problem("That format needs a package."), "503": _FAILED["503"],
                },
                parameters=[kind], security=[_ANYBODY, *_OPERATOR],
            )
        },
        "/health": {"get": _call("health", "How this host is", {"200": health, "503": _unavailable(health)})},
        "/openapi.json": {"get": _call("openapi", "This description", {"200": description})},
        "/client.js": {"get": _call("script", "For pages", {"200": script, "304": _SEE, "404": _problem("None.")})},
        "/static/{name}": {
            "parameters": name,
            "get": _call("file", "For our pages", {"200": file, "304": _SEE, "404": _problem("There is none.")}),
        },
        **_dashboard(),
    }  # fmt: skip


def _below_result() -> Iterable[tuple[str, str, dict[str, Schema]]]:
    """Yield methods, what they are for, and the answers."""
    own = {"description": "The app's own answer, at the address that was asked.", "content": {"*/*": {}}}
    below = {"307": _LEADS, **_FAILED}
    yield "get", "The app's page, where its links work; or what it links to", {**below, "default": own}
    for method in ("post", "put", "patch", "delete"):
        yield method, "What a form of the app's page is sent to", below


def _dashboard() -> dict[str, Any]:
    """Return the calls of operators."""
    secret = {"401": _problem("It needs the admin token."), "404": _problem("There is no such ticket, or it is off.")}
    acts = {
        "200": _answer("How the line stands then.", "Line"),
        "303": _LEADS,
        "403": _problem("The form is another site's."),
        "409": _problem("The ticket is final."),
        **secret,
    }
    off = {"404": _problem("It is off.")}
    return {
        "/dashboard": {
            "get": _call(
                "dashboard", "The page of operators; for others the form to sign in", {"200": _PAGE, **off},
                security=[_ANYBODY, {"cookie": []}],
            ),
            "post": _call(
                "signIn", "Give the admin token for a cookie", {"303": _LEADS, "403": _PAGE, **off},
                requestBody=_form("token", token=TEXT),
            ),
        },
        "/dashboard/data": {
            "get": _call(
                "board", "What the page shows", {"200": _answer("All of it.", "Board"), **secret}, security=_OPERATOR
            )
        },
        **{
            f"/dashboard/{action}": {"post": _call(name, text, acts, requestBody=form, security=_OPERATOR)}
            for action, name, text, form in (
                ("pause", "pause", "Start nothing from the line", _form(form_token=_FORM_TOKEN)),
                ("resume", "resume", "Let the line go on", _form(form_token=_FORM_TOKEN)),
                ("cancel", "cancelAny", "Cancel a ticket", _form("id", id=TEXT, form_token=_FORM_TOKEN)),
            )
        },
        "/dashboard/sign-out": {
            "post": _call(
                "signOut", "Give the cookie back", {"303": _LEADS, **off},
                requestBody=_form(form_token=_FORM_TOKEN), security=[_ANYBODY, {"cookie": []}],
            )
        },
    }  # fmt: skip


def _unavailable(health: Schema) -> Schema:
    content = {**health["content"], **_FAILED["503"]["content"]}
    return {"description": "New work can be neither run nor kept.", "content": content}


def description(server: str) -> dict[str, Any]:
    """Return the description of the API at the address ``server``."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "The queue API of wsgi_admission", "version": "1"},
        "servers": [{"url": server}],
        "security": [{}],
        "paths": _paths(),
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "cookie": {"type": "apiKey", "in": "cookie", "name": COOKIE},
            },
        },
    }
