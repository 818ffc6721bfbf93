"""Draw the README's picture from a RUN of street_numbers: python docs/picture.py RUN OUT.png"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import polyfuse

WIDTH, HEIGHT = 1500, 660
INK, SOFT, LINE = "#1b2430", "#66717f", "#d9dee5"
MEMBER, FUSION, WRONG = "#7a8aa0", "#0f8a5f", "#c2410c"
TILE = (192, 72)
NOTE = (
    "better: the paired 95 % interval of the difference to the best member excludes zero.",
    "The best member is chosen on validation; replicates draw whole groups of source digits.",
)


def font(size):
    return ImageFont.load_default(size)


def text(draw, at, words, size=20, fill=INK, anchor="lm"):
    draw.text(at, words, font=font(size), fill=fill, anchor=anchor)


def readings(run, name):
    """Return what a row of the scoreboard reads off the test images."""
    row = run.scoreboard.row(name)
    population = run.population
    if row["kind"] == "member":
        logits = population.stack("test")[row["members"][0]]
    else:
        logits = population.fused(name, "test")
    return polyfuse.strings(logits, blank=population.index["blank"])


def draw_forest(draw, board, left, top, right):
    """Draw each row's test score with its interval, and the best member as a line."""
    rows = board.rows
    metric = board.document["metric"]
    lows = [r["test"][metric]["low"] for r in rows]
    highs = [r["test"][metric]["high"] for r in rows]
    start, end = np.floor(min(lows) * 20) / 20, np.ceil(max(highs) * 20) / 20
    axis = left + 205

    def x(value):
        return axis + (value - start) / (end - start) * (right - axis - 150)

    text(draw, (left, top), "Whole strings read right on test, 95 % intervals", 23)
    bottom = top + 44 + 46 * len(rows)
    for tick in np.arange(start, end + 1e-9, 0.05):
        draw.line([x(tick), top + 36, x(tick), bottom], fill=LINE, width=2)
        text(draw, (x(tick), bottom + 18), f"{100 * tick:.0f} %", 17, SOFT, "mm")
    best = next(r for r in rows if r["name"] == board.document["best_member"])
    reference = x(best["test"][metric]["value"])
    for y in range(int(top + 36), int(bottom), 12):
        draw.line([reference, y, reference, y + 6], fill=MEMBER, width=2)
    for i, row in enumerate(rows):
        y = top + 66 + 46 * i
        score, gain = row["test"][metric], row["test"]["difference"]
        colour = FUSION if row["kind"] == "fusion" else MEMBER
        text(draw, (left, y), row["name"].replace("_", " "), 20)
        draw.line([x(score["low"]), y, x(score["high"]), y], fill=colour, width=4)
        dot = x(score["value"])
        draw.ellipse([dot - 8, y - 8, dot + 8, y + 8], fill=colour)
        said = "best member" if row is best else f"{round(100 * gain['value'], 1) + 0.0:+.1f}"
        said += " better" if gain["better"] else ""
        text(draw, (right, y), said, 19, colour, "rm")
    for i, line in enumerate(NOTE):
        text(draw, (left, bottom + 62 + 25 * i), line, 17, SOFT)


def draw_examples(picture, draw, run, splits, left, top):
    """Draw test images that only one of them reads right, in the proportion they come in."""
    board = run.scoreboard
    single, fused = (readings(run, n) for n in (board.document["best_member"], board.best))
    truth = polyfuse.strings(run.population.labels("test"), blank=10)
    won = [i for i, t in enumerate(truth) if fused[i] == t != single[i]]
    lost = [i for i, t in enumerate(truth) if single[i] == t != fused[i]]
    share = round(12 * len(won) / (len(won) + len(lost)))
    title = f"Only the fusion right: {len(won)} test images; only the member: {len(lost)}"
    text(draw, (left, top), title, 23)
    for place, i in enumerate(won[:share] + lost[: 12 - share]):
        x, y = left + place % 3 * (TILE[0] + 26), top + 36 + place // 3 * (TILE[1] + 66)
        tile = Image.fromarray(splits.test.images[i].transpose(1, 2, 0)).resize(TILE, 0)
        picture.paste(tile, (x, y))
        for column, (label, said) in enumerate((("member", single[i]), ("fusion", fused[i]))):
            right = said == truth[i]
            at = x + column * 100
            text(draw, (at, y + TILE[1] + 16), label, 15, SOFT)
            colour = FUSION if right else WRONG
            text(draw, (at, y + TILE[1] + 36), said or "nothing", 19, colour)


def main(run_folder, out):
    run = polyfuse.Run(run_folder)
    options = {k: v for k, v in run.recipe["data"].items() if k != "name"}
    splits = polyfuse.street_digits(**{"seed": run.recipe.get("seed", 0), **options})
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    draw_examples(picture, draw, run, splits, 36, 40)
    draw_forest(draw, run.scoreboard, 730, 40, WIDTH - 36)
    picture.save(Path(out), optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
