"""Batch-norm re-estimation against torch's own and against all values at once in double."""

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import update_bn

from polyfuse.batchnorm import MODES, batch_norms, reestimate
from polyfuse.errors import DataError

KINDS = {
    "1d": (nn.BatchNorm1d, (3,)),
    "sequence": (nn.BatchNorm1d, (3, 5)),
    "2d": (nn.BatchNorm2d, (3, 4, 2)),
    "3d": (nn.BatchNorm3d, (3, 2, 2, 2)),
}
SIZES = (7, 4, 2)  # unequal on purpose


def batches(shape=(3,), sizes=SIZES, dtype=torch.float32, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, *shape, generator=draw, dtype=torch.float64) * (i + 1) + 10 * i).to(
            dtype
        )
        for i, size in enumerate(sizes)
    ]


def together(parts):
    """All values a channel, in double precision: `(channels, values)`."""
    whole = np.concatenate([part.double().numpy() for part in parts])
    return np.moveaxis(whole, 1, 0).reshape(whole.shape[1], -1)


def statistics(model):
    return {
        name: [getattr(layer, key).clone() for key in ("running_mean", "running_var")]
        + [int(layer.num_batches_tracked)]
        for name, layer in batch_norms(model).items()
    }


def net(seed=0, **options):
    """Two batch-norm layers, dropout between them, statistics that fit nothing."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(3, 6), nn.BatchNorm1d(6, **options), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 4),
        nn.BatchNorm1d(4),
    )  # fmt: skip
    for layer in batch_norms(model).values():
        layer.running_mean.fill_(7)
        layer.running_var.fill_(0.1)
        layer.num_batches_tracked.fill_(1000)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pooled_is_mean_and_unbiased_variance_of_all_values(kind, dtype):
    make, shape = KINDS[kind]
    layer, parts = make(3, dtype=dtype), batches(shape, dtype=dtype)
    reestimate(layer, parts)
    values = together(parts)
    tight = 1e-5 if dtype == torch.float32 else 1e-12
    np.testing.assert_allclose(layer.running_mean, values.mean(1), rtol=tight)
    np.testing.assert_allclose(layer.running_var, values.var(1, ddof=1), rtol=tight)
    assert layer.num_batches_tracked == len(parts)


@given(st.lists(st.integers(2, 9), min_size=1, max_size=6), st.integers(0, 99))
def test_pooled_does_not_depend_on_how_rows_are_batched(sizes, seed):
    rows = torch.cat(batches(sizes=sizes, dtype=torch.float64, seed=seed))
    cut, whole = (nn.BatchNorm1d(3, dtype=torch.float64) for _ in range(2))
    reestimate(cut, rows.split(sizes))
    reestimate(whole, [rows])
    torch.testing.assert_close(cut.running_mean, whole.running_mean)
    torch.testing.assert_close(cut.running_var, whole.running_var)


def test_sample_weighs_batches_by_their_rows():
    layer, parts = nn.BatchNorm2d(3), batches((3, 4, 2))
    reestimate(layer, parts, mode="sample")
    share = np.array(SIZES) / sum(SIZES)
    means = [together([part]).mean(1) for part in parts]
    variances = [together([part]).var(1, ddof=1) for part in parts]
    np.testing.assert_allclose(layer.running_mean, share @ means, rtol=1e-5)
    np.testing.assert_allclose(layer.running_var, share @ variances, rtol=1e-5)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x, "label"), lambda x: [x, None]])
def test_torch_is_update_bn_to_the_bit(momentum, wrap):
    ours, theirs = net(momentum=momentum), net(momentum=momentum)
    parts = [wrap(part) for part in batches()]
    torch.manual_seed(5)  # dropout draws
    reestimate(ours, parts, mode="torch")
    torch.manual_seed(5)
    update_bn(parts, theirs)
    for mine, other in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert mine[0] == other[0]
        assert torch.equal(mine[1], other[1])
    assert [m.momentum for m in batch_norms(ours).values()] == [momentum, 0.1]


@pytest.mark.parametrize("mode", ["pooled", "sample"])
def test_what_is_not_batch_norm_stays_in_eval_mode_and_draws_nothing(mode):
    first, second = net(), net()
    state = torch.get_rng_state()
    reestimate(first, batches(), mode=mode)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(99)
    reestimate(second, batches(), mode=mode)
    assert str(statistics(first)) == str(statistics(second))
    hidden = first[0](torch.cat(batches()))  # the first layer sees the rows, whatever the batches
    torch.testing.assert_close(first[1].running_mean, hidden.mean(0).detach())
    if mode == "pooled":
        torch.testing.assert_close(first[1].running_var, hidden.var(0).detach())


@pytest.mark.parametrize("mode", MODES)
def test_modes_momenta_and_gradients_are_left_as_they_were(mode):
    model = net().eval()
    model[3].train()
    model[1].train()
    before = [module.training for module in model.modules()]
    reestimate(model, batches(), mode=mode)
    assert [module.training for module in model.modules()] == before
    assert [layer.momentum for layer in batch_norms(model).values()] == [0.1, 0.1]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


class Named(nn.Module):
    """Takes keywords, one of which is no tensor."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, left, *, right=None, scale=1):
        return self.norm(input=left + right * scale)


@pytest.mark.parametrize(
    ("batch", "inputs"),
    [
        (lambda x: {"left": x, "right": x, "scale": 2}, None),
        (lambda x: ({"left": x, "right": x, "scale": 2}, "label"), None),
        (lambda x: ("label", x), lambda b: {"left": b[1], "right": b[1], "scale": 2}),
    ],
)
def test_mappings_are_keyword_arguments(batch, inputs):
    model = Named()
    reestimate(model, map(batch, batches()), inputs=inputs, device="cpu")
    np.testing.assert_allclose(model.norm.running_mean, 3 * together(batches()).mean(1), rtol=1e-5)


def test_inputs_may_be_a_tensor_or_several():
    layer = nn.Bilinear(3, 3, 4)
    model = nn.Sequential(nn.BatchNorm1d(3))
    reestimate(model, [{"x": part} for part in batches()], inputs=lambda b: b["x"])
    np.testing.assert_allclose(model[0].running_mean, together(batches()).mean(1), rtol=1e-5)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = layer, nn.BatchNorm1d(4)

        def forward(self, a, b):
            return self.norm(self.layer(a, b))

    two = Two()
    reestimate(two, batches(), inputs=lambda x: (x, x))
    assert two.norm.num_batches_tracked == len(SIZES)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_summed_in_high_and_rounded_once(dtype):
    layer = nn.BatchNorm1d(3).to(dtype)
    parts = batches(sizes=(8,) * 50, dtype=dtype)
    reestimate(layer, parts)
    values = torch.tensor(together(parts))
    assert torch.equal(layer.running_mean, values.mean(1).to(dtype))
    torch.testing.assert_close(layer.running_var, values.var(1).to(dtype))


def test_a_layer_used_twice_counts_twice_as_in_torch():
    layer = nn.BatchNorm1d(3)
    reestimate(nn.Sequential(layer, layer), batches())
    assert layer.num_batches_tracked == 2 * len(SIZES)


def test_layers_without_running_statistics_are_left_alone():
    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm1d(3))
    reestimate(model, batches())
    assert model[0].running_mean is None
    assert model[1].num_batches_tracked == len(SIZES)


def test_a_layer_that_no_batch_reaches_keeps_its_statistics():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
            self.spare.running_mean.fill_(7)

        def forward(self, x):
            return self.used(x)

    model = Head()
    reestimate(model, batches())
    assert model.spare.running_mean.tolist() == [7, 7, 7]
    assert model.used.num_batches_tracked == len(SIZES)


def test_a_model_without_batch_norm_reads_nothing():
    parts = iter(batches())
    reestimate(nn.Linear(3, 3), parts)
    assert len(list(parts)) == len(SIZES)


class Broken(nn.Module):
    def forward(self, x):
        if len(x) == SIZES[1]:
            raise RuntimeError("the second batch")
        return x


BAD = {
    "empty": (iter(()), "the loader gave no batch; a generator is empty after its first use"),
    "short": ([torch.zeros(4, 3), torch.zeros(1, 3)], r"'1' gets a batch of shape \(1, 6\)"),
    "none": ([torch.zeros(0, 3)], r"shape \(0, 6\)"),
    "nan": ([torch.zeros(4, 3), torch.full((4, 3), torch.nan)], "layers 1, 5 became NaN"),
    "inf": ([torch.full((4, 3), torch.inf)], "became NaN or infinite"),
    "text": (["abc"], "a batch is a str, not a tensor"),
    "no tensor": ([()], "a batch is a tuple, not a tensor"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", BAD)
def test_nothing_is_changed_where_it_fails(case, mode):
    loader, message = BAD[case]
    model = net(momentum=0.3).eval()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(DataError, match=message):
        reestimate(model, copy.copy(loader), mode=mode)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [layer.momentum for layer in batch_norms(model).values()] == [0.3, 0.1]
    assert not any(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("mode", MODES)
def test_an_error_of_the_model_passes_through_and_changes_nothing(mode):
    model = nn.Sequential(nn.BatchNorm1d(3), Broken())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="the second batch"):
        reestimate(model, batches(), mode=mode)
    assert str(model.state_dict()) == str(before)


def test_other_refusals():
    with pytest.raises(DataError, match="did you mean 'pooled'"):
        reestimate(net(), batches(), mode="pool")
    with pytest.raises(DataError, match="are not initialised: 0"):
        reestimate(nn.Sequential(nn.LazyBatchNorm1d()), batches())
    idle = nn.Module()
    idle.norm = nn.BatchNorm1d(3)
    idle.forward = lambda x: x
    with pytest.raises(DataError, match="no batch reached the batch-norm layers norm"):
        reestimate(idle, batches())


WORKER = """
import sys, torch
from torch import nn
from polyfuse.batchnorm import MODES, reestimate
torch.set_num_threads(1)
file, rank = sys.argv[1], int(sys.argv[2])
torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
for mode in MODES:
    layer = nn.BatchNorm1d(3)
    parts = torch.load(file + ".pt")
    reestimate(layer, parts[:2] if rank == 0 else parts[2:], mode=mode)
    print(mode, [*layer.running_mean.tolist(), *layer.running_var.tolist()])
torch.distributed.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="no torch.distributed")
def test_processes_get_the_statistics_of_all(tmp_path, run_scripts):
    file = tmp_path / "meet"
    torch.save(batches(), f"{file}.pt")
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    (_, first, errors), (_, second, _) = run_scripts(
        [[script, file, r] for r in range(2)], tmp_path
    )
    assert first == second, errors
    for line, mode in zip(first.splitlines(), MODES, strict=True):
        alone = nn.BatchNorm1d(3)
        reestimate(alone, batches(), mode=mode)
        numbers = json.loads(line.removeprefix(mode))
        np.testing.assert_allclose(numbers[:3], alone.running_mean, rtol=1e-5)
        np.testing.assert_allclose(numbers[3:], alone.running_var, rtol=1e-5)
