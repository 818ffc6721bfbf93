import shutil
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import polyfuse
import tiny
from polyfuse.checkpoints import safetensors
from polyfuse.errors import DataError
from polyfuse.optimizers import adamw
from polyfuse.recipes.soups import Given, make_soups, uniform_soup
from polyfuse.subspaces import Subspace
from polyfuse.training import STRATEGIES

bagging = STRATEGIES["bagging"]


def split(rows, groups=None):
    return polyfuse.Arrays(np.zeros((rows, 3)), np.zeros(rows, int), groups)


@given(rows=st.integers(4, 60), fraction=st.floats(0.2, 1.5), seed=st.integers(0, 99))
def test_a_bootstrap_draws_rows_with_replacement_and_holds_out_the_rest(rows, fraction, seed):
    for job in bagging(split(rows), members=3, fraction=fraction, stop_fraction=0, seed=seed).jobs(
        []
    ):
        assert len(job.learn) == max(1, round(fraction * rows))
        drawn = np.unique(job.learn)
        assert sorted([*drawn.tolist(), *job.held_out.tolist()]) == list(range(rows))


def test_a_bootstrap_sees_what_theory_says():
    # Each row is in the bag with probability 1 - (1 - 1/n)^n, of 400 times 50 draws.
    jobs = bagging(split(400), members=50, stop_fraction=0).jobs([])
    seen = np.mean([len(np.unique(job.learn)) / 400 for job in jobs])
    assert abs(seen - (1 - (1 - 1 / 400) ** 400)) < 0.01
    counts = np.concatenate([np.bincount(job.learn, minlength=400) for job in jobs])
    for times, share in enumerate((0.3679, 0.3679, 0.1839, 0.0613)):  # Poisson of mean 1
        assert abs(np.mean(counts == times) - share) < 0.01


@given(rows=st.integers(10, 60), fraction=st.floats(0.2, 0.9), seed=st.integers(0, 99))
def test_a_subsample_has_no_row_twice(rows, fraction, seed):
    plan = bagging(split(rows), members=2, kind="subsample", fraction=fraction, seed=seed)
    for job in plan.jobs([]):
        seen = [*job.learn.tolist(), *job.stop.tolist()]
        assert len(seen) == len({*seen}) == round(fraction * rows)
        assert sorted([*seen, *job.held_out.tolist()]) == list(range(rows))


@given(seed=st.integers(0, 99), kind=st.sampled_from(["bootstrap", "subsample"]))
def test_groups_are_drawn_whole(seed, kind):
    groups = np.random.default_rng(seed).integers(0, 9, 50)
    plan = bagging(split(50, groups), members=2, kind=kind, fraction=0.7, seed=seed)
    for job in plan.jobs([]):
        counts = np.bincount(job.learn, minlength=50)
        for group in range(9):
            assert len({*counts[groups == group].tolist()}) <= 1
        assert {*groups[job.learn]}.isdisjoint(groups[job.stop])
        assert {*groups[[*job.learn, *job.stop]]}.isdisjoint(groups[job.held_out])


def test_rows_that_stop_are_of_those_that_were_drawn():
    for job in bagging(split(40), stop_fraction=0.25).jobs([]):
        drawn = np.setdiff1d(np.arange(40), job.held_out)
        assert np.union1d(job.learn, job.stop).tolist() == drawn.tolist()
        assert len(job.stop) == round(0.25 * len(drawn))


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"kind": "subsample"}, ["fraction=1.0: a subsample of all rows is all rows"]),
        (
            {"members": 0, "kind": "boostrap", "fraction": 0, "features": 2, "stop_fraction": -1},
            [
                "members=0; type 1 or more",
                "kind='boostrap'; did you mean 'bootstrap'? known: bootstrap, subsample",
                "fraction=0; type a share of the rows, above 0",
                "features=2; type a share of the input features, up to 1",
                "stop_fraction=-1; ",
            ],
        ),
        ({"features": 0.0}, ["features=0.0; type a share"]),
        ({"features": float("nan"), "fraction": float("nan")}, ["fraction=nan", "features=nan"]),
    ],
)
def test_what_draws_nothing_is_refused_at_once(options, facts):
    with pytest.raises(DataError) as caught:
        bagging(split(20), **options)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(facts)
    assert all(line.startswith(fact) for fact, line in zip(facts, lines, strict=True))


def test_features_and_weights_to_start_from_do_not_go_together(tmp_path):
    start = tmp_path / "start.safetensors"
    safetensors.write(start, dict(tiny.task().factory().state_dict()))
    options = tiny.task(start=str(start)).options
    with pytest.raises(DataError, match=r"features=0.5 and start='.*' do not go together"):
        bagging(split(20), features=0.5, fit=options)
    assert bagging(split(20), fit=options).size([]) == 10


# Trained ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bagged(tmp_path_factory):
    data = tiny.splits(40)
    plan = bagging(data.train, members=4, features=0.5)
    return polyfuse.train(plan, tiny.task(data), tmp_path_factory.mktemp("bagged"))


def test_the_rows_that_were_drawn_are_kept(bagged):
    jobs = bagging(tiny.splits(40).train, members=4, features=0.5).jobs([])
    for member, job in zip(bagged.members, jobs, strict=True):
        assert member.rows("learned").tolist() == job.learn.tolist()
        assert len(np.unique(job.learn)) < len(job.learn)


def test_the_scoreboard_has_the_out_of_bag_score(bagged):
    oof = polyfuse.compare_fusions(bagged, replicates=20).document["out_of_fold"]
    probabilities = torch.softmax(torch.from_numpy(bagged.stack("train")).double(), -1).numpy()
    labels, said = bagged.labels("train"), np.isfinite(probabilities).all(-1)
    assert 1 < said.sum(0).max() <= 4
    right, single = [], []
    for row in np.flatnonzero(said.any(0)):
        votes = [probabilities[m, row] for m in range(4) if said[m, row]]
        right.append(np.argmax(np.mean(votes, 0)) == labels[row])
        single.append(np.mean([np.argmax(vote) == labels[row] for vote in votes]))
    assert oof["rows"] == len(right)
    assert oof["together"]["value"] == pytest.approx(np.mean(right), abs=1e-12)
    assert oof["train"]["value"] == pytest.approx(np.mean(single), abs=1e-12)


def test_the_bags_are_one_base_model(bagged):
    ((name, members),) = bagged.base_models()
    assert (name, members) == ("bagging of 4", (0, 1, 2, 3))
    said = np.isfinite(bagged.stack("train")).all(-1)
    told = np.isfinite(bagged.base_predictions("train")[0]).all(-1)
    assert told.tolist() == said.any(0).tolist()
    assert not bagged.base_trained("train").any()


def test_a_member_sees_only_its_features(bagged):
    data = tiny.splits(40)
    seen = []
    for member in bagged.members:
        net = member.model(tiny.task().factory)  # the factory that knows nothing of features
        inputs = data.test.values.clone().requires_grad_()
        logits = net(inputs)
        assert torch.equal(logits.detach(), torch.from_numpy(member.predictions("test")))
        (slope,) = torch.autograd.grad(logits.square().sum(), inputs)
        features = member.state()["features"].tolist()
        unseen = sorted({0, 1, 2, 3} - {*features})
        assert len(features) == 2
        assert (slope[:, unseen] == 0).all()
        seen.append(tuple(features))
    assert len({*seen}) > 1


def test_a_narrow_model_and_a_masked_one_are_the_same():
    features = torch.tensor([0, 2])
    wide, narrow = torch.nn.Linear(4, 3), torch.nn.Linear(2, 3)
    with torch.no_grad():
        narrow.weight.copy_(wide.weight[:, features])
        narrow.bias.copy_(wide.bias)
    inputs = torch.randn(5, 4)
    torch.testing.assert_close(Subspace(wide, features)(inputs), narrow(inputs[:, features]))


def test_members_of_subspaces_make_no_soup(bagged):
    data = tiny.splits(40)
    given = Given(bagged, tiny.task().factory, data, tiny.task().options)
    with pytest.raises(DataError, match="see different features, so their weights do not mix"):
        make_soups(given, {"uniform_soup": uniform_soup}, lambda *seen: None)


def test_more_bags_go_on_with_those_that_are_there(bagged, tmp_path):
    data = tiny.splits(40)
    polyfuse.train(bagging(data.train, members=2, features=0.5), tiny.task(data), tmp_path)
    polyfuse.train(bagging(data.train, members=4, features=0.5), tiny.task(data), tmp_path)
    kept = {k: v for k, v in tiny.hashes(bagged.path).items() if not k.startswith(("fus", "lead"))}
    assert tiny.hashes(tmp_path) == kept


@pytest.mark.parametrize("other", [{"fraction": 0.9}, {"features": 1.0}, {"stop_fraction": 0.2}])
def test_bags_of_another_plan_are_refused(bagged, other, tmp_path):
    shutil.copytree(bagged.path, tmp_path, dirs_exist_ok=True)
    data, options = tiny.splits(40), {"members": 4, "features": 0.5, **other}
    with pytest.raises(polyfuse.errors.RunError, match="another plan"):
        polyfuse.train(bagging(data.train, **options), tiny.task(data), tmp_path)


def test_noise_is_not_learned_out_of_bag(tmp_path):
    draw = np.random.default_rng(0)
    train = polyfuse.Arrays(draw.standard_normal((200, 60)), draw.integers(0, 2, 200))
    data = polyfuse.Splits(train, train, train)
    factory = partial(polyfuse.mlp, inputs=60, classes=2, hidden=32)
    fit = {"epochs": 6, "batch_size": 8, "optimizer": partial(adamw, lr=0.02)}
    task = polyfuse.Task(factory, data, tiny.task(**fit).options)
    run = polyfuse.train(bagging(train, members=3, stop_fraction=0), task, tmp_path)
    (said,) = run.base_predictions("train")
    heard = np.isfinite(said).all(-1)
    right = said[heard].argmax(-1) == train.labels[heard]
    # Four standard deviations of so many coin flips; the rows that were learned are far above.
    assert abs(right.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(right))
    member = run.members[0]
    learned = np.unique(member.rows("learned"))
    again = member.predictions("test")[learned].argmax(-1) == train.labels[learned]
    assert again.mean() > 0.9
