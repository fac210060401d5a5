"""The demo site, its generators, its configuration and its visitors; not yet the site behind the line."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from flask.testing import FlaskClient
from PIL import Image
from rich.console import Console
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

from wsgi_admission import load_config
from wsgi_admission.demo import generate, load
from wsgi_admission.demo.command import demo
from wsgi_admission.demo.drawing import subject
from wsgi_admission.demo.scenes import SCENES, landscape, scene
from wsgi_admission.demo.serve import own_config
from wsgi_admission.demo.site import GENERATORS, create_app
from wsgi_admission.demo.table import lines, summary, table
from wsgi_admission.demo.visitor import Visitor
from wsgi_admission.demo.who import tier_of
from wsgi_admission.errors import StoreUnavailable, UnknownTicket
from wsgi_admission.progressing import Progress, current
from wsgi_admission.ticket import Ticket

SIZE = 48
TOKEN = "of-whoever-runs-it"  # noqa: S105 - of the tests
ROOT = Path(__file__).parents[1]
PNG = b"\x89PNG\r\n\x1a\n"


def photo(width: int = 40, height: int = 30, kind: str = "PNG") -> bytes:
    """Return a picture with some forms in it."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    written = io.BytesIO()
    Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)).save(written, kind)
    return written.getvalue()


def huge(width: int, height: int) -> bytes:
    """Return the beginning of a PNG that claims this size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        PNG + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + b"\0\0\0\0IDAT\x35\xaf\x06\x1e"
    )


@pytest.fixture
def client() -> FlaskClient:
    """Return a client of a site that draws small pictures."""
    return create_app(size=SIZE).test_client()


# ---------------------------------------------------------------- generators


MAKERS = {
    "picture": lambda prompt, seed: generate.picture(prompt, seed, size=SIZE),
    "transform": lambda prompt, seed: generate.transform(photo(), prompt, seed, size=SIZE),
    "animation": lambda prompt, seed: generate.animation(prompt, seed, size=SIZE),
    "animated-image": lambda prompt, seed: generate.animation(prompt, seed, image=photo(), size=SIZE),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_prompt_and_the_seed_alone_decide_every_byte(make: Callable[[str, int], bytes]) -> None:
    """Catches: dice from the operating system, and a seed or a prompt that is left out."""
    first = make("a lake at night", 7)

    assert make("a lake at night", 7) == first
    assert make("a lake at night", 8) != first
    assert make("a violet galaxy", 7) != first


@pytest.mark.parametrize("size", [33, 64])
@pytest.mark.parametrize("drawn", SCENES, ids=lambda drawn: drawn.draw.__name__)
def test_every_scene_is_finite_and_its_loop_closes(drawn: Any, size: int) -> None:
    """Catches: a division by zero at the middle pixel of an odd size, and an overflow after a hundred steps."""
    for seed in range(12):
        about = subject("something", seed)
        frames = [drawn.draw(about, size, size, phase) for phase in (0.0, 0.3, 1.0)]

        assert all(np.isfinite(frame).all() and frame.shape == (size, size, 3) for frame in frames)
        assert np.abs(frames[0] - frames[2]).mean() < 0.01, "the last frame leads to the first"
        assert not np.array_equal(frames[0], frames[1]), "it moves"


def test_the_words_choose_the_scene_and_the_colours() -> None:
    """Catches: a picture that follows from the hash of the prompt alone."""
    assert scene(subject("Mountains at NIGHT!", 1)).draw is landscape
    red, blue = (subject(f"{colour} hills", 1).ramp.mean(axis=0) for colour in ("red", "blue"))
    assert red[0] - red[2] > 0.05 > blue[0] - blue[2]


def test_an_animation_has_frames_that_loop_and_keeps_the_form_of_its_image() -> None:
    """Catches: a still picture, one that stops, and one that is squeezed into a square."""
    with Image.open(io.BytesIO(generate.animation("fire", 1, image=photo(80, 40), size=SIZE))) as moving:
        assert (moving.format, moving.size, moving.info["loop"]) == ("WEBP", (SIZE, SIZE // 2), 0)
        assert getattr(moving, "n_frames", 1) == 20


def test_the_strength_goes_from_the_image_itself_to_another() -> None:
    """Catches: a strength that is not used."""

    def pixels(png: bytes) -> Any:
        with Image.open(io.BytesIO(png)) as image:
            return np.asarray(image, np.float32)

    kept, half, full = (pixels(generate.transform(photo(48, 48), "fire", 1, strength=s, size=48)) for s in (0, 0.5, 1))
    source = pixels(photo(48, 48))
    assert np.abs(kept - source).mean() < 4
    assert np.abs(kept - source).mean() < np.abs(half - source).mean() < np.abs(full - source).mean()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "got an empty file"),
        (b"no picture at all", "expected a whole picture"),
        (photo()[:90], "expected a whole picture"),
        (photo(kind="TIFF"), "expected a whole picture"),
        (huge(6_000, 5_000), "too many pixels"),
        (huge(12_000, 10_000), "too many pixels"),
        (huge(60_000, 60_000), "too many pixels"),
    ],
    ids=["empty", "text", "cut", "another-kind", "large", "warned-of", "bomb"],
)
def test_an_image_that_cannot_be_used_is_refused_in_words(data: bytes, says: str) -> None:
    """Catches: Pillow's own errors coming through, its warning for half a bomb, and unpacking before looking."""
    with pytest.raises(generate.Unusable, match=says):
        generate.transform(data, "fire", 1, size=SIZE)


def test_damage_anywhere_in_an_image_is_refused_or_survived() -> None:
    """Catches: a kind of error of Pillow's that nobody thought of."""
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP"):
        whole = bytearray(photo(kind=kind))
        for place in range(0, len(whole), max(1, len(whole) // 40)):
            damaged = bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
            try:
                generate._read(damaged, 16)
            except generate.Unusable:
                pass


# ---------------------------------------------------------------- the site


@pytest.mark.parametrize("generator", GENERATORS, ids=lambda generator: generator.name)
def test_each_generator_answers_programs_with_the_result_and_people_with_a_page(
    client: FlaskClient, generator: Any
) -> None:
    """Catches: a path of the configuration that is missing, and a page whose picture is another one."""

    def fields() -> dict[str, Any]:
        image = {"image": (io.BytesIO(photo()), "photo.png")} if generator.takes_image else {}
        return {"prompt": "a <b>lake</b>", "seed": "7"} | image

    result = client.post(generator.api, data=fields())
    form = client.get(generator.form)
    page = client.post(generator.form, data=fields())

    assert (result.status_code, result.mimetype) == (200, generator.kind)
    with Image.open(io.BytesIO(result.data)) as image:
        assert max(image.size) == SIZE
    assert form.status_code == 200
    assert ('type="file"' in form.text) is generator.takes_image
    shown = re.search(r'<img src="data:([^;]+);base64,([^"]+)"', page.text)
    assert shown is not None
    assert (shown[1], base64.b64decode(shown[2])) == (generator.kind, result.data)
    assert "a &lt;b&gt;lake&lt;/b&gt;" in page.text
    assert "<b>" not in page.text
    assert f'action="{generator.form}"' in page.text, "the page can stand at another address"


def test_the_routes_of_the_configuration_are_the_paths_of_the_site() -> None:
    """Catches: an endpoint that the line does not know, or one that it knows and the site has not."""
    config = load_config(ROOT / "conf" / "admission.ini", {}, import_resolver=False)

    assert {path for route in config.routes for path in route.path} == {
        path for generator in GENERATORS for path in (generator.api, generator.form)
    }


def test_json_and_form_fields_are_the_same_to_the_api(client: FlaskClient) -> None:
    """Catches: JSON whose seed is a number and is ignored."""
    by_json = client.post("/api/generate", json={"prompt": "a lake", "seed": 7})

    assert by_json.data == client.post("/api/generate", data={"prompt": "a lake", "seed": "7"}).data
    assert by_json.data != client.post("/api/generate", json={"prompt": "a lake"}).data


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "prompt: expected a text"),
        ({"prompt": "   "}, "prompt: expected a text"),
        ({"prompt": 7}, "prompt: expected a text"),
        ({"prompt": "x" * 401}, "1 to 400 characters"),
        ({"prompt": "x", "seed": -1}, "seed: expected a whole number from 0 to 4294967295, got -1"),
        ({"prompt": "x", "seed": 4294967296}, "got 4294967296"),
        ({"prompt": "x", "seed": 1.5}, "got 1.5"),
        ({"prompt": "x", "seed": True}, "got True"),
        ({"prompt": "x", "seed": "٣"}, "got ٣"),
        (["x"], "body: expected a JSON object"),
    ],
)
def test_bad_json_is_answered_by_400_and_a_sentence(client: FlaskClient, body: object, says: str) -> None:
    """Catches: a 500 for a field of the wrong type, and digits of other scripts."""
    answer = client.post("/api/generate", json=body)

    assert answer.status_code == 400
    assert says in answer.get_json()["error"]


def test_what_is_no_json_is_answered_by_400(client: FlaskClient) -> None:
    """Catches: an HTML page for a program, and a 500."""
    answer = client.post("/api/generate", data=b"{", content_type="application/json")

    assert (answer.status_code, "body: expected" in answer.get_json()["error"]) == (400, True)


def test_an_upload_that_is_missing_or_broken_is_answered_by_400_and_a_sentence(client: FlaskClient) -> None:
    """Catches: a 500, and a page that does not say what was wrong."""
    missing = client.post("/api/img2img", data={"prompt": "x"})
    broken = client.post("/img2img", data={"prompt": "x", "image": (io.BytesIO(b"nothing"), "x.png")})
    strong = client.post("/img2img", data={"prompt": "x", "strength": "nan", "image": (io.BytesIO(photo()), "x.png")})

    assert (missing.status_code, "field 'image'" in missing.get_json()["error"]) == (400, True)
    assert (broken.status_code, "expected a whole picture" in broken.text) == (400, True)
    assert (strong.status_code, "strength: expected a number from 0 to 1" in strong.text) == (400, True)


def test_programs_are_told_in_json_what_else_went_wrong(client: FlaskClient) -> None:
    """Catches: a 405 without Allow, and pages where programs ask."""
    wrong_method = client.get("/api/generate")
    too_large = client.post(
        "/api/img2img", data=bytes(33 * 1024 * 1024), content_type="multipart/form-data; boundary=x"
    )

    assert (wrong_method.status_code, "POST" in wrong_method.headers["Allow"]) == (405, True)
    assert "error" in wrong_method.get_json()
    assert (too_large.status_code, "error" in too_large.get_json()) == (413, True)
    assert client.get("/nothing").status_code == 404


def test_the_cheap_pages_answer_and_the_tier_is_remembered(client: FlaskClient) -> None:
    """Catches: a choice of tier that is not the resolver's."""
    assert client.get("/ping").get_json()["pong"] is True
    assert "<option selected>anonymous" in client.get("/").text
    chosen = client.post("/tier", data={"tier": "donor"})
    assert (chosen.status_code, chosen.headers["Location"]) == (303, "/")
    assert "<option selected>donor" in client.get("/").text
    assert client.post("/tier", data={"tier": "queen"}).status_code == 400


@pytest.mark.parametrize(
    ("environ", "who"),
    [
        ({}, ("anonymous", None)),
        ({"HTTP_X_DEMO_TIER": "donor", "HTTP_X_DEMO_CLIENT": "ann"}, ("donor", "ann")),
        ({"QUERY_STRING": "a=b&demo_tier=registered"}, ("registered", None)),
        ({"HTTP_COOKIE": "a=b; demo_tier=donor"}, ("donor", None)),
        ({"HTTP_X_DEMO_TIER": "queen", "HTTP_COOKIE": "demo_tier=donor"}, ("donor", None)),
        ({"HTTP_COOKIE": "demo_tier=queen"}, ("anonymous", None)),
        ({"HTTP_COOKIE": 'bad cookie[=";;'}, ("anonymous", None)),
    ],
)
def test_the_demo_believes_whoever_names_a_tier(environ: dict[str, str], who: tuple[str, str | None]) -> None:
    """Catches: a tier that is not configured, and a cookie header that cannot be read."""
    assert tier_of(environ) == who


# ---------------------------------------------------------------- the configuration


@pytest.mark.parametrize(
    ("shipped", "copy"), [("gunicorn.conf.py", "gunicorn_conf.py"), ("admission.ini", "admission.ini")]
)
def test_an_installed_package_has_the_configuration_of_the_checkout(shipped: str, copy: str) -> None:
    """Catches: a change of conf/ that is not copied to wsgi_admission/demo/."""
    ours, theirs = ROOT / "conf" / shipped, ROOT / "wsgi_admission" / "demo" / copy

    assert theirs.read_text("utf-8") == ours.read_text("utf-8"), f"cp conf/{shipped} wsgi_admission/demo/{copy}"


def test_the_demo_changes_the_store_and_who_is_asking_and_nothing_else(tmp_path: Path) -> None:
    """Catches: an option that is set twice, one that lands in the wrong section, and lost tiers."""
    shipped = ROOT / "conf" / "admission.ini"
    own = tmp_path / "admission.ini"
    own.write_text(own_config(shipped.read_text("utf-8"), tmp_path / "a.db", TOKEN), "utf-8")

    before, after = (load_config(path, {}, import_resolver=False) for path in (shipped, own))

    assert after.store.url == f"sqlite:///{tmp_path}/a.db"
    assert after.load_resolver() is tier_of
    assert {route.expected_time for route in after.routes} == {2.0}
    assert after.api.admin_token == TOKEN
    assert replace(after.api, admin_token="") == before.api
    assert (after.admission, after.load) == (before.admission, before.load)
    assert after.tiers.order == before.tiers.order
    assert [route.path for route in after.routes] == [route.path for route in before.routes]


def test_a_section_that_is_missing_is_added(tmp_path: Path) -> None:
    """Catches: a store in the folder of whoever starts the demo."""
    own = tmp_path / "admission.ini"
    own.write_text(own_config("[route:a]\npath = /a\nmethods = POST", tmp_path / "a.db", TOKEN), "utf-8")

    assert load_config(own, {}, import_resolver=False).store.url == f"sqlite:///{tmp_path}/a.db"


def test_a_port_in_use_is_said_before_anything_starts() -> None:
    """Catches: gunicorn's five attempts and a traceback."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        outcome = CliRunner().invoke(demo, ["--port", str(port)])

    assert outcome.exit_code == 1
    assert f"127.0.0.1:{port} cannot be listened on" in outcome.output
    assert "--port" in outcome.output


def test_a_url_without_visitors_is_a_mistake() -> None:
    """Catches: a server that starts where visitors were meant."""
    outcome = CliRunner().invoke(demo, ["--url", "http://127.0.0.1:9"])

    assert (outcome.exit_code, "it needs --load" in outcome.output) == (2, True)


# ---------------------------------------------------------------- the visitors


class Queue:
    """A site with a line, as small as can be: the first is drawn at once, the others complete at the second look."""

    def __init__(self, *, refuse: int | None = None, fail: int | None = None, result: bytes = PNG) -> None:
        self.refuse, self.fail, self.result = refuse, fail, result
        self.looks: dict[str, int] = {}
        self.seen: list[tuple[str, str]] = []
        self.lock = threading.Lock()

    def __call__(self, environ: Any, start_response: Any) -> Any:
        request = Request(environ)
        with self.lock:
            return self.answer(request)(environ, start_response)

    def answer(self, request: Request) -> Response:
        parts = request.path.strip("/").split("/")
        if request.path == "/api/generate":
            return self.accept(request)
        if parts[0] != "status":
            return Response(self.result if parts[0] == "result" else b"{}")
        self.looks[parts[1]] = self.looks.get(parts[1], 0) + 1
        final = self.looks[parts[1]] > 1
        state = "queued" if not final else "failed" if int(parts[1]) == self.fail else "completed"
        status = {
            "status": state,
            "position_in_queue": None if final else 3,
            "estimated_wait_time": None if final else 9,
            "started_at": "2026-01-01T12:00:00Z" if final else None,
            "error_message": "The app raised." if state == "failed" else None,
        }
        return Response(json.dumps(status))

    def accept(self, request: Request) -> Response:
        self.seen.append((request.headers["X-Demo-Tier"], request.headers["X-Demo-Client"]))
        number = json.loads(request.data)["seed"]
        if number == self.refuse:
            return Response(status=503)
        if number == 0:
            return Response(self.result)
        urls = {"status_url": f"/status/{number}", "result_url": f"/result/{number}"}
        return Response(json.dumps(urls), status=202)


@pytest.fixture
def visited(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Queue, int], tuple[int, str]]]:
    """Return a function that sends visitors to a queue and returns the exit status and what was printed."""
    monkeypatch.setattr(load, "_LOOK", 0.02)
    servers = []

    def run(queue: Queue, count: int) -> tuple[int, str]:
        server = make_server("127.0.0.1", 0, queue, threaded=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        servers.append((server, thread))
        printed = io.StringIO()
        console = Console(file=printed, width=110)
        return load.visit(f"http://127.0.0.1:{server.port}", count, console), printed.getvalue()

    yield run
    for server, thread in servers:
        server.shutdown()
        thread.join(10)
        server.server_close()


def test_visitors_of_all_tiers_get_their_pictures(visited: Callable[[Queue, int], tuple[int, str]]) -> None:
    """Catches: visitors who are one client, a state that is not shown in a pipe, and a wrong count at the end."""
    queue = Queue()

    status, printed = visited(queue, 6)

    assert status == 0
    assert sorted(tier for tier, _ in queue.seen) == sorted(["donor", "registered", "anonymous"] * 2)
    assert len({name for _, name in queue.seen}) == 6
    assert "visitor 0   donor      completed at once" in printed
    assert "visitor 4   registered completed\n" in printed
    assert "accepted 6 of 6 (1 drawn at once, 5 in the line), completed 6, failed 0, refused 0" in " ".join(
        printed.split()
    )


@pytest.mark.parametrize(
    ("queue", "says"),
    [
        (Queue(refuse=2), "refused 1; "),
        (Queue(fail=1), "completed 2, failed 1"),
        (Queue(result=b"{}"), "failed: no picture, but status 200 and 2 bytes"),
    ],
    ids=["refused", "failed", "no-picture"],
)
def test_a_visitor_without_a_picture_makes_the_exit_status_1(
    visited: Callable[[Queue, int], tuple[int, str]], queue: Queue, says: str
) -> None:
    """Catches: success that is told without looking at the result."""
    status, printed = visited(queue, 3)

    assert status == 1
    assert says in " ".join(printed.split())


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "ftp://127.0.0.1", "nonsense"])
def test_nobody_at_the_url_is_said_once(url: str) -> None:
    """Catches: fifty tracebacks."""
    printed = io.StringIO()

    assert load.visit(url, 3, Console(file=printed, width=200)) == 2
    assert f"nobody answers at {url}" in printed.getvalue()


def test_a_pipe_gets_one_line_for_each_change_of_state() -> None:
    """Catches: the same line again and again, and a change without the reason that came with it."""
    visitor, said = Visitor(4, "registered", "queued", position=3, estimate=9.0), dict[int, str]()

    first, again = lines([visitor], said), lines([visitor], said)
    visitor.state, visitor.position, visitor.estimate, visitor.note = "failed", None, None, "The app raised."

    assert (first, again) == (["visitor 4   registered queued, position 3, about 9 s"], [])
    assert lines([visitor], said) == ["visitor 4   registered failed: The app raised."]


def test_the_table_fits_the_terminal_and_shows_the_line_in_order() -> None:
    """Catches: a table longer than the window, which a terminal cannot redraw."""
    visitors = [Visitor(n, "donor", "queued", position=50 - n, sent=1.0) for n in range(50)]
    visitors[7].state, visitors[7].position = "processing", None
    printed = io.StringIO()

    Console(file=printed, width=90).print(table(visitors, 24))

    shown = printed.getvalue()
    assert len(shown.splitlines()) <= 24
    assert shown.index("processing", shown.index("estimate")) < shown.index("queued", shown.index("estimate"))
    numbers = [int(line.split("│")[1]) for line in shown.splitlines() if re.match(r"│ \d", line)]
    assert numbers[:4] == [7, 49, 48, 47]
    assert "and " in shown


def test_the_summary_tells_the_order_of_starts_by_tier() -> None:
    """Catches: an order by number, and those who never waited taken for the first of the line."""
    visitors = [
        Visitor(0, "anonymous", "completed", at_once=True, sent=1.0, started=1.0, ended=2.0),
        Visitor(1, "anonymous", "completed", sent=1.0, started=9.0, ended=10.0),
        Visitor(2, "donor", "completed", sent=1.0, started=3.0, ended=4.0),
        Visitor(3, "donor", "completed", sent=1.0, started=4.0, ended=5.0),
        Visitor(4, "registered", "completed", sent=1.0, started=6.0, ended=8.0),
    ]
    printed = io.StringIO()

    Console(file=printed, width=110).print(summary(visitors, 9.0))

    assert "order of starts in the line: donor x 2, registered, anonymous" in printed.getvalue()


class Listener:
    """Takes the place of a run: what is said of it, and when its client goes away."""

    def __init__(self, patience: int = 10_000) -> None:
        self.said: list[tuple[float, str]] = []
        self.patience = patience
        self.run = Progress(lambda *_said: None, self._look, 1, clock=lambda: float(len(self.said)))
        self.run.report = self._report  # type: ignore[method-assign]  # it listens

    def _report(self, fraction: float, note: str = "") -> None:
        self.said.append((fraction, note))

    def _look(self) -> Ticket:
        if len(self.said) > self.patience:
            raise UnknownTicket("x")
        raise StoreUnavailable("nobody knows")


@pytest.mark.parametrize("prompt", ["fractal", "galaxy", "landscape at a lake", "silk"])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_generator_says_how_far_it_is_and_stops_when_nobody_waits(
    make: Callable[[str, int], bytes], prompt: str
) -> None:
    """Catches: a bar that stands still for the whole picture or goes back; a run of seconds that nobody wants."""
    listener = Listener()
    with current(listener.run):
        make(prompt, 1)
    fractions = [fraction for fraction, _ in listener.said]
    assert fractions == sorted(fractions)
    assert len(set(fractions)) >= 4
    assert fractions[-1] <= 1
    hasty = Listener(patience=2)
    with current(hasty.run), pytest.raises(generate.GivenUp):
        make(prompt, 1)
    assert len(hasty.said) == 3
