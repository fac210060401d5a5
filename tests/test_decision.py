from __future__ import annotations

from dataclasses import dataclass

import pytest

from wsgi_admission.policy.decision import Decision, Line, Mode, Verdict, decide


@dataclass(frozen=True)
class Reading:
    above: str = ""


@pytest.mark.parametrize(
    ("mode", "above", "waiting", "verdict", "reason"),
    [
        (Mode.AUTO, "", 0, Verdict.RUN, "idle"),
        (Mode.AUTO, "cpu", 0, Verdict.QUEUE, "cpu"),
        (Mode.AUTO, "memory", 0, Verdict.QUEUE, "memory"),
        (Mode.AUTO, "slots", 0, Verdict.QUEUE, "slots"),
        (Mode.AUTO, "", 1, Verdict.QUEUE, "line"),
        (Mode.AUTO, "cpu", 1, Verdict.QUEUE, "line"),
        (Mode.SHADOW, "", 0, Verdict.RUN, "idle"),
        (Mode.SHADOW, "cpu", 0, Verdict.QUEUE, "cpu"),
        (Mode.SHADOW, "", 1, Verdict.QUEUE, "line"),
        (Mode.QUEUE_ALL, "", 0, Verdict.QUEUE, "mode"),
        (Mode.QUEUE_ALL, "cpu", 7, Verdict.QUEUE, "mode"),
        (Mode.PASS_THROUGH, "", 0, Verdict.PASS, "mode"),
        (Mode.PASS_THROUGH, "cpu", 7, Verdict.PASS, "mode"),
    ],
)
def test_the_verdict_and_its_reason(mode: Mode, above: str, waiting: int, verdict: Verdict, reason: str) -> None:
    """Catches: a newcomer that overtakes at low load, a mode that looks at the load, the wrong reason."""
    assert decide(mode, Reading(above), Line(waiting)) == Decision(verdict, reason)


@pytest.mark.parametrize(
    ("mode", "decision"),
    [
        (Mode.AUTO, Decision(Verdict.QUEUE, "paused")),
        (Mode.SHADOW, Decision(Verdict.QUEUE, "paused")),
        (Mode.QUEUE_ALL, Decision(Verdict.QUEUE, "mode")),
        (Mode.PASS_THROUGH, Decision(Verdict.PASS, "mode")),
    ],
)
def test_a_paused_line_lets_nobody_past(mode: Mode, decision: Decision) -> None:
    """Catches: a newcomer that runs at once because nothing waits and nothing is loaded."""
    assert decide(mode, Reading(""), Line(0, paused=True)) == decision


@pytest.mark.parametrize("word", ["auto", "queue_all", "pass_through", "shadow"])
def test_every_mode_of_the_configuration_exists(word: str) -> None:
    """Catches: a mode that the configuration offers and the decision does not know."""
    assert Mode(word).value == word
