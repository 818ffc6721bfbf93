"""Charts as text: bars for a terminal; bars, curves and heat maps as SVG. No package is needed."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from polyfuse.errors import printable

INK, SOFT, LINE = "#1b2430", "#66717f", "#d9dee5"
COLOURS = ("#2563a8", "#0f8a5f", "#c2410c", "#7a8aa0")
_FULL, _PARTS = "█", " ▏▎▍▌▋▊▉"
_HEAT = ((245, 248, 252), (15, 76, 138))  # of nothing, and of the most
_DARK = 0.55  # from which text on a cell is white
_TITLE = 30  # pixels above a panel, for its title


class Panel(NamedTuple):
    """Where a chart stands in its picture, in pixels; its title is above that.

    Attributes:
        left: of the frame.
        top: of the frame.
        width: of the frame.
        height: of the frame.
    """

    left: float
    top: float
    width: float
    height: float


def text_bars(values: Sequence[float], *, width: int = 40) -> list[str]:
    """Return a bar of text a value, to an eighth of a character.

    Args:
        values: 0 or more.
        width: characters of the largest.

    Example:
        >>> text_bars([1, 2, 0], width=4)
        ['██', '████', '']
    """
    most = max(values, default=0)
    eighths = [round(8 * width * value / most) if most > 0 else 0 for value in values]
    return [(_FULL * (n // 8) + _PARTS[n % 8]).rstrip() for n in eighths]


def picture(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """Return an SVG document, on white.

    Example:
        >>> picture(10, 10, "a < b", []).splitlines()[1]
        '<title>a &lt; b</title>'
    """
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-size="14" '
        f'font-family="Helvetica, Arial, sans-serif" fill="{INK}" role="img">'
    )
    ground = f'<rect width="{width}" height="{height}" fill="white"/>'
    return "\n".join([head, f"<title>{_safe(title)}</title>", ground, *parts, "</svg>", ""])


def legend(names: Sequence[str], left: float, top: float) -> list[str]:
    """Return a line of coloured names.

    Example:
        >>> len(legend(["train", "val"], 0, 0))
        4
    """
    parts = []
    for number, name in enumerate(names):
        parts.append(
            f'<rect x="{left:g}" y="{top - 10:g}" width="12" height="12" {_fill(number)}/>'
        )
        parts.append(text(left + 18, top, name))
        left += 36 + 8 * len(name)
    return parts


def bars(
    at: Panel, title: str, series: Mapping[str, Sequence[float]], labels: Sequence[str]
) -> list[str]:
    """Return groups of bars, one bar a series in each group.

    Args:
        at: where.
        title: of the chart.
        series: by name, one share from 0 to 1 a group.
        labels: of the groups.

    Example:
        >>> sum("<rect" in part for part in bars(Panel(0, 0, 90, 90), "", {"a": [0.5]}, ["1"]))
        1
    """
    most = _round_up(max((value for values in series.values() for value in values), default=0))
    parts = [*_heading(at, title), *_shares(at, most)]
    step = at.width / max(1, len(labels))
    wide = 0.8 * step / max(1, len(series))
    for place, label in enumerate(labels):
        middle = at.left + step * (place + 0.5)
        parts.append(text(middle, at.top + at.height + 18, label, "middle"))
        for number, values in enumerate(series.values()):
            high = at.height * values[place] / most
            x = at.left + step * (place + 0.1) + wide * number
            y = at.top + at.height - high
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{high:.1f}" '
                f"{_fill(number)}/>"
            )
    return parts


def curves(
    at: Panel,
    title: str,
    series: Mapping[str, Sequence[float]],
    ticks: Sequence[tuple[float, str]],
) -> list[str]:
    """Return a stepped outline a series, of shares in bins that are equally wide.

    Args:
        at: where.
        title: of the chart.
        series: by name, one share from 0 to 1 a bin.
        ticks: places along the axis, from 0 to 1, and what stands there.

    Example:
        >>> sum("<path" in part for part in curves(Panel(0, 0, 9, 9), "", {"a": [0, 1]}, []))
        4
    """
    most = _round_up(max((value for values in series.values() for value in values), default=0))
    parts = [*_heading(at, title), *_shares(at, most)]
    for place, label in ticks:
        parts.append(text(at.left + at.width * place, at.top + at.height + 18, label, "middle"))
    for number, values in enumerate(series.values()):
        step = at.width / max(1, len(values))
        path = f"M{at.left:.1f} {at.top + at.height:.1f}"
        for value in values:
            path += f"V{at.top + at.height * (1 - value / most):.1f}h{step:.2f}"
        path += f"V{at.top + at.height:.1f}"
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return parts


def heat_map(
    at: Panel,
    title: str,
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[tuple[str, str]],
    *,
    most: float,
) -> list[str]:
    """Return a table of shares as coloured cells; in per cent, where cells are large enough.

    Args:
        at: where.
        title: of the chart.
        values: `(row, column)` shares from 0 to 1.
        rows: labels.
        columns: labels, and what stands below each in small.
        most: the share from which cells are as dark as can be.

    Example:
        >>> at = Panel(0, 0, 9, 9)
        >>> sum("<rect" in part for part in heat_map(at, "", [[1.0]], ["7"], [("1", "")], most=1))
        1
    """
    parts = _heading(at, title)
    high, wide = at.height / max(1, len(rows)), at.width / max(1, len(columns))
    size = max(1.0, min(14.0, high - 2))
    for y, (label, row) in enumerate(zip(rows, values, strict=True)):
        middle = at.top + high * (y + 0.5) + 0.35 * size
        parts.append(text(at.left - 8, middle, label, "end", size=size))
        for x, value in enumerate(row):
            strength = min(1.0, value / most)
            parts.append(
                f'<rect x="{at.left + wide * x:.1f}" y="{at.top + high * y:.1f}" '
                f'width="{wide - 1:.1f}" height="{high - 1:.1f}" fill="{_heat(strength)}"/>'
            )
            if high >= 16 and wide >= 34 and value > 0:
                colour = "white" if strength > _DARK else INK
                said = f"{100 * value:.1f}"
                at_x = at.left + wide * (x + 0.5)
                parts.append(text(at_x, middle, said, "middle", fill=colour, size=12))
    for x, (label, note) in enumerate(columns):
        at_x, below = at.left + wide * (x + 0.5), at.top + at.height + 18
        parts.append(text(at_x, below, label, "middle"))
        parts.append(text(at_x, below + 16, note, "middle", fill=SOFT, size=11))
    return parts


def text(
    x: float, y: float, said: str, anchor: str = "start", *, fill: str = INK, size: float = 14
) -> str:
    """Return text whose line begins, ends or is centred there.

    Example:
        >>> text(1, 2, "a < b")
        '<text x="1.0" y="2.0">a &lt; b</text>'
    """
    more = f' text-anchor="{anchor}"' if anchor != "start" else ""
    more += f' fill="{fill}"' if fill != INK else ""
    more += f' font-size="{size:g}"' if size != 14 else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{_safe(said)}</text>'


def _safe(said: str) -> str:
    return escape(printable(said))


def _heading(at: Panel, title: str) -> list[str]:
    y = at.top - _TITLE + 12
    return [f'<text x="{at.left:g}" y="{y:g}" font-weight="600">{_safe(title)}</text>']


def _shares(at: Panel, most: float) -> list[str]:
    """Return an axis of per cents, from 0 to the most."""
    parts = []
    for share in (0, 0.5, 1):
        y = at.top + at.height * (1 - share)
        parts.append(f'<path d="M{at.left:.1f} {y:.1f}h{at.width:.1f}" stroke="{LINE}"/>')
        label = f"{100 * most * share:g} %"
        parts.append(text(at.left - 8, y + 5, label, "end", fill=SOFT, size=12))
    return parts


def _round_up(share: float) -> float:
    """Return the next share that halves to a short number; never 0."""
    steps = (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
    return next((step for step in steps if share <= step), share)


def _fill(number: int) -> str:
    return f'fill="{COLOURS[number % len(COLOURS)]}"'


def _heat(strength: float) -> str:
    mixed = [round(a + strength * (b - a)) for a, b in zip(*_HEAT, strict=True)]
    return "#" + "".join(f"{channel:02x}" for channel in mixed)
