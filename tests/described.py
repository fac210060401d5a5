"""Holds every answer of the queue API that a test gets against the API's own description."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from wsgi_admission.web.openapi import description

PREFIX = "/api/queue"
#: Problems that every address may answer with.
ANYWHERE = {404, 405, 500, 503}


def check(path: str, method: str, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
    """Fail unless the answer is as described; answers that are not the API's are let through.

    :param path: with or without a query, and with whatever stands before the prefix.
    """
    found = {name.lower(): value for name, value in headers}
    kind = found.get("content-type", "").partition(";")[0]
    where = f"{method} {path}: {status}"
    _, prefix, rest = path.partition("?")[0].partition(PREFIX)
    if prefix and rest.startswith("/") and method != "OPTIONS":
        _check_call(where, rest, method, status, found, body)
    elif status == 202 and "admission-status" in found and kind == "application/json":
        _hold(where, "Accepted", body)
    elif kind == "application/problem+json":
        _hold(where, "Problem", body)


def _check_call(where: str, rest: str, method: str, status: int, headers: dict[str, str], body: bytes) -> None:
    kind = headers.get("content-type", "").partition(";")[0]
    described = _call(rest, "get" if method == "HEAD" else method.lower()).get("responses", {})
    answer = described.get(str(status))
    if answer is None and status in ANYWHERE:
        problem = {"$ref": "#/components/schemas/Problem"}
        answer = {"content": {"application/problem+json": {"schema": problem}, "text/html": {"schema": {}}}}
    recorded = "default" in described and "admission-status" not in headers and kind != "application/problem+json"
    if recorded:
        return
    assert answer is not None, f"{where} is not described"
    content = answer.get("content", {})
    if not content or method == "HEAD":
        assert not body, f"{where}: a body where none is described"
        return
    assert kind in content, f"{where}: {kind} is not among {set(content)}"
    if "$ref" in content[kind]["schema"]:
        _hold(where, content[kind]["schema"]["$ref"].rpartition("/")[2], body)


def _hold(where: str, schema: str, body: bytes) -> None:
    if not body:
        return  # to a HEAD
    errors = [f"{error.json_path}: {error.message}" for error in _validator(schema).iter_errors(json.loads(body))]
    assert not errors, f"{where} is no {schema}: {errors}"


@cache
def _described() -> dict[str, Any]:
    return description(PREFIX)


@cache
def _validator(schema: str) -> Draft202012Validator:
    schemas: dict[str, Any] = _described()["components"]["schemas"]
    return Draft202012Validator(schemas[schema], format_checker=Draft202012Validator.FORMAT_CHECKER)


def _call(rest: str, method: str) -> dict[str, Any]:
    """Return what is described of a call; an empty dict if there is none."""
    for template, calls in _described()["paths"].items():
        pattern = re.escape(template).replace(re.escape("{address}"), ".*")
        if re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]*", pattern), rest, re.DOTALL):
            found: dict[str, Any] = calls.get(method, {})
            return found
    return {}
