"""Readers of characters: the course's net, attention a position, lengths, and any backbone."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from polyfuse.errors import PolyfuseError
from polyfuse.losses import cross_entropy
from polyfuse.models import AttentionResNet, CharacterCNN, CourseCNN, LengthCNN, Reader
from polyfuse.models.base import NEVER, ReadingHeads


def some_images(n=3, size=(24, 64), channels=3):
    return torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(1))


# The course's net -------------------------------------------------------------------------------


def test_the_course_net_is_that_of_the_course():
    """Two convolutions of stride 2, 3 to 16 to 32, each pooled; 32 * 3 * 7 features of 60x120."""
    model, images = CourseCNN().eval(), some_images(size=(60, 120))
    assert sum(p.numel() for p in model.parameters()) == 448 + 4640 + 6 * (32 * 3 * 7 * 11 + 11)
    first, _, _, second, *_ = model.trunk
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    hidden = (images - mean) / deviation
    for layer in (first, second):
        hidden = functional.conv2d(hidden, layer.weight, layer.bias, stride=2).relu()
        hidden = functional.max_pool2d(hidden, 2)
    assert hidden.shape == (3, 32, 3, 7)
    wanted = torch.stack([h.weight @ hidden[0].flatten() + h.bias for h in model.heads])
    torch.testing.assert_close(model(images)[0], wanted)


# Attention a position ---------------------------------------------------------------------------


@pytest.mark.parametrize("net", [CourseCNN, AttentionResNet, LengthCNN])
@pytest.mark.parametrize("size", [(24, 64), (30, 70), (64, 128)])
def test_images_of_any_size_are_read(net, size):
    model = net(positions=2).eval()
    assert model(some_images(size=size)).shape[:2] == ((3, 2) if net is not LengthCNN else (3, 3))


def grid_heads(**options):
    torch.manual_seed(0)
    heads = ReadingHeads(5, places=True, positions=2, classes=4, hidden=6, **options).double()
    features = torch.randn(3, 5, 4, 9, dtype=torch.float64)
    heads(features)  # so that statistics are not those of the start
    return heads.eval(), features


def test_a_position_has_its_own_softmax_over_the_places():
    """The formula, position by position, in 64 bits: of another size than the grid of 3x8."""
    heads, features = grid_heads()
    hidden = heads.hidden(features)
    attention, logits = heads.attention, heads(features)
    layout = (hidden @ attention.layout.weight.T + attention.layout.bias).view(3, 2, 3, 8)
    layout = functional.interpolate(layout, (4, 9), mode="bilinear")
    content = attention.content(features)
    norm = attention.norm
    for sample in range(3):
        for position, head in enumerate(heads.heads):
            scores = (layout + content)[sample, position].flatten()
            weights = scores.exp() / scores.exp().sum()
            found = sum(w * f for w, f in zip(weights, features[sample].flatten(1).T, strict=True))
            found = (found - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
            found = found * norm.weight + norm.bias
            wanted = head.weight @ torch.cat([found, hidden[sample]]) + head.bias
            torch.testing.assert_close(logits[sample, position], wanted)


def test_weights_over_places_are_shares_that_differ_by_position():
    heads, features = grid_heads()
    weights = heads.attention.weights(features, heads.hidden(features))
    assert weights.shape == (3, 2, 4, 9)
    assert weights.min() > 0
    torch.testing.assert_close(weights.sum((2, 3)), torch.ones(3, 2, dtype=torch.float64))
    assert (weights[:, 0] - weights[:, 1]).abs().max() > 0.01


def test_attention_finds_the_marked_places_in_their_order():
    """After a few steps each position's weights lie on its own mark, wherever that is."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    heads = ReadingHeads(3, places=True, positions=2, classes=3, hidden=32, dropout=0.0)
    optimizer = torch.optim.Adam(heads.parameters(), lr=0.02)

    def marks(n):
        at = torch.stack([torch.randint(4, (n,), generator=generator) for _ in range(2)], 1)
        at = at + torch.tensor([0, 4])
        kinds = torch.randint(3, (n, 2), generator=generator)
        maps = torch.zeros(n, 3, 3, 8)
        for position in range(2):
            maps[torch.arange(n), kinds[:, position], 1, at[:, position]] = 1
        return maps, kinds, at

    for _ in range(120):
        maps, kinds, _ = marks(64)
        optimizer.zero_grad()
        cross_entropy(heads(maps), kinds).backward()
        optimizer.step()
    maps, kinds, at = marks(200)
    heads.eval()
    assert (heads(maps).argmax(-1) == kinds).double().mean() > 0.95
    columns = heads.attention.weights(maps, heads.hidden(maps)).sum(2)
    own = columns.gather(2, at[:, :, None])[..., 0]
    assert own.mean() > 2 * columns.gather(2, at.flip(1)[:, :, None]).mean()


@pytest.mark.parametrize("net", [AttentionResNet, CharacterCNN])
def test_a_length_head_is_one_more_whose_other_classes_cannot_be(net):
    model = net(width=4, positions=3, length_head=True).eval()
    assert model.length_head is True
    logits = model(some_images())
    assert logits.shape == (3, 4, 11)
    assert torch.equal(logits[:, 3, 4:], torch.full((3, 7), NEVER))
    assert logits[:, 3, :4].abs().max() < 100
    assert torch.equal(logits[:, 3].softmax(-1)[:, 4:], torch.zeros(3, 7))
    assert logits.half().isfinite().all()


@pytest.mark.parametrize("net", [AttentionResNet, CharacterCNN])
def test_the_length_head_changes_nothing_for_the_characters(net):
    torch.manual_seed(0)
    model = net(width=4, length_head=True).eval()
    plain = net(width=4).eval()
    assert plain.length_head is False
    plain.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(plain(some_images()), model(some_images())[:, :6])


@pytest.mark.parametrize("net", [AttentionResNet, CharacterCNN])
def test_a_length_head_needs_a_class_for_every_length(net):
    with pytest.raises(
        PolyfuseError, match=r"8 positions have 9 lengths.*has 6 classes.*length_cnn"
    ):
        net(positions=8, classes=6, length_head=True)
    net(positions=8, classes=9, length_head=True)


def test_more_blocks_are_more_layers_and_sides_shrink_to_an_eighth():
    model = AttentionResNet(width=4).eval()
    assert model.stages(model.stem(some_images())).shape[1:] == (16, 3, 8)
    kernels = [
        sum(p.ndim == 4 and p.shape[-1] == 3 for p in AttentionResNet(blocks=b).stages.parameters())
        for b in (1, 2)
    ]
    assert kernels == [6, 12]


@pytest.mark.parametrize(
    ("net", "option"),
    [
        (AttentionResNet, "width"),
        (AttentionResNet, "blocks"),
        (AttentionResNet, "hidden"),
        (AttentionResNet, "positions"),
        (AttentionResNet, "classes"),
        (CourseCNN, "positions"),
        (CourseCNN, "classes"),
        (LengthCNN, "width"),
        (LengthCNN, "hidden"),
        (LengthCNN, "positions"),
    ],
)
def test_sizes_below_one_are_refused_by_every_reader(net, option):
    with pytest.raises(PolyfuseError, match=f"{option}=0; it must be 1 or more"):
        net(**{option: 0})


@pytest.mark.parametrize("net", [AttentionResNet, CourseCNN, LengthCNN])
@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_a_dropout_that_is_no_share_is_refused(net, dropout):
    with pytest.raises(PolyfuseError, match=r"dropout=.*; it must be 0 or more and below 1"):
        net(dropout=dropout)


# Any backbone -----------------------------------------------------------------------------------


def maps(*, channels=3):
    return nn.Sequential(nn.Conv2d(channels, 5, 3, stride=4), nn.BatchNorm2d(5), nn.ReLU())


def flat():
    return nn.Sequential(maps(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Classifier(nn.Module):
    """As torchvision's: features, pooled, and a last linear layer that is called by a name."""

    def __init__(self, *, num_classes=10):
        super().__init__()
        self.features = flat()
        self.fc = nn.Linear(5, num_classes)

    def forward(self, images):
        return self.fc(self.features(images))


class Squeezing(nn.Module):
    """A linear layer within, and features after it: not a classifier."""

    def __init__(self):
        super().__init__()
        self.features = flat()
        self.inner = nn.Linear(5, 7)

    def forward(self, images):
        return self.inner(self.features(images)).relu()


def features_of(model):
    """Return how many features, or channels, the heads of a reader take."""
    (linear,) = (layer for layer in model.heads.hidden if isinstance(layer, nn.Linear))
    return linear.in_features // (24 if model.heads.attention else 1)


def reader(backbone, **options):
    return Reader(backbone=backbone, shape=[3, 24, 64], **options)


@pytest.mark.parametrize(
    ("backbone", "features", "attends"),
    [(maps, 5, True), (flat, 5, False), (Classifier, 5, False), (Squeezing, 7, False)],
)
@pytest.mark.parametrize("length_head", [False, True])
def test_features_of_any_shape_are_read(backbone, features, attends, length_head):
    model = reader(backbone, positions=4, classes=11, length_head=length_head).eval()
    assert model(some_images()).shape == (3, 4 + length_head, 11)
    assert model.length_head is length_head
    assert features_of(model) == features
    assert (model.heads.attention is not None) == attends


def test_a_classifiers_last_layer_is_taken_off_and_its_features_are_used():
    model = reader(Classifier, normalise="none").eval()
    assert isinstance(model.backbone.fc, nn.Identity)
    assert not [name for name, _ in model.named_parameters() if ".fc." in name]
    features = model.backbone.features(some_images())
    torch.testing.assert_close(model(some_images()), model.heads(features))


def test_a_last_layer_is_kept_where_that_is_asked_for():
    model = reader(Classifier, options={"num_classes": 9}, keep_last=True)
    assert isinstance(model.backbone.fc, nn.Linear)
    assert features_of(model) == 9


def test_a_last_layer_in_a_sequence_is_found():
    def sequence():
        return nn.Sequential(flat(), nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 10))

    assert features_of(reader(sequence)) == 8
    two = reader(lambda: nn.Sequential(flat(), nn.Sequential(nn.Linear(5, 10))))
    assert features_of(two) == 5


def test_to_build_a_reader_leaves_no_trace_in_the_backbone():
    made = Classifier()
    before = {key: value.clone() for key, value in made.state_dict().items()}
    reader(lambda: made)
    assert all(module.training for module in made.modules())
    assert not any(module._forward_hooks for module in made.modules())
    assert all(torch.equal(before[key], value) for key, value in made.state_dict().items())


def test_every_parameter_of_a_reader_is_trained():
    """With one that is not, training on several devices would stop with an error."""
    for backbone in (maps, flat, Classifier, Squeezing):
        model = reader(backbone, length_head=True)
        model(some_images(6)).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_reader_normalises_images_as_asked():
    images, seen = some_images(), {}
    for normalise in ("image", "imagenet", "none"):
        model = reader(maps, normalise=normalise)
        model.backbone.register_forward_pre_hook(
            lambda _, args, key=normalise: seen.update({key: args[0]})
        )
        model(images)
    assert torch.equal(seen["none"], images)
    mean, deviation = seen["image"].mean((2, 3)), seen["image"].std((2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(deviation, torch.ones(3, 3), atol=0.01, rtol=0)
    torch.testing.assert_close(seen["imagenet"][:, 2] * 0.225 + 0.406, images[:, 2])


def test_grey_images_are_read():
    options = {"backbone": maps, "options": {"channels": 1}, "shape": [1, 24, 64]}
    assert Reader(**options)(some_images(channels=1)).shape == (3, 6, 11)
    with pytest.raises(PolyfuseError, match="has 1 channels; type normalise: image"):
        Reader(**options, normalise="imagenet")


class Returns(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, images):
        return self.what(images)


@pytest.mark.parametrize(
    ("backbone", "options", "fact"),
    [
        (lambda: "resnet", {}, "factory returned a str; name a function that returns a torch mod"),
        (partial(Returns, lambda images: {"out": images}), {}, "returned a dict of 1 images"),
        (partial(Returns, lambda images: images[0]), {}, r"of shape \(3, 24, 64\) of 1 images"),
        (partial(Returns, lambda images: images.sum()), {}, "returned a Tensor of 1 images"),
        (partial(nn.Linear, 3, 3), {}, r"take an image of shape \(3, 24, 64\): .*RuntimeError"),
        (maps, {"shape": [3, 24]}, r"shape=\[3, 24\]; give channels, height and width"),
        (maps, {"shape": [3, 0, 8]}, "height=0; it must be 1 or more"),
        (maps, {"normalise": "batch"}, "normalise='batch'; it is one of image, imagenet, none"),
        (maps, {"positions": 0}, "positions=0"),
        (maps, {"classes": 5, "length_head": True}, "6 positions have 7 lengths"),
    ],
)
def test_backbones_that_cannot_be_read_are_refused(backbone, options, fact):
    with pytest.raises(PolyfuseError, match=fact):
        Reader(**{"backbone": backbone, "shape": [3, 24, 64], **options})


@pytest.mark.parametrize(
    ("name", "features", "attends"),
    [("resnet18", 512, False), ("mobilenet_v3_small", 1024, False), ("squeezenet1_1", 1000, False)],
)
def test_torchvisions_classifiers_are_read(name, features, attends):
    models = pytest.importorskip("torchvision.models")
    model = Reader(backbone=getattr(models, name), length_head=True).eval()
    assert model(some_images(2, (64, 128))).shape == (2, 7, 11)
    assert features_of(model) == features
    assert (model.heads.attention is not None) == attends


@pytest.mark.parametrize(
    ("options", "features", "attends"),
    [
        ({"model_name": "resnet10t"}, 512, False),
        ({"model_name": "resnet10t", "num_classes": 0}, 512, False),
        ({"model_name": "resnet10t", "num_classes": 0, "global_pool": ""}, 512, True),
        ({"model_name": "vit_tiny_patch16_224", "img_size": [64, 128]}, 192, False),
        (
            {"model_name": "vit_tiny_patch16_224", "img_size": [64, 128], "num_classes": 0},
            192,
            False,
        ),
    ],
)
def test_timms_models_are_read(options, features, attends):
    timm = pytest.importorskip("timm")
    model = Reader(backbone=timm.create_model, options=options).eval()
    assert model(some_images(2, (64, 128))).shape == (2, 6, 11)
    assert features_of(model) == features
    assert (model.heads.attention is not None) == attends
