"""What the demo site makes: pictures from words, pictures from pictures, and short animations.

Nothing here is learned or fetched: numpy draws (see `scenes`), Pillow reads and writes.  The same arguments give the
same bytes, and each call takes one core for about one to three seconds at the sizes that are the default.
"""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
from PIL import Image, ImageOps

from wsgi_admission import cancelled, progress
from wsgi_admission.demo.drawing import TAU, Field, Noise, Subject, colours, grid, mix, relief, subject
from wsgi_admission.demo.scenes import scene

PICTURE, ANIMATION = "image/png", "image/webp"
PICTURE_SIZE, ANIMATION_SIZE = 512, 256
MOST_PIXELS = 24_000_000  # unpacked that is 72 MB; a few dozen KB of PNG can claim a thousand times as much
_TOO_LARGE = f"image: too many pixels; at most {MOST_PIXELS:,} are taken"
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_FRAMES, _FRAME_MS = 20, 80
_FINER = 1.75  # how many times as wide as shown an uploaded image is worked on


class Unusable(ValueError):
    """What was sent cannot be used; its one sentence says what was expected, and can be shown."""


class GivenUp(Exception):
    """Nobody waits for what is being drawn any more."""


def picture(prompt: str, seed: int, *, size: int = PICTURE_SIZE) -> bytes:
    """Draw what the prompt says, as far as it names a scene and colours; return a square PNG.

    :param size: the edge in pixels.
    """
    about = replace(subject(prompt, seed), drawn=lambda fraction: _tell(0.9 * fraction, "drawing"))
    drawn = scene(about)
    fine = round(size * drawn.oversampling)
    view = drawn.draw(about, fine, fine, 0.0)
    _tell(0.9, "packing")
    return _png(_shrink(_image(view), size))


def transform(image: bytes, prompt: str, seed: int, *, strength: float = 0.7, size: int = PICTURE_SIZE) -> bytes:
    """Paint the image over with a brush that follows its forms, in the colours of the prompt; return a PNG.

    :param strength: 0 keeps the image, 1 leaves only its light and dark.
    :param size: the longer edge of the result in pixels.
    :raises Unusable: the image cannot be read, or the strength is not in 0 to 1.
    """
    if not 0 <= strength <= 1:
        raise Unusable(f"strength: expected a number from 0 to 1, got {strength:g}")
    about = subject(prompt, seed)
    source = _read(image, round(size * _FINER))
    painted, bristles = _brush(source, Noise(about.dice()), about.dice())
    _tell(0.8, "colouring")
    grey = _grey(painted)
    dark, light = np.percentile(grey, (1, 99)).tolist()
    tinted = colours(about.ramp, 0.06 + 0.88 * (grey - dark) / max(light - dark, 0.1))
    canvas = mix(painted, tinted, 0.7) * relief(bristles, 0.008).clip(0.6, 1.35)[..., None]
    return _png(_shrink(_image(mix(source, canvas, strength)), size))


def animation(prompt: str, seed: int, *, image: bytes | None = None, size: int = ANIMATION_SIZE) -> bytes:
    """Draw a short loop, of the prompt or of an image that begins to move; return an animated WebP.

    :param size: the longer edge in pixels.
    :raises Unusable: the image cannot be read.
    """
    about = subject(prompt, seed)
    source = None if image is None else _read(image, round(size * _FINER))
    drawn = scene(about)
    fine = round(size * math.sqrt(drawn.oversampling))  # less than for a picture: motion hides the rest
    frames = []
    for number in range(_FRAMES):
        _tell(0.9 * number / _FRAMES, f"frame {number + 1} of {_FRAMES}")
        phase = number / _FRAMES
        view = drawn.draw(about, fine, fine, phase) if source is None else _sway(source, about, phase)
        frames.append(_shrink(_image(view), size))
    _tell(0.9, "packing")
    written = io.BytesIO()
    frames[0].save(
        written, "WEBP", save_all=True, append_images=frames[1:], duration=_FRAME_MS, loop=0, quality=82, method=3
    )
    return written.getvalue()


def _brush(source: Field, noise: Noise, dice: np.random.Generator) -> tuple[Field, Field]:
    """Smear the image, and a grain of its own for the bristles, along lines around its forms."""
    height, width = source.shape[:2]
    x, y = grid(width, height)
    blurred = np.asarray(_image(source).resize((max(width // 12, 2), max(height // 12, 2)), Image.Resampling.BOX))
    soft = Image.fromarray(blurred).resize((width, height), Image.Resampling.BICUBIC)
    down, across = np.gradient(_grey(_field(soft)) * min(width, height) / 6)
    angle = TAU * noise.cloud(1.3 * x, 1.3 * y, 2)
    east, south = -down + 0.35 * np.cos(angle), across + 0.35 * np.sin(angle)
    length = np.hypot(east, south) + np.float32(1e-6)
    east, south = (east / length).astype(np.float32), (south / length).astype(np.float32)
    grain = dice.random((height, width), np.float32)
    paint, bristles = source.copy(), grain.copy()
    strokes = 9
    for sense in (-1, 1):
        column, row = (axis.astype(np.float32) for axis in np.meshgrid(np.arange(width), np.arange(height)))
        i, j = row.astype(np.intp), column.astype(np.intp)
        for stroke in range(strokes):
            _tell(0.1 + 0.35 * (stroke / strokes + (sense + 1) / 2), "painting over")
            column += sense * east[i, j]
            row += sense * south[i, j]
            i, j = row.round().astype(np.intp).clip(0, height - 1), column.round().astype(np.intp).clip(0, width - 1)
            paint += source[i, j]
            bristles += grain[i, j]
    return paint / np.float32(2 * strokes + 1), bristles / np.float32(2 * strokes + 1)


def _sway(source: Field, about: Subject, phase: float) -> Field:
    """Return the image as if seen through slow water, while the prompt's colours come and go."""
    height, width = source.shape[:2]
    noise = Noise(about.dice())
    x, y = grid(width, height)
    east, south = 0.35 * math.cos(TAU * phase), 0.35 * math.sin(TAU * phase)
    lift, drift = noise.cloud(1.2 * x + east, 1.2 * y + south, 2), noise.cloud(1.2 * x + south + 9, 1.2 * y + east, 2)
    zoom = 0.94 - 0.04 * math.cos(TAU * phase)
    half = min(width, height) / 2
    row = ((y * zoom + 0.07 * lift) * half + height / 2).astype(np.intp).clip(0, height - 1)
    column = ((x * zoom + 0.07 * drift) * half + width / 2).astype(np.intp).clip(0, width - 1)
    moved = source[row, column]
    tinted = colours(about.ramp, _grey(moved))
    lit = mix(moved, tinted, 0.3 - 0.3 * math.cos(TAU * phase)) * relief(lift, 0.05).clip(0.8, 1.25)[..., None]
    return np.asarray(lit, np.float32)


def _tell(fraction: float, note: str) -> None:
    """Say how far it is, or end it if nobody waits for it."""
    progress(fraction, note)
    if cancelled():
        raise GivenUp


def _read(data: bytes, size: int) -> Field:
    """Return the image with its longer edge at ``size`` pixels, as colours.

    :raises Unusable: it cannot be read, or is too large.
    """
    try:
        # The size stands in the header: it is looked at before a pixel is unpacked.
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            _check_size(opened)
            upright = ImageOps.exif_transpose(opened).convert("RGB")
    except Unusable:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as bomb:
        raise Unusable(_TOO_LARGE) from bomb
    except Exception as broken:  # Pillow raises a dozen kinds at damaged files
        got = "" if data else ", got an empty file"
        raise Unusable(f"image: expected a whole picture ({', '.join(FORMATS)}){got}") from broken
    return _field(_shrink(upright, size))


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MOST_PIXELS:
        raise Unusable(_TOO_LARGE)


def _shrink(image: Image.Image, size: int) -> Image.Image:
    """Return the image with its longer edge at ``size`` pixels, and its shorter one at 2 at least."""
    scale = size / max(image.size)
    edges = (max(round(image.width * scale), 2), max(round(image.height * scale), 2))
    return image.resize(edges, Image.Resampling.LANCZOS)


def _grey(view: Field) -> Field:
    return np.asarray(0.2126 * view[..., 0] + 0.7152 * view[..., 1] + 0.0722 * view[..., 2], np.float32)


def _field(image: Image.Image) -> Field:
    return np.asarray(image, np.float32) / np.float32(255)


def _image(view: Field) -> Image.Image:
    return Image.fromarray((view.clip(0, 1) * 255 + 0.5).astype(np.uint8))


def _png(image: Image.Image) -> bytes:
    written = io.BytesIO()
    image.save(written, "PNG")
    return written.getvalue()
