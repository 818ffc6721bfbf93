"""Draw the rules of averaging: python docs/curves.py OUT.svg"""

import sys
from pathlib import Path

import numpy as np

from polyfuse.averaging import Moment, ema, lawa, power_ema, rule_weights, swa, tanh_ema

COUNT = 60
DECAYS = {  # colours that colour-blind eyes tell apart (Okabe and Ito), and dashes
    "T-ADEMA, scale 1": (tanh_ema(0.9), "#009e73", ""),
    "T-ADEMA, scale 10": (tanh_ema(0.9, scale=10.0), "#009e73", "7 4"),
    "EMA 0.9": (ema(0.9), "#0072b2", ""),
    "EMA 0.9, tf": (ema(0.9, warmup="tf"), "#0072b2", "7 4"),
    "EMA 0.9, power": (ema(0.9, warmup="power"), "#0072b2", "2 3"),
    "SWA": (swa(), "#d55e00", ""),
}
SHARES = {
    "EMA 0.9": (ema(0.9), "#0072b2", ""),
    "T-ADEMA, alpha 0.9": (tanh_ema(0.9), "#009e73", "7 4"),
    "power-EMA, sigma 0.1": (power_ema(0.1), "#cc79a7", ""),
    "LAWA, k 10": (lawa(10), "#222222", "2 3"),
    "SWA": (swa(), "#d55e00", ""),
}


def decays(rule):
    return [1 - rule.weight(Moment(n=n, step=n + 1)) for n in range(1, COUNT)]


def panel(left, title, label, curves, highest, ticks):
    """Return one panel; a curve's name stands in the list below it."""
    x = left + 45 + 385 * np.arange(COUNT) / (COUNT - 1)
    parts = [f'<text x="{left + 45}" y="30" font-weight="600">{title}</text>']
    for tick in ticks:
        y = 290 - 230 * tick / highest
        parts.append(f'<path d="M{left + 45} {y:.1f}h385" stroke="#ddd"/>')
        parts.append(f'<text x="{left + 38}" y="{y + 5:.1f}" text-anchor="end">{tick:g}</text>')
    for n in range(0, COUNT, 10):
        parts.append(f'<text x="{x[n]:.1f}" y="310" text-anchor="middle">{n}</text>')
    parts.append(f'<text x="{left + 237}" y="332" text-anchor="middle">{label}</text>')
    for i, (name, values, colour, dashes) in enumerate(curves):
        line = " ".join(
            f"{a:.1f},{290 - 230 * b / highest:.1f}"
            for a, b in zip(x[-len(values) :], values, strict=True)
        )
        style = f'fill="none" stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dashes}"'
        parts.append(f'<polyline points="{line}" {style}/>')
        column, row = left + 45 + 215 * (i % 2), 362 + 22 * (i // 2)
        parts.append(f'<path d="M{column} {row - 5}h28" {style}/>')
        parts.append(f'<text x="{column + 36}" y="{row}">{name}</text>')
    return parts


def main(out):
    left = [(name, decays(rule), *style) for name, (rule, *style) in DECAYS.items()]
    right = [(name, rule_weights(rule, COUNT), *style) for name, (rule, *style) in SHARES.items()]
    document = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 920 420" font-size="14" '
        'font-family="Helvetica, Arial, sans-serif" fill="#222" role="img">',
        "<title>Decays by update, and shares of the updates in the average</title>",
        '<rect width="920" height="420" fill="white"/>',
        *panel(0, "Decay of update n", "n", left, 1.0, (0, 0.25, 0.5, 0.75, 1)),
        *panel(460, f"Share of each of {COUNT} snapshots", "snapshot", right, 0.15, (0, 0.05, 0.1)),
        "</svg>\n",
    ]
    Path(out).write_text("\n".join(document), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
