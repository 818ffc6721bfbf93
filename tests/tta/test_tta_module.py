"""TTA: all views in few forwards are the loop, whatever the model returns and however it is cut."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from polyfuse import Ensemble
from polyfuse.errors import DataError, PolyfuseError
from polyfuse.tta import (
    TTA,
    Add,
    Boxes,
    Classes,
    Crop,
    Flip,
    Identity,
    Keypoints,
    Masks,
    Multiply,
    Numbers,
    Random,
    Resize,
    Scale,
    Shift,
    Turn,
    dihedral,
    five_crop,
    flips,
    merge_views,
    multi_crop,
    product,
    shifts,
)
from polyfuse.tta.base import coverage

SIZE = (8, 10)
POOL = [
    *product(dihedral(), [Identity(), Shift(1, -1), Scale(1.5), Add(0.3)]),
    Multiply(0.5),
    Crop(6, 6, 0, 1),
    Resize(7, 12),
    Random(lambda images: images + torch.rand(images.shape), moves=False, label="noise"),
]


def images(n=5, seed=0):
    return torch.rand(n, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """Convolutions with batch-norm and dropout, and heads of every kind."""

    def __init__(self, kind="classes"):
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5)
        )
        self.mask, self.head = nn.Conv2d(6, 4, 1), nn.Linear(6, 24)
        self.body[1].running_mean.normal_()
        self.body[1].running_var.uniform_(0.5, 2)

    def forward(self, x, offset=None, *, scale=1.0):
        features = self.body(x)
        heads = self.head(features.mean((-1, -2))) * scale
        heads = heads if offset is None else heads + offset
        found = {
            "classes": heads,
            "heads": heads.view(-1, 4, 6),
            "masks": self.mask(features),
            "keypoints": heads.view(-1, 12, 2),
            "boxes": heads.view(-1, 6, 4),
            "numbers": heads[:, 0],
        }
        several = {"tuple": (found["masks"], heads), "dict": {**found, "loss": None}}
        return several.get(self.kind, found.get(self.kind))


TASKS = {
    "classes": Classes(),
    "heads": Classes(swap=[(1, 2)]),
    "masks": Masks(),
    "keypoints": Keypoints(swap=[(0, 1)]),
    "boxes": Boxes(),
    "numbers": Numbers(),
}


def by_hand(model, views, batch, task, combiner, weights=None):
    """Return the answer of a loop over views."""
    outputs = torch.stack([task.undo(model(v.apply(batch)), v, SIZE) for v in views])
    seen = [coverage(view, SIZE) for view in views]
    says = torch.stack([torch.ones(SIZE) if one is None else one for one in seen])[:, None]
    says = says if task.spatial and any(one is not None for one in seen) else None
    return task.laid_out(merge_views(outputs, weights, combiner=combiner, coverage=says))


@pytest.mark.parametrize("kind", TASKS)
@settings(max_examples=8)
@given(
    st.lists(st.sampled_from(POOL), min_size=1, max_size=6, unique_by=lambda view: view.name),
    st.integers(1, 7),
    st.sampled_from([None, 1, 2, 3, 5, 8, 1000]),
    st.booleans(),
)
def test_merged_is_the_loop(kind, views, n, rows, weighted):
    views = [Identity(), *(view for view in views if view != Identity())]
    model, batch, task = Net(kind).eval(), images(n), TASKS[kind]
    weights = list(range(1, len(views) + 1)) if weighted else None
    with torch.no_grad():
        got = TTA(model, views, task=task, rows=rows, weights=weights)(batch)
        wanted = by_hand(model, views, batch, task, task.combiner, weights)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("merge", ["mean_logit", "median", "hard_vote", "geometric_mean"])
@pytest.mark.parametrize("kind", ["classes", "masks"])
def test_any_combiner_merges(merge, kind):
    model, batch = Net(kind).eval(), images()
    views = [*flips(), Shift(1), Shift(-1, 1)]
    with torch.no_grad():
        got = TTA(model, views, task=kind, merge=merge)(batch)
        wanted = by_hand(model, views, batch, TASKS[kind], merge)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("merge", ["mean_probability", "mean_logit", "geometric_mean", "product"])
@pytest.mark.parametrize("returns", ["prob", "log_prob"])
def test_large_outputs_are_added_up_as_they_come(merge, returns):
    """Nothing but the sum is kept of them, and the answer is that of all at once."""
    views, scores = flips(), 3 * torch.randn(1, 3, 160, 160)
    tta = TTA(lambda x: x, views, task="masks", merge=merge, returns=returns, weights=[1, 2, 0, 1])
    each = torch.stack([scores.movedim(1, -1)] * 3)
    wanted = merge_views(each, [1, 2, 1], combiner=merge, returns=returns).movedim(-1, 1)
    torch.testing.assert_close(tta(scores), wanted)
    with pytest.raises(DataError, match="NaN or infinity: look at"):
        tta(scores.where(scores < 9, torch.nan).index_fill(3, torch.tensor(7), torch.nan))


def test_one_view_is_the_model():
    model, batch = Net().eval(), images()
    torch.testing.assert_close(TTA(model, Identity())(batch), model(batch).softmax(-1))
    log = TTA(model, Identity(), returns="log_prob")(batch)
    torch.testing.assert_close(log, model(batch).log_softmax(-1))
    raw = TTA(model, flips(), task="numbers")(batch)
    torch.testing.assert_close(raw, sum(model(view.apply(batch)) for view in flips()) / 4)


def test_crops_are_pasted_back_into_the_whole_image():
    """A net that says of each pixel what it sees gets its image back, without a seam."""
    batch = images()
    crops = multi_crop(5, 6, rows=2, columns=2)
    got = TTA(lambda x: x, crops, task=Masks(numbers=True))(batch)
    torch.testing.assert_close(got, batch)
    probabilities = batch / batch.sum(1, keepdim=True)
    for merge in ("mean_probability", "median", "geometric_mean"):
        got = TTA(lambda x: x, crops, task="masks", space="prob", merge=merge)(probabilities)
        torch.testing.assert_close(got, probabilities)
    larger = TTA(lambda x: x.log(), [*crops, Scale(1.5)], task="masks", space="log_prob")
    torch.testing.assert_close(larger(probabilities).sum(1), torch.ones(5, *SIZE))


def test_overlapping_crops_count_by_how_deep_a_pixel_lies_in_them():
    left, right = Crop(8, 6, 0, 0), Crop(8, 6, 0, 1)
    answers = iter([1.0, 3.0])
    model = lambda x: torch.full_like(x[:, :1], next(answers))  # noqa: E731
    got = TTA(model, [left, right], task=Masks(numbers=True), rows=1)(images(1))[0, 0, 0]
    assert torch.equal(got[:4], torch.ones(4))
    assert torch.equal(got[6:], torch.full((4,), 3.0))
    torch.testing.assert_close(got[4:6], torch.tensor([(2 + 3) / 3, (1 + 2 * 3) / 3]))


def test_pixels_in_no_crop_are_refused():
    with pytest.raises(DataError, match="8 places are in no view"):
        TTA(lambda x: x, Crop(8, 9, 0, 0), task=Masks(numbers=True))(images())
    five = TTA(Net().eval(), five_crop(6, 6))(images())  # of the whole image there is one answer
    assert five.shape == (5, 24)


def test_tuples_and_dicts_come_back_as_they_are():
    batch = images()
    masks, heads = TTA(Net("tuple").eval(), flips(), task=["masks", "classes"])(batch)
    torch.testing.assert_close(masks, TTA(Net("masks").eval(), flips(), task="masks")(batch))
    torch.testing.assert_close(heads, TTA(Net().eval(), flips())(batch))
    named = TTA(Net("dict").eval(), flips(), task={**TASKS, "heads": None}, rows=3)(batch)
    assert list(named) == ["classes", "masks", "keypoints", "boxes", "numbers"]
    torch.testing.assert_close(named["masks"], masks)
    mixed = {"merge": {"masks": "median", "classes": "mean_logit", "boxes": None}}
    tasks = {k: t if k in mixed["merge"] else None for k, t in TASKS.items()}
    got = TTA(Net("dict").eval(), flips(), task=tasks, **mixed)(batch)
    wanted = TTA(Net("masks").eval(), flips(), task="masks", merge="median")(batch)
    torch.testing.assert_close(got["masks"], wanted)


def test_one_task_is_for_all_parts():
    pair = lambda x: [x.mean((-1, -2)), x.amax((-1, -2))]  # noqa: E731
    one, other = TTA(pair, flips())(images())
    assert one.shape == other.shape == (5, 3)


def test_what_every_view_says():
    model, batch = Net().eval(), images()
    views = [Identity(), Flip(), Turn(1)]
    got = TTA(model, views).outputs(batch)
    torch.testing.assert_close(got, torch.stack([model(view.apply(batch)) for view in views]))
    torch.testing.assert_close(merge_views(got), TTA(model, views)(batch))
    masks = TTA(Net("dict").eval(), views, task=TASKS).outputs(batch)["masks"]
    assert masks.shape == (3, 5, *SIZE, 4)


def test_further_arguments_go_with_their_image():
    model, batch, offset = Net().eval(), images(), torch.rand(5, 24)
    tta = TTA(model, flips(), rows=7)
    got = tta(batch, offset, scale=2.0)
    outputs = [model(view.apply(batch), offset, scale=2.0) for view in flips()]
    torch.testing.assert_close(got, torch.stack(outputs).softmax(-1).mean(0))


def test_the_model_runs_in_eval_mode_and_gets_its_own_back():
    model, batch = Net(), images()
    model.body[3].eval()
    tta = TTA(model, flips())
    before = model.body[1].running_mean.clone()
    assert torch.equal(tta(batch), tta(batch))
    assert torch.equal(model.body[1].running_mean, before)
    assert model.training
    assert model.body[1].training
    assert not model.body[3].training


def test_statistics_of_the_batch_are_those_of_the_loop():
    """A batch-norm that normalises by its batch would mix the views of one forward."""
    model, batch = Net().eval(), images(6)
    model.body[1] = nn.BatchNorm2d(6, track_running_stats=False).eval()
    outputs = torch.stack([model(view.apply(batch)) for view in flips()])
    torch.testing.assert_close(TTA(model, flips())(batch), outputs.softmax(-1).mean(0))


class Counting(nn.Module):
    """Counts the images of each forward."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Conv2d(3, 64, 3), []

    def forward(self, x):
        self.seen.append(tuple(x.shape[:1] + x.shape[2:]))
        return self.layer(x).amax((-1, -2))


def test_all_views_run_in_one_forward_while_there_is_memory():
    model = Counting()
    tta = TTA(model, product(flips(), shifts(1, 0)))
    with torch.no_grad():
        answer = tta(images(4))
        assert model.seen == [(1, *SIZE), (48, *SIZE)]  # the first counts the bytes
        tta(images(4))
        assert model.seen[2:] == [(48, *SIZE)]
        model.seen.clear()
        per_image = 3 * 64 * 6 * 8 * 4  # three of the convolution's outputs, in float32
        small = TTA(model, product(flips(), shifts(1, 0)), memory=9 * per_image)
        torch.testing.assert_close(small(images(4)), answer)
        assert model.seen == [(1, *SIZE), *[(8, *SIZE)] * 6]
        model.seen.clear()
        TTA(model, product(flips(), shifts(1, 0)), memory=3 * per_image)(images(4))
        assert model.seen[1:] == [(2, *SIZE)] * 24


def test_views_of_one_size_run_together():
    model = Counting()
    TTA(model, [Identity(), Turn(1), Flip(), Turn(3), Scale(2)], rows=1000)(images(2))
    assert sorted(model.seen) == [(2, 16, 20), (4, 8, 10), (4, 10, 8)]


def test_a_view_without_weight_is_not_run():
    model, batch = Counting(), images(2)
    tta = TTA(model, [Identity(), Flip(), Turn(2)], weights=[1, 0, 3], rows=1000)
    got = tta(batch)
    assert model.seen == [(4, *SIZE)]
    one, other = (model(view.apply(batch)).softmax(-1) for view in (Identity(), Turn(2)))
    torch.testing.assert_close(got, (one + 3 * other) / 4)


def test_it_is_a_module():
    tta = TTA(Net(), flips(), weights=[1, 2, 3, 4.0])
    assert tta.eval().model.training is False
    assert tta.double()(images().double()).dtype == torch.float64
    assert tta.half().weights.dtype == torch.float64
    again = TTA(Net(), flips(), weights=[1, 1, 1, 1])
    again.load_state_dict(tta.state_dict())
    assert again.weights.tolist() == [1, 2, 3, 4]
    assert "'identity': 1.0" in repr(tta)
    assert "views=['identity'" in repr(TTA(Net(), flips()))


def test_it_trains_what_it_holds():
    model = Net()
    TTA(model, flips(), returns="log_prob")(images())[:, 0].sum().backward()
    assert model.head.weight.grad.abs().sum() > 0


def test_an_ensemble_has_views_and_views_an_ensemble():
    members = [nn.Sequential(nn.Flatten(), nn.Linear(240, 3)) for _ in range(3)]
    batch = images()
    of_ensemble = TTA(Ensemble(members), flips(), space="prob")(batch)
    stacked = torch.stack([m(v.apply(batch)) for m in members for v in flips()]).softmax(-1)
    torch.testing.assert_close(of_ensemble, stacked.mean(0))
    of_views = Ensemble([TTA(m, flips(), returns="log_prob") for m in members])(batch)
    torch.testing.assert_close(of_views, stacked.mean(0))


def test_it_is_exported():
    tta = TTA(Net().eval(), [Identity(), Flip(), Shift(1)])
    program = torch.export.export(tta, (images(),))
    torch.testing.assert_close(program.module()(images(seed=1)), tta(images(seed=1)))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TTA(3, flips()), "expected a model, got 3"),
        (lambda: TTA(Net(), []), "got an empty list"),
        (lambda: TTA(Net(), flips(), task="mask"), "did you mean 'masks'"),
        (lambda: TTA(Net(), flips(), merge="mean"), "unknown combiner 'mean'"),
        (lambda: TTA(Net(), flips(), exponent=2), "mean_probability has no option 'exponent'"),
        (lambda: TTA(Net(), flips(), weights=[1, 2]), "do not fit 4 views"),
        (lambda: TTA(Net(), flips(), weights=[0] * 4), "not all 0"),
        (lambda: TTA(Net(), flips(), rows=0), "rows is 0"),
        (lambda: TTA(Net(), flips())(torch.zeros(3, 8, 8)), "expected images"),
        (lambda: TTA(Net(), flips())(images()[:0]), "none empty"),
        (lambda: TTA(lambda x: x.sum(), flips())(images()), "one row an image"),
        (lambda: TTA(lambda x: "no", flips())(images()), "the model returned str"),
        (lambda: TTA(Net("dict"), flips(), task={"masks": "masks"})(images()), "'classes'"),
        (lambda: TTA(lambda x: x, Turn(1), task="masks")(images()[:, :1]), "exclusive=False"),
    ],
)
def test_what_does_not_fit_is_said(make, said):
    with pytest.raises(PolyfuseError, match=said):
        make()


def test_single_logits_are_labels_that_do_not_exclude_each_other():
    net = Net("masks").eval()
    got = TTA(lambda x: net(x)[:, :1], flips(), task="masks", exclusive=False)(images())
    each = [task_masks(net, view) for view in flips()]
    torch.testing.assert_close(got, torch.stack(each).mean(0))


def task_masks(net, view):
    masks = net(view.apply(images()))[:, :1].sigmoid()
    return view.undo_masks(masks, SIZE)
