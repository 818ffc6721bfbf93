"""Averages of a model against each rule applied tensor by tensor, whatever the tensors are like."""

import copy
import gc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from odd import MANY, Odd, generator, move, tensors
from torch import nn

from polyfuse.averaging import (
    Averages,
    Moment,
    ema,
    finite,
    half_life,
    lawa,
    shadows,
    swa,
    tanh_ema,
)
from polyfuse.batchnorm import batch_norms
from polyfuse.batchnorm import reestimate as reestimated
from polyfuse.errors import CheckpointError, DataError, PolyfuseError, TrainingError
from polyfuse.statedict import flatten, unflatten
from tiny import same

every_rule = pytest.mark.parametrize("name", MANY)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def run(averages, model, steps, seed=0):
    """Move and update; return what the model was after each step."""
    draw, seen = generator(seed), []
    for _ in range(steps):
        move(model, draw)
        averages.update()
        seen.append(tensors(model))
    return seen


def by_hand(rule, seen, every=1):
    """A rule over whole tensors, in fp32 at least, rounded at the end."""
    found = {}
    for key, first in seen[0].items():
        if not (first.is_floating_point() or first.is_complex()) or key.startswith(BUFFERS):
            found[key] = seen[-1][key]
            continue
        values = [state[key] for state in seen[every - 1 :: every]]
        parts = [torch.view_as_real(v) if v.is_complex() else v for v in values]
        wide = [v.to(shadows.wide(v.dtype)) for v in parts]
        kept = rule.init(wide[0])
        for n, value in enumerate(wide[1:], 1):
            kept = rule.update(kept, value, Moment(n, (n + 1) * every, every, copied=every))
        value = rule.value(kept, len(wide) - 1) if rule.value else kept
        found[key] = torch.view_as_complex(value) if first.is_complex() else value.to(first.dtype)
    return found


BUFFERS = ("mean", "norm.running", "norm.num")


@every_rule
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_average_is_its_rule_to_the_bit(name, dtype):
    model = Odd(dtype)
    averages = Averages(model, {name: MANY[name]})
    seen = run(averages, model, 5)
    found = averages.average(name)
    assert list(found) == list(model.state_dict())
    assert same(found, by_hand(MANY[name], seen))
    assert averages.updates(name) == 5


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 19])
def test_many_at_once_are_the_same_as_each_alone(monkeypatch, chunk):
    monkeypatch.setattr(shadows, "CHUNK", chunk)
    model = Odd()
    together = Averages(model, MANY)
    alone = {name: Averages(model, {name: rule}) for name, rule in MANY.items()}
    draw = generator()
    for _ in range(4):
        move(model, draw)
        for averages in (together, *alone.values()):
            averages.update()
    for name, averages in alone.items():
        assert same(together.average(name), averages.average(name)), name


@every_rule
@given(every=st.integers(1, 4), start=st.integers(0, 3))
def test_rarer_and_later_updates(name, every, start):
    model = Odd()
    averages = Averages(model, {name: MANY[name]}, update_every=every, start_step=start)
    seen = run(averages, model, start + 4 * every - 1)
    expected = by_hand(MANY[name], seen[start : start + 3 * every], every)
    found = averages.average(name)
    assert averages.updates(name) == 3
    followed = (*BUFFERS, "codes")
    assert all(torch.equal(found[k], expected[k]) for k in found if not k.startswith(followed))


def test_times_of_a_rule_come_before_those_of_all():
    rules = {
        "all": swa(),
        "own": swa().timed(update_every=2),
        "late": swa().timed(start_epoch=1),
        "epochs": swa().timed(update_every="epoch", start_epoch=1),
    }
    model = nn.Linear(1, 1, bias=False)
    averages = Averages(model, rules)
    for step in range(12):  # three epochs of four steps
        model.weight.data.fill_(step)
        averages.update()
        if step % 4 == 3:
            averages.end_epoch()
    found = {name: averages.average(name)["weight"].item() for name in rules}
    assert found == {"all": 5.5, "own": 6.0, "late": 7.5, "epochs": 9.0}
    assert [averages.updates(name) for name in rules] == [12, 6, 8, 2]
    assert averages.rules["late"].timing.start_epoch == 1
    assert (averages.step, averages.epoch) == (12, 3)


def test_t_adema_counts_epochs_from_where_it_began():
    rule = tanh_ema(0.9, scale=2.0, unit="epochs").timed(start_epoch=1)
    model = nn.Linear(1, 1, bias=False)
    averages = Averages(model, {"a": rule})
    expected = None
    for step in range(8):
        model.weight.data.fill_(step)
        averages.update()
        if step >= 2:
            decay = 1 - rule.weight(Moment(1, 2, epoch=step // 2))
            expected = step if step == 2 else decay * expected + (1 - decay) * step
        if step % 2:
            averages.end_epoch()
    assert averages.average("a")["weight"].item() == pytest.approx(expected)


def test_samples_and_tokens_are_counted_between_updates():
    model = nn.Linear(1, 1, bias=False)
    averages = Averages(
        model, {"a": half_life(samples=8), "b": half_life(tokens=100)}, update_every=2
    )
    for step, samples in enumerate((4, 4, 8, 8)):
        model.weight.data.fill_(step)
        averages.update(samples=samples, tokens=50)
    assert averages.average("a")["weight"].item() == pytest.approx(0.25 * 1 + 0.75 * 3)
    assert averages.average("b")["weight"].item() == pytest.approx(2.0)
    late = Averages(model, {"a": half_life(samples=8)})
    late.update()
    with pytest.raises(PolyfuseError, match="needs update"):
        late.update()


def test_before_its_first_update_an_average_is_the_model():
    model = Odd()
    averages = Averages(model, MANY, start_step=2)
    run(averages, model, 2)
    for name in MANY:
        assert same(averages.average(name), tensors(model))
        with averages.applied(name):
            now = {k: t.detach().clone() for k, t in model.named_parameters()}
        assert all(torch.equal(now[k], t) for k, t in model.named_parameters())


def test_a_hook_on_the_optimiser_updates_after_each_step():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    averages = Averages(model, {"a": half_life(samples=4)})
    handle = averages.attach(optimizer, samples=4)
    for _ in range(3):
        model(torch.ones(2)).backward()
        optimizer.step()
    handle.remove()
    optimizer.step()
    assert averages.updates("a") == 3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("end", range(1, 6))
@pytest.mark.parametrize("way", ["torch", "flat"])
def test_resumed_is_bit_identical_to_never_stopped(tmp_path, dtype, end, way):
    rules = {**MANY, "late": swa().timed(start_epoch=1), "samples": half_life(samples=3)}

    def go(averages, model, steps, draw):
        for step in steps:
            move(model, draw)
            averages.update(samples=step)
            if step % 2:
                averages.end_epoch()

    model, draw = Odd(dtype), generator()
    whole = Averages(model, rules, update_every=2, start_step=1)
    go(whole, model, range(end), draw)
    if way == "torch":
        torch.save(whole.state_dict(), tmp_path / "a.pt")
        state = torch.load(tmp_path / "a.pt", weights_only=True)
    else:
        state = unflatten(*flatten(copy.deepcopy(whole.state_dict())))
    twin = copy.deepcopy(model)
    resumed = Averages(twin, rules, update_every=2, start_step=1)
    resumed.load_state_dict(state)
    again = torch.Generator()
    again.set_state(draw.get_state())
    go(whole, model, range(end, 8), draw)
    go(resumed, twin, range(end, 8), again)
    for name in rules:
        assert same(resumed.average(name), whole.average(name)), name
    assert str(resumed.state_dict()) == str(whole.state_dict())


def test_buffers_follow_the_model_or_are_averaged():
    model = Odd()
    plain = Averages(model, {"a": ema(0.5)})
    averaged = Averages(model, {"a": ema(0.5)}, use_buffers=True)
    seen = []
    draw = generator()
    for _ in range(3):
        move(model, draw)
        plain.update()
        averaged.update()
        seen.append(tensors(model))
    assert torch.equal(plain.average("a")["mean"], seen[-1]["mean"])
    expected = 0.25 * seen[0]["mean"] + 0.25 * seen[1]["mean"] + 0.5 * seen[2]["mean"]
    torch.testing.assert_close(averaged.average("a")["mean"], expected)
    for each in (plain, averaged):
        assert torch.equal(each.average("a")["codes"], seen[-1]["codes"])
        assert each.average("a")["norm.num_batches_tracked"] == 3


def test_a_model_with_the_average_in_it():
    model = Odd().eval()
    averages = Averages(model, {"a": ema(0.5)})
    run(averages, model, 3)
    twin = averages.model("a")
    assert same(tensors(twin), averages.average("a"))
    assert twin.twin.weight is twin.conv.weight
    assert twin.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert twin is not model
    assert not twin.training


# Applying


@every_rule
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_applied_swaps_and_gives_back(name, dtype):
    model = Odd(dtype)
    averages = Averages(model, MANY)
    run(averages, model, 3)
    own, expected = tensors(model), averages.average(name)
    places = [p.data_ptr() for p in model.parameters()]
    with averages.applied(name, saving=True) as inside:
        assert inside is model
        assert same(tensors(model), expected)
        assert [p.data_ptr() for p in model.parameters()] == places
    assert same(tensors(model), own)
    assert same(averages.average(name), expected)


def test_applied_is_given_back_after_an_error():
    model = Odd()
    averages = Averages(model, {"a": ema(0.5)})
    run(averages, model, 3)
    own, before = tensors(model), averages.average("a")
    with pytest.raises(KeyError, match="from inside"), averages.applied("a"):
        raise KeyError("from inside")
    assert same(tensors(model), own)
    assert same(averages.average("a"), before)
    averages.update()


def test_applied_nests():
    model = Odd()
    averages = Averages(model, MANY)
    run(averages, model, 4)
    own = tensors(model)
    expected = {name: averages.average(name) for name in MANY}
    with averages.applied("ema", saving=True):
        with averages.applied("lawa", saving=True):
            assert same(tensors(model), expected["lawa"])
            with averages.applied("ema", saving=True):
                assert same(tensors(model), expected["ema"])
            assert same(tensors(model), expected["lawa"])
        assert same(tensors(model), expected["ema"])
        with pytest.raises(PolyfuseError, match="no average"), averages.applied("none"):
            pass
        assert same(tensors(model), expected["ema"])
    assert same(tensors(model), own)


def test_nothing_is_saved_or_updated_while_applied():
    model = Odd()
    averages = Averages(model, {"a": ema(0.5)})
    state = copy.deepcopy(averages.state_dict())
    run(averages, model, 2)
    with averages.applied("a"):
        for call in (
            averages.state_dict,
            averages.update,
            averages.end_epoch,
            lambda: averages.average("a"),
            lambda: averages.model("a"),
            lambda: averages.load_state_dict(state),
            lambda: averages.follow(Odd()),
            lambda: averages.reestimate("a", []),
        ):
            with pytest.raises(PolyfuseError, match="while 'a' is applied to the model"):
                call()
        with pytest.raises(PolyfuseError, match="would save it as its own weights"):
            model.state_dict()
        with pytest.raises(PolyfuseError, match="would save it as its own weights"):
            nn.DataParallel(model).state_dict()
    assert model.state_dict()
    assert averages.updates("a") == 2


def test_overlapping_parameters_come_back_right():
    model = nn.Module()
    whole = torch.arange(6.0)
    model.a, model.b = nn.Parameter(whole[:4]), nn.Parameter(whole[2:])
    averages = Averages(model, {"a": swa()})
    averages.update()
    whole.mul_(3)
    averages.update()
    before, average = whole.clone(), averages.average("a")
    for _ in range(2):
        with averages.applied("a"):
            assert torch.equal(model.b, average["b"])
        assert torch.equal(whole, before)
        assert same(averages.average("a"), average)


def test_statistics_are_measured_for_an_average_until_its_next_update():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    averages = Averages(model, {"a": ema(0.5), "b": swa()})
    run(averages, model, 3)
    own = tensors(model)
    batches = [torch.randn(5, 3) for _ in range(3)]
    expected = averages.model("a")
    reestimated(expected, batches)
    averages.reestimate("a", batches)
    assert same(tensors(model), own)
    assert same(averages.average("a"), tensors(expected))
    assert torch.equal(averages.average("b")["1.running_mean"], own["1.running_mean"])
    with averages.applied("a", saving=True):
        assert same(tensors(model), tensors(expected))
    assert same(tensors(model), own)
    state = copy.deepcopy(averages.state_dict())
    with pytest.raises(DataError, match="no batch"):
        averages.reestimate("a", [])
    assert same(averages.average("a"), tensors(expected))
    averages.update()
    assert torch.equal(averages.average("a")["1.running_mean"], own["1.running_mean"])
    averages.load_state_dict(state)
    assert same(averages.average("a"), tensors(expected))


def test_statistics_of_averaged_buffers_and_of_no_layers():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    averages = Averages(model, {"a": ema(0.5)}, use_buffers=True)
    run(averages, model, 2)
    own, plain = tensors(model), averages.average("a")
    averages.reestimate("a", [torch.randn(9, 3)])
    assert same(tensors(model), own)
    assert not torch.equal(averages.average("a")["1.running_mean"], plain["1.running_mean"])
    averages.update()
    averages.load_state_dict(averages.state_dict())
    no_norms = nn.Linear(1, 1)
    Averages(no_norms, {"a": swa()}).reestimate("a", [torch.ones(1)])
    assert not batch_norms(no_norms)


# What the model may go through


def test_a_model_may_move_change_its_layout_and_load_other_tensors():
    model, other = nn.Conv2d(3, 4, 2), nn.Conv2d(3, 4, 2)
    averages = Averages(model, {"a": ema(0.5), "l": lawa(2), "o": MANY["own"]})
    reference = Averages(other, {"a": ema(0.5), "l": lawa(2), "o": MANY["own"]})
    draws = generator(), generator()
    other.load_state_dict(model.state_dict())
    for change in (
        lambda: model.to(memory_format=torch.channels_last),
        lambda: setattr(model.weight, "data", model.weight.data.clone()),
        lambda: model.load_state_dict(tensors(model), assign=True),
        lambda: setattr(model, "bias", nn.Parameter(model.bias.detach().clone())),
    ):
        for each, mine, draw in zip((averages, reference), (model, other), draws, strict=True):
            move(mine, draw)
            each.update()
        change()
        for name in ("a", "l", "o"):
            assert same(averages.average(name), reference.average(name))


def test_a_model_may_change_its_precision():
    model = nn.Linear(2, 2)
    averages = Averages(model, {"a": ema(0.5), "o": MANY["own"]})
    averages.update()
    before = averages.average("a")
    model.double()
    assert averages.average("a")["weight"].dtype == torch.float64
    averages.update()
    torch.testing.assert_close(averages.average("a"), {k: t.double() for k, t in before.items()})
    model.bfloat16()
    averages.update()
    assert averages.average("a")["weight"].dtype == torch.bfloat16


def test_another_object_of_the_model_is_followed():
    model = nn.Linear(2, 1)
    averages = Averages(model, {"a": swa()})
    averages.update()
    twin = copy.deepcopy(model)
    twin.weight.data.add_(2)
    averages.follow(nn.DataParallel(twin))
    averages.update()
    torch.testing.assert_close(averages.average("a")["weight"], model.weight.detach() + 1)
    with pytest.raises(CheckpointError, match=r"'weight' has shape \(1, 2\) in the averages"):
        averages.follow(nn.Linear(3, 1))


CHANGES = {
    "shape": (
        lambda m: setattr(m[0], "weight", nn.Parameter(torch.zeros(2, 3))),
        r"'0.weight' has shape \(2, 2\) in the averages and \(2, 3\) in the model",
    ),
    "rows": (
        lambda m: setattr(m[0].weight, "data", m[0].weight.data[:1]),
        r"\(1, 2\) in the model",
    ),
    "added": (
        lambda m: m.append(nn.Linear(2, 1)),
        "the averages lacks '2.weight', '2.bias', which",
    ),
    "removed": (lambda m: delattr(m, "1"), "the model lacks '1.weight', '1.bias', which"),
    "renamed": (lambda m: m.register_parameter("x", m[0]._parameters.pop("bias")), "'0.bias'"),
    "gone": (lambda m: setattr(m[0], "bias", None), "the model lacks '0.bias'"),
    "untied": (lambda m: m[1].register_parameter("more", nn.Parameter(torch.ones(1))), "'1.more'"),
    "meta": (lambda m: m.to("meta"), "on the meta device"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("call", ["update", "average", "applied", "state"])
def test_a_changed_model_is_refused_by_name(change, call):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    averages = Averages(model, {"a": ema(0.5)})
    averages.update()
    calls = {
        "update": averages.update,
        "average": lambda: averages.average("a"),
        "state": averages.state_dict,
        "applied": lambda: averages.applied("a").__enter__(),
    }
    do, message = CHANGES[change]
    do(model)
    with pytest.raises(CheckpointError, match=message):
        calls[call]()
    assert averages.updates("a") == 1


def test_a_square_matrix_turned_in_place_is_noticed():
    model = nn.Linear(2, 2, bias=False)
    averages = Averages(model, {"a": swa()})
    model.weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    averages.update()
    model.weight.data = model.weight.data.t()
    averages.update()
    assert averages.average("a")["weight"].tolist() == [[1.0, 2.5], [2.5, 4.0]]


def plain(rules=None, **options):
    return Averages(nn.Linear(2, 2), {"ema": swa()} if rules is None else rules, **options)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: Averages(nn.LazyLinear(2), {"a": swa()}), CheckpointError, "'bias'; run"),
        (lambda: Averages(nn.Linear(2, 2, device="meta"), {"a": swa()}), CheckpointError, "'bias'"),
        (lambda: plain({}), PolyfuseError, "no rules; give at least one"),
        (lambda: plain({"a": "ema"}), PolyfuseError, "'a' is a str; give a rule"),
        (lambda: plain({"a": ema}), PolyfuseError, "'a' is a function"),
        (lambda: plain(dtype=torch.bfloat16), PolyfuseError, "too coarse"),
        (lambda: plain(nonfinite="err"), PolyfuseError, "did you mean 'error'"),
        (lambda: plain(looks=0), PolyfuseError, "looks=0"),
        (lambda: plain(update_every=0), PolyfuseError, "update_every=0"),
        (lambda: plain({}, looks=0), PolyfuseError, "no rules.*; looks=0"),
        (lambda: plain().average("emma"), PolyfuseError, "did you mean 'ema'"),
    ],
)
def test_refusals(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_a_custom_rule_that_makes_another_shape_is_refused():
    from polyfuse.averaging import custom

    averages = Averages(nn.Linear(2, 1), {"a": custom(lambda t: t.sum(), lambda a, c, n: a)})
    with pytest.raises(PolyfuseError, match=r"made \(\) of 'weight', which is \(1, 2\)"):
        averages.update()


# Speed and memory


def test_an_average_takes_one_copy_of_the_floating_parameters():
    model = nn.Sequential(nn.Linear(300, 400), nn.BatchNorm1d(400), nn.Linear(400, 300))
    averages = Averages(model, {"a": ema(0.9), "b": swa()})
    averages.update()
    expected = sum(p.numel() * p.element_size() for p in model.parameters())
    memories = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for row in averages.state_dict()["averages"].values()
        for t in row["rows"][0].values()
    }
    assert list(memories.values()) == [expected, expected]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_temporary_is_of_the_size_of_the_model(monkeypatch, dtype):
    monkeypatch.setattr(shadows, "CHUNK", 1 << 12)
    monkeypatch.setattr(finite, "PIECE", 1 << 12)
    model = nn.Sequential(*(nn.Linear(200, 200, dtype=dtype) for _ in range(10)))
    averages = Averages(model, {"a": ema(0.9), "b": swa()})
    averages.update()
    size = 4 * sum(p.numel() for p in model.parameters())
    gc.collect()
    with torch.profiler.profile(profile_memory=True) as profile:
        averages.update()
        if dtype == torch.float32:
            with averages.applied("a"):
                pass
    allocated = [event.self_cpu_memory_usage for event in profile.events()]
    assert sum(used for used in allocated if used > 0) < 3 * size
    assert max(allocated) < size / 20


def test_every_value_of_a_half_precision_model_is_averaged_in_fp32():
    model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    averages = Averages(model, {"a": ema(0.9)}, dtype=torch.float64)
    run(averages, model, 2)
    [row] = averages.state_dict()["averages"]["a"]["rows"]
    assert row["weight"].dtype == torch.float64


# NaN and infinity


def broken(value=torch.nan, looks=1, policy="error", names=("1.bias",)):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    averages = Averages(model, {"a": ema(0.5), "b": lawa(2)}, nonfinite=policy, looks=looks)
    run(averages, model, 3)
    before = copy.deepcopy(averages.state_dict())
    good = tensors(model)
    for name in names:
        model.get_parameter(name).data.view(-1)[-1] = value
    return model, averages, before, good


def same_averages(a, b):
    """Tell whether averages and their counters are the same, those of the step apart."""
    a, b = ({**each["averages"]} for each in (a, b))
    return all(
        x["updates"] == b[name]["updates"] and all(map(same, x["rows"], b[name]["rows"]))
        for name, x in a.items()
    )


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_no_numbers_are_named_and_left_out(value):
    model, averages, before, good = broken(value, names=("0.weight", "1.bias"))
    for _ in range(2):
        with pytest.raises(
            TrainingError, match=r"weights '0.weight', '1.bias' at step .; averages"
        ):
            averages.update()
    after = averages.state_dict()
    assert after.pop("step") == 5
    before.pop("step")
    assert same_averages(after, before)
    model.load_state_dict(good)
    averages.update()
    assert averages.updates("a") == 4


def test_weights_that_are_no_numbers_may_be_warned_of():
    _model, averages, before, _good = broken(policy="warn")
    with pytest.warns(RuntimeWarning, match=r"weights '1.bias' at step 4; averages leave out this"):
        averages.update()
    assert same_averages(averages.state_dict(), before)


def test_weights_that_are_no_numbers_may_be_ignored():
    _model, averages, *_ = broken(policy="ignore")
    averages.update()
    assert averages.average("a")["1.bias"].isnan().sum() == 1


def test_a_loss_that_was_nan_is_found_at_once():
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(6)))
    averages = Averages(model, {"a": ema(0.5)}, looks=16)
    run(averages, model, 3)
    before = averages.average("a")
    optimizer = torch.optim.AdamW(model.parameters())
    (model(torch.ones(64)).sum() * torch.nan).backward()
    optimizer.step()
    with pytest.raises(TrainingError, match=r"in the weights '0\.weight', '0\.bias'"):
        averages.update()
    assert same(averages.average("a"), before)


def test_one_bad_value_is_found_within_so_many_looks_and_never_given_away(monkeypatch):
    monkeypatch.setattr(finite, "LEAST", 1)
    model, averages, *_ = broken(looks=5, names=("0.bias",))
    with pytest.raises(TrainingError, match="'a', 'b' took it in before, go back to a saved state"):
        any(averages.update() for _ in range(6))
    for call in (averages.state_dict, lambda: averages.average("a"), lambda: averages.model("a")):
        with pytest.raises(
            TrainingError, match=r"the average 'a' holds NaN or infinity in '0\.bias'"
        ):
            call()
    with pytest.raises(TrainingError, match="holds NaN"), averages.applied("a"):
        pass
    assert not torch.isnan(model[0].weight).any()


def test_huge_weights_are_no_alarm():
    model = nn.Linear(100, 100)
    averages = Averages(model, {"a": ema(0.5)}, looks=1)
    model.weight.data.fill_(3e38)
    averages.update()
    assert averages.average("a")["weight"].max() == torch.tensor(3e38)
