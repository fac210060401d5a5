"""The scenes that the demo site can draw: silk, a fractal, a galaxy and a landscape.

A scene takes the subject, a width and height in pixels and a phase, and returns colours of shape (height, width,
3).  The phase goes from 0 to 1 and the picture at 1 is the one at 0, so that frames make a loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wsgi_admission.demo.drawing import TAU, Field, Noise, Subject, colours, grid, mix, relief, smooth


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


LAND = _words(
    "landscape mountain mountains hill hills valley sunset sunrise dawn morning evening forest trees wood mist misty "
    "fog winter autumn"
)
NIGHT = _words("night moon moonlight moonlit midnight stars dark lighthouse")
WATER = _words("lake sea ocean water river harbour harbor island beach lighthouse")


def silk(subject: Subject, width: int, height: int, phase: float) -> Field:
    """Folds of cloth: noise whose coordinates are bent by noise, twice, and lit from the side."""
    dice = subject.dice()
    noise, zoom = Noise(dice), np.float32(dice.uniform(0.32, 0.55))
    shift = dice.uniform(0, 40, 2).astype(np.float32)
    across, down = grid(width, height)
    x, y = across * zoom + shift[0], down * zoom + shift[1]
    east, south = 0.1 * math.cos(TAU * phase), 0.1 * math.sin(TAU * phase)
    a, b = noise.cloud(x + east, y + south, 2), noise.cloud(x + 5.2, y + 1.3 + east, 2)
    subject.drawn(0.25)
    c = noise.cloud(x + 1.5 * a + 1.7, y + 1.5 * b + 9.2 + south, 2)
    d = noise.cloud(x + 1.5 * a + 8.3 + east, y + 1.5 * b + 2.8, 2)
    subject.drawn(0.5)
    fold = noise.cloud(x + 2.6 * c, y + 2.6 * d, 3)
    subject.drawn(0.75)
    light = relief(fold + 0.2 * c, 0.17)
    value = 0.5 + 0.75 * fold + 0.35 * a - 0.25 * d + 0.25 * (light - 1)
    sheen = smooth(1.0, 1.5, light)[..., None]
    return mix(colours(subject.ramp, value), subject.ramp[252], 0.5 * sheen)


def fractal(subject: Subject, width: int, height: int, phase: float) -> Field:
    """A Julia set whose constant lies just outside the main cardioid; the escape gives colour, its slope light."""
    dice = subject.dice()
    turn = dice.uniform(0.15, 0.85) + 0.002 * math.cos(TAU * phase)
    edge = np.exp(1j * TAU * turn)
    constant = np.complex64((1.05 + 0.008 * math.sin(TAU * phase)) * (edge / 2 - edge * edge / 4))
    across, down = grid(width, height)
    z = ((across + 1j * down) * np.exp(1j * dice.uniform(0, TAU)) * 1.15).astype(np.complex64).ravel()
    slope = np.ones_like(z)
    count, normal = np.full(z.size, np.nan, np.float32), np.zeros(z.size, np.complex64)
    alive = np.arange(z.size)
    steps = 140
    for step in range(steps):
        subject.drawn(math.sqrt(step / steps))  # the first are the longest: most points escape soon
        slope = 2 * z * slope
        z = z * z + constant
        gone = z.real**2 + z.imag**2 > 1e4
        if gone.any():
            out, last = alive[gone], z[gone]
            count[out] = step + 1 - np.log2(np.log(np.abs(last)) / np.log(100))
            normal[out] = last * slope[gone].conj()
            z, slope, alive = z[~gone], slope[~gone], alive[~gone]
        if step % 16 == 15:  # only its direction counts, and in a hundred steps its length would overflow
            slope /= np.abs(slope) + np.float32(1e-12)
    inside = np.isnan(count)
    normal /= np.abs(normal) + np.float32(1e-12)
    light = np.asarray(np.clip((normal.real * 0.7 - normal.imag * 0.7 + 1.4) / 2.4, 0, 1), np.float32)
    low = np.float32(np.nanmin(count)) if not inside.all() else np.float32(0)
    value = np.sqrt(np.maximum(np.nan_to_num(count) - low, 0)) * np.float32(0.28)
    value = 0.5 - 0.5 * np.cos(value * np.float32(np.pi * 0.75))
    drawn = colours(subject.ramp, 0.04 + value * (0.35 + 0.65 * light))
    return np.where(inside[:, None], subject.ramp[4], drawn).reshape(height, width, 3)


def galaxy(subject: Subject, width: int, height: int, phase: float) -> Field:
    """A spiral of gas and stars, seen from a slant."""
    dice = subject.dice()
    noise, tilt, arms, sense = Noise(dice), dice.uniform(0.5, 1.0), int(dice.integers(2, 4)), int(dice.choice([-1, 1]))
    x, y = grid(width, height)
    roll = dice.uniform(0, TAU)
    x, y = x * math.cos(roll) - y * math.sin(roll), (x * math.sin(roll) + y * math.cos(roll)) / tilt
    far = np.hypot(x, y) + np.float32(1e-3)
    bend = 0.35 * noise.cloud(2 * x + 9, 2 * y + 9, 4)
    subject.drawn(0.3)
    # One whole number of arms per loop: the picture is the same again after 1 / arms of a turn.
    angle = np.arctan2(y, x) * sense + 3.2 * np.log(far + 0.12) + bend * 2 - TAU * phase / arms
    arm = (0.5 + 0.5 * np.cos(arms * angle)) ** 1.6
    dust = noise.cloud(5 * x + bend * 2, 5 * y + 3, 5)
    subject.drawn(0.7)
    subject.drawn(0.85)
    disc = np.exp(-2.4 * far * far)
    gas = disc * (0.10 + arm * (0.62 + 0.75 * dust)) + 0.45 * np.exp(-30 * far * far) + 0.2 * np.exp(-7 * far * far)
    drawn = colours(subject.ramp, 0.03 + 0.95 * gas)
    light = _stars(dice, width, height, phase, crowd=0.5 + 3 * disc * arm)
    return np.asarray(drawn + light[..., None] * mix(subject.ramp[255], drawn, 0.2), np.float32)


def _stars(dice: np.random.Generator, width: int, height: int, phase: float, *, crowd: Field | float) -> Field:
    """Return the light of stars; they twinkle, and ``crowd`` says where more of them are."""
    chance = dice.random((height, width), np.float32)
    twinkle = 0.75 + 0.25 * np.sin(TAU * (phase + dice.random((height, width), np.float32)))
    points = np.where(chance < 0.003 * crowd, dice.random((height, width), np.float32) ** 5, 0) * twinkle
    near = points[:-2, 1:-1] + points[2:, 1:-1] + points[1:-1, :-2] + points[1:-1, 2:]
    light = 1.2 * points
    light[1:-1, 1:-1] += 0.45 * near
    return np.asarray(light, np.float32)


def landscape(subject: Subject, width: int, height: int, phase: float) -> Field:
    """Hills behind hills in the haze below a sun or, where the words say so, a moon and stars; at times a lake."""
    dice = subject.dice()
    noise = Noise(dice)
    night = not subject.words.isdisjoint(NIGHT)
    x, y = grid(width, height)
    shore = 0.5 if not subject.words.isdisjoint(WATER) or dice.random() < 0.4 else 2.0
    # Below the shore every pixel shows what stands as far above it, moved by ripples that grow towards us.
    depth = np.maximum(y - np.float32(shore), 0)
    if depth.any():
        east, south = 0.4 * math.cos(TAU * phase), 0.4 * math.sin(TAU * phase)
        ripple = noise.cloud(x * 0.9 / (0.12 + depth) + east, 5 / (0.15 + depth) + south, 2)
        x, y = x + 0.12 * ripple * depth, y - 2 * depth - 0.5 * np.abs(ripple) * depth
    subject.drawn(0.1)
    view = _sky(subject, noise, x, y, phase, night=night)
    view = _hills(subject, noise, view, x, y, phase, night=night, spread=0.5 if shore < 1 else 0.82)
    water = mix(view, subject.ramp[30 if night else 70], 0.3)
    return mix(view, water, smooth(0.0, 0.01, depth)[..., None])


def _sky(subject: Subject, noise: Noise, x: Field, y: Field, phase: float, *, night: bool) -> Field:
    """Return the sky with its sun or moon, clouds that drift to and fro, and stars at night."""
    dice = np.random.default_rng(subject.key + 1)
    sun_x, sun_y = dice.uniform(-0.6, 0.6), dice.uniform(-0.55, -0.3) if night else dice.uniform(-0.3, 0.1)
    far = np.hypot(x - sun_x, y - sun_y)
    rise = 0.5 * (y + 1)
    tone = 0.07 + 0.34 * rise if night else 0.38 + 0.42 * rise
    glow = np.exp(-5 * far) * (0.22 if night else 0.42)
    sway = 0.10 * math.sin(TAU * phase)
    puff = smooth(-0.05, 0.6, noise.cloud(1.1 * x + sway, 3.2 * y, 5) + 0.15 - 0.25 * np.abs(y + 0.3))
    view = colours(subject.ramp, tone + glow + puff * ((0.10 if night else 0.16) + 0.5 * glow))
    disc = smooth(0.0, 1.0, 0.5 + (0.10 - far) * 90) * (1 - 0.35 * puff)
    view = mix(view, subject.ramp[255], disc[..., None])
    if night:
        light = _stars(dice, x.shape[1], x.shape[0], phase, crowd=1.0) * (1 - puff) * (1 - disc)
        view = view + light[..., None] * subject.ramp[250]
    return view


def _hills(
    subject: Subject, noise: Noise, view: Field, x: Field, y: Field, phase: float, *, night: bool, spread: float
) -> Field:
    """Draw the ranges over the sky, the furthest first; the nearest carry trees and sway the most."""
    dice = np.random.default_rng(subject.key + 2)
    pixel = 2 / min(x.shape)
    ranges = int(dice.integers(4, 7))
    for number in range(ranges):
        subject.drawn(0.3 + 0.7 * number / ranges)
        near = (number + 1) / ranges
        at = x * (0.75 + 0.2 * near) + dice.uniform(0, 40) + 0.05 * near * near * math.sin(TAU * phase)
        ridge = 0.5 - np.abs(noise.cloud(at * 1.3, np.full_like(at, 3.1 * number), 5 if near < 0.7 else 3))
        top = np.float32(0.02 + spread * near**1.3) - ridge * np.float32(0.62 - 0.35 * near)
        if near > 0.6:
            top = top - _trees(at, near * near * 0.09)
        below = y - top
        tone = (0.30 - 0.26 * near) if night else (0.62 - 0.56 * near)
        haze = np.exp(-3.0 * np.maximum(below, 0))
        shade = tone + (0.16 if night else 0.26) * (1 - haze) * (1 - near)
        view = mix(view, colours(subject.ramp, shade), smooth(-pixel, pixel, below)[..., None])
    return view


def _trees(at: Field, size: float) -> Field:
    """Return how high the tops of firs stand above the ground."""
    tallest = np.zeros_like(at)
    for row in range(3):
        place = at / np.float32(size) * np.float32(2.2) + np.float32(0.37 * row)
        cell = np.floor(place)
        chance = np.modf(np.abs(np.sin(cell * 12.9898 + row * 78.233) * 437.585))[0]
        wide = np.maximum(1 - 2 * np.abs(place - cell - np.float32(0.5)), 0)
        fringe = 1 + 0.25 * np.sin(wide * 40)
        tallest = np.maximum(tallest, size * (0.4 + 0.6 * chance) * wide * fringe)
    return tallest


@dataclass(frozen=True)
class Scene:
    """A way to draw.

    :param draw: from the subject, width, height and phase to colours.
    :param oversampling: how many times as wide as shown it should be drawn, for the fineness of its edges.
    :param words: those that ask for it.
    """

    draw: Callable[[Subject, int, int, float], Field]
    oversampling: float
    words: frozenset[str]


SCENES = (
    Scene(fractal, 3.5, _words("fractal dragon coral crystal snowflake fern flower dream lightning magic")),
    Scene(galaxy, 2.5, _words("galaxy space nebula universe cosmos cosmic star planet spiral sky rocket")),
    Scene(landscape, 1.4, LAND | NIGHT | WATER),
    Scene(silk, 2.2, _words("silk smoke marble fire cloth satin liquid abstract flow metal glass wind music")),
)


def scene(subject: Subject) -> Scene:
    """Return the scene that most of the subject's words ask for; where none does, one is drawn by lot."""
    asked = [len(candidate.words & subject.words) for candidate in SCENES]
    if not any(asked):
        return SCENES[subject.key % len(SCENES)]
    return SCENES[asked.index(max(asked))]
