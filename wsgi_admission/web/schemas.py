"""What the answers of the queue API consist of, as JSON Schema (draft 2020-12).

Objects of ours list all their fields and allow no others, so that a field which is new must be described here; the
tests hold every answer against it.
"""

from __future__ import annotations

from typing import Any

from wsgi_admission.ticket import State

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
_WHOLE: Schema = {"type": "integer", "minimum": 0}
SECONDS: Schema = {"type": "number", "minimum": 0}
_EACH_MINUTE: Schema = {"type": "array", "items": _WHOLE}
_SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
_TIME: Schema = {"type": "string", "format": "date-time"}
_URL: Schema = {"type": "string", "format": "uri-reference"}
_TRUE_FALSE: Schema = {"type": "boolean"}


def _or_null(schema: Schema) -> Schema:
    return {**schema, "type": [schema["type"], "null"]}


def _object(fields: dict[str, Schema], *, optional: tuple[str, ...] = ()) -> Schema:
    required = [name for name in fields if name not in optional]
    return {"type": "object", "properties": fields, "required": required, "additionalProperties": False}


def _list(**fields: Schema) -> Schema:
    return {"type": "array", "items": _object(fields)}


_STATES: Schema = {"type": "string", "enum": [state.value for state in State]}
_PRIORITY: Schema = {"type": "string", "enum": ["high", "medium", "low"]}
_PLACE = {
    "position_in_queue": _or_null({"type": "integer", "minimum": 1}),
    "estimated_wait_time": _or_null(_WHOLE),
    "estimated_wait_human": _or_null(TEXT),
}
_URLS = dict.fromkeys(("status_url", "result_url", "cancel_url", "events_url"), _URL)
_SUGGESTION = _object(
    {
        "delay_seconds": {"type": "integer", "minimum": 1},
        "delay_human": TEXT,
        "message": TEXT,
        "retry_after": _TIME,
    }
)
_COUNTED = (
    "total_requests",
    "queued_requests",
    "processing_requests",
    "completed_requests",
    "failed_requests",
    "cancelled_requests",
    "passed_requests",
    "shadowed_requests",
)


def _check(*states: str, **fields: Schema) -> Schema:
    return _object({"status": {"type": "string", "enum": list(states)}, **fields}, optional=tuple(fields))


SCHEMAS: dict[str, Schema] = {
    "Accepted": _object(
        {
            "queued": {"type": "boolean", "const": True},
            "request_id": TEXT,
            "status": _STATES,
            "message": TEXT,
            "queue_info": _object({**_PLACE, "priority": _PRIORITY, "created_at": _TIME}),
            "server_load": _SHARE,
            **_URLS,
            "retry_suggestion": _SUGGESTION,
        }
    ),
    "Status": _object(
        {
            "request_id": TEXT,
            "status": _STATES,
            "created_at": _TIME,
            "started_at": _or_null(_TIME),
            "completed_at": _or_null(_TIME),
            "priority": _PRIORITY,
            **_PLACE,
            "estimated_wait_p90": _or_null(_WHOLE),
            "progress": _or_null(_SHARE),
            "progress_note": TEXT,
            "attempt": _WHOLE,
            "cancelling": _TRUE_FALSE,
            "message": TEXT,
            **_URLS,
            "error_message": TEXT,
            "retry_url": _URL,
            "retry_suggestion": _SUGGESTION,
        },
        optional=("error_message", "retry_url", "retry_suggestion"),
    ),
    "Metrics": _object(
        {
            **dict.fromkeys(_COUNTED, _WHOLE),
            "average_wait_time": SECONDS,
            "average_processing_time": SECONDS,
            "queue_throughput": SECONDS,
            "server_load": _SHARE,
            "queue_lengths": _object({f"{name}_priority": _WHOLE for name in ("high", "medium", "low")}),
            "max_concurrent_requests": _WHOLE,
        }
    ),
    "Health": _object(
        {
            "status": {"type": "string", "enum": ["healthy", "warning", "degraded"]},
            "server_load": _SHARE,
            "queue_length": _WHOLE,
            "processing_requests": _WHOLE,
            "timestamp": _TIME,
            "checks": _object(
                {
                    "load": _check(
                        "ok",
                        "partial",
                        readings={"type": "object", "additionalProperties": _SHARE},
                        failed={"type": "object", "additionalProperties": TEXT},
                    ),
                    "slots": _check("ok", in_use=_WHOLE, limit=_WHOLE),
                    # What else it tells depends on the kind of the store.
                    "store": {
                        "type": "object",
                        "properties": {"status": {"type": "string", "enum": ["ok", "failing"]}},
                        "required": ["status"],
                        "additionalProperties": TEXT,
                    },
                    "workers": _check("ok", "none", processes=_WHOLE, threads=_WHOLE),
                    "paused": _check("ok", "paused"),
                },
                optional=("workers", "paused"),
            ),
        }
    ),
    "Board": _object(
        {
            "name": TEXT,
            "timestamp": _TIME,
            "paused": _TRUE_FALSE,
            "mode": TEXT,
            **dict.fromkeys((state.value for state in State), _WHOLE),
            "server_load": _or_null(_SHARE),
            "throughput": SECONDS,
            "slots": _object({"in_use": _WHOLE, "limit": _WHOLE}),
            "tiers": _list(name=TEXT, priority=_PRIORITY),
            "sensors": _list(name=TEXT, reading=_or_null(_SHARE), threshold=_SHARE, failing=_TRUE_FALSE),
            "line": _list(
                tier=TEXT,
                route=TEXT,
                queued=_WHOLE,
                processing=_WHOLE,
                estimated_wait_time=_or_null(_WHOLE),
                estimated_wait_p90=_or_null(_WHOLE),
            ),
            "running": _list(
                request_id=TEXT,
                tier=TEXT,
                route=TEXT,
                client=TEXT,
                attempt=_WHOLE,
                age=SECONDS,
                progress=_or_null(_SHARE),
                progress_note=TEXT,
                cancelling=_TRUE_FALSE,
            ),
            "workers": _list(host=TEXT, pid=_WHOLE, threads=_WHOLE, report_age=_or_null(SECONDS)),
            "run_times": _list(route=TEXT, p50=SECONDS, p90=SECONDS),
            "failures": _list(request_id=TEXT, route=TEXT, age=_WHOLE, error=TEXT),
            "history": _object(
                {
                    "first_minute": _WHOLE,
                    "line": _list(tier=TEXT, route=TEXT, numbers=_EACH_MINUTE),
                    "arrivals": _EACH_MINUTE,
                    "completions": _EACH_MINUTE,
                    "failures": _EACH_MINUTE,
                    "cancellations": _EACH_MINUTE,
                }
            ),
        }
    ),
    "Line": _object({"name": TEXT, "paused": _TRUE_FALSE, "queued": _WHOLE, "processing": _WHOLE}),
    "Problem": _object({"type": _URL, "title": TEXT, "status": _WHOLE, "detail": TEXT}),
}
