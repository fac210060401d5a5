"""What the pictures of the demo site are made of: seeds, noise, colour ramps and light.

Only elementwise numpy is used: no matrix product, so no thread pool of a BLAS, and one generation keeps exactly
one core busy.  Coordinates and colours are float32 arrays; colours are sRGB, 0 to 1, with a last axis of 3.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Field: TypeAlias = NDArray[Any]  # float32 throughout: half the memory traffic of float64

TAU = 2 * np.pi
_LATTICE = 64  # the noise repeats after so many cells, far outside every picture
_HUES = {
    "red": 25,
    "crimson": 15,
    "fire": 40,
    "orange": 55,
    "autumn": 60,
    "amber": 75,
    "gold": 90,
    "golden": 90,
    "yellow": 100,
    "spring": 125,
    "green": 145,
    "forest": 150,
    "emerald": 160,
    "teal": 190,
    "turquoise": 195,
    "sea": 220,
    "ocean": 230,
    "ice": 235,
    "winter": 245,
    "blue": 260,
    "indigo": 280,
    "violet": 300,
    "purple": 305,
    "magenta": 330,
    "pink": 350,
    "rose": 0,
}  # fmt: skip - a table; degrees in OKLCH


@dataclass(frozen=True)
class Subject:
    """What a picture is about, and who is told how much of it is drawn.

    :param words: the words of the prompt, in lower case.
    :param key: a number that only the prompt and the seed decide; every random choice starts from it.
    :param ramp: 256 colours from dark to light, shape (256, 3).
    :param drawn: called while it is drawn, with 0 to 1; what it raises ends the drawing.
    """

    words: frozenset[str]
    key: int
    ramp: Field
    drawn: Callable[[float], None] = lambda _fraction: None

    def dice(self) -> np.random.Generator:
        """Return the random numbers of this picture, from their beginning."""
        return np.random.default_rng(self.key)


def subject(prompt: str, seed: int) -> Subject:
    """Read the prompt: its words choose colours, everything else follows from its hash and the seed."""
    text = " ".join(prompt.lower().split())
    key = int.from_bytes(hashlib.sha256(f"{seed}\n{text}".encode("utf-8", "replace")).digest()[:8], "big")
    words = re.findall(r"\w+", text)
    dice = np.random.default_rng(key ^ 0xC0105)
    named = [_HUES[word] for word in words if word in _HUES]
    hue = float(named[0]) if named else dice.uniform(0, 360)
    if len(named) > 1:  # from the first to the second, the short way round
        turn = (named[1] - hue + 180) % 360 - 180
    else:  # the one hue stands in the middle, with its neighbours towards the dark and the light
        turn = float(dice.choice([-1, 1]) * dice.uniform(70, 170))
        hue -= turn / 2
    return Subject(frozenset(words), key, _ramp(hue, turn, float(dice.uniform(0.11, 0.16))))


def _ramp(hue: float, turn: float, chroma: float) -> Field:
    """Return 256 colours of even lightness steps (OKLCH, Björn Ottosson's constants), as sRGB."""
    step = np.linspace(0, 1, 256)
    light = 0.10 + 0.88 * step**0.9
    strength = chroma * np.sin(np.pi * (0.12 + 0.82 * step)) ** 0.8
    angle = np.radians(hue + turn * step)
    a, b = strength * np.cos(angle), strength * np.sin(angle)
    long = (light + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (light - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (light - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = np.stack(
        [
            4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short,
        ],
        axis=-1,
    ).clip(0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(srgb, np.float32)


def colours(ramp: Field, value: Field) -> Field:
    """Look up values (0 to 1, others are clipped) in the ramp, between its entries too."""
    place = np.clip(value, 0, 1) * 254.999
    low = place.astype(np.int32)
    part = (place - low).astype(np.float32)[..., None]
    return mix(ramp[low], ramp[low + 1], part)


def mix(first: Field, second: Field, part: Field | float) -> Field:
    """Return the way from ``first`` to ``second`` at ``part`` (0 to 1)."""
    return np.asarray(first + (second - first) * part, np.float32)


def smooth(low: float, high: float, value: Field) -> Field:
    """Return 0 below ``low``, 1 above ``high`` and a soft step between."""
    part = np.clip((value - low) / (high - low), 0, 1)
    return np.asarray(part * part * (3 - 2 * part), np.float32)


def grid(width: int, height: int) -> tuple[Field, Field]:
    """Return x and y of every pixel's middle: the shorter edge goes from -1 to 1, y points down."""
    scale = 2 / min(width, height)
    x = ((np.arange(width, dtype=np.float32) + 0.5) - width / 2) * scale
    y = ((np.arange(height, dtype=np.float32) + 0.5) - height / 2) * scale
    across, down = np.meshgrid(x, y)
    return across.astype(np.float32), down.astype(np.float32)


class Noise:
    """Gradient noise over the plane: smooth, about -1 to 1, and fixed by the dice that it is made with."""

    def __init__(self, dice: np.random.Generator) -> None:
        angle = dice.uniform(0, TAU, _LATTICE * _LATTICE)
        self._east = np.cos(angle).astype(np.float32)
        self._south = np.sin(angle).astype(np.float32)

    def at(self, x: Field, y: Field) -> Field:
        """Return the noise at every point."""
        left, top = np.floor(x), np.floor(y)
        u, v = x - left, y - top
        column, row = left.astype(np.int32) % _LATTICE, top.astype(np.int32) % _LATTICE
        right, below = (column + 1) % _LATTICE, (row + 1) % _LATTICE * _LATTICE
        row *= _LATTICE
        s, t = (u * u * u * (u * (u * 6 - 15) + 10) for u in (u, v))
        first = mix(self._corner(row + column, u, v), self._corner(row + right, u - 1, v), s)
        second = mix(self._corner(below + column, u, v - 1), self._corner(below + right, u - 1, v - 1), s)
        return mix(first, second, t) * np.float32(1.5)

    def _corner(self, index: NDArray[np.int32], u: Field, v: Field) -> Field:
        return np.asarray(self._east.take(index) * u + self._south.take(index) * v, np.float32)

    def cloud(self, x: Field, y: Field, octaves: int) -> Field:
        """Return fractal noise: each octave is twice as fine and half as strong, and turned to hide the lattice."""
        total, strength = np.zeros_like(x), np.float32(0.55)
        for _ in range(octaves):
            total += strength * self.at(x, y)
            x, y = 1.6 * x + 1.2 * y + np.float32(7.3), 1.6 * y - 1.2 * x + np.float32(3.1)
            strength *= np.float32(0.5)
        return total


def relief(height: Field, depth: float) -> Field:
    """Return how much light from the upper left falls on a surface of this height; 1 where it is flat."""
    down, across = np.gradient(height)
    steep = depth * min(height.shape)
    x, y = across * steep, down * steep
    return np.asarray((1 + 0.7 * (x + y)) / np.sqrt(1 + x * x + y * y), np.float32)
