"""A matplotlib figure as SVG inside a page: colours from CSS variables, hover texts, ids of its own, few bytes."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET

from matplotlib.artist import Artist
from matplotlib.figure import Figure

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_TIP = "tip:"  # matplotlib writes an artist's gid as the id of its group; ours carry the hover text to here
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_COLOUR = re.compile(r"#[0-9a-f]{6}\b", re.IGNORECASE)
_FONT = re.compile(r"font-family:[^;]*;?\s*")

ET.register_namespace("", SVG)
ET.register_namespace("xlink", XLINK)


def tip(artist: Artist, text: str) -> None:
    """Let ``artist`` say ``text`` when somebody points at it."""
    artist.set_gid(_TIP + text)


def to_svg(figure: Figure, label: str, prefix: str = "", variables: dict[str, str] | None = None) -> str:
    """The figure as one ``<svg>`` element.

    Args:
        label: what it shows, for those who do not see it (``aria-label``).
        prefix: goes before every id, so that many figures fit one document.
        variables: colour (``#rrggbb``, lower case) -> CSS variable that stands for it, the colour as its fallback.
            None: colours stay as they are, for a file of its own.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=variables is not None)
    root = ET.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    used = _referenced(root)
    for element in root.iter():
        found = element.attrib.pop("id", None)
        if found is not None and found.startswith(_TIP):
            title = ET.Element(f"{{{SVG}}}title")
            title.text = found.removeprefix(_TIP)
            element.insert(0, title)
            element.set("class", "tip")
        elif found in used:
            element.set("id", prefix + found)
        _trim(element, prefix, variables)
    root.attrib |= {"role": "img", "aria-label": label, "stroke-linejoin": "round", "stroke-linecap": "butt"}
    if variables is not None:
        root.attrib.pop("height", None)  # the viewBox keeps the proportions
        root.attrib.pop("width", None)
    return re.sub(r">\s*\n\s*<", "><", ET.tostring(root, encoding="unicode"))


def _referenced(root: ET.Element) -> set[str]:
    used: set[str] = set()
    for element in root.iter():
        for name, value in element.attrib.items():
            used.update(_REFERENCE.findall(value))
            if name.endswith("href") and value.startswith("#"):
                used.add(value[1:])
    return used


def _trim(element: ET.Element, prefix: str, variables: dict[str, str] | None) -> None:
    for name, value in list(element.attrib.items()):
        if name.endswith("href") and value.startswith("#"):
            element.set(name, f"#{prefix}{value[1:]}")
            continue
        text = _REFERENCE.sub(lambda m: f"url(#{prefix}{m[1]})", value)
        if name in ("d", "points", "x", "y", "transform", "width", "height"):
            text = _NUMBER.sub(lambda m: f"{float(m[0]):.2f}", text)
        if name == "style" and variables is not None:
            text = _FONT.sub("", text)
            text = _COLOUR.sub(lambda m: _variable(m[0].lower(), variables), text)
        element.set(name, text)


def _variable(colour: str, variables: dict[str, str]) -> str:
    return f"var(--{variables[colour]},{colour})" if colour in variables else colour
