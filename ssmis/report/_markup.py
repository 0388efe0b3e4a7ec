# SPDX-License-Identifier: Apache-2.0
"""HTML and SVG that are escaped by construction, and pictures inside of them."""

import base64
import struct
import zlib
from html import escape

import numpy as np
import numpy.typing as npt

VOID = frozenset({"meta", "br"})


class Markup(str):
    """Text that is markup already; every other text is escaped when an `element` takes it in."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """Return `<tag ...>children</tag>`.

    Args:
        tag: name of the element.
        children: a `Markup` goes in as it is, any other text is escaped.
        attributes: `class_` is written `class`, other underscores become hyphens; None leaves one out.

    >>> element("p", "a < b", element("b", "c"), class_='"x"')
    '<p class="&quot;x&quot;">a &lt; b<b>c</b></p>'
    """
    names = {name: name.rstrip("_").replace("_", "-") for name in attributes}
    written = "".join(f' {names[name]}="{escape(str(v))}"' for name, v in attributes.items() if v is not None)
    inside = "".join(child if isinstance(child, Markup) else escape(child) for child in children)
    return Markup(f"<{tag}{written}>" if tag in VOID else f"<{tag}{written}>{inside}</{tag}>")


def png_uri(pixels: npt.NDArray[np.uint8], palette: npt.NDArray[np.uint8] | None = None) -> str:
    """Return a data URI of a PNG.

    Args:
        pixels: `(H, W)`, grey values, or indices into the palette.
        palette: `(256, 3)`, RGB.
    """
    height, width = pixels.shape
    rows = np.pad(pixels, ((0, 0), (1, 0)))  # each line begins with its filter: none
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0 if palette is None else 3, 0, 0, 0))]
    if palette is not None:
        parts.append((b"PLTE", palette.tobytes()))
    parts += [(b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")]
    file = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return "data:image/png;base64," + base64.b64encode(file).decode()
