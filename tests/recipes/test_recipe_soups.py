"""Soups in recipes: one model on the scoreboard, made once, resumed, asked; a shared start."""

import json
import shutil
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from polyfuse import predict
from polyfuse.checkpoints import safetensors
from polyfuse.data.arrays import Arrays
from polyfuse.errors import CheckpointError, RecipeError, RunError
from polyfuse.recipes import run as module
from polyfuse.recipes import soups as recipe_soups
from polyfuse.recipes.folder import Run
from polyfuse.recipes.run import load
from polyfuse.recipes.shipped import find
from polyfuse.recipes.source import parse, read
from polyfuse.weights import average
from tiny_run import digests, held_out_images, polyfuse, recipe_of_net

run = partial(module.run, workers=1)
NAMES = ["uniform_soup", "greedy_soup", "forward_backward_soup", "learned_soup"]
SOUPS = [*NAMES[:3], {"name": "learned_soup", "steps": 3, "per_layer": True}]
# Batch-norm in a net whose hidden layer is narrow: soups of it need its statistics.


@pytest.fixture(scope="module")
def souped(tmp_path_factory):
    """Return a finished run with all soups, its recipe, and the weights its members began with."""
    folder = tmp_path_factory.mktemp("souped")
    recipe, text = recipe_of_net(folder, "nets_for_soups")
    start = folder / "start.safetensors"
    text = text.replace("folds: 2", "folds: 3") + f"soups: {json.dumps(SOUPS)}\n"
    recipe.write_text(text.replace("fit:\n", f"fit:\n  start: '{start}'\n"))
    torch.manual_seed(0)
    from nets_for_soups import net

    safetensors.write(start, dict(net().state_dict()))
    yield SimpleNamespace(recipe=recipe, start=start, net=net, run=run(recipe, out=folder / "RUN"))
    sys.path.remove(str(folder))


@pytest.fixture
def copied(souped, tmp_path):
    root = shutil.copytree(souped.run.path, tmp_path / "RUN")
    return SimpleNamespace(recipe=souped.recipe, root=root, run=Run(root))


def test_a_soup_is_one_model_in_the_folder_and_on_the_scoreboard(souped):
    board, population = souped.run.scoreboard, souped.run.population
    rows = [row for row in board.rows if row["kind"] == "soup"]
    assert [row["name"] for row in rows] == NAMES
    for row in rows:
        folder = souped.run.path / "fusions" / row["name"]
        assert {p.name for p in folder.rglob("*") if p.is_file()} == {
            *("fusion.json", "model.safetensors", "val.npy", "test.npy")
        }
        record = population.fusion(row["name"])
        assert record["members"] == row["members"]
        assert row["models"] == 1
        assert row["parameters"] == board.row("member 0")["parameters"]
        times = [r["milliseconds"] for r in board.rows if r["kind"] == "member"]
        assert row["milliseconds"] in times
        assert record["score"] == row["val"]["accuracy"]["value"]
    assert not list((souped.run.path / "resume").iterdir())
    assert ",soup," in board.to_csv()


def test_a_uniform_soup_is_the_average_of_the_files_with_statistics_of_training_rows(souped):
    population = souped.run.population
    mean = average([member.path / "model.safetensors" for member in population.members]).state_dict
    saved = population.soup("uniform_soup", souped.net).state_dict()
    moved = {"2.running_mean", "2.running_var", "2.num_batches_tracked"}
    assert all(torch.equal(saved[name], mean[name]) for name in saved.keys() - moved)
    inputs = torch.from_numpy(np.load(souped.recipe.parent / "data.npz")["train_inputs"])
    hidden = inputs.flatten(1) @ saved["1.weight"].T + saved["1.bias"]
    torch.testing.assert_close(saved["2.running_mean"], hidden.mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(saved["2.running_var"], hidden.var(0), rtol=1e-4, atol=1e-6)


def test_its_stored_answers_are_those_of_its_weights(souped):
    inputs = np.load(souped.recipe.parent / "data.npz")["test_inputs"]
    for name in NAMES:
        logits = predict(souped.run.population.soup(name, souped.net), Arrays(inputs))
        logs = torch.from_numpy(logits).log_softmax(-1).numpy()
        stored = souped.run.population.fused(name, "test")
        np.testing.assert_allclose(stored, logs, rtol=1e-4, atol=1e-5)


def test_predict_asks_the_one_model(souped, tmp_path):
    np.save(tmp_path / "new.npy", held_out_images())
    said = polyfuse(
        *("predict", souped.run.path, tmp_path / "new.npy", "--fusion", "greedy_soup"),
        *("--recipe", souped.recipe, "--out", tmp_path / "answers.csv"),
    )
    assert said.exit_code == 0, said.output
    lines = (tmp_path / "answers.csv").read_text().splitlines()[1:]
    stored = souped.run.population.fused("greedy_soup", "test").argmax(-1)
    assert [line.split(",")[1] for line in lines] == [str(c) for c in stored]


def test_a_second_call_makes_nothing_and_changes_nothing(copied, monkeypatch):
    monkeypatch.setattr(recipe_soups, "_keep", None)  # whoever makes a soup, fails
    before = digests(copied.root)
    seen = []
    run(copied.recipe, out=copied.root, progress=lambda *what: seen.append(what[0]))
    assert digests(copied.root) == before
    assert "soups" not in seen


def test_a_lost_soup_is_made_again_alone_and_the_same(copied, monkeypatch):
    before = digests(copied.root)
    shutil.rmtree(copied.root / "fusions" / "greedy_soup")
    made = []
    keep = recipe_soups._keep
    monkeypatch.setattr(recipe_soups, "_keep", lambda *a: (made.append(a[1]), keep(*a)))
    run(copied.recipe, out=copied.root)
    assert made == ["greedy_soup"]
    assert digests(copied.root) == before


@pytest.mark.parametrize("trials", [1, 4])
def test_a_killed_search_goes_on_from_its_journal(copied, monkeypatch, trials):
    before = digests(copied.root)
    for name in NAMES:
        shutil.rmtree(copied.root / "fusions" / name)
    score, calls = recipe_soups._Score.__call__, []

    def killed(self, model):
        if len(calls) == trials:
            raise KeyboardInterrupt
        calls.append(model)
        return score(self, model)

    with monkeypatch.context() as patch:
        patch.setattr(recipe_soups._Score, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            run(copied.recipe, out=copied.root)
    journal = copied.root / "resume" / "soup-pooled.json"
    assert len(json.loads(journal.read_text())["trials"]) == trials
    again = []
    counted = lambda self, model: (again.append(model), score(self, model))[1]  # noqa: E731
    monkeypatch.setattr(recipe_soups._Score, "__call__", counted)
    run(copied.recipe, out=copied.root)
    assert not journal.exists()
    assert digests(copied.root) == before
    whole = {frozenset(t["members"]) for name in NAMES[:3] for t in fusion(copied, name)["trials"]}
    assert len(again) == len(whole) + 1 - trials  # the learned one is scored besides


def fusion(copied, name):
    return copied.run.population.fusion(name)


def test_a_soup_of_other_members_is_made_anew(copied):
    """Its weights would be those of members that are gone."""
    before = digests(copied.root)
    file = copied.root / "fusions" / "uniform_soup" / "fusion.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "inputs": "0" * 64}))
    with pytest.raises(RunError, match="is no soup of the members that are there now"):
        module.compare_fusions(
            copied.run.population, fusions=["hard_vote"], soups=["uniform_soup"], replicates=20
        )
    (copied.root / "leaderboard.json").unlink()
    run(copied.recipe, out=copied.root)
    assert digests(copied.root) == before


def test_changed_weights_of_a_soup_are_refused(copied):
    file = copied.root / "fusions" / "greedy_soup" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(RunError, match="was changed after it was committed"):
        copied.run.predict(
            Arrays(np.zeros((2, 3, 4, 6), "f4")), fusion="greedy_soup", recipe=copied.recipe
        )


def test_the_summary_names_the_cost_of_one_model(copied):
    file = copied.root / "leaderboard.json"
    document = json.loads(file.read_text())
    document["best"] = "uniform_soup"
    for row in document["rows"]:  # a soup that is as good as a member is not the best
        row["members"] = [0, 1, 2] if row["name"] == "uniform_soup" else row["members"]
    file.write_text(json.dumps(document))
    [said] = [line for line in copied.run.scoreboard.summary() if line.startswith("Best on")]
    assert said.endswith("points, at 1 times the inference cost.")


# A start to share -----------------------------------------------------------------------------


def test_every_member_begins_with_the_given_weights_and_says_so(souped):
    start = safetensors.read(souped.start)[0]
    for member in souped.run.population.members:
        assert len(member.record["start"]) == 64
        assert f"start={member.record['start']}" in member.record["options"]
        state = member.state()
        apart = sum(float((state[k] - start[k]).norm()) for k in ("1.weight", "4.weight"))
        assert 0 < apart < 3


def test_nothing_is_called_out_of_fold_where_the_start_may_have_seen_it(souped):
    population, board = souped.run.population, souped.run.scoreboard
    assert np.isnan(population.stack("train")).all()
    assert all("out_of_fold" not in m.record["scores"] for m in population.members)
    assert board.document["out_of_fold"] is None
    said = "\n".join(board.summary())
    assert "Honest folds" not in said
    assert "No out-of-fold scores: the members started from weights that may have learned" in said


def test_another_start_is_another_training(copied, souped, tmp_path):
    state = safetensors.read(souped.start)[0]
    state["4.bias"] += 1
    kept = souped.start.read_bytes()
    try:
        safetensors.write(souped.start, state)
        with pytest.raises(RunError, match=r"was trained with other options: .*start="):
            run(copied.recipe, out=copied.root)
    finally:
        souped.start.write_bytes(kept)
    # In another format and place it is the same.
    torch.save(safetensors.read(souped.start)[0], tmp_path / "start.pt")
    digest = copied.run.population.members[0].record["start"]
    assert load_options(tmp_path / "start.pt").endswith(f"start={digest}")


def load_options(start):
    source = parse(
        f"{{name: x, data: street_digits, model: mlp, training: kfold, fit: {{start: '{start}'}}}}",
        "x",
    )
    source.tree["model"] = {"name": "mlp", "inputs": 4, "classes": 2}
    return load(source, []).options.fingerprint()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("4.bias"), r"start='.*' does not fit the model: '.*' lacks 1 .* '4.bias'"),
        (lambda s: s.update({"4.bias": torch.ones(7)}), "size mismatch for 4.bias"),
    ],
)
def test_a_start_that_does_not_fit_is_refused_before_training(souped, tmp_path, change, message):
    state = safetensors.read(souped.start)[0]
    change(state)
    safetensors.write(tmp_path / "other.safetensors", state)
    settings = [f"fit.start={tmp_path / 'other.safetensors'}"]
    with pytest.raises(CheckpointError, match=message):
        run(souped.recipe, out=tmp_path / "RUN", settings=settings)
    assert not list((tmp_path / "RUN" / "members").iterdir())
    with pytest.raises(CheckpointError, match=r"no/such\.pt"):
        run(souped.recipe, out=tmp_path / "RUN", settings=["fit.start=/no/such.pt"])


# What a recipe may say ------------------------------------------------------------------------


def faults(soups):
    text = "{name: x, data: street_digits, model: character_cnn, training: kfold, fusions: "
    with pytest.raises(RecipeError) as caught:
        load(parse(f"{text}[hard_vote], soups: {soups}}}", "x"), [])
    return str(caught.value)


@pytest.mark.parametrize(
    ("soups", "fact"),
    [
        ("[gredy_soup]", "unknown 'gredy_soup'; did you mean 'greedy_soup'?"),
        ("[{name: greedy_soup, tie: true}]", "unknown 'tie'; did you mean 'ties'?"),
        ("[{name: greedy_soup, ties: 1}]", "should be a valid boolean; got 1"),
        ("[{name: greedy_soup, batchnorm: pool}]", "'pooled', 'sample', 'torch' or 'keep'"),
        ("[greedy_soup, {name: greedy_soup, ties: true}]", "'greedy_soup' is given twice"),
        ("greedy_soup", "should be a valid list"),
    ],
)
def test_faults_of_soups(soups, fact):
    assert fact in faults(soups)


def test_the_shipped_soup_runs_from_any_weights_of_its_model(tmp_path):
    small = ["model.width=2", "model.hidden=8", "data.train=120", "data.val=40", "data.test=40"]
    small += ["training.folds=2", "fit.epochs=1", "fit.accelerator=cpu"]
    model = load(read(find("soup")), small, quick=True).factory()
    safetensors.write(tmp_path / "start.safetensors", dict(model.state_dict()))
    settings = [*small, f"fit.start={tmp_path / 'start.safetensors'}"]
    done = run("soup", out=tmp_path / "RUN", settings=settings, quick=True)
    kinds = [row["kind"] for row in done.scoreboard.rows]
    assert kinds == ["member", "member", "fusion", "soup", "soup", "soup"]
    assert "No out-of-fold scores" in "\n".join(done.scoreboard.summary())
    assert "independent runs" not in "\n".join(done.scoreboard.summary())
