"""ttach: the same numbers where it is right, and the faults that we are tested for."""

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from torch import nn

from polyfuse.tta import (
    TTA,
    Add,
    Flip,
    Identity,
    Keypoints,
    Masks,
    Multiply,
    Scale,
    Turn,
    dihedral,
    five_crop,
    merge_views,
    product,
    ten_crop,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ttach():
    """Return ttach on this torch, out of the peers' environment: it is pure Python."""
    home = Path(os.environ.get("POLYFUSE_PEERS", ROOT / ".venv-peers"))
    found = next(home.glob("lib/python3*/site-packages/ttach/__init__.py"), None)
    if found is None:
        pytest.skip("ttach is not installed beside this; `make peers` does that")
    spec = spec_from_file_location("ttach", found, submodule_search_locations=[str(found.parent)])
    sys.modules["ttach"] = module = module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in [name for name in sys.modules if name.partition(".")[0] == "ttach"]:
        del sys.modules[name]


class Net(nn.Module):
    """Logits, masks or points of an image."""

    def __init__(self, kind="classes", size=8):
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.body = kind, nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 6)

    def forward(self, x):
        features = self.body(x).relu()
        if self.kind == "masks":
            return features
        said = self.head(features.amax((-1, -2)))
        return said.sigmoid() if self.kind == "points" else said


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def brighter(ttach):
    return ttach.Compose([ttach.Add([0, 0.1, -0.2]), ttach.Multiply([1, 0.8, 1.3])])


VIEWS = {
    "d4": (dihedral(), lambda t: t.aliases.d4_transform()),
    "flip": (product([Identity(), Flip()], [Identity(), Flip("vertical")]), "flip_transform"),
    "scale": ([Identity(), Scale(2, "nearest"), Scale(0.5, "nearest")], None),
    "bright": (
        product([Identity(), Add(0.1), Add(-0.2)], [Identity(), Multiply(0.8), Multiply(1.3)]),
        brighter,
    ),
    "five": (five_crop(4, 6), lambda t: t.aliases.five_crop_transform(4, 6)),
    "ten": (ten_crop(4, 6), lambda t: t.aliases.ten_crop_transform(4, 6)),
}


def theirs(ttach, name):
    made = VIEWS[name][1]
    if name == "scale":
        return ttach.aliases.multiscale_transform([1, 2, 0.5])
    return getattr(ttach.aliases, made)() if isinstance(made, str) else made(ttach)


@pytest.mark.parametrize("name", VIEWS)
def test_classification_agrees(ttach, images, name):
    model = Net().eval()
    peer = ttach.ClassificationTTAWrapper(model, theirs(ttach, name))(images)
    torch.testing.assert_close(TTA(model, VIEWS[name][0], task="numbers")(images), peer)


@pytest.mark.parametrize("name", ["d4", "flip", "scale", "bright"])
def test_segmentation_agrees(ttach, images, name):
    model = Net("masks").eval()
    peer = ttach.SegmentationTTAWrapper(model, theirs(ttach, name))(images)
    torch.testing.assert_close(TTA(model, VIEWS[name][0], task=Masks(numbers=True))(images), peer)


@pytest.mark.parametrize("name", ["d4", "flip"])
def test_keypoints_agree(ttach, images, name):
    model = Net("points").eval()
    peer = ttach.KeypointsTTAWrapper(model, theirs(ttach, name), scaled=True)(images)
    ours = TTA(model, VIEWS[name][0], task=Keypoints("relative"))(images)
    torch.testing.assert_close(ours, peer)


@pytest.mark.parametrize(
    ("mode", "combiner", "options", "power"),
    [
        ("mean", "mean_probability", {}, 1),
        ("gmean", "geometric_mean", {}, 1),
        ("tsharpen", "power_mean", {"exponent": 0.5}, 2),
        ("max", "maximum", {}, 1),
        ("min", "minimum", {}, 1),
    ],
)
def test_merging_of_probabilities_agrees(ttach, mode, combiner, options, power):
    """Once what ttach gives is renormalised, and there are few views."""
    draws = torch.rand(4, 5, 3, generator=torch.Generator().manual_seed(1)) + 0.1
    views = draws / draws.sum(-1, keepdim=True)
    merger = ttach.base.Merger(mode, n=4)
    for view in views:
        merger.append(view)
    peer = merger.result**power
    ours = merge_views(views, combiner=combiner, space="prob", **options)
    torch.testing.assert_close(ours, peer / peer.sum(-1, keepdim=True))


def merged(ttach, mode, views):
    merger = ttach.base.Merger(mode, n=len(views))
    for view in views:
        merger.append(view)
    return merger.result


def test_the_peer_has_the_faults_that_we_are_tested_for(ttach):
    many = torch.tensor([0.98, 0.01, 0.01]).repeat(64, 1)
    assert merged(ttach, "gmean", many)[1:].tolist() == [0, 0]
    lost = merged(ttach, "gmean", torch.tensor([[2.0, -1.0, -3.0]] * 2))
    torch.testing.assert_close(lost, torch.tensor([2.0, 1.0, 3.0]))
    assert merged(ttach, "tsharpen", torch.tensor([[2.0, -1.0]])).isnan().any()
    sharp = merged(ttach, "tsharpen", torch.tensor([[0.5, 0.5], [0.9, 0.1]]))
    assert abs(sharp.sum() - 1) > 0.1
    wrapper = ttach.SegmentationTTAWrapper(Net("masks").eval(), ttach.Compose([ttach.Scale([1.3])]))
    with pytest.raises(RuntimeError, match="must match the size"):
        wrapper(torch.rand(1, 3, 7, 7))


def test_scaled_masks_are_right_where_the_peer_fails():
    model = Net("masks").eval()
    got = TTA(model, [Identity(), Scale(1.3)], task="masks")(torch.rand(1, 3, 7, 7))
    assert got.shape == (1, 4, 7, 7)


def test_turned_points_of_images_that_are_not_square_agree_with_a_square(ttach):
    """In relative units a quarter turn is the same in both."""
    points = torch.rand(2, 4, 2)
    for quarters in (1, 2, 3):
        peer = ttach.transforms.Rotate90([0]).apply_deaug_keypoints(points, 90 * quarters)
        ours = Keypoints("relative").undo(points, Turn(quarters), (8, 12))
        torch.testing.assert_close(ours, peer)
