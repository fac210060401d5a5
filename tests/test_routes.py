from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsgi_admission.routes import (
    API,
    KNOWN_LENGTH,
    KNOWN_PATHS,
    Table,
    _beginning,
    _rough,
    expression,
    normalise,
)

POST = frozenset({"POST"})


@dataclass(frozen=True)
class Target:
    name: str
    path: tuple[str, ...]
    methods: frozenset[str] = field(default=POST)


GENERATE = Target("generate", ("/api/generate",))
PICTURE = Target("picture", ("/img/<name>", "/picture/<name>/<int:size>"), frozenset({"GET"}))
TABLE = Table([GENERATE, PICTURE], "/api/queue")


def matches(pattern: str, path: str) -> bool:
    """Whether a table of this one pattern takes the path, as PATH_INFO has it, for its route."""
    return Table([Target("only", (pattern,))], "/api/queue").find("POST", path) is not None


def wsgi(path: str) -> str:
    """Return the PATH_INFO of a path: its UTF-8 bytes, read as latin-1."""
    return path.encode().decode("latin-1")


def wsgi_bytes(pattern: str) -> str:
    """Return the PATH_INFO of a path with percent signs in it."""
    return unquote_to_bytes(pattern).decode("latin-1")


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("/", "/", True),
        ("/", "", True),
        ("/", "/a", False),
        ("/img/<name>", "/img/a", True),
        ("/img/<name>", "/img/.hidden", True),
        ("/img/<name>", "/img/", False),
        ("/img/<name>", "/img/a/b", False),
        ("/img/<string:name>", "/img/a.png", True),
        ("/img/<name>.png", "/img/a.png", True),
        ("/img/<name>.png", "/img/axpng", False),
        ("/job/<int:n>", "/job/7", True),
        ("/job/<int:n>", "/job/0042", True),
        ("/job/<int:n>", "/job/-7", False),
        ("/job/<int:n>", "/job/7a", False),
        ("/job/<int:n>", "/job/7.5", False),
        ("/job/<int:n>/run", "/job/7/run", True),
        ("/at/<float:x>", "/at/7.5", True),
        ("/at/<float:x>", "/at/7", False),
        ("/at/<float:x>", "/at/7.", False),
        ("/of/<uuid:id>", "/of/123e4567-e89b-42d3-a456-426614174000", True),
        ("/of/<uuid:id>", "/of/123E4567-E89B-42D3-A456-426614174000", True),
        ("/of/<uuid:id>", "/of/123e4567-e89b-42d3-a456-42661417400", False),
        ("/of/<uuid:id>", "/of/123e4567e89b42d3a456426614174000", False),
        ("/all/<path:rest>", "/all/a", True),
        ("/all/<path:rest>", "/all/a/b/c", True),
        ("/all/<path:rest>", "/all/a\nb", True),
        ("/all/<path:rest>", "/all/", False),
        ("/all/<path:rest>", "/allows", False),
        ("/all/<path:rest>/end", "/all/a/b/end", True),
        ("/a+b(c).d", "/a+b(c).d", True),
        ("/a+b(c).d", "/aab(c).d", False),
        ("/a b".replace(" ", "%20"), "/a b", True),
        ("/what%3F", "/what?", True),
    ],
)
def test_a_pattern_takes_the_paths_that_it_describes(pattern: str, path: str, expected: bool) -> None:  # noqa: FBT001 - a table's column
    """Catches: a converter that takes too much or too little, a literal read as an expression."""
    assert matches(pattern, path) is expected


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("/café", wsgi("/café")),
        ("/caf%C3%A9", wsgi("/café")),
        ("/caf%c3%a9", wsgi("/café")),
        ("/caf%E9", "/caf\xe9"),
        ("/画/<name>", wsgi("/画/像")),
        ("/画/<path:rest>", wsgi("/画/像/😀")),
        ("/😀", wsgi("/😀")),
        ("/café", "/caf%c3%a9"),
        ("/café", wsgi("//café")),
    ],
)
def test_text_beyond_ascii_is_matched_as_the_server_hands_it_over(pattern: str, path: str) -> None:
    """Catches: a pattern compared as text with a path that holds its bytes as latin-1."""
    assert matches(pattern, path)


def test_text_beyond_ascii_is_not_matched_by_its_look() -> None:
    """Catches: a pattern that is compiled as it is written."""
    assert not matches("/café", "/caf\xe9")


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/api/generate", GENERATE),
        ("GET", "/api/generate", None),
        ("HEAD", "/api/generate", None),
        ("PATCH", "/api/generate", None),
        ("GET", "/img/a", PICTURE),
        ("HEAD", "/img/a", PICTURE),
        ("POST", "/img/a", None),
        ("GET", "/picture/a/300", PICTURE),
        ("", "/img/a", None),
    ],
)
def test_a_route_takes_its_methods_and_head_where_it_takes_get(method: str, path: str, expected: Target | None) -> None:
    """Catches: HEAD that gets around a queued GET, a method of another route, a KeyError for a strange one."""
    assert TABLE.find(method, path) is expected


def test_a_route_for_head_alone_leaves_get_alone() -> None:
    """Catches: HEAD and GET taken for the same in both directions."""
    head = Target("head", ("/img/<name>",), frozenset({"HEAD"}))
    table = Table([head, GENERATE], "/api/queue")
    assert table.find("HEAD", "/img/a") is head
    assert table.find("GET", "/img/a") is None


DISGUISES = [
    "/api/generate",
    "/api/generate/",
    "/API/Generate",
    "//api/generate",
    "/api//generate",
    "/api/generate//",
    "///api///generate///",
    "/./api/generate",
    "/api/./generate",
    "/api/generate/.",
    "/api/generate/./",
    "/x/../api/generate",
    "/../api/generate",
    "/api/generate/x/..",
    "/api/generate/x/../",
    "/x/..;/api/generate",
    "/x/..;a=b/api/generate",
    "/api;v=1/generate",
    "/api/generate;jsessionid=1",
    "/;/api/generate",
    "/.;/api/generate",
    "/api%2fgenerate",
    "/api%2Fgenerate",
    "/%61pi/generate",
    "/api/%2e/generate",
    "/x/%2e%2e/api/generate",
    "/x/%2e%2e%2fapi/generate",
    "/api/generate%3bx=y",
    "/api\\generate",
    "\\api\\generate",
    "/x\\..\\api\\generate",
    "/api%5cgenerate",
    "/API//x/..;y/%47enerate;z/",
]


@pytest.mark.parametrize("path", DISGUISES)
def test_a_route_is_not_got_around_by_another_way_of_writing_its_path(path: str) -> None:
    """Catches: a protected endpoint reached unqueued through a path that a framework takes for the same."""
    assert TABLE.find("POST", path) is GENERATE


@pytest.mark.parametrize("suffix", ["\n", "/\n"])
def test_a_newline_at_the_end_does_not_get_around_a_route(suffix: str) -> None:
    """Catches: frameworks that end their expressions with ``$``, which a newline may follow, reached unqueued."""
    assert TABLE.find("POST", "/api/generate" + suffix) is GENERATE


def test_a_path_without_its_first_slash_does_not_get_around_a_route() -> None:
    """Catches: ``POST api/generate HTTP/1.1``, which some servers pass on and some frameworks put the slash before."""
    assert TABLE.find("POST", "api/generate") is GENERATE


def test_a_method_in_lower_case_does_not_get_around_a_route() -> None:
    """Catches: ``post /api/generate``, which some servers pass on and some frameworks read as POST."""
    assert TABLE.find("post", "/api/generate") is GENERATE


def test_a_disguised_api_path_still_matches_a_route_that_takes_it_too() -> None:
    """Catches: a wide route got around by a path that looks like the API's only when it is normalised."""
    wide = Target("wide", ("/api/<path:rest>",))
    assert Table([wide], "/api/queue").find("POST", "//api/queue/x") is wide


@pytest.mark.parametrize(
    "path",
    [
        "/api/generates",
        "/api/generat",
        "/api",
        "/x/api/generate",
        "/api/generate/x",
        "/api/generate/..",
        "/api/generate/../other",
        "/api/x;/generate",
        "/api/gen\nerate",
        "\n/api/generate",
        "/api/generate\nx",
        "/api/generate%2fx",
        "/",
        "",
        "*",
        "\x00",
        "/%",
        "/%zz",
        "/..",
        ";",
    ],
)
def test_another_path_is_left_alone(path: str) -> None:
    """Catches: an expression that is open at its beginning or end, a strange path that raises."""
    assert TABLE.find("POST", path) is None


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/api/queue", True),
        ("/api/queue/", True),
        ("/api/queue/status/1", True),
        ("/api/queue/..", True),
        ("/api/queued", False),
        ("/api/queue\n", False),
        ("/API/queue", False),
        ("/api/Queue/status/1", False),
        ("//api/queue/status/1", False),
        ("/x/../api/queue/status/1", False),
        ("/api%2fqueue", False),
        ("/x/api/queue", False),
        ("/api", False),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "HEAD", "OPTIONS", "BREW"])
def test_the_api_has_exactly_the_paths_below_its_prefix(method: str, path: str, expected: bool) -> None:  # noqa: FBT001 - a table's column
    """Catches: an app's own path taken away from it, an API call that only works with a route's methods."""
    assert (TABLE.find(method, path) is API) is expected


def test_the_prefix_is_text_and_not_an_expression() -> None:
    """Catches: a point in the prefix that stands for any character."""
    table = Table([GENERATE], "/a.b/q")
    assert table.find("GET", "/a.b/q/status/1") is API
    assert table.find("GET", "/axb/q/status/1") is None


def test_without_routes_the_api_still_answers() -> None:
    """Catches: an empty alternative that matches every path, or an expression that cannot be compiled."""
    table: Table[Target] = Table([], "/api/queue")
    assert table.find("GET", "/api/queue/health") is API
    assert table.find("GET", "/") is None


def test_the_earlier_of_two_routes_wins() -> None:
    """Catches: the longest, the last, or the literal route preferred."""
    wide = Target("wide", ("/img/<path:rest>",), frozenset({"GET", "POST"}))
    narrow = Target("narrow", ("/img/special",), frozenset({"GET"}))
    assert Table([wide, narrow], "/q").find("GET", "/img/special") is wide
    assert Table([narrow, wide], "/q").find("GET", "/img/special") is narrow
    assert Table([narrow, wide], "/q").find("GET", "/img/specials") is wide
    assert Table([narrow, wide], "/q").find("POST", "/img/special") is wide


def test_each_of_many_routes_and_patterns_is_found() -> None:
    """Catches: groups counted by pattern where they are counted by route, or shifted by the API's."""
    routes = [Target(f"r{n}", (f"/a{n}", f"/b{n}/<int:x>", f"/c{n}/<path:y>")) for n in range(150)]
    table = Table(routes, "/api/queue")
    for n, route in enumerate(routes):
        assert [table.find("POST", path) for path in (f"/a{n}", f"/b{n}/1", f"/c{n}/y/z")] == [route] * 3


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("", "must begin with '/'"),
        ("api/generate", "must begin with '/'"),
        ("<path:rest>", "must begin with '/'"),
        ("/a b", "must be a path without spaces, '?' or '#'"),
        ("/a\n", "must be a path without spaces, '?' or '#'"),
        ("/a?b=c", "must be a path without spaces, '?' or '#'"),
        ("/a#b", "must be a path without spaces, '?' or '#'"),
        ("/<integer:n>", "unknown converter 'integer'; expected one of string, int, float, uuid, path"),
        ("/<INT:n>", "unknown converter 'INT'; expected one of string, int, float, uuid, path"),
        ("/<>", "the name in '<>' must be an identifier"),
        ("/<int:>", "the name in '<int:>' must be an identifier"),
        ("/<1st>", "the name in '<1st>' must be an identifier"),
        ("/<a-b>", "the name in '<a-b>' must be an identifier"),
        ("/<a>/<int:a>", "the name 'a' stands in it twice"),
        ("/<a", "unbalanced '<' or '>' in '/<a'"),
        ("/a>", "unbalanced '<' or '>' in '/a>'"),
        ("/<<a>>", "unbalanced '<' or '>' in '/<'"),
        ("/<a>>", "unbalanced '<' or '>' in '>'"),
        ("/<a:b:c>", "unbalanced '<' or '>' in '/<a:b:c>'"),
    ],
)
def test_a_pattern_that_cannot_be_used_says_why(pattern: str, problem: str) -> None:
    """Catches: a misspelt pattern that silently matches nothing."""
    with pytest.raises(ValueError, match=rf"^{re.escape(problem)}$"):
        expression(pattern)


def test_an_empty_converter_is_refused() -> None:
    """Catches: ``<:n>``, a converter that was forgotten."""
    with pytest.raises(ValueError, match="unknown converter ''"):
        expression("/<:n>")


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("/<path:rest>/<name>.png", "/a" * 20_000),
        ("/<path:rest>.<int:n>.png", "/" + ".1" * 20_000),
        ("/<name>-<int:n>.png", "/" + "-1" * 20_000),
        ("/<int:a>-<int:b>/<path:rest>/<float:c>x", "/1-1/" + "1.1/" * 20_000),
        ("/<a>/<path:rest>x<uuid:b>", "/a" + "/x0" * 20_000),
    ],
)
def test_a_pattern_that_is_accepted_takes_time_in_proportion_to_the_path(pattern: str, path: str) -> None:
    """Catches: a rule that lets through what a hostile path makes slow: this would take minutes then."""
    assert Table([Target("t", (pattern,), frozenset({"GET"}))], "/q").find("GET", path) is None


@pytest.mark.parametrize(
    ("pattern", "error"),
    [
        ("/<a>-<b>", "between <a> and <b> there must be a text that one of them cannot match, such as '/'"),
        ("/<int:a><int:b>", "between <int:a> and <int:b> there"),
        ("/<a><int:b>", "between <a> and <int:b> there"),
        ("/<a>0<int:b>", "between <a> and <int:b> there"),
        ("/<float:a>.<float:b>", "between <float:a> and <float:b> there"),
        ("/<path:rest>-<name>", "between <path:rest> and <name> there"),
        ("/<path:rest>.<int:n>.png/<x>0<int:m>", "between <x> and <int:m> there"),
        ("/<path:a>/b/<path:c>", "more than one <path:...>"),
        ("/<path:a>/<b>/<path:c>.png", "more than one <path:...>"),
    ],
)
def test_a_pattern_that_is_slow_to_match_is_refused(pattern: str, error: str) -> None:
    """Catches: a hostile path that holds a thread for seconds."""
    with pytest.raises(ValueError, match=error):
        expression(pattern)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", "/"),
        ("/", "/"),
        ("a", "/a"),
        ("//a/./b;c/../d\\e%2ff/", "/a/d/e/f"),
        ("/../../a", "/a"),
        ("/a/..", "/"),
        ("/%2561", "/%61"),
        ("/caf\xc3\xa9//", "/caf\xc3\xa9"),
    ],
)
def test_the_normalised_form(path: str, expected: str) -> None:
    """Catches: '..' that climbs above the root, bytes that are read as UTF-8, a second decoding too many."""
    assert normalise(path) == expected


@given(st.text(st.characters(max_codepoint=255)))
def test_the_normalised_form_is_one_path_without_tricks(path: str) -> None:
    """Catches: a segment that is dropped while the one after it takes its place unread."""
    form = normalise(path)
    assert form == "/" + "/".join(segment for segment in form.split("/") if segment)
    assert not {".", ".."} & set(form.split("/"))
    assert ";" not in form
    assert "\\" not in form


@given(st.text(st.characters(max_codepoint=255)), st.sampled_from(["GET", "POST", "HEAD", "BREW"]))
def test_no_path_at_all_raises(path: str, method: str) -> None:
    """Catches: bytes that are no UTF-8, percent signs without digits, points without names."""
    assert TABLE.find(method, path) in {API, GENERATE, PICTURE, None}


#: Every character that is another one but for its case, to somebody.
CASED = "".join(c for c in map(chr, range(0x110000)) if c.lower() != c or c.upper() != c)


def same(character: str) -> list[str]:
    """Return the characters that are this one when case is ignored."""
    return [character, *re.findall(re.escape(character), CASED, re.IGNORECASE)]


def plainly(routes: list[Target], path: str) -> Target | None:
    """Find the route for the path by one expression for each pattern, with nothing that makes it quick."""
    for form in (path, normalise(path)):
        for route in routes:
            for pattern in route.path:
                if re.match(expression(pattern).rstrip("/") + r"/?\n?\Z", form, re.IGNORECASE | re.DOTALL):
                    return route
    return None


#: Fixed text with a second meaning in expressions, odd cases (Kelvin, dotless i, long s) and lengths.
FIXED = st.sampled_from(
    [*"akKsSiIzZ09-_.~&|^[]()+*$", "aa", "--", "&&", "[:", "k" * 33, "é", "ß", "%B5", "%E5", "%FF", "%2F"]
)
SEGMENT = st.one_of(st.lists(FIXED, max_size=3).map("".join), st.sampled_from(["<n>", "<int:n>", "a<n>", "s<path:n>z"]))
PATTERN = st.lists(SEGMENT, min_size=1, max_size=3).map(lambda segments: "/" + "/".join(segments))


@settings(deadline=None)  # several expressions are compiled each time
@given(st.lists(PATTERN.filter(lambda pattern: pattern.count("<n>") + pattern.count(":n>") < 2), max_size=5), st.data())
def test_the_quick_look_at_the_beginning_agrees_with_the_whole_expression(
    patterns: list[str], data: st.DataObject
) -> None:
    """Catches: a route that is got around by a letter that the quick look does not know for the same."""
    routes = [Target(f"r{number}", (pattern,)) for number, pattern in enumerate(patterns)]
    table = Table(routes, "/q")
    for pattern in patterns:
        filled = re.sub("<.*>", data.draw(st.sampled_from(["7", "k/s", "\u212a", ""])), pattern)
        path = wsgi_bytes(filled)
        spelt = "".join(data.draw(st.sampled_from(same(character))) for character in path)
        for tried in (path, spelt, spelt + "/", spelt + "\n", "/." + spelt, spelt[1:], spelt[:-1]):
            assert table.find("POST", tried) is plainly(routes, tried), (pattern, tried)
    anything = data.draw(st.text(st.sampled_from("/aAkKsSiI\u212a\u0131\u017f\u0130.;%\\-[]^\xe5\xc5\n")))
    assert table.find("POST", anything) is plainly(routes, anything)


def test_the_quick_look_takes_a_character_in_every_case() -> None:
    """Catches: a letter whose other case is forgotten: the Kelvin sign is a k, and the long s an s."""
    for character in map(chr, range(256)):
        begins = re.compile(_beginning({_rough(f"x{character}y")})).match
        assert not [ascii(other) for other in same(character) if not begins(f"x{other}y")]


HOSTILE = [
    unit * 4000
    for unit in ("/", "/a", "/a;b", "//a/..", "/..", "/.", "/;", ";", "%2f", "%", "\\", "/%2e%2e", "a", "1", "1.", "-")
]


def events(path: str) -> int:
    """Count the Python and C calls with which the table looks a path up."""
    counted = 0

    def count(*_: object) -> None:
        nonlocal counted
        counted += 1

    TABLE.find("POST", "/%41")  # unquote builds a table at its first use
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        TABLE.find("POST", path)
    finally:
        sys.setprofile(before)
    return counted


@pytest.mark.parametrize("path", HOSTILE, ids=lambda path: path[:7])
def test_a_path_twice_as_long_takes_at_most_twice_the_calls(path: str) -> None:
    """Catches: a loop over the rest of the path for each of its segments."""
    assert events(path * 2) <= 2 * events(path) + 10


def test_hostile_long_paths_do_not_send_the_expression_into_endless_backtracking() -> None:
    """Catches: an expression whose work grows with the square of the path: minutes where one second will do."""
    script = """if True:
        from types import SimpleNamespace
        from wsgi_admission.routes import Table
        patterns = ("/api/generate", "/img/<name>", "/a/<int:n>", "/b/<float:x>", "/c/<uuid:i>", "/d/<path:p>/end")
        route = SimpleNamespace(path=patterns, methods=frozenset({"POST"}))
        table = Table([route], "/api/queue")
        for start in ("/img/", "/a/", "/b/", "/c/", "/d/", ""):
            for unit in ("a", "1", "1.", "-", "/", "/a", "/end", "/..", "/;", "%2f", "\\\\"):
                assert table.find("POST", start + unit * 100_000 + "/x/y") is None, (start, unit)
        print("done")
    """
    root = Path(__file__).parent.parent
    ran = subprocess.run([sys.executable, "-c", script], cwd=root, timeout=120, check=True, capture_output=True)
    assert ran.stdout == b"done\n"


def test_what_is_remembered_of_paths_is_bounded_and_right() -> None:
    """Catches: memory used up by a flood of paths; an answer remembered for another method."""
    table = Table([Target("job", ("/job/<int:n>",))], "/api/queue")
    for number in range(3 * KNOWN_PATHS):
        assert table.find("POST", f"/job/{number}") is not None
        assert table.find("GET", f"/job/{number}") is None
        assert table.find("BREW", f"/job/{number}") is None
    table.find("POST", "/" + "x" * (KNOWN_LENGTH + 1))
    assert set(table._known) == {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
    assert all(len(paths) <= KNOWN_PATHS for paths in table._known.values())
    assert max(map(len, table._known["POST"])) <= KNOWN_LENGTH
    assert table.find("POST", "/job/1") is table.find("POST", "/job/1") is not None
