"""Processes that are begun quickly: forked from one that has imported what they need, and does nothing else."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

#: Seconds after which a child counts as hanging.
PATIENCE = 60.0


def run(step: Callable[..., Any], *arguments: Any) -> int:
    """Run a function of a module in a process of its own; return its exit code, negative for a signal."""
    children = multiprocessing.get_context("forkserver")
    children.set_forkserver_preload(["tests.reliability.flipping", "tests.reliability.steps"])
    child = children.Process(target=step, args=arguments)
    child.start()
    child.join(PATIENCE)
    if child.exitcode is None:
        child.kill()
        child.join()
    code = child.exitcode
    assert code is not None
    child.close()
    return code
