"""Averages in recipes: tracked beside each member, on the scoreboard, asked, resumed; faults."""

import contextlib
import json
import shutil
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import polyfuse.fit
from polyfuse import predict
from polyfuse.data.arrays import Arrays
from polyfuse.errors import RecipeError, RunError
from polyfuse.recipes import run as module
from polyfuse.recipes.folder import Run
from polyfuse.recipes.run import load
from polyfuse.recipes.source import parse
from tiny_run import digests, held_out_images, recipe_of_net
from tiny_run import polyfuse as command

run = partial(module.run, workers=1)
NAMES = ["ema", "swa", "t_adema"]
AVERAGING = "averaging: {ema: {decay: 0.8}, swa: {start_epoch: 1}, t_adema: {alpha: 0.9}}\n"


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """Return a finished run with averages of a net with batch-norm; nobody changes it."""
    folder = tmp_path_factory.mktemp("averaged")
    recipe, text = recipe_of_net(folder, "nets_to_average")
    recipe.write_text(text.replace("epochs: 2", "epochs: 3") + AVERAGING)
    from nets_to_average import net

    yield SimpleNamespace(recipe=recipe, net=net, run=run(recipe, out=folder / "RUN"))
    sys.path.remove(str(folder))


@pytest.fixture
def copied(averaged, tmp_path):
    root = shutil.copytree(averaged.run.path, tmp_path / "RUN")
    return SimpleNamespace(recipe=averaged.recipe, root=root, run=Run(root))


def data(averaged):
    return np.load(averaged.recipe.parent / "data.npz")


def test_each_average_has_a_row_of_its_best_member_and_one_of_each_fusion(averaged):
    board = averaged.run.scoreboard
    names = [row["name"] for row in board.rows]
    assert names[:4] == ["member 0", "member 1", "mean_probability", "hard_vote"]
    assert len(names) == 4 + 3 * len(NAMES)
    for i, average in enumerate(NAMES):
        best, *fusions = board.rows[4 + 3 * i : 7 + 3 * i]
        assert [row["average"] for row in (best, *fusions)] == [average] * 3
        assert [row["name"] for row in fusions] == [
            f"mean_probability, {average}",
            f"hard_vote, {average}",
        ]
        assert best["kind"] == "member"
        [index] = best["members"]
        assert best["name"] == f"member {index}, {average}"
        members = averaged.run.population.members
        scores = [m.record["averages"][average]["scores"]["val"]["accuracy"] for m in members]
        assert best["val"]["accuracy"]["value"] == max(scores) == scores[index]
        assert best["parameters"] == board.row("member 0")["parameters"]
        assert best["milliseconds"] == board.row(f"member {index}")["milliseconds"]
        assert fusions[0]["models"] == 2
    assert "average" not in board.row("member 0")
    assert board.document["best_member"] in ("member 0", "member 1")
    assert (
        '"member 0, ema",member,1,val' in board.to_csv()
        or '"member 1, ema",member' in board.to_csv()
    )


def test_a_member_keeps_weights_and_predictions_of_each_average(averaged):
    for member in averaged.run.population.members:
        assert member.averages == tuple(NAMES)
        for average in NAMES:
            folder = member.path / "averages" / average
            assert {p.name for p in folder.rglob("*") if p.is_file()} == {
                *("model.safetensors", "train.npy", "val.npy", "test.npy")
            }
            twin = member.averaged(average)
            assert twin.checkpoint() == folder / "model.safetensors"
            inputs = data(averaged)["test_inputs"]
            logits = predict(twin.model(averaged.net), Arrays(inputs))
            np.testing.assert_allclose(twin.predictions("test"), logits, rtol=1e-5, atol=1e-6)
            assert not np.allclose(member.predictions("test"), logits)
            said = np.isfinite(twin.predictions("train")).all(1)
            assert np.flatnonzero(said).tolist() == member.rows("held_out").tolist()
            assert "out_of_fold" in member.record["averages"][average]["scores"]


def test_batch_norm_is_that_of_the_averaged_weights_on_the_learning_rows(averaged):
    for member in averaged.run.population.members:
        inputs = torch.from_numpy(data(averaged)["train_inputs"][member.rows("learned")])
        for average in NAMES:
            state = member.averaged(average).state()
            hidden = inputs.flatten(1) @ state["1.weight"].T + state["1.bias"]
            torch.testing.assert_close(
                state["2.running_mean"], hidden.mean(0), rtol=1e-4, atol=1e-6
            )
            torch.testing.assert_close(state["2.running_var"], hidden.var(0), rtol=1e-4, atol=1e-6)


def test_an_averaged_fusion_is_the_fusion_of_averaged_members(averaged):
    population = averaged.run.population
    for average in NAMES:
        stack = population.averaged(average).stack("test")
        shares = torch.from_numpy(stack).softmax(-1).mean(0)
        stored = np.exp(population.fused(f"mean_probability, {average}", "test"))
        np.testing.assert_allclose(stored, shares, rtol=1e-5, atol=1e-6)


def test_a_member_is_the_same_without_averages(averaged, tmp_path):
    text = averaged.recipe.read_text().replace(AVERAGING, "")
    (tmp_path / "plain.yaml").write_text(text)
    plain = run(tmp_path / "plain.yaml", out=tmp_path / "RUN")
    for one, other in zip(plain.population.members, averaged.run.population.members, strict=True):
        files, more = one.record["files"], other.record["files"]
        assert files.items() <= more.items()
        assert {name for name in more if name not in files} == {
            f"averages/{average}/{file}"
            for average in NAMES
            for file in (
                "model.safetensors",
                *(f"predictions/{s}.npy" for s in ("train", "val", "test")),
            )
        }
        assert "averages" not in one.record
        assert "averaging" not in one.record["options"]
    shared = [row["name"] for row in plain.scoreboard.rows]
    for name in shared:
        for split in ("val", "test"):
            mine, theirs = (r.scoreboard.row(name)[split] for r in (plain, averaged.run))
            assert mine["accuracy"] == theirs["accuracy"]


@pytest.mark.parametrize("row", ["member 1, ema", "mean_probability, swa", "hard_vote, t_adema"])
def test_predict_asks_the_averaged_weights(copied, averaged, tmp_path, row):
    if row.startswith("member"):
        row = next(r["name"] for r in copied.run.scoreboard.rows if r["name"].endswith(", ema"))
    np.save(tmp_path / "new.npy", held_out_images())
    said = command(
        *("predict", copied.root, tmp_path / "new.npy", "--fusion", row),
        *("--recipe", copied.recipe, "--out", tmp_path / "answers.csv"),
    )
    assert said.exit_code == 0, said.output
    answers = [
        line.split(",")[1] for line in (tmp_path / "answers.csv").read_text().splitlines()[1:]
    ]
    facts = copied.run.scoreboard.row(row)
    population = copied.run.population.averaged(facts["average"])
    if facts["kind"] == "member":
        classes = population.members[facts["members"][0]].predictions("test").argmax(-1)
    else:
        stored = copied.run.population.fused(row, "test")
        classes = stored if stored.dtype.kind in "iu" else stored.argmax(-1)
    assert answers == [str(c) for c in classes]


def test_an_averaged_row_can_be_submitted(copied):
    file = copied.root / "leaderboard.json"
    document = json.loads(file.read_text())
    for row in document["rows"]:
        file.write_text(json.dumps({**document, "best": row["name"]}))
        run(copied.recipe, out=copied.root)
        lines = (copied.root / "submission.csv").read_text().splitlines()[1:]
        inputs = Arrays(held_out_images() / np.float32(255))
        answers = copied.run.predict(inputs, fusion=row["name"], recipe=copied.recipe)
        assert [tuple(line.split(",")) for line in lines] == answers


def test_a_second_call_trains_nothing_and_changes_nothing(copied, monkeypatch):
    before = digests(copied.root)
    monkeypatch.setattr("polyfuse.training.base.fit_member", None)  # whoever trains, fails
    run(copied.recipe, out=copied.root)
    assert digests(copied.root) == before
    shutil.rmtree(copied.root / "fusions" / "mean_probability, ema")
    run(copied.recipe, out=copied.root)
    assert digests(copied.root) == before


class Clock:
    """Leaves time for one epoch: the second look at it is past the deadline."""

    def __init__(self):
        self.looks = 0

    def time(self):
        self.looks += 1
        return 0 if self.looks == 1 else 1 << 40


def test_stopped_at_each_epoch_and_run_again_gives_the_same_bytes(averaged, tmp_path, monkeypatch):
    for epoch in range(1, 7):  # of two members with three each
        with monkeypatch.context() as patch, contextlib.suppress(RunError):  # no member is done yet
            patch.setattr(polyfuse.fit, "time", Clock())
            patch.setattr("polyfuse.budget.time", SimpleNamespace(time=lambda: 0))
            patch.setattr(module, "time", SimpleNamespace(time=lambda: 1))
            run(averaged.recipe, out=tmp_path / "RUN", minutes=1)
        members = list((tmp_path / "RUN" / "members").iterdir())
        assert len(members) == epoch // 3
    run(averaged.recipe, out=tmp_path / "RUN")
    assert digests(tmp_path / "RUN") == digests(averaged.run.path)


@pytest.mark.usefixtures("forked_workers")
def test_two_workers_give_the_same_bytes(averaged, tmp_path):
    run(averaged.recipe, out=tmp_path / "RUN", workers=2)
    assert digests(tmp_path / "RUN") == digests(averaged.run.path)


def test_changed_weights_of_an_average_are_refused(copied):
    file = copied.root / "members" / "000" / "averages" / "ema" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(RunError, match=r"averages/ema/model.safetensors' was changed after"):
        copied.run.population.members[0].averaged("ema").state()


def test_an_average_that_was_not_tracked_is_refused(averaged):
    with pytest.raises(
        RunError, match=r"has no average 'emma'; did you mean 'ema'\?; it has: ema, swa"
    ):
        averaged.run.population.averaged("emma")


def test_other_averages_are_another_recipe(copied):
    with pytest.raises(RunError, match=r"averaging.ema.decay is 0.8 there and 0.7 here"):
        run(copied.recipe, out=copied.root, settings=["averaging.ema.decay=0.7"])


# What a recipe may say ----------------------------------------------------------------------------


def plan(averaging, fit="{}"):
    text = "{name: x, data: street_digits, model: character_cnn, training: kfold, "
    return load(parse(f"{text}fit: {fit}, averaging: {averaging}}}", "x"), [])


@pytest.mark.parametrize(
    ("averaging", "fact"),
    [
        ("{emma: {decay: 0.9}}", "averaging.emma.name: unknown 'emma'; did you mean 'ema'?"),
        ("{ema: {decai: 0.9}}", "averaging.ema.decai: unknown 'decai'; did you mean 'decay'?"),
        ("{swa: {start_epch: 5}}", "unknown 'start_epch'; did you mean 'start_epoch'?"),
        ("{ema: {decay: 1.0}}", "averaging.ema.decay: decay=1.0; type 0 <= decay < 1"),
        ("{ema: {decay: x}}", "averaging.ema.decay: should be a valid number; got 'x'"),
        ("{slow: {name: ema, warmup: powr}}", "averaging.slow.warmup: warmup='powr'"),
        ("{half_life: {}}", "averaging.half_life: half_life takes one of steps, samples"),
        ("{swa: {start_epoch: 20}}", "swa: start_epoch=20; training has 20 epochs, so it must"),
        ("{swa: {start_epoch: -1}}", "start_epoch=-1; type a whole number from 0"),
        ("{swa: {update_every: x}}", "update_every='x'; type a whole number from 1, or 'epoch'"),
        ("{a/b: swa}", "'a/b' names a folder, so it has letters, digits, - and _ only"),
        ("[ema]", "averaging: expected a mapping of averages, got ['ema']; for example {ema:"),
        ("{ema: 3}", "averaging.ema: expected a name, or a mapping with one; got 3"),
        ("{x: 'json:dumps'}", "is required by json:dumps"),
        ("{x: 'time:time'}", "'time:time' does not tell its parameters; wrap it in your own"),
        ("{x: 'os:getcwd'}", "averaging.x: cannot be built: AttributeError"),
    ],
)
def test_faults_of_averaging(averaging, fact):
    with pytest.raises(RecipeError) as caught:
        plan(averaging)
    assert fact in str(caught.value)
    assert "1 fault in recipe" in str(caught.value)


def test_all_faults_are_told_at_once_with_their_lines():
    text = "name: x\ndata: street_digits\nmodel: character_cnn\ntraining: kfold\naveraging:\n"
    text += "  ema: {decay: 2}\n  swa: {start: 3}\n  lwa: {}\nfit: {averaging: {ema: {}}}\n"
    with pytest.raises(RecipeError) as caught:
        load(parse(text, "x"), [])
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0] for line in lines] == ["line 6", "line 7", "line 8", "line 9"]
    assert lines[3] == "line 9: fit.averaging: stands beside fit, not in it; move it to the left"


def test_names_and_options_reach_the_rules():
    made = plan("{ema: , slow: {name: ema, decay: 0.99, update_every: 2}, last: lawa}")
    rules = made.options.rules()
    assert list(rules) == ["ema", "slow", "last"]
    assert [rule.name for rule in rules.values()] == ["ema", "ema", "lawa"]
    assert rules["slow"].options["decay"] == 0.99
    assert rules["slow"].timing.update_every == 2
    assert plan("null").options == plan("{}").options


def test_an_own_rule_is_code():
    text = "{name: x, data: street_digits, model: character_cnn, training: kfold, "
    source = parse(f"{text}averaging: {{mine: 'polyfuse.averaging:swa'}}}}", "x")
    assert load(source, []).options.rules()["mine"].name == "swa"
    run_folder = parse(f"{text}averaging: {{mine: 'polyfuse.averaging:swa'}}}}", "x")
    with pytest.raises(RecipeError, match="names code, which runs only from a recipe"):
        module.check(run_folder, trusted=False)
