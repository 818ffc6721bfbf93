"""MC dropout and MC batch-norm: what draws, what it draws, and that nothing else changes."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from polyfuse.errors import TrainingError
from polyfuse.models import CharacterCNN, mlp
from polyfuse.stochastic import dropouts, mc_dropout, use_statistics_of

ROWS = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))


def net(seed=0, dropout=0.5):
    torch.manual_seed(seed)
    return mlp(inputs=6, classes=3, hidden=8, dropout=dropout).eval()


def modes(model):
    return [module.training for module in model.modules()]


# Dropout ----------------------------------------------------------------------------------------


def test_mean_and_variance_over_samples_are_the_analytic_ones():
    # y = sum_j w_j x_j m_j / (1 - p): mean w.x, variance p / (1 - p) sum_j (w_j x_j)^2.
    p, seeds, places = 0.3, 20, 500
    model = nn.Sequential(nn.Dropout(p), nn.Linear(6, 2)).eval()
    rows = ROWS[:, None].expand(-1, places, -1)  # each place is dropped by itself
    with torch.no_grad():
        said = [mc_dropout(model, seed=seed)(rows) for seed in range(seeds)]
        drawn = torch.cat(said, 1).double()
        plain = model(ROWS).double()
        terms = model[1].weight[None] * ROWS[:, None]
        variance = p / (1 - p) * terms.square().sum(-1).double()
    error = (drawn.mean(1) - plain) / (variance / drawn.shape[1]).sqrt()
    assert error.abs().max() < 4.5  # of 24 standard normals
    assert (drawn.var(1) / variance - 1).abs().max() < 0.1


def test_an_answer_does_not_depend_on_the_batch():
    sample = mc_dropout(net(), seed=1)
    whole = sample(ROWS)
    for parts in ((12,), (5, 7), (1,) * 12, (3, 9)):
        again = torch.cat([sample(part) for part in ROWS.split(parts)])
        torch.testing.assert_close(again, whole, rtol=1e-6, atol=1e-6)
    order = torch.randperm(12)
    torch.testing.assert_close(sample(ROWS[order]), whole[order], rtol=1e-6, atol=1e-6)


def test_the_masks_have_the_same_bits_in_any_batch():
    sample = mc_dropout(nn.Dropout(0.5).eval(), seed=0)
    whole = sample(ROWS)
    assert torch.equal(torch.cat([sample(part) for part in ROWS.split(5)]), whole)
    kept = whole != 0
    assert (kept == kept[0]).all()
    assert torch.equal(whole[kept], 2 * ROWS[kept])


def test_the_seed_decides():
    model = net()
    said = [mc_dropout(model, seed=seed)(ROWS) for seed in (0, 1, 2)]
    assert torch.equal(mc_dropout(model, seed=1)(ROWS), said[1])
    assert not any(torch.equal(a, b) for a, b in pairwise(said))
    before = torch.get_rng_state()
    mc_dropout(model, seed=3)(ROWS)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_model_stays_as_it_is_and_shares_its_weights():
    model = net().train()
    model[0].eval()
    before, plain = modes(model), net()(ROWS)
    sample = mc_dropout(model, seed=0)
    sample.eval()(ROWS)
    assert modes(model) == before
    assert torch.equal(model.eval()(ROWS), plain)
    assert sample.state_dict().keys() == model.state_dict().keys()
    assert all(a is b for a, b in zip(sample.parameters(), model.parameters(), strict=True))


def test_only_dropout_draws():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mc_dropout(model, seed=0)(ROWS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model[2].p = 1e-9  # draws, and drops nothing
    torch.testing.assert_close(mc_dropout(model, seed=0)(ROWS), model(ROWS))


def test_in_train_mode_it_is_the_plain_net():
    sample, plain = mc_dropout(net(), seed=0).train(), net().train()
    torch.manual_seed(5)
    a = sample(ROWS)
    torch.manual_seed(5)
    assert torch.equal(a, plain(ROWS))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Dropout(0.4), (4, 3, 5)),
        (nn.Dropout(0.4, inplace=True), (4, 7)),
        (nn.Dropout1d(0.4), (4, 9, 3)),
        (nn.Dropout2d(0.4), (4, 9, 3, 3)),
        (nn.Dropout3d(0.4), (4, 9, 2, 3, 3)),
        (nn.AlphaDropout(0.4), (4, 9)),
        (nn.FeatureAlphaDropout(0.4), (4, 9, 3, 3)),
    ],
)
def test_each_kind_of_dropout_does_to_a_row_what_it_does_in_train_mode(layer, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    said = mc_dropout(layer.eval(), seed=2)(x.clone())
    with torch.random.fork_rng():
        torch.manual_seed(int(np.random.SeedSequence((2, 0, 0)).generate_state(1)[0]))
        layer.train()
        expected = layer(x[:1].clone())
    torch.testing.assert_close(said[:1], expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(said, x)


def test_a_layer_that_is_used_twice_draws_twice_and_the_same_in_each_pass():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return torch.stack([self.drop(x), self.drop(x)], 1)

    sample = mc_dropout(Twice().eval(), seed=0)
    said = sample(ROWS)
    assert not torch.equal(said[:, 0], said[:, 1])
    assert torch.equal(sample(ROWS), said)


def test_layers_do_not_share_a_mask():
    model = nn.Sequential(nn.Dropout(0.5), nn.Identity(), nn.Dropout(0.5)).eval()
    share = (mc_dropout(model, seed=0)(torch.ones(1, 4000)) != 0).float().mean()
    assert abs(share - 0.25) < 0.04


def test_transformers_drop_in_eval_mode_too():
    # Their fused path in eval mode leaves dropout modules out.
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True).eval()
    x = torch.randn(3, 5, 8)
    with torch.no_grad():
        said = [mc_dropout(model, seed=seed)(x) for seed in (0, 1)]
        assert not torch.allclose(said[0], model(x), atol=1e-3)
    assert not torch.allclose(*said, atol=1e-3)


@pytest.mark.parametrize("model", [nn.Linear(2, 2), net(dropout=0.0)])
def test_a_net_without_dropout_is_refused(model):
    with pytest.raises(TrainingError, match="no dropout layer"):
        mc_dropout(model, seed=0)


def test_rows_on_another_axis_are_refused():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return self.drop(x.T).T

    with pytest.raises(TrainingError, match=r"shape \(6, 12\).*12 rows"):
        mc_dropout(Turned().eval(), seed=0)(ROWS)


def test_the_shipped_nets_have_dropout():
    assert len(dropouts(CharacterCNN(width=4))) == 2
    sample = mc_dropout(CharacterCNN(width=4).eval(), seed=0)
    assert sample(torch.rand(2, 3, 24, 64)).shape == (2, 6, 11)


# Batch-norm -------------------------------------------------------------------------------------


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3, momentum=0.3),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(3 * 4, 4),
        nn.BatchNorm1d(4, momentum=None),
    )


@pytest.mark.parametrize("rows", [2, 7])
def test_a_batch_is_normalised_in_eval_mode_as_in_train_mode(rows):
    model, batch = convolutional(), torch.randn(rows, 1, 4, 4)
    model[3].p = 0.0  # the one other layer that train mode changes
    with torch.no_grad():
        trained = model.train()(batch)
    use_statistics_of(model, batch)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(batch), trained, rtol=1e-4, atol=1e-5)


def test_modes_momenta_and_weights_stay_and_dropout_does_not_draw():
    model, batch = convolutional(), torch.randn(6, 1, 4, 4)
    model[3].eval()
    before = modes(model), [model[1].momentum, model[6].momentum]
    weights = [value.clone() for value in model.parameters()]
    use_statistics_of(model, batch)
    first = {name: value.clone() for name, value in model.named_buffers() if "running" in name}
    use_statistics_of(model, batch)
    assert (modes(model), [model[1].momentum, model[6].momentum]) == before
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert all(torch.equal(value, first[n]) for n, value in model.named_buffers() if n in first)


def test_a_failed_pass_leaves_no_hook_and_no_momentum():
    model = convolutional()
    with pytest.raises(RuntimeError):
        use_statistics_of(model, torch.randn(3, 2, 4, 4))
    assert model[1].momentum == 0.3
    assert not model[1]._forward_hooks
    assert model.training


def test_a_net_without_batchnorm_is_refused():
    with pytest.raises(TrainingError, match="no batch-norm layer"):
        use_statistics_of(nn.Linear(2, 2), torch.zeros(2, 2))
