"""The accent of our pages, made lighter or darker until it can be read (WCAG 2.2, success criterion 1.4.3)."""

from __future__ import annotations

from collections.abc import Mapping

#: Of the backgrounds in ``queue.css`` those that leave the least contrast, light and dark.
PAPER = {"light": "#f4f5f8", "dark": "#1a1c23"}
#: The least contrast of a text against its background.
READABLE = 4.6


def shades(colour: str) -> Mapping[str, tuple[str, str]]:
    """Return for ``light`` and ``dark`` the colour as it can be read there, and what can be read on it.

    :param colour: ``#rrggbb``, as are the results.
    """
    found = {}
    for scheme, paper in PAPER.items():
        towards = "#000000" if scheme == "light" else "#ffffff"
        shade = next(
            mixed
            for mixed in (_mix(colour, towards, step / 20) for step in range(21))
            if contrast(mixed, paper) >= READABLE
        )
        found[scheme] = (shade, max(("#ffffff", "#111318"), key=lambda ink: contrast(ink, shade)))
    return found


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _channels(colour: str) -> list[int]:
    return [int(colour[start : start + 2], 16) for start in (1, 3, 5)]


def _mix(colour: str, towards: str, share: float) -> str:
    pairs = zip(_channels(colour), _channels(towards), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def _luminance(colour: str) -> float:
    parts = [channel / 255 for channel in _channels(colour)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
