"""The figures for Prometheus, and the dashboard and the alerts that are made of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import pytest
import yaml
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from tests.support import ROOT
from tests.test_api import Desk
from tests.wsgi import Result, call
from wsgi_admission.errors import StoreUnavailable
from wsgi_admission.load import Load
from wsgi_admission.web import prometheus

#: What Prometheus 3 sends.
ACCEPT = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"


def busy_desk() -> Desk:
    """Return a desk with something of everything."""
    desk = Desk()
    first, _, _ = desk.put("ann"), desk.put(tier="donor"), desk.put(tier="anonymous")
    desk.now += 10
    claimed = desk.claim()
    desk.now += 4
    desk.answer(claimed)
    desk.store.cancel(first.id, now=desk.now)
    return desk


def scrape(desk: Desk, **keys: Any) -> Result:
    """Ask as Prometheus does."""
    return call(desk.api, "/api/queue/metrics", HTTP_ACCEPT=ACCEPT, **keys)


def parsed(text: str) -> list[Any]:
    """Read OpenMetrics."""
    return list(openmetrics.text_string_to_metric_families(text))  # type: ignore[no-untyped-call]  # has no types


def samples(families: Iterable[Any]) -> dict[tuple[str, tuple[str, ...]], float]:
    """Return (name, label values by name) -> value."""
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_both_formats_pass_the_official_parsers_and_say_the_same() -> None:
    """Catches: a counter without _total, a name twice, a type that does not fit, a figure in one format only."""
    desk = busy_desk()
    plain = call(desk.api, "/api/queue/metrics?format=prometheus")
    assert plain.header("Content-Type") == "text/plain; version=0.0.4; charset=utf-8"
    new = scrape(desk)
    assert (new.header("Content-Type") or "").startswith("application/openmetrics-text; version=1.0.0")
    found = samples(text_string_to_metric_families(plain.body.decode()))
    assert found == samples(parsed(new.body.decode()))
    route = ("main", "image")
    assert found["wsgi_admission_queued_requests", (*route, "anonymous")] == 1
    assert found["wsgi_admission_queued_requests", (*route, "donor")] == 0
    assert found["wsgi_admission_completed_requests_total", (*route, "donor")] == 1
    assert found["wsgi_admission_wait_seconds_total", (*route, "donor")] == 10
    assert found["wsgi_admission_run_seconds_total", (*route, "donor")] == 4
    assert found["wsgi_admission_cancelled_requests_total", (*route, "registered")] == 1
    assert found["wsgi_admission_host_load_ratio", ("main", "cpu")] == 0.85
    assert found["wsgi_admission_store_up", ("main",)] == 1
    assert {name for name, _ in found if name.endswith("_total")} == {
        f"wsgi_admission_{name}_total" for name, _ in prometheus._COUNTERS.values()
    }


def test_no_id_and_no_client_is_a_label() -> None:
    """Catches: a time series for each visitor, and an address or an id where anybody may read it."""
    desk = busy_desk()
    ticket = desk.put("bob", tier="anonymous")
    families = list(
        text_string_to_metric_families(call(desk.api, "/api/queue/metrics?format=prometheus").body.decode())
    )
    labels = {label for family in families for sample in family.samples for label in sample.labels}
    assert labels == {"tier", "route", "sensor", "kind", "version", "line"}
    text = scrape(desk).body.decode()
    assert not any(secret in text for secret in (ticket.id, "bob", "ann", "addr:1"))


@pytest.mark.parametrize(
    ("query", "accept", "text"),
    [
        ("", "", False),
        ("", "*/*", False),
        ("", "text/html,application/xhtml+xml,*/*;q=0.8", False),
        ("", "application/json, text/plain, */*", False),
        ("", "text/plain", True),
        ("", ACCEPT, True),
        ("", "text/plain;version=abc", True),
        ("?format=prometheus", "application/openmetrics-text;version=x.y", True),
        ("?format=json", ACCEPT, False),
        ("?format=prometheus", "application/json", True),
    ],
)
def test_who_gets_which_format(query: str, accept: str, text: bool) -> None:  # noqa: FBT001 - a column of the table
    """Catches: a program that took JSON until now (axios sends the fourth), and gets text."""
    content_type = call(Desk().api, f"/api/queue/metrics{query}", HTTP_ACCEPT=accept).header("Content-Type")
    assert (content_type != "application/json") is text


def test_without_the_package_the_answer_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a 500, or JSON that Prometheus calls a syntax error."""
    monkeypatch.setattr(prometheus, "find_spec", lambda _name: None)
    result = scrape(Desk())
    assert result.status.startswith("406 ")
    assert result.json()["detail"].endswith("pip install 'wsgi_admission[prometheus]'.")


def test_a_store_that_fails_leaves_the_figures_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a scrape that fails with the store, so that nothing can be told of it; half of the line's figures."""
    desk = Desk()
    desk.load = Load(value=0.5, above="", readings={"slots": 0.5}, failed={"cpu": "broken"}, memory_above=False)

    def fail() -> None:
        raise StoreUnavailable("no")

    monkeypatch.setattr(desk.store, "health", fail)
    result = scrape(desk)
    found = samples(parsed(result.body.decode()))
    assert result.status == "200 OK"
    assert found["wsgi_admission_store_up", ("main",)] == 0
    assert found["wsgi_admission_host_sensor_failed", ("main", "cpu")] == 1
    assert not any("queued" in name for name, _ in found)


def test_the_token_is_asked_for_here_too() -> None:
    """Catches: another format as a way around the token."""
    desk = Desk(metrics="token", admin_token="a-token-of-some-length")  # noqa: S106 - of this test
    assert scrape(desk).status == "401 Unauthorized"
    assert scrape(desk, HTTP_AUTHORIZATION="Bearer a-token-of-some-length").status == "200 OK"


# ---------------------------------------------------------------- what is made of them


def expressions(node: Any) -> list[str]:
    """Return every ``expr`` below a node of JSON or YAML."""
    if isinstance(node, list):
        return [text for item in node for text in expressions(item)]
    if isinstance(node, dict):
        own = [node["expr"]] if isinstance(node.get("expr"), str) else []
        return own + [text for item in node.values() for text in expressions(item)]
    return []


def board() -> dict[str, Any]:
    """Return the dashboard."""
    data: dict[str, Any] = json.loads((ROOT / "conf" / "grafana-dashboard.json").read_text())
    return data


def alerts() -> list[dict[str, Any]]:
    """Return the rules."""
    groups = yaml.safe_load((ROOT / "conf" / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


FUNCTIONS = {"sum", "max", "min", "rate", "increase", "by", "and", "or"}
LABELS = {"line", "tier", "route", "sensor", "job", "instance"}
TOKEN = re.compile(
    r"""\s+|(?P<name>[a-zA-Z_:][\w:]*)|(?P<matchers>\{\w+=~?"[^"]*"\})|(?P<range>\[(?:\d+[smhd]|\$__rate_interval)\])"""
    r"""|(?P<number>\d+(?:\.\d+)?)|(?P<sign>==|[()/,<>])"""
)


def objections(expression: str, names: set[str]) -> list[str]:
    """Return what is wrong with a PromQL expression of the kind that we write: no parser of it is at hand."""
    wrong, place, depth, last, ranged = [], 0, 0, "", False
    while place < len(expression):
        found = TOKEN.match(expression, place)
        if found is None:
            return [f"unreadable from {expression[place : place + 20]!r}"]
        place = found.end()
        word = found["name"]
        if word and word.startswith("wsgi_admission_"):
            if word not in names:
                wrong.append(f"{word} is in no scrape")
            if word.endswith("_total") != ranged:
                wrong.append(f"{word}: rates are of counters, and of nothing else")
        elif word and word not in FUNCTIONS | LABELS:
            wrong.append(f"unknown {word}")
        ranged = word in {"rate", "increase"} or (ranged and found[0] == "(")
        if found["range"] and not re.search(r"[\w}]$", last):
            wrong.append("a range of nothing")
        depth += (found[0] == "(") - (found[0] == ")")
        if depth < 0:
            wrong.append("a bracket too many")
        last = found[0] if found[0].strip() else last
    return wrong + ["a bracket is open"] * depth


def names() -> set[str]:
    """Return the names in a scrape."""
    return {name for name, _ in samples(parsed(scrape(busy_desk()).body.decode()))}


def test_every_expression_can_be_read_and_names_what_is_scraped() -> None:
    """Catches: a panel that stays empty and an alert that never fires after a name was changed."""
    known = names()
    texts = expressions(board()) + expressions(alerts())
    assert len(texts) > 25
    assert {text: wrong for text in texts if (wrong := objections(text, known))} == {}
    shown = {name for text in expressions(board()) for name in re.findall(r"wsgi_admission_\w+", text)}
    assert known - shown <= {"wsgi_admission_store_info", "wsgi_admission_shadowed_requests_total"}


@pytest.mark.parametrize(
    "expression",
    [
        "wsgi_admission_queued",
        "sum(wsgi_admission_slots",
        "sum(wsgi_admission_slots))",
        "rate(wsgi_admission_slots[5m])",
        "sum(wsgi_admission_failed_requests_total)",
        "avrg(wsgi_admission_slots)",
        "sum([5m])",
        'wsgi_admission_slots{job="x',
    ],
)
def test_the_check_of_expressions_finds_faults(expression: str) -> None:
    """Catches: the check itself being blind."""
    assert objections(expression, names())


def test_lines_of_several_apps_are_told_apart() -> None:
    """Catches: the figures of one app taken for those of another that the same job scrapes."""
    families = parsed(scrape(busy_desk()).body.decode())
    assert {sample.labels.get("line") for family in families for sample in family.samples} == {"main"}
    for text in expressions(board()) + expressions(alerts()):
        merged = re.findall(r"\b(?:max|min)\b(?: by \(([^)]*)\))?", text)
        assert all({"job", "line"} <= set(labels.split(", ")) for labels in merged), text
    for rule in alerts():
        assert all({"job", "line"} <= set(by.split(", ")) for by in re.findall(r"by \(([^)]*)\)", rule["expr"]))


def test_the_dashboard_is_one_that_grafana_loads() -> None:
    """Catches: panels that lie upon each other, ids twice, a variable that is not defined."""
    data = board()
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= set(data)
    assert "id" not in data  # Grafana gives it
    panels = data["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [(x, y) for p in panels for g in [p["gridPos"]] for x in range(g["x"], g["x"] + g["w"]) for y in [g["y"]]]
    assert len(set(taken)) == len(taken)
    defined = {variable["name"] for variable in data["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(data)))
    assert used == defined


def test_the_alerts_are_rules_that_prometheus_takes() -> None:
    """Catches: an alert without a name or severity, a template that names a label which the expression drops."""
    rules = alerts()
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
        assert set(rule["annotations"]) == {"summary", "description"}
        wanted = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
        kept = {label for by in re.findall(r"by \(([^)]*)\)", rule["expr"])[:1] for label in by.split(", ")}
        assert not kept or wanted <= kept, rule["alert"]
