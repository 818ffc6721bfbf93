"""Draw what the strings of a data set are like: one SVG of all splits, and text for a terminal."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from polyfuse import charts
from polyfuse.charts import Panel
from polyfuse.data.statistics import SIDES, Statistics
from polyfuse.tables import Table

WIDTH = 960
BINS = 40
FEW = 50  # strings with a character at a position, below which its shares are chance
_TOP, _HIGH = 100, 190  # of the upper row of panels
_MAPS = _TOP + _HIGH + 92  # top of the lower row
_LEFT = 70
_MOST = 80  # characters that are shown
Shares = NDArray[np.float64]


def drawn(name: str, found: Mapping[str, Statistics]) -> str:
    """Return an SVG of lengths, box sizes and characters by position.

    Args:
        name: of the data set.
        found: by split; the first four are drawn.

    Example:
        >>> from polyfuse.data.statistics import statistics_of
        >>> one = statistics_of(np.array([[4, 2], [7, 10]]), blank=10)
        >>> "characters by position" in drawn("mine", {"train": one}).lower()
        True
    """
    splits = dict(list(found.items())[: len(charts.COLOURS)])
    names = [f"{split}: {one.rows:,}" for split, one in splits.items()]
    parts = [
        charts.text(_LEFT - 30, 32, f"{name}: what its strings are like", size=20),
        *charts.legend(names, _LEFT - 30, 60),
        *_lengths(splits),
        *_boxes(splits),
    ]
    shown = _shown(list(splits.values()))
    cell = 24 if len(shown) <= 12 else 15 if len(shown) <= 40 else 10
    high = cell * max(1, len(shown))
    each = (WIDTH - _LEFT) / len(splits)
    for number, (split, one) in enumerate(splits.items()):
        wide = min(each - _LEFT + 30, 420)
        parts += _map(Panel(_LEFT + each * number, _MAPS, wide, high), split, one, shown)
    y = _MAPS + high + 60
    note = "Characters by position: % of the strings that have a character there."
    parts.append(charts.text(_LEFT - 30, y, note, fill=charts.SOFT, size=13))
    return charts.picture(WIDTH, _MAPS + high + 76, f"{name}: lengths, characters, boxes", parts)


def length_lines(one: Statistics) -> list[str]:
    """Return a line for each length that occurs: how many strings have it, and a bar.

    Example:
        >>> from polyfuse.data.statistics import statistics_of
        >>> length_lines(statistics_of(np.array([[4, 2], [7, 10]]), blank=10))[0][:24]
        '  1         1   50.00 %  '
    """
    there = [int(n) for n in np.flatnonzero(one.lengths)]
    which = range(min(there, default=0), max(there, default=0) + 1)
    bars = charts.text_bars([float(one.lengths[n]) for n in which])
    lines = []
    for n, bar in zip(which, bars, strict=True):
        share = 100 * _share(one.lengths[n], one.rows)
        lines.append(f"{n:>3} {one.lengths[n]:>9,}  {share:>6.2f} %  {bar}".rstrip())
    return lines


def tables_of(split: str, one: Statistics) -> list[Table]:
    """Return a table of characters by position and, where there are boxes, one of their sizes.

    Args:
        split: its name.
        one: its statistics.

    Example:
        >>> from polyfuse.data.statistics import statistics_of
        >>> tables_of("train", statistics_of(np.array([[4, 2]]), blank=10))[0].columns
        ['character', '1 (of 1)', '2 (of 1)']
    """
    reached = one.characters.sum(1)
    there = [int(p) for p in np.flatnonzero(reached)]
    place = {character: number for number, character in enumerate(one.alphabet)}
    cells = [
        [c, *(f"{100 * _share(one.characters[p, place[c]], reached[p]):.1f}" for p in there)]
        for c in _shown([one])
    ]
    columns = ["character", *(f"{p + 1} (of {reached[p]:,})" for p in there)]
    tables = [Table(f"{split}: characters by position, %", columns, cells)]
    if one.sizes:
        head = ["pixels", "smallest", "5 % below", "median", "95 % below", "largest"]
        rows = [[side, *(f"{size:g}" for size in s)] for side, s in one.spreads.items()]
        tables.append(Table(f"{split}: {len(one.sizes[SIDES[0]]):,} boxes", head, rows))
    return tables


def _lengths(splits: Mapping[str, Statistics]) -> list[str]:
    there = [int(n) for one in splits.values() for n in np.flatnonzero(one.lengths)]
    which = range(min([1, *there]), max([1, *there]) + 1)
    series = {
        split: [_share(one.lengths[n] if n < len(one.lengths) else 0, one.rows) for n in which]
        for split, one in splits.items()
    }
    boxes = any(one.sizes for one in splits.values())
    at = Panel(_LEFT, _TOP, 310 if boxes else WIDTH - 2 * _LEFT + 30, _HIGH)
    return charts.bars(at, "Characters a string", series, [str(n) for n in which])


def _boxes(splits: Mapping[str, Statistics]) -> list[str]:
    """Return a panel for widths and one for heights; the last bin has all larger ones."""
    sized = {split: one.sizes for split, one in splits.items() if one.sizes}
    parts = []
    for number, side in enumerate(SIDES if sized else ()):
        largest = max(float(np.percentile(sizes[side], 99)) for sizes in sized.values())
        edges = _edges(largest)
        # Every split keeps its colour, so those without boxes are flat.
        series = {
            split: _binned(one.sizes.get(side), edges).tolist() for split, one in splits.items()
        }
        at = Panel(460 + 260 * number, _TOP, 195, _HIGH)
        middle, last = edges[len(edges) // 2], edges[-1]
        ticks = [(0.0, "0"), (middle / last, f"{middle:g}"), (1.0, f"{last:g}+")]
        title = f"{side.capitalize()} of a box, pixels"
        parts += charts.curves(at, title, series, ticks)
    return parts


def _edges(largest: float) -> Shares:
    """Return edges of bins, whole pixels apart: most boxes have whole numbers of them."""
    step = max(1, math.ceil(largest / BINS))
    return np.arange(0, step * (math.ceil(largest / step) + 1), step, dtype=np.float64)


def _binned(sizes: NDArray[np.float64] | None, edges: Shares) -> Shares:
    if sizes is None:
        return np.zeros(len(edges) - 1)
    counts, _ = np.histogram(np.minimum(sizes, edges[-1]), edges)
    return np.asarray(counts / len(sizes))


def _shown(splits: Sequence[Statistics]) -> list[str]:
    """Return the characters that occur, in the order of the alphabet; if many, the usual ones."""
    counts: dict[str, int] = {}
    for one in splits:
        for character, count in zip(one.alphabet, one.characters.sum(0).tolist(), strict=True):
            counts[character] = counts.get(character, 0) + count
    often = sorted((c for c in counts if counts[c]), key=lambda c: -counts[c])[:_MOST]
    return [character for character in counts if character in often]


def _map(at: Panel, split: str, one: Statistics, shown: Sequence[str]) -> list[str]:
    reached = one.characters.sum(1)
    there = np.flatnonzero(reached)
    place = {character: number for number, character in enumerate(one.alphabet)}
    values = [
        [_share(one.characters[p, place[c]], reached[p]) if c in place else 0.0 for p in there]
        for c in shown
    ]
    # One string of six characters must not make all others look alike.
    usual = reached[there] >= FEW
    strengths = np.array(values, np.float64).reshape(len(shown), len(there))
    most = strengths[:, usual if usual.any() else slice(None)].max(initial=0) or 1.0
    columns = [(str(p + 1), f"of {reached[p]:,}") for p in there]
    title = f"Characters by position: {split}"
    return charts.heat_map(at, title, values, shown, columns, most=most)


def _share(count: float, total: float) -> float:
    return float(count) / float(total) if total else 0.0
