"""Draw the picture of the README: one transformer block, dense and pruned in either token variant.

The picture is made of shapes and text only, so the same script always gives the same file.

Usage: python docs/figures/draw_method.py [--output docs/figures/method.svg]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

DEFAULT = Path(__file__).with_name("method.svg")

WIDTH, HEIGHT = 830, 446
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
# Okabe and Ito's colours, which stay apart with any colour vision, on a light card for light and dark pages.
INK, MUTED, GONE, LINE, CARD = "#1f2328", "#59636e", "#8c959f", "#c9d1d9", "#ffffff"
PATCH, CLASS, CROSS = "#0072b2", "#e69f00", "#d55e00"

ROWS, COLUMNS = 4, 3
REMOVED = (0, 2, 9, 11)  # the corners: nothing of the person is there
KEPT = tuple(patch for patch in range(ROWS * COLUMNS) if patch not in REMOVED)
TOKENS = ROWS * COLUMNS + 1  # token 0 is the class token
ALL = tuple(range(TOKENS))
LEFT = (0, *(patch + 1 for patch in KEPT))

CELL = 14.0  # step from token to token in a row
HEADS, LOST_HEAD = 4, 2
PIXEL = 3  # side of a cell in an attention map
LEVELS = 6  # shades of attention
LANES = (178.0, 400.0, 622.0)
LABELS = {"in": 98, "queries": 144, "keys": 172, "maps": 200, "mlp": 264, "out": 318}


def text(x: float, y: float, words: str, size: float = 12, fill: str = INK, weight: int = 400, anchor: str = "") -> str:
    """A line of text."""
    where = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" font-weight="{weight}" fill="{fill}"{where}>{words}</text>'


def box(x: float, y: float, width: float, height: float, fill: str, more: str = "") -> str:
    """A rectangle with slightly rounded corners."""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="2" fill="{fill}"{more}/>'


def code(words: str) -> str:
    """A name of the configuration within a text."""
    return f"<tspan font-family=\"ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace\">{words}</tspan>"


def token(x: float, y: float, number: int, present: bool = True, size: float = 11) -> str:
    """A token: the class token, a patch token, or the dashed place of one that is missing."""
    if not present:
        return box(x + 0.5, y + 0.5, size - 1, size - 1, "none", f' stroke="{GONE}" stroke-dasharray="2 2"')
    return box(x, y, size, size, PATCH if number else CLASS)


def row(x: float, y: float, present: Sequence[int]) -> list[str]:
    """All tokens side by side; those that are not present are dashed."""
    return [token(x + CELL * number, y, number, number in present) for number in ALL]


def attention(head: int, query: int, key: int) -> float:
    """Made-up attention in [0, 1]: the lost head looks everywhere equally, no head looks at the corners."""
    if head == LOST_HEAD:
        return 0.5
    if key - 1 in REMOVED:
        return 0.1
    focus = (key == 0, (key - 1) % COLUMNS == 1, abs(query - key) < 2, key in (5, 6, 7))[(head + (query == 0)) % 4]
    return (0.78 if focus else 0.2) + 0.16 * math.sin(1.7 * query + 2.3 * key + head)


def attention_map(x: float, y: float, head: int, queries: Sequence[int], keys: Sequence[int]) -> list[str]:
    """A head's map, a row per query and a column per key; cells of one shade are one path."""
    shades: dict[int, str] = {}
    for i, query in enumerate(queries):
        for j, key in enumerate(keys):
            shade = round(attention(head, query, key) * LEVELS)
            shades[shade] = shades.get(shade, "") + f"M{j * PIXEL} {i * PIXEL}h{PIXEL}v{PIXEL}h-{PIXEL}z"
    cells = "".join(f'<path fill-opacity="{shade / LEVELS:.2f}" d="{d}"/>' for shade, d in sorted(shades.items()))
    return [f'<g transform="translate({x:g} {y:g})" fill="{PATCH}" shape-rendering="crispEdges">{cells}</g>']


def maps(x: float, y: float, queries: Sequence[int], keys: Sequence[int], heads: Sequence[int]) -> list[str]:
    """The attention maps of a block, one per head, in a frame of the dense size where something is missing."""
    drawn, size = [], TOKENS * PIXEL
    for head in range(HEADS):
        left = x + (size + 8) * head
        if head not in heads or len(queries) * len(keys) < TOKENS**2:
            drawn += [box(left, y, size, size, "none", f' stroke="{GONE}" stroke-dasharray="3 2"')]
        if head in heads:
            drawn += attention_map(left, y, head, queries, keys)
        else:
            near, far = 12, size - 12
            drawn += [
                f'<path d="M{left + near:g} {y + near:g}L{left + far:g} {y + far:g}M{left + far:g} {y + near:g}'
                f'L{left + near:g} {y + far:g}" stroke="{CROSS}" stroke-width="3" stroke-linecap="round"/>'
            ]
    return drawn


def lane(
    x: float,
    title: str,
    words: Sequence[str],
    queries: Sequence[int],
    keys: Sequence[int],
    heads: Sequence[int],
    cost: str,
) -> list[str]:
    """One block from the tokens that enter it to those that leave it."""
    middle = x + CELL * TOKENS / 2 - 1.5
    right = x + CELL * TOKENS + 3
    drawn = [text(x, 38, title, 15, weight=600)]
    drawn += [text(x, 57 + 16 * line, sentence, 12, MUTED) for line, sentence in enumerate(words)]
    drawn += [box(x - 10, 128, CELL * TOKENS + 17, 162, "#f6f8fa", f' stroke="{LINE}"')]
    drawn += [
        f'<path d="M{middle:g} {a}L{middle:g} {b}" stroke="{MUTED}" marker-end="url(#arrow)"/>'
        for a, b in ((112, 123), (246, 257), (290, 312))
    ]
    drawn += row(x, LABELS["in"], ALL) + row(x, LABELS["queries"], queries) + row(x, LABELS["keys"], keys)
    drawn += maps(x, LABELS["maps"], queries, keys, heads)
    drawn += row(x, LABELS["mlp"], queries) + row(x, LABELS["out"], ALL)
    if len(queries) < TOKENS:  # around the block
        drawn += [
            f'<path d="M{right - 2:g} 104H{right + 9:g}V324H{right + 2:g}" fill="none" stroke="{CROSS}" '
            'stroke-width="1.6" stroke-dasharray="4 3" marker-end="url(#around)"/>'
        ]
    return [*drawn, text(x, 358, cost, 14, weight=600)]


def person(x: float, y: float, size: float) -> list[str]:
    """The image: a figure on a grid of patches; the patches that AMG removes are hatched out."""
    wide, high = COLUMNS * size, ROWS * size
    drawn = [box(x, y, wide, high, "#dbe9f4")]
    drawn += [f'<circle cx="{x + wide / 2:g}" cy="{y + 17:g}" r="11" fill="#8c5a3c"/>']
    drawn += [box(x + wide / 2 - 17, y + 29, 34, 44, "#cc79a7", ' ry="8"')]
    drawn += [
        box(x + wide / 2 - 14, y + 71, 12, high - 75, "#44546a"),
        box(x + wide / 2 + 2, y + 71, 12, high - 75, "#44546a"),
    ]
    for patch in REMOVED:
        left, top = x + size * (patch % COLUMNS), y + size * (patch // COLUMNS)
        drawn += [box(left, top, size, size, CARD, ' fill-opacity="0.85"')]
    grid = "".join(f"M{x + size * i:g} {y:g}v{high:g}" for i in range(1, COLUMNS))
    grid += "".join(f"M{x:g} {y + size * i:g}h{wide:g}" for i in range(1, ROWS))
    drawn += [f'<path d="{grid}" stroke="{CARD}" stroke-width="2"/>']
    for patch in REMOVED:
        left, top = x + size * (patch % COLUMNS), y + size * (patch // COLUMNS)
        drawn += [box(left + 2, top + 2, size - 4, size - 4, "none", f' stroke="{MUTED}" stroke-dasharray="2 2"')]
    return drawn


def picture() -> str:
    """The whole picture as SVG."""
    heads = tuple(range(HEADS))
    fewer = tuple(head for head in heads if head != LOST_HEAD)
    drawn = [box(0.5, 0.5, WIDTH - 1, HEIGHT - 1, CARD, f' stroke="{LINE}"')]
    drawn += person(22, 20, 28)
    drawn += [f'<path d="M111 104H169" stroke="{MUTED}" marker-end="url(#arrow)"/>']  # patches become tokens
    names = {"queries": ["queries"], "keys": ["keys, values"], "maps": ["attention,", "a map per head"], "mlp": ["MLP"]}
    for key, lines in {**names, "out": ["tokens out"]}.items():
        first = LABELS[key] + (16 if len(lines) > 1 else 10)
        drawn += [text(LANES[0] - 22, first + 15 * i, words, anchor="end") for i, words in enumerate(lines)]
    drawn += [text(LANES[0] - 22, 358, "MACs", anchor="end")]
    drawn += lane(LANES[0], "dense", ("all heads,", "all tokens"), ALL, ALL, heads, "2.93 G")
    words = ("a head is cut out;", "removed tokens go around")
    drawn += lane(LANES[1], f"pruned, {code('block')}", words, LEFT, LEFT, fewer, "2.01 G (-32 %)")
    words = ("a head is cut out; removed", "tokens lose key and value")
    drawn += lane(LANES[2], f"pruned, {code('kv')}", words, ALL, LEFT, fewer, "2.56 G (-13 %)")
    drawn += [f'<path d="M22 374H{WIDTH - 22}" stroke="{LINE}"/>']
    drawn += [token(24, 388, 0), text(41, 398, "class token, never removed")]
    drawn += [token(236, 388, 1), text(253, 398, "patch token")]
    drawn += [token(362, 388, 1, False), text(379, 398, "removed token")]
    drawn += [text(502, 398, "\u00d7", 18, CROSS, 700), text(519, 398, "removed head: its attention was spread evenly")]
    condition = "MACs of ViT-S/16 at 256x128; pruned: 25 % of all heads and of all tokens, the same for every image."
    drawn += [text(24, 426, condition, 12, MUTED)]
    markers = "".join(
        f'<marker id="{name}" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{fill}"/></marker>'
        for name, fill in (("arrow", MUTED), ("around", CROSS))
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" font-family="{FONT}">'
    )
    title = "<title>A transformer block, dense, pruned in the variant block and pruned in the variant kv</title>"
    return "\n".join([head, title, f"<defs>{markers}</defs>", *drawn, "</svg>"]) + "\n"


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DEFAULT, help="SVG file to write")
    parser.parse_args().output.write_text(picture(), encoding="utf-8")


if __name__ == "__main__":
    main()
