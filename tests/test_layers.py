from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "wsgi_admission"
ROOT = Path(__file__).parent.parent / PACKAGE

# The table of the design: a module imports only from rows above its own.  ``x.*`` is the package x and all in it;
# ``__init__`` is the package itself.
ROWS: tuple[tuple[str, ...], ...] = (
    ("errors", "languages.*"),
    ("options.*", "cgroups", "host", "locks", "logs", "receiving"),
    ("errorlog", "recording"),
    ("ticket", "routes", "tiers", "load", "slots", "replay", "policy.*"),
    ("sections", "progressing"),
    ("config", "stores.*", "runs"),
    ("operators",),
    ("workers", "burying", "chores", "deadlines", "web.*", "running", "passing", "slotfile"),
    ("process", "arrivals"),
    ("middleware",),
    (
        "__init__",
        "integrations.*",
        "client.*",
        "cli",
        "commands",
        "top",
        "working",
        "replaying",
        "__main__",
        "demo.*",
    ),
)
LAST_ROW = len(ROWS) - 1
# Packages whose modules may import each other.
FAMILIES = ("options", "stores", "web", "integrations")
POLICY_MAY_IMPORT = frozenset(
    {"__future__", "bisect", "collections.abc", "dataclasses", "enum", "itertools", "math", "typing"}
)


def modules(root: Path) -> dict[str, ast.Module]:
    """Return the syntax tree of every module below ``root``, by its name inside the package."""
    trees = {}
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        if parts[-1] == "__init__" and len(parts) > 1:
            parts = parts[:-1]
        trees[".".join(parts)] = ast.parse(file.read_text(encoding="utf-8"), str(file))
    return trees


def row(module: str) -> int | None:
    """Return the number of the row in which a module stands, 0 at the top, or None."""
    names = {module, module.partition(".")[0] + ".*"}
    return next((number for number, entries in enumerate(ROWS) if names & set(entries)), None)


def imports(name: str, tree: ast.Module, known: set[str], *, package: bool) -> Iterator[tuple[int, str]]:
    """Yield (line, module) for every import, wherever it stands; modules of our own as ``.name``.

    ``from x import y`` is an import of ``x.y`` where that is a module, else of ``x``.  The package itself is
    ``.__init__``.
    """
    here = [PACKAGE, *([] if name == "__init__" else name.split("."))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = here[: len(here) - node.level + package] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            found = [f"{base}.{alias.name}" if base.split(".")[0] == PACKAGE else base for alias in node.names]
        else:
            continue
        for module in found:
            first, _, rest = module.partition(".")
            if first != PACKAGE:
                yield node.lineno, module
                continue
            while rest and rest not in known:
                rest = rest.rpartition(".")[0]
            yield node.lineno, "." + (rest or "__init__")


def objection(name: str, imported: str) -> str:
    """Say why ``name`` may not import ``imported`` (with a point before it: ours), or return an empty string."""
    if name.startswith("policy"):
        return "" if imported in POLICY_MAY_IMPORT else "policy is arithmetic only"
    if imported == "configparser" and name != "config":
        return "only config imports configparser"
    return row_objection(name, imported[1:]) if imported.startswith(".") else ""


def row_objection(name: str, imported: str) -> str:
    """Say why the rows do not let ``name`` import our own module ``imported``, or return an empty string."""
    own, other = row(name), row(imported)
    family, imported_family = name.partition(".")[0], imported.partition(".")[0]
    # The demo ships a gunicorn configuration, which is a user's file.
    if imported_family == "integrations" and family != "integrations" and name != "demo.gunicorn_conf":
        return "nothing outside integrations imports integrations"
    if imported == "__init__" and own != LAST_ROW:
        return "the package itself is for those who use it"
    if own is None or other is None:
        return "stands in no row"
    if other > own:
        return f"stands below, in row {other + 1} against {own + 1}"
    if other < own or own == LAST_ROW or (family == imported_family and family in FAMILIES):
        return ""
    return "stands in the same row"


def violations(root: Path) -> list[str]:
    """Return one sentence for each module or import below ``root`` that the table does not allow."""
    trees = modules(root)
    sentences = []
    for name, tree in trees.items():
        if row(name) is None:
            sentences.append(f"{name}: stands in no row")
            continue
        is_package = name == "__init__" or (root / name.replace(".", "/")).is_dir()
        for line, imported in imports(name, tree, set(trees), package=is_package):
            reason = objection(name, imported)
            if reason:
                sentences.append(f"{name}:{line} imports {imported}: {reason}")
    return list(dict.fromkeys(sentences))  # an import of several names is one


def test_every_module_imports_only_from_rows_above_its_own() -> None:
    """Catches: policy that reads a clock, a store that knows the config, a module that nobody has given a place."""
    assert violations(ROOT) == []


def test_the_table_meets_the_package() -> None:
    """Catches: a check that looks into an empty or another folder and finds nothing to object to."""
    assert {"errors", "ticket", "policy.ordering", "stores", "__init__"} <= set(modules(ROOT))


def house(root: Path, name: str, source: str) -> Path:
    """Build a package with an empty file for some modules of each row, and ``source`` in the one called ``name``."""
    names = ["errors", "ticket", "routes", "config", "workers", "middleware", "client", "cli", "__init__", name]
    names += [f"{p}.__init__" for p in ("policy", "stores", "web", "integrations", "demo")]
    names += ["policy.ordering", "stores.sqlite", "web.api", "integrations.flask", "demo.app"]
    for each in names:
        file = (root / each.replace(".", "/")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source if each == name else "", encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("name", "source", "sentence"),
    [
        ("ticket", "from wsgi_admission.config import Config", "stands below, in row 6 against 4"),
        ("ticket", "import wsgi_admission.config", "stands below, in row 6 against 4"),
        ("ticket", "from .config import Config", "stands below, in row 6 against 4"),
        ("ticket", "from wsgi_admission.routes import Table", "stands in the same row"),
        ("ticket", "from wsgi_admission.policy import ordering", "stands in the same row"),
        ("ticket", "def later():\n    from wsgi_admission.routes import Table", "stands in the same row"),
        ("ticket", "if 0:\n    import wsgi_admission.routes as r", "stands in the same row"),
        ("ticket", "from wsgi_admission import __version__", "the package itself is for those who use it"),
        ("ticket", "from . import x", "the package itself is for those who use it"),
        ("ticket", "import wsgi_admission", "the package itself is for those who use it"),
        ("config", "from wsgi_admission.stores import open_store", "stands in the same row"),
        ("stores.sqlite", "from wsgi_admission.config import Config", "stands in the same row"),
        ("stores.sqlite", "from ..config import Config", "stands in the same row"),
        ("stores.__init__", "from ..config import Config", "stands in the same row"),
        ("web.api", "from wsgi_admission import workers", "stands in the same row"),
        ("web.api", "from wsgi_admission.middleware import M", "stands below, in row 10 against 8"),
        ("web.api", "from wsgi_admission.nowhere import X", "the package itself is for those who use it"),
        ("policy.ordering", "from wsgi_admission.policy import decision", "policy is arithmetic only"),
        ("policy.ordering", "from wsgi_admission.errors import AdmissionError", "policy is arithmetic only"),
        ("policy.ordering", "import time", "policy is arithmetic only"),
        ("policy.ordering", "from random import random", "policy is arithmetic only"),
        ("policy.ordering", "def f():\n    import os.path", "policy is arithmetic only"),
        ("policy.ordering", "from collections import deque", "policy is arithmetic only"),
        ("cli", "from wsgi_admission.integrations.flask import F", "nothing outside integrations imports integrations"),
        ("web.api", "from wsgi_admission import integrations", "nothing outside integrations imports integrations"),
        ("cli", "import configparser", "only config imports configparser"),
        ("web.api", "from configparser import ConfigParser", "only config imports configparser"),
        ("helpers", "", "stands in no row"),
        ("policies.ordering", "", "stands in no row"),
    ],
)
def test_a_forbidden_import_is_found(name: str, source: str, sentence: str, tmp_path: Path) -> None:
    """Catches: the check itself being blind to a way of importing, or to one of its rules."""
    found = violations(house(tmp_path, name, source))
    assert len(found) == 1
    assert found[0].startswith(name.removesuffix(".__init__") + ":")
    assert found[0].endswith(": " + sentence)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("errors", "import os, json"),
        ("ticket", "from wsgi_admission.errors import AdmissionError"),
        ("ticket", "from .errors import AdmissionError"),
        ("ticket", "from wsgi_admission import errors"),
        ("config", "import configparser"),
        ("config", "from wsgi_admission.policy.ordering import place"),
        ("stores.sqlite", "from wsgi_admission.stores import Store"),
        ("stores.sqlite", "from . import Store"),
        ("stores.__init__", "def f():\n    from wsgi_admission.stores.sqlite import S"),
        ("web.api", "from wsgi_admission.web import Y\nfrom wsgi_admission.config import Config"),
        ("policy.ordering", "import math\nfrom collections.abc import Sequence"),
        ("middleware", "from wsgi_admission.workers import Pool\nfrom wsgi_admission.web.api import api"),
        ("__init__", "from wsgi_admission.middleware import M\nfrom .errors import E"),
        ("cli", "from wsgi_admission import __version__\nfrom wsgi_admission.demo.app import app"),
        ("integrations.flask", "from wsgi_admission import Config\nfrom wsgi_admission.integrations import X"),
    ],
)
def test_a_permitted_import_is_let_through(name: str, source: str, tmp_path: Path) -> None:
    """Catches: a check so strict that it would have to be switched off."""
    assert violations(house(tmp_path, name, source)) == []
