"""The sentences that people read."""

from __future__ import annotations

import pytest

from wsgi_admission.ticket import State
from wsgi_admission.web import messages


@pytest.mark.parametrize(
    ("state", "position", "wait", "hint", "error", "expected"),
    [
        (State.QUEUED, 1, 40.0, "", "", "🎯 You're next in line! Processing will begin shortly."),
        (State.QUEUED, 3, 120.0, "", "", "📋 You're #3 in queue. Estimated wait: 2 minutes"),
        (
            State.QUEUED, 3, 120.0, "Sign in to move up the line.", "",
            "📋 You're #3 in queue. Estimated wait: 2 minutes. Sign in to move up the line.",
        ),
        (State.QUEUED, None, None, "", "", "📋 Your request is in the queue."),
        (State.PROCESSING, None, None, "", "", "🔄 Your request is being processed..."),
        (State.COMPLETED, None, None, "", "", "✅ Your request has been completed successfully!"),
        (State.FAILED, None, None, "", "It broke.", "❌ Your request failed. It broke."),
        (State.FAILED, None, None, "", "", "❌ Your request failed. Please try again later."),
        (State.CANCELLED, None, None, "", "", "🚫 Your request has been cancelled."),
        (State.CANCELLED, None, None, "", "It is late.", "🚫 Your request has been cancelled. It is late."),
    ],
)  # fmt: skip
def test_each_state_has_its_sentence(
    state: State, position: int | None, wait: float | None, hint: str, error: str, expected: str
) -> None:
    """Catches: a sentence that differs from the contract's."""
    assert messages.status(state, position=position, wait=wait, hint=hint, error=error) == expected


def test_a_cancellation_is_told_while_it_still_runs() -> None:
    """Catches: a client told that it is processed, as if there would be an answer."""
    told = messages.status(State.PROCESSING, position=None, wait=None, cancelling=True)
    assert told == "🚫 Your request is being cancelled; its answer will be dropped."


def test_a_pause_is_told_with_the_place() -> None:
    """Catches: a client told that it starts shortly, or that others are served, while nothing moves."""
    told = messages.status(State.QUEUED, position=1, wait=None, paused=True, hint="Sign in.")
    assert told == "⏸️ You're #1 in queue. It is paused just now, and you keep your place. Sign in."
    assert messages.status(State.PROCESSING, position=None, wait=None, paused=True).startswith("🔄")
    assert messages.retry(7, 0.95, paused=True).startswith("The queue is paused just now. To try again")


def test_why_a_request_was_cancelled_that_waited_too_long() -> None:
    """Catches: seconds shown to people."""
    assert messages.expired(600.0) == "It could not be started within 10 minutes. Please try again later."


def test_advice_on_a_retry_tells_the_load() -> None:
    """Catches: advice that says the same at every load."""
    assert messages.retry(7, 0.85) == (
        "The server is busy (85% load). To try again instead of waiting, wait 7 seconds first."
    )
    assert messages.retry(7, 0.1) == "Others are served first. To try again instead of waiting, wait 7 seconds first."
    assert "very busy (95% load)" in messages.retry(7, 0.95)
    assert messages.retry_failed(7, 0.1) == "You can send the request again in 7 seconds."
