"""Faults of public street-number baselines, each by its name: ours must not have them.

Those that circulate with the course's code (multi-head CNN, ten folds, "TTA", a submission), and
the usual ones of its readers' own notebooks. Each test first shows what the fault does.
"""

import csv
import sys
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy

import contest
import tiny
from polyfuse import Arrays, FitOptions, Splits, losses
from polyfuse.combine import mean_probability
from polyfuse.compare import compare_fusions
from polyfuse.data.augment import AUGMENTATIONS
from polyfuse.data.faults import Faults
from polyfuse.data.image_files import ImageFiles
from polyfuse.data.street_numbers import mchar
from polyfuse.data.street_numbers.base import Entry, listed_digits
from polyfuse.fit import fit_member
from polyfuse.inference import check_labels, predict
from polyfuse.metrics import string_accuracy
from polyfuse.models import CourseCNN
from polyfuse.recipes.run import run as run_recipe
from polyfuse.recipes.run import write_submission
from polyfuse.sequences import drop_blanks, joint_decode, strings
from polyfuse.submissions import check_submission, combine_submissions
from polyfuse.tta import TTA, five_crop, merge_views, random_views, shifts

BLANK, HEADS, CLASSES = 10, 6, 11
RECIPE = """\
name: contest
data: {{name: mchar, root: '{root}', size: [32, 64], workers: 1}}
model: {{name: course_cnn}}
training: {{name: kfold, folds: 2}}
fit: {{epochs: 1, batch_size: 8, optimizer: {{name: adam, lr: 1e-3}}}}
fusions: [mean_probability, string_vote]
scoreboard: {{replicates: 20}}
"""


@pytest.fixture(scope="module")
def folder(shared_data, tmp_path_factory):
    root = tmp_path_factory.mktemp("baseline")
    contest.make(shared_data, root / "mchar")
    return root / "mchar"


@pytest.fixture(scope="module")
def done(folder):
    """Return a finished run on the contest's own layout; nobody changes it."""
    recipe = folder.parent / "contest.yaml"
    recipe.write_text(RECIPE.format(root=folder))
    return run_recipe(recipe, out=folder.parent / "RUN", workers=1)


def softmax(logits):
    return torch.from_numpy(np.asarray(logits, np.float64)).softmax(-1).numpy()


def heads(seed, rows=16, sure=2.0):
    """Return logits of the course's net for some images, `(row, head, class)`."""
    draw = np.random.default_rng(seed)
    return (sure * draw.standard_normal((rows, HEADS, CLASSES))).astype(np.float32)


class Bright(nn.Module):
    """Heads that read the mean brightness of an image's left and right, and nothing else."""

    def __init__(self):
        super().__init__()
        self.heads = nn.Linear(2, HEADS * CLASSES)
        nn.init.normal_(self.heads.weight, std=30, generator=torch.Generator().manual_seed(0))
        nn.init.zeros_(self.heads.bias)

    def forward(self, images):
        halves = torch.stack([h.mean((1, 2, 3)) for h in images.chunk(2, 3)], 1)
        return self.heads(halves).view(-1, HEADS, CLASSES)


# Test-time augmentation -------------------------------------------------------------------------


def test_tta_counts_every_view_and_not_only_the_last_pass():
    """`test_pred_tta = None` inside the loop, or the sum behind it: one pass is all that counts."""
    images = torch.rand(5, 3, 8, 16, generator=torch.Generator().manual_seed(1))
    views, model = shifts(2, 0), Bright()
    passes = [softmax(model(view.apply(images)).detach()) for view in views]
    merged = TTA(model, views)(images).detach().numpy()
    assert np.abs(merged - np.mean(passes, 0)).max() < 1e-5
    assert np.abs(merged - passes[-1]).max() > 0.01
    # Each view moves the answer, whichever place it has.
    for number in range(len(views)):
        others = [*views[:number], *views[number + 1 :]]
        assert np.abs(merged - TTA(model, others)(images).detach().numpy()).max() > 1e-4


def test_logits_of_views_and_members_are_not_summed():
    """A pass that is far too sure outvotes all others where logits are summed."""
    said = np.zeros((3, 1, 1, CLASSES))  # two passes say 3, one shouts 7
    said[:2, ..., 3], said[2, ..., 7], said[2, ..., 3] = 5.0, 40.0, -40.0
    assert said.sum(0).argmax() == 7
    for together in (merge_views(said), mean_probability(said)):
        assert together.argmax() == 3
        assert np.abs(together - softmax(said).mean(0)).max() < 1e-7


def test_views_are_not_random_crops_that_differ_from_call_to_call():
    """`RandomCrop` stays in the test transform "for TTA": every submission is another one."""
    images = torch.rand(4, 3, 12, 24, generator=torch.Generator().manual_seed(2))
    kinds = [five_crop(8, 16), shifts(2, 1)]
    kinds += [random_views(name, 2, seed=5) for name in AUGMENTATIONS]
    for views in kinds:
        first = [view.apply(images) for view in views]
        torch.manual_seed(99)
        assert all(torch.equal(a, v.apply(images)) for a, v in zip(first, views, strict=True))
    (one,) = random_views("shift", seed=5)
    (other,) = random_views("shift", seed=6)
    assert not torch.equal(one.apply(images), other.apply(images))


def test_augmentation_is_for_training_only():
    """The training transform on test images: what is kept must be what the bare image gives."""
    images = torch.rand(12, 3, 8, 16, generator=torch.Generator().manual_seed(3))
    labels = np.arange(12)[:, None] % CLASSES * np.ones((1, HEADS), int)
    split, seen = Arrays(images, labels, blank=BLANK), []

    def loud(batch, generator):
        seen.append(len(batch))
        return batch + 5

    options = FitOptions(epochs=1, batch_size=4, accelerator="cpu", augmentation=loud)
    model = Bright()
    fit_member(model, split, np.arange(8), np.arange(8, 12), options, seed=0)
    assert sum(seen) == 8
    with torch.no_grad():
        assert np.array_equal(predict(model, split), model(images).numpy())


def test_dropout_is_off_when_a_test_image_is_read():
    """Without `model.eval()` dropout draws on, and batch-norm mixes the images of a batch."""
    model = CourseCNN(dropout=0.5).train()
    images = torch.rand(6, 3, 32, 64, generator=torch.Generator().manual_seed(4))
    assert not torch.equal(model(images), model(images))
    read = predict(model, Arrays(images))
    assert np.array_equal(read, predict(model, Arrays(images)))
    assert model.training
    assert torch.equal(TTA(model, shifts(1, 0))(images), TTA(model, shifts(1, 0))(images))


# Heads and decoding -----------------------------------------------------------------------------


def test_heads_are_eleven_wide_and_nothing_cuts_them_at_fifteen():
    """The heads are joined to 66 numbers, then cut at 0:15, 15:30, ...: other digits come out."""
    images = torch.rand(40, 3, 32, 64, generator=torch.Generator().manual_seed(5))
    model = CourseCNN(dropout=0.0)
    said = predict(model, Arrays(images))
    assert said.shape == (40, HEADS, CLASSES)
    joined = said.reshape(40, -1)
    right = np.stack([joined[:, 11 * h : 11 * h + 11].argmax(1) for h in range(HEADS)], 1)
    wrong = np.stack([joined[:, 15 * h : 15 * h + 15].argmax(1) for h in range(4)], 1)
    assert (right[:, :4] != wrong).any()
    assert np.array_equal(said.argmax(-1), right)
    # A mean of members is a distribution in each head: eleven numbers that sum to one.
    pooled = mean_probability(np.stack([said, heads(0, 40)]))
    assert np.allclose(pooled.sum(-1), 1, atol=1e-6)
    # And what is no head of eleven classes is refused, not cut.
    with pytest.raises(Exception, match="their labels have shape"):
        check_labels(nn.Flatten(), Arrays(said, right), np.arange(2))


def test_blanks_are_not_dropped_anywhere():
    """`''.join(c for c in row if c != 10)` reads on behind the end: [4, 10, 2] becomes "42"."""
    read = np.array([[4, BLANK, 2, BLANK, BLANK, BLANK]])
    assert strings(drop_blanks(read, blank=BLANK), blank=BLANK) == ["42"]
    assert strings(read, blank=BLANK) == ["4"]
    truth = np.array([[4, BLANK, BLANK, BLANK, BLANK, BLANK]])
    assert string_accuracy(np.eye(CLASSES)[read], truth, blank=BLANK).value == 1.0


def test_the_end_of_a_string_is_weighed_and_not_taken_from_one_unsure_head():
    """Heads that disagree about the length, as on real plates: there joint decoding is worth it."""
    log_p = np.full((1, 3, CLASSES), -20.0)
    log_p[0, 0, 4], log_p[0, 2, 2] = 0.0, 0.0
    log_p[0, 1, 7], log_p[0, 1, BLANK] = np.log(0.49), np.log(0.51)
    log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
    assert strings(log_p, blank=BLANK) == ["4"]
    assert strings(drop_blanks(log_p, blank=BLANK), blank=BLANK) == ["42"]
    assert strings(joint_decode(log_p, blank=BLANK), blank=BLANK) == ["472"]


def test_a_digit_of_ten_is_a_zero_and_no_blank(tmp_path):
    """SVHN writes 0 as 10, the course's blank is 10: mixed up, zeros vanish from the labels."""
    (tmp_path / "train").mkdir()
    fields = {name: [1.0, 5.0] for name in ("left", "top", "width", "height")}
    entries = [Entry("1.png", {"label": [10.0, 2.0], **fields})]
    contest.draw({"label": [0, 2], **fields}, 0).save(tmp_path / "train" / "1.png")
    listed = listed_digits(ImageFiles(tmp_path), "train", entries, HEADS, Faults(tmp_path))
    assert listed.labels.tolist() == [[0, 2, BLANK, BLANK, BLANK, BLANK]]
    assert strings(listed.labels, blank=BLANK) == ["02"]


# Training ---------------------------------------------------------------------------------------


class Watched(Arrays):
    """Rows in memory that remember in which order they were asked for."""

    def inputs(self, rows):
        asked.append(np.asarray(rows))
        return super().inputs(rows)


asked: list[np.ndarray] = []


def test_training_rows_are_shuffled_anew_in_every_epoch():
    """`shuffle=False` in the training loader: every epoch sees the same batches in file order."""
    split = Watched(torch.rand(64, 3, 8, 16), np.zeros((64, HEADS), int), blank=BLANK)
    learn, stop = np.arange(48), np.arange(48, 64)
    options = FitOptions(epochs=3, batch_size=16, accelerator="cpu")
    asked.clear()
    fit_member(Bright(), split, learn, stop, options, seed=0)
    batches = [rows for rows in asked if len(rows) == 16 and rows.max() < 48]
    epochs = [np.concatenate(batches[3 * e : 3 * e + 3]) for e in range(3)]
    assert len(batches) == 9
    for order in epochs:
        assert sorted(order.tolist()) == learn.tolist()  # every row once
        assert not np.array_equal(order, learn)
    assert not any(np.array_equal(epochs[0], other) for other in epochs[1:])


def test_the_loss_is_the_sum_over_heads_and_a_mean_over_all_images():
    """Batch losses averaged whatever the batch's size: two images at the end count as twenty."""
    logits, labels = torch.from_numpy(heads(6, 22)), torch.arange(22 * HEADS).view(22, HEADS) % 11
    by_head = sum(cross_entropy(logits[:, h], labels[:, h]) for h in range(HEADS))
    whole = losses.character_cross_entropy(logits, labels)
    assert torch.allclose(whole, by_head)
    parts = [slice(0, 20), slice(20, 22)]
    each = torch.stack([losses.character_cross_entropy(logits[p], labels[p]) for p in parts])
    assert torch.allclose((each * torch.tensor([20.0, 2.0])).sum() / 22, whole)
    assert not torch.allclose(each.mean(), whole)
    # Training weighs batches by their images: one epoch without steps reports the mean of all.
    split = Arrays(torch.rand(22, 3, 8, 16), labels.numpy(), blank=BLANK)
    still = FitOptions(
        epochs=1,
        batch_size=20,
        accelerator="cpu",
        loss=losses.character_cross_entropy,
        optimizer=partial(torch.optim.SGD, lr=0.0),
    )
    model = Bright()
    with torch.no_grad():
        expected = float(losses.character_cross_entropy(model(split.values), labels))
    fitted = fit_member(model, split, np.arange(22), np.arange(0), still, seed=0)
    assert fitted.history[0]["loss"] == pytest.approx(expected, rel=1e-5)


# The submission ---------------------------------------------------------------------------------


def test_test_answers_are_read_off_the_test_predictions(tmp_path):
    """`test_label = ... val_predict ...`: the submission holds what the nets say of validation."""
    rows = {"train": 8, "val": 6, "test": 6}
    names = [f"{i:06d}.png" for i in (4, 0, 5, 2, 1, 3)]
    data = Splits(
        *(
            Arrays(np.zeros((n, 1)), heads(i, n).argmax(-1), blank=BLANK)
            for i, n in enumerate(rows.values())
        )
    )
    data = data._replace(test=Arrays(np.zeros((6, 1)), names=names, blank=BLANK))
    said = {m: {n: heads(m + 9 * i, r) for i, (n, r) in enumerate(rows.items())} for m in range(3)}
    found = tiny.population(tmp_path, data, said)
    fusions = {"mean_probability": mean_probability}
    board = compare_fusions(found, fusions=fusions, expected=3, milliseconds={}, replicates=20)
    write_submission(found, board)
    row = board.row(board.best)
    of = {
        split: softmax([said[m][split] for m in row["members"]]).mean(0)
        for split in ("val", "test")
    }
    read = {split: strings(p, blank=BLANK) for split, p in of.items()}
    assert read["test"] != read["val"]
    lines = csv.reader((tmp_path / "submission.csv").read_text().splitlines())
    expected = [list(pair) for pair in zip(names, read["test"], strict=True)]
    assert list(lines) == [["file_name", "file_code"], *expected]


def test_predictions_are_those_of_the_images_in_the_order_of_the_sample(done, folder):
    """`glob` sorts names its own way: answers land beside other images' names."""
    split = mchar(root=str(folder), size=[32, 64], workers=1).test
    assert list(split.names) == contest.TEST != sorted(contest.TEST)
    member = done.population.members[0]
    model = member.model(CourseCNN)
    kept = member.predictions("test")
    for row, name in enumerate(done.population.names("test")):
        with Image.open(folder / "mchar_test_a" / name) as image:  # by its name, past our reader
            small = np.asarray(image.convert("RGB").resize((64, 32), Image.Resampling.BILINEAR))
        pixels = Arrays(small.transpose(2, 0, 1)[None] / np.float32(255))
        assert np.allclose(kept[row], predict(model, pixels)[0], atol=1e-4)
        others = np.delete(kept, row, 0)
        assert not np.isclose(kept[row], others, atol=1e-4).all((1, 2)).any()


def test_a_runs_submission_is_accepted_by_the_checker(done, folder):
    sample = folder / "mchar_sample_submit_A.csv"
    found = check_submission(done.path / "submission.csv", sample)
    assert (found.accepted, found.rows) == (True, len(contest.TEST))


def test_leading_zeros_survive_from_the_net_to_the_vote(tmp_path):
    """pandas reads 007 as 7, a spreadsheet writes it so: the whole string is wrong."""
    head, rows = "file_name,file_code\n", "".join(f"{i}.png,00{i}\n" for i in range(3))
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text(head + rows)
    voted = combine_submissions([tmp_path / "a.csv", tmp_path / "b.csv"])
    assert voted.save(tmp_path / "out.csv").read_text() == head + rows
    assert strings(np.array([[0, 0, 7, BLANK, BLANK, BLANK]]), blank=BLANK) == ["007"]


# A contest of the true size ---------------------------------------------------------------------

FORTY_THOUSAND = """\
import csv
import numpy as np
from polyfuse import Arrays, Splits
def contest(sample: str):
    with open(sample, newline="") as file:
        names = [row[0] for row in csv.reader(file)][1:]
    draw = np.random.default_rng(0)
    def split(rows, names=(), labelled=True):
        lengths = draw.integers(1, 5, rows)
        labels = draw.integers(0, 10, (rows, 6))
        labels[np.arange(6) >= lengths[:, None]] = 10
        inputs = np.eye(11)[labels].reshape(rows, -1) + draw.normal(0, 0.1, (rows, 66))
        return Arrays(inputs, labels if labelled else None, names=names, blank=10)
    return Splits(split(60), split(40), split(len(names), names, False))
def net():
    from torch import nn
    layer = nn.Linear(66, 66)
    nn.init.eye_(layer.weight)
    return nn.Sequential(layer, nn.Unflatten(1, (6, 11)))
"""


def test_a_run_makes_a_submission_that_the_contests_own_sample_accepts(
    shared_data, tmp_path, monkeypatch
):
    sample = shared_data / "mchar" / "mchar_sample_submit_A.csv"
    (tmp_path / "whole_contest.py").write_text(FORTY_THOUSAND)
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = tmp_path / "whole.yaml"
    text = RECIPE.format(root="").replace("{name: course_cnn}", "{name: 'whole_contest:net'}")
    lines = [line for line in text.splitlines() if not line.startswith("data:")]
    data = f"data: {{name: 'whole_contest:contest', sample: '{sample}'}}"
    recipe.write_text("\n".join([*lines, data]) + "\n")
    done = run_recipe(recipe, out=tmp_path / "RUN", workers=1)
    sys.modules.pop("whole_contest", None)
    found = check_submission(done.path / "submission.csv", sample)
    assert (found.accepted, found.rows, found.notes) == (True, 40000, ())
