"""Boxes of several views fused: the formula, the peer, its scores above 1, and whole detectors."""

import os
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfuse.errors import DataError
from polyfuse.tta import TTA, Detections, Flip, Identity, Scale, Shift, Turn, flips, product
from polyfuse.tta.box_fusion import Detected, fuse_boxes

ROOT = Path(__file__).parents[2]


def found(boxes, scores, labels=None):
    labels = [0] * len(scores) if labels is None else labels
    corners = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    return Detected(corners, torch.tensor(scores, dtype=torch.float64), torch.tensor(labels))


def scattered(count, seed):
    """Return boxes that do not overlap, with scores and labels."""
    draw = np.random.default_rng(seed)
    corner = np.stack(np.divmod(draw.permutation(16)[:count], 4), -1) * 25.0
    boxes = np.concatenate([corner + draw.uniform(2, 5, (count, 2)), corner + 20], -1)
    return found(boxes, draw.uniform(0.1, 1, count), draw.integers(0, 3, count))


@pytest.fixture(scope="module")
def peer():
    """Return ensemble-boxes' own fusion, out of the peers' environment: it needs NumPy alone."""
    home = Path(os.environ.get("POLYFUSE_PEERS", ROOT / ".venv-peers"))
    name = "lib/python3*/site-packages/ensemble_boxes/ensemble_boxes_wbf.py"
    path = next(home.glob(name), None)
    if path is None:
        pytest.skip("ensemble-boxes is not installed beside this; `make peers` does that")
    spec = spec_from_file_location("ensemble_boxes_wbf", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.weighted_boxes_fusion


def of_peer(peer, views, weights=None):
    """Return the peer's fused boxes; it takes relative ones."""
    boxes, scores, labels = zip(*views, strict=True)
    relative = [(each / 100).tolist() for each in boxes]
    plain = [[each.tolist() for each in part] for part in (scores, labels)]
    got = peer(relative, *plain, weights=weights, iou_thr=0.55)
    return got[0] * 100, got[1], got[2]


@pytest.mark.parametrize("weights", [None, [1, 1, 1], [3, 1, 2]])
@pytest.mark.parametrize("seed", range(3))
def test_the_peer_agrees_where_a_view_draws_one_box_an_object(peer, seed, weights):
    one = scattered(9, seed)
    draw = np.random.default_rng(seed + 100)
    views = [
        Detected(
            one.boxes[rows] + torch.from_numpy(draw.uniform(-1, 1, (len(rows), 4))),
            torch.from_numpy(draw.uniform(0.1, 1, len(rows))),
            one.labels[rows],
        )
        for rows in (draw.permutation(9)[: draw.integers(4, 9)] for _ in range(3))
    ]
    boxes, scores, labels = of_peer(peer, views, weights)
    ours = fuse_boxes(views, weights)
    np.testing.assert_allclose(ours.scores, scores, rtol=1e-5)
    np.testing.assert_allclose(ours.boxes, boxes, rtol=1e-4)
    assert ours.labels.tolist() == labels.tolist()


def test_a_score_is_never_above_1(peer):
    """In ensemble-boxes a model of weight 2 that draws an object twice gives it 1.33 (issue 25)."""
    box, far = [10.0, 10, 50, 50], [60.0, 60, 90, 90]
    views = [found([box, box], [1.0, 1.0]), found([far], [0.5])]
    np.testing.assert_allclose(of_peer(peer, views, [2, 1])[1], [4 / 3, 1 / 6], rtol=1e-6)
    np.testing.assert_allclose(fuse_boxes(views, [2, 1]).scores, [2 / 3, 1 / 6])


@settings(max_examples=20)
@given(st.integers(0, 200), st.integers(1, 5))
def test_the_same_boxes_again_change_nothing(seed, times):
    one = scattered(8, seed)
    got = fuse_boxes([one] * times)
    order = one.scores.argsort(descending=True)
    torch.testing.assert_close(got.boxes, one.boxes[order])
    torch.testing.assert_close(got.scores, one.scores[order])
    assert torch.equal(got.labels, one.labels[order])


def test_the_formula():
    views = [found([[0, 0, 10, 10]], [0.8]), found([[0, 0, 10, 8], [50, 50, 60, 60]], [0.4, 0.6])]
    got = fuse_boxes(views, [1, 3])
    shares = np.array([0.8, 3 * 0.4])
    high = (shares * [10, 8]).sum() / shares.sum()
    np.testing.assert_allclose(got.boxes, [[0, 0, 10, high], [50, 50, 60, 60]])
    np.testing.assert_allclose(got.scores, [(0.8 + 3 * 0.4) / 4, 3 * 0.6 / 4])


def test_boxes_of_other_labels_and_boxes_that_hardly_overlap_stay_apart():
    views = [found([[0, 0, 10, 10]], [0.8], [1]), found([[0, 0, 10, 10]], [0.8], [2])]
    assert fuse_boxes(views).labels.tolist() == [1, 2]
    exact = [found([[0, 0, 10, 10]], [0.8]), found([[0, 0, 10, 5]], [0.8])]  # overlap 0.5
    assert len(fuse_boxes(exact, overlap=0.5).scores) == 2
    assert len(fuse_boxes(exact, overlap=0.49).scores) == 1
    assert fuse_boxes(exact, least=0.9).boxes.shape == (0, 4)
    assert fuse_boxes([exact[0], found([], [])]).scores.tolist() == [0.4]


def detector(images):
    """Return the boxes of the bright rectangles, one a channel, and how bright they are."""
    found = []
    for image in images:
        boxes, scores, labels = [], [], []
        for label, channel in enumerate(image):
            y, x = (channel > 0.1).nonzero(as_tuple=True)
            if len(y):
                boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
                scores.append(channel.max())
                labels.append(label)
        corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        both = torch.tensor(scores, dtype=torch.float32), torch.tensor(labels, dtype=torch.int64)
        found.append(dict(zip(("boxes", "scores", "labels"), (corners, *both), strict=True)))
    return found


@pytest.mark.parametrize(("form", "rows"), [("xyxy", None), ("xywh", 2), ("cxcywh", 4)])
def test_a_detector_sees_the_same_boxes_in_every_view(form, rows):
    images = torch.zeros(3, 2, 20, 24)
    images[0, 0, 4:9, 6:16], images[0, 1, 2:6, 3:8] = 0.75, 0.5
    images[1, 1, 10:15, 12:20] = 1.0  # and there is nothing in the third
    ways = [Identity(), Flip(), Turn(1), Flip("vertical").then(Turn(3))]
    views = product(ways, [Identity(), Shift(2, -1), Scale(2, mode="nearest")])

    def model(batch):
        told = detector(batch)
        for one in told:
            low, high = one["boxes"][:, :2], one["boxes"][:, 2:]
            forms = {"xyxy": (low, high), "xywh": (low, high - low)}
            forms["cxcywh"] = ((low + high) / 2, high - low)
            one["boxes"] = torch.cat(forms[form], -1)
        return told

    got = TTA(model, views, task=Detections(form), rows=rows)(images)
    for one, alone in zip(got, model(images), strict=True):
        assert sorted(one) == ["boxes", "labels", "scores"]
        for key, value in one.items():
            torch.testing.assert_close(value, alone[key])


def test_what_only_one_view_sees_is_doubted():
    images = torch.zeros(1, 1, 8, 8)
    images[..., 2:6, 7:] = 1.0
    got = TTA(detector, [Identity(), Shift(1, fill=0.0)], task="detections", weights=[3, 1])(images)
    assert got[0]["scores"].tolist() == [0.75]
    each = TTA(detector, flips(), task="detections").outputs(images)
    assert [len(view) for view in each] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: fuse_boxes([]), "there are no views"),
        (lambda: fuse_boxes([found([[0, 0, 1, 1]], [1.5])]), "scores outside 0 to 1"),
        (lambda: fuse_boxes([found([[0, 0, 1, 1]], [0.5, 0.5])]), r"boxes \(1, 4\)"),
        (lambda: fuse_boxes([found([], [])], [-1]), "do not fit 1 views"),
        (lambda: Detections("xx"), "form='xx' is not known"),
        (lambda: Detections().undo([{"boxes": 1, "masks": 2}], Flip(), (8, 8)), "boxes, masks"),
        (
            lambda: TTA(detector, flips(), task="detections", weights=np.ones((4, 2)))(
                torch.zeros(1, 1, 8, 8)
            ),
            "one weight a view",
        ),
    ],
)
def test_what_does_not_fit_is_said(make, said):
    with pytest.raises(DataError, match=said):
        make()
