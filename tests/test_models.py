"""Models: one contract for all that recipes name, then what each one promises."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from polyfuse.averaging import AveragedModel, ema
from polyfuse.errors import PolyfuseError
from polyfuse.fit.stacked import Stack
from polyfuse.losses import cross_entropy
from polyfuse.models import MODELS, CharacterCNN, ResNet18Small, mlp


def feature_maps(*, width):
    return nn.Sequential(nn.Conv2d(3, width, 3, stride=4), nn.BatchNorm2d(width), nn.ReLU())


# Name, or name and what is asked for: options, shape of an image, shape of its logits.
SMALL = {
    "character_cnn": ({"width": 4, "hidden": 16}, (3, 24, 64), (6, 11)),
    "character_cnn, length head": (
        {"width": 4, "hidden": 16, "length_head": True},
        (3, 24, 64),
        (7, 11),
    ),
    "course_cnn": ({}, (3, 24, 64), (6, 11)),
    "attention_resnet": ({"width": 4, "hidden": 8}, (3, 24, 64), (6, 11)),
    "attention_resnet, length head": (
        {"width": 4, "hidden": 8, "length_head": True},
        (3, 24, 64),
        (7, 11),
    ),
    "length_cnn": ({"width": 4, "hidden": 16}, (3, 24, 64), (7,)),
    "reader": (
        {"backbone": feature_maps, "options": {"width": 8}, "shape": [3, 24, 64]},
        (3, 24, 64),
        (6, 11),
    ),
    "resnet18_small": ({"classes": 5, "width": 4}, (3, 16, 16), (5,)),
    "mlp": ({"inputs": 12, "classes": 5, "hidden": 16, "dropout": 0.2}, (3, 2, 2), (5,)),
}
every = pytest.mark.parametrize("name", SMALL)


def made(name, seed=0):
    torch.manual_seed(seed)
    return MODELS[name.partition(",")[0]](**SMALL[name][0])


def some_inputs(name, n=6):
    return torch.rand(n, *SMALL[name][1], generator=torch.Generator().manual_seed(1))


def test_every_model_is_tested():
    assert {name.partition(",")[0] for name in SMALL} == MODELS.keys()


@every
@pytest.mark.parametrize("n", [1, 6])
def test_maps_inputs_to_logits(name, n):
    logits = made(name).eval()(some_inputs(name, n))
    assert logits.shape == (n, *SMALL[name][2])
    assert logits.dtype == torch.float32


@every
def test_the_same_seed_gives_the_same_model(name):
    states = [made(name, seed).state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(states[0][key], value) for key, value in states[1].items())
    assert any(not torch.equal(states[0][key], value) for key, value in states[2].items())


@every
def test_every_parameter_gets_a_gradient(name):
    model = made(name)
    model(some_inputs(name)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@every
def test_in_eval_mode_samples_do_not_influence_each_other(name):
    model, inputs = made(name).eval(), some_inputs(name)
    each = torch.cat([model(inputs[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(each, model(inputs))


@every
def test_its_state_fits_a_new_one(name):
    model, other = made(name, 0).eval(), made(name, 1).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(some_inputs(name)), model(some_inputs(name)))


def labels_for(name):
    """Return a class a head for each of six samples, so that it is the same in all of them."""
    heads = SMALL[name][2][:-1]
    return torch.arange(6).view(6, *[1] * len(heads)).expand(6, *heads).contiguous()


@every
def test_in_lock_step_it_is_trained_as_alone(name):
    """Stacked under vmap, two of it have the losses and gradients that each has by itself."""
    models, inputs, labels = [made(name, 0), made(name, 1)], some_inputs(name), labels_for(name) % 5
    for model in models:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # masks would be drawn in another order
    alone = [copy.deepcopy(model) for model in models]
    losses = torch.stack([cross_entropy(model(inputs), labels) for model in alone])
    losses.sum().backward()
    stack = Stack(models, cross_entropy)
    together = stack.losses([0, 1], inputs, labels, None, shared=True)
    together.sum().backward()
    torch.testing.assert_close(together, losses, atol=1e-4, rtol=1e-4)
    for key, stacked in stack.parameters.items():
        each = torch.stack([model.get_parameter(key).grad for model in alone])
        torch.testing.assert_close(stacked.grad, each, atol=1e-3, rtol=1e-3)
    for key, stacked in stack.buffers.items():
        each = torch.stack([model.get_buffer(key) for model in alone])
        torch.testing.assert_close(stacked, each, atol=1e-4, rtol=1e-4)


@every
def test_its_weights_can_be_averaged(name):
    model, other = made(name, 0), made(name, 1)
    average = AveragedModel(model, ema(0.5))
    average.update_parameters(model)
    average.update_parameters(other)
    weights = [dict(net.named_parameters()) for net in (model, other, average.module)]
    for key, value in weights[2].items():
        torch.testing.assert_close(value, (weights[0][key] + weights[1][key]) / 2)
    assert average.eval()(some_inputs(name)).isfinite().all()


@every
def test_it_learns_a_batch_by_heart(name):
    model, inputs = made(name), some_inputs(name)
    labels = labels_for(name) % 5
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    losses = []
    for _ in range(60):
        loss = functional.cross_entropy(model(inputs).flatten(0, -2), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("size", [(24, 64), (32, 32), (60, 120)])
def test_the_cnn_takes_images_of_any_size(size):
    model = CharacterCNN(width=4, hidden=8, positions=2, classes=3).eval()
    assert model(torch.rand(2, 3, *size)).shape == (2, 2, 3)


def test_the_cnn_does_not_see_an_images_own_brightness_and_contrast():
    model, images = made("character_cnn").eval(), some_inputs("character_cnn")
    torch.testing.assert_close(model(0.5 * images + 0.3), model(images), atol=0.02, rtol=0)


def test_the_cnn_bears_an_image_of_one_colour():
    assert bool(made("character_cnn")(torch.full((2, 3, 24, 64), 0.5)).isfinite().all())


def test_the_mlp_has_the_layers_asked_for():
    sizes = [tuple(p.shape) for p in mlp(inputs=4, classes=3, hidden=8, layers=3).parameters()]
    assert [s for s in sizes if len(s) == 2] == [(8, 4), (8, 8), (8, 8), (3, 8)]


def test_the_resnet_of_full_width_is_resnet_18():
    # 11,173,962: the CIFAR ResNet-18 of ten classes, as it is usually counted; 18 = 17 + 1 layers,
    # the three projections of shortcuts aside.
    model = ResNet18Small(classes=10)
    assert sum(p.numel() for p in model.parameters()) == 11_173_962
    kernels = [p for p in model.parameters() if p.ndim in (2, 4) and p.shape[2:] != (1, 1)]
    assert len(kernels) == 18


@pytest.mark.parametrize(("size", "last"), [(8, 1), (16, 2), (32, 4), (13, 2)])
def test_the_resnet_halves_an_image_three_times(size, last):
    model = ResNet18Small(classes=3, width=4, channels=1).eval()
    features = model.stages(model.stem(torch.rand(2, 1, size, size)))
    assert features.shape == (2, 32, last, last)


def test_a_narrow_resnet_survives_its_backward_pass():
    """oneDNN issue 6035: strided 1x1 convolutions of few channels corrupt the heap.

    The same convolution, stride 1 after taking every second pixel, is the same function.
    """
    model = ResNet18Small(classes=3, width=3)
    for _ in range(30):
        model(torch.rand(6, 3, 16, 16)).sum().backward()
    subsample, projection, _ = model.stages[1][0].shortcut
    images = torch.rand(2, 3, 9, 9)
    strided = functional.conv2d(images, projection.weight, stride=2)
    torch.testing.assert_close(projection(subsample(images)), strided)


def test_a_resnet_block_adds_to_its_shortcut():
    block = ResNet18Small(classes=3, width=4).eval().stages[0][0]
    images = torch.rand(2, 4, 8, 8)
    with torch.no_grad():
        block.residual[-1].weight.zero_()
    assert torch.equal(block(images), images)  # the images are not negative, so relu keeps them


@pytest.mark.parametrize("size", ["classes", "width", "channels"])
def test_sizes_of_the_resnet_below_one_are_refused(size):
    with pytest.raises(PolyfuseError, match=f"{size}=0; it must be 1 or more"):
        ResNet18Small(**{"classes": 3, size: 0})


@pytest.mark.parametrize("size", ["width", "hidden", "positions", "classes"])
def test_sizes_below_one_are_refused(size):
    with pytest.raises(PolyfuseError, match=f"{size}=0; it must be 1 or more"):
        CharacterCNN(**{size: 0})
    with pytest.raises(PolyfuseError, match="layers=0; it must be 1 or more"):
        mlp(inputs=4, classes=3, layers=0)
