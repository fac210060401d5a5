"""The demo site: a Flask app that draws pictures and animations, at the eight paths of ``conf/admission.ini``.

It knows nothing of the line in front of it: ``conf/gunicorn.conf.py`` puts that there.  Each of four generators has
an address for programs, which answers with the picture itself, and one for people, which answers with a page.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flask import Flask, Response, jsonify, redirect, render_template, request, url_for
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as AnyResponse

from wsgi_admission.demo.generate import (
    ANIMATION,
    ANIMATION_SIZE,
    PICTURE,
    PICTURE_SIZE,
    GivenUp,
    Unusable,
    animation,
    picture,
    transform,
)
from wsgi_admission.demo.who import COOKIE, TIERS, tier_of

LARGEST_SEED = 2**32 - 1
LONGEST_PROMPT = 400


@dataclass(frozen=True)
class Asked:
    """What a request asks a generator for.  ``image`` is empty where none is taken."""

    prompt: str
    seed: int
    image: bytes
    strength: float


@dataclass(frozen=True)
class Generator:
    """One thing that the site makes.

    :param api: the path for programs.
    :param form: the path for people.
    :param kind: the media type of the result.
    :param size: the longer edge of the result in pixels.
    :param make: from what is asked for and a size to the result.
    """

    name: str
    title: str
    api: str
    form: str
    kind: str
    takes_image: bool
    size: int
    make: Callable[[Asked, int], bytes]


GENERATORS = (
    Generator(
        "txt2img",
        "Words to picture",
        "/api/generate",
        "/generate-txt2img-ui",
        PICTURE,
        size=PICTURE_SIZE,
        takes_image=False,
        make=lambda asked, size: picture(asked.prompt, asked.seed, size=size),
    ),
    Generator(
        "img2img",
        "Picture to picture",
        "/api/img2img",
        "/img2img",
        PICTURE,
        size=PICTURE_SIZE,
        takes_image=True,
        make=lambda asked, size: transform(asked.image, asked.prompt, asked.seed, strength=asked.strength, size=size),
    ),
    Generator(
        "txt2video",
        "Words to animation",
        "/api/text-to-video/generate",
        "/generate-text-to-video-ui",
        ANIMATION,
        size=ANIMATION_SIZE,
        takes_image=False,
        make=lambda asked, size: animation(asked.prompt, asked.seed, size=size),
    ),
    Generator(
        "img2video",
        "Picture to animation",
        "/api/img2video",
        "/img2video-ui",
        ANIMATION,
        size=ANIMATION_SIZE,
        takes_image=True,
        make=lambda asked, size: animation(asked.prompt, asked.seed, image=asked.image, size=size),
    ),
)


def create_app(*, size: int | None = None) -> Flask:
    """Return the site.

    :param size: the longer edge of everything that it draws, in pixels; None for the usual ones.
    """
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = 32 * 1024 * 1024  # the largest `max_body` of the routes
    app.jinja_env.globals.update(generators=GENERATORS, tiers=TIERS, own_tier=lambda: tier_of(request.environ)[0])
    for generator in GENERATORS:
        edge = size or generator.size
        app.add_url_rule(generator.api, f"{generator.name}-api", _api(generator, edge), methods=["POST"])
        app.add_url_rule(generator.form, generator.name, _form(generator, edge), methods=["GET", "POST"])
    app.add_url_rule("/", "index", lambda: render_template("index.html"))
    app.add_url_rule("/ping", "ping", _ping)
    app.add_url_rule("/tier", "tier", _choose_tier, methods=["POST"])
    app.register_error_handler(HTTPException, _explain)
    app.register_error_handler(GivenUp, lambda _error: _refusal(503, "Nobody waits for this any more."))
    return app


def _api(generator: Generator, size: int) -> Callable[[], AnyResponse]:
    def answer() -> AnyResponse:
        try:
            result = generator.make(_asked(generator), size)
        except Unusable as error:
            return _refusal(400, str(error))
        return Response(result, mimetype=generator.kind)

    return answer


def _form(generator: Generator, size: int) -> Callable[[], tuple[str, int]]:
    def answer() -> tuple[str, int]:
        shown, problem = "", ""
        if request.method == "POST":
            try:
                result = generator.make(_asked(generator), size)
                shown = f"data:{generator.kind};base64,{base64.b64encode(result).decode()}"
            except Unusable as error:
                problem = str(error)
        # The page stands at another address when it comes out of the line, so its links are absolute paths.
        page = render_template(
            "generator.html", generator=generator, picture=shown, problem=problem, given=request.form
        )
        return page, 400 if problem else 200

    return answer


def _asked(generator: Generator) -> Asked:
    """Read the request: JSON, or the fields of a form.

    :raises Unusable: about the first field that is wrong.
    """
    fields = _fields()
    prompt = fields.get("prompt")
    if not isinstance(prompt, str) or not 1 <= len(prompt.strip()) <= LONGEST_PROMPT:
        raise Unusable(f"prompt: expected a text of 1 to {LONGEST_PROMPT} characters")
    image = b""
    if generator.takes_image:
        upload = request.files.get("image")
        if upload is None:
            raise Unusable("image: expected a picture as the field 'image' of a multipart/form-data body")
        image = upload.read()
    return Asked(prompt, _seed(fields.get("seed")), image, _strength(fields.get("strength")))


def _fields() -> Mapping[str, object]:
    if request.mimetype != "application/json":
        return request.form
    fields = request.get_json(silent=True)
    if not isinstance(fields, dict):
        raise Unusable('body: expected a JSON object such as {"prompt": "a lake at night", "seed": 7}')
    return fields


def _seed(given: object) -> int:
    """Return the seed; without one it is 1, so that the same words give the same picture."""
    if given is None or given == "":
        return 1
    text = str(given)
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > LARGEST_SEED:
        raise Unusable(f"seed: expected a whole number from 0 to {LARGEST_SEED}, got {text:.40}")
    return int(text)


def _strength(given: object) -> float:
    if given is None or given == "":
        return 0.7
    try:
        strength = float(str(given))
    except ValueError:
        strength = -1.0
    if not 0 <= strength <= 1:
        raise Unusable(f"strength: expected a number from 0 to 1, got {given!s:.40}")
    return strength


def _ping() -> Response:
    """The cheap endpoint: it shows that the rest of the site stays quick while pictures are being drawn."""
    return jsonify(pong=True, time=time.strftime("%H:%M:%S"))


def _choose_tier() -> AnyResponse:
    tier = request.form.get("tier", "")
    if tier not in TIERS:
        return _refusal(400, f"tier: expected one of {', '.join(TIERS)}, got {tier:.40}")
    answer = redirect(url_for("index"), 303)
    answer.set_cookie(COOKIE, tier, samesite="Lax")
    return answer


def _explain(error: HTTPException) -> AnyResponse:
    """Answer in JSON where programs ask; people get Werkzeug's page."""
    if not request.path.startswith("/api/"):
        return error.get_response()
    answer = _refusal(error.code or 500, error.description or error.name)
    for name, value in error.get_headers():
        if name == "Allow":
            answer.headers[name] = value
    return answer


def _refusal(status: int, sentence: str) -> AnyResponse:
    answer = jsonify(error=sentence)
    answer.status_code = status
    return answer


app = create_app()
