"""Draw examples that a run's steps changed: python docs/changed.py RUN FOLDER

Writes changed_by_views.png, changed_by_votes.png and changed_by_decoding.png for a RUN whose recipe
has views and a decoding, such as street_numbers_full. Each shows changes for the better and for the
worse in the proportion that they come in, the first ones of the test split.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import polyfuse
from polyfuse.corrections import corrections_of
from polyfuse.ladder import ladder_of, steps_of
from polyfuse.population_lengths import logarithm, pooled
from polyfuse.population_views import lengths_with_views, stack_with_views
from polyfuse.recipes.folder import plan_of
from polyfuse.recipes.run import data_of
from polyfuse.sequences import apply_prior, changes, decode, joint_decode, position_prior
from polyfuse.tasks import mean_of

INK, SOFT, RIGHT, WRONG = "#1b2430", "#66717f", "#0f8a5f", "#c2410c"
TILE, COLUMNS, GAP = (192, 72), 4, 26
EXAMPLES = 12


def font(size):
    return ImageFont.load_default(size)


class Example:
    """One image: lines of words, each with the text that was read, and what is true."""

    def __init__(self, row, truth, lines, note=""):
        self.row, self.truth, self.lines, self.note = row, truth, lines, note

    def draw(self, picture, draw, tile, x, y):
        picture.paste(tile, (x, y))
        y += TILE[1] + 13
        for words, said in self.lines:
            colour = RIGHT if said == self.truth else WRONG
            draw.text((x, y), words, font=font(14), fill=SOFT, anchor="lm")
            draw.text((x + TILE[0], y), said or "nothing", font=font(17), fill=colour, anchor="rm")
            y += 20
        told = f"truth {self.truth}" + (f"; {self.note}" if self.note else "")
        draw.text((x, y), told, font=font(14), fill=INK, anchor="lm")


def in_proportion(won, lost, count=EXAMPLES):
    """Return the first examples of both kinds, as many of each as their shares say."""
    if not won and not lost:
        return []
    share = round(count * len(won) / (len(won) + len(lost)))
    share = min(max(share, bool(won)), count - bool(lost))
    return won[:share] + lost[: count - share]


def drawn(title, examples, images, out):
    """Write a picture of examples under a title."""
    lines = max((len(e.lines) for e in examples), default=0)
    step = TILE[1] + 20 * (lines + 1) + 22
    height = 56 + step * -(-len(examples) // COLUMNS)
    size = (2 * GAP + COLUMNS * TILE[0] + (COLUMNS - 1) * GAP, height)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    draw.text((GAP, 26), title, font=font(19), fill=INK, anchor="lm")
    for place, example in enumerate(examples):
        pixels = images(example.row)
        tile = Image.fromarray(pixels).resize(TILE, Image.Resampling.BICUBIC)
        x, y = GAP + place % COLUMNS * (TILE[0] + GAP), 52 + place // COLUMNS * step
        example.draw(picture, draw, tile, x, y)
    picture.quantize(255, dither=Image.Dither.NONE).save(out, optimize=True)


class Changed:
    """The test split of a run, what its rows read, and its images."""

    def __init__(self, folder):
        self.run = polyfuse.Run(folder)
        self.population = self.run.population
        self.blank = self.population.index["blank"]
        self.alphabet = self.population.alphabet
        self.truth = self.written(self.population.labels("test"))
        self.split = data_of(plan_of(self.run)).test
        self.ladder = ladder_of(steps_of(self.population))
        if not self.ladder:
            raise SystemExit(f"{folder} has no decoding; run street_numbers_full")
        views = [n for n in self.ladder if n.endswith(", tta")]
        self.views = views[0] if views else None  # of the ladder's rows
        self.average = steps_of(self.population)[0]["average"]

    def written(self, said):
        return polyfuse.strings(said, blank=self.blank, alphabet=self.alphabet)

    def read(self, row):
        return self.written(self.population.said(row, "test"))

    def image(self, row):
        pixels = self.split.inputs(np.array([row]))[0].numpy()
        return (255 * pixels.transpose(1, 2, 0)).round().clip(0, 255).astype(np.uint8)

    def sorted(self, before, after, make):
        """Return an example of each answer that became right, and of each that became wrong."""
        won, lost = [], []
        for i, (was, now, true) in enumerate(zip(before, after, self.truth, strict=True)):
            if was != now and true in (was, now):
                (won if now == true else lost).append(make(i))
        return won, lost

    def save(self, title, won, lost, out):
        told = f"{title}: {len(won)} test images become right, {len(lost)} wrong"
        drawn(told, in_proportion(won, lost), self.image, out)
        print(f"{out}: {told}")

    def by_views(self, out):
        """Draw what test-time augmentation changed in the mean of the members."""
        after = self.views
        before = self.ladder[self.ladder.index(after) - 1]
        was, now = self.read(before), self.read(after)

        def example(i):
            return Example(i, self.truth[i], [("the image as it is", was[i]), ("views", now[i])])

        self.save("Merged views", *self.sorted(was, now, example), out)

    def by_votes(self, out):
        """Draw where the vote by whole string reads what the vote by position does not."""
        row = self.views or self.ladder[0]
        places = row.removeprefix("mean_probability")
        members = self.population.averaged(self.average) if self.average else self.population
        heads = stack_with_views(members, "test") if self.views else members.stack("test")
        each = [self.written(one) for one in heads]
        was, now = self.read(f"position_vote{places}"), self.read(f"string_vote{places}")

        def example(i):
            said = [(f"member {m}", one[i]) for m, one in enumerate(each)]
            return Example(i, self.truth[i], [*said, ("by position", was[i]), ("string", now[i])])

        self.save("Vote by whole string, not by position", *self.sorted(was, now, example), out)

    def by_decoding(self, out):
        """Draw what the steps of the decoding changed; where nothing, what they would have."""
        made = corrections_of(self.population)
        if made:
            self.save("Decoding and priors", *self.corrected(made), out)
            return
        heads, lengths, prior = self.heard()
        before = self.written(decode(heads.argmax(-1), blank=self.blank))
        names = self.population.names("test")
        after = {
            "length": joint_decode(heads, lengths, blank=self.blank),
            "prior": decode(apply_prior(heads, prior, 1.0).argmax(-1), blank=self.blank),
        }
        examples, told = [], []
        for (why, labels), count in zip(after.items(), (4, 8), strict=True):
            won, lost = self.corrected(changes(before, self.written(labels), names, why))
            examples += in_proportion(won, lost, count)
            told.append(f"{why}: {len(won)} right, {len(lost)} wrong")
        title = f"At strength 1, where the fit took 0. By {'; by '.join(told)}"
        drawn(title, examples, self.image, out)
        print(f"{out}: {title}")

    def heard(self):
        """Return log-probabilities of characters and lengths together, and the position prior."""
        members = self.population.averaged(self.average) if self.average else self.population
        merged = self.views is not None
        heads = stack_with_views(members, "test") if merged else members.stack("test")
        lengths = lengths_with_views(members, "test") if merged else members.lengths("test")
        learned = decode(self.population.labels("train"), blank=self.blank)
        prior = position_prior(learned, classes=heads.shape[-1])
        pooled_lengths = None if lengths is None else pooled(lengths)
        return logarithm(mean_of("classification", heads)), pooled_lengths, prior

    def corrected(self, made):
        """Return an example of each change for the better, and of each for the worse."""
        places = {name: i for i, name in enumerate(self.population.names("test"))}
        won, lost = [], []
        for change in made:
            i, true = places[change.name], self.truth[places[change.name]]
            if true in (change.before, change.after):
                lines = [("before", change.before), ("after", change.after)]
                step = change.why.split(",")[0].replace("_", " ")
                (won if change.after == true else lost).append(Example(i, true, lines, step))
        return won, lost


def main(run_folder, folder):
    changed, folder = Changed(run_folder), Path(folder)
    if changed.views:
        changed.by_views(folder / "changed_by_views.png")
    changed.by_votes(folder / "changed_by_votes.png")
    changed.by_decoding(folder / "changed_by_decoding.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
