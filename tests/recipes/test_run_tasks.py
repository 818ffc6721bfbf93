"""Multilabel and regression from data to predictions: recipes, strategies, combine, add."""

import inspect
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from polyfuse import Arrays, FitOptions, Population, Splits, Task, compare_fusions, mlp, train
from polyfuse.adding import add_member
from polyfuse.combining_runs import combine_population
from polyfuse.data.base import task_of
from polyfuse.errors import DataError, PolyfuseError, RecipeError, TrainingError
from polyfuse.losses import LOSSES
from polyfuse.metrics import rmse
from polyfuse.optimizers import OPTIMIZERS
from polyfuse.recipes import run as module
from polyfuse.recipes.folder import Run
from polyfuse.tasks import mean_of
from polyfuse.training import STRATEGIES
from tiny_run import digests, polyfuse

run = partial(module.run, workers=1)
TEXT = """\
name: tiny
data: {{name: arrays, path: '{data}', task: {task}}}
model: {{name: mlp, inputs: 4, classes: {outputs}, hidden: 8}}
training: {{name: kfold, folds: 2}}
fit:
  epochs: 2
  batch_size: 8
  optimizer: {{name: adam, lr: 1e-2}}
  loss: {loss}
soups: [uniform_soup]
averaging: {{ema: {{decay: 0.9}}}}
scoreboard: {{replicates: 50}}
"""
SLOPES = np.random.default_rng(0).standard_normal((4, 3))
SIZES = {"train": 32, "val": 20, "test": 12}


def rows(task, split, outputs=3):
    rng = np.random.default_rng(len(split))
    inputs = rng.standard_normal((SIZES[split], 4)).astype("f4")
    numbers = inputs @ SLOPES + 0.1 * rng.standard_normal((SIZES[split], 3))
    return inputs, ((numbers > 0).astype(int) if task == "multilabel" else numbers)[:, :outputs]


def recipe_of(folder, task, outputs=3, loss="mean_squared_error", **changes):
    """Write data and a recipe; `changes` replace arrays. One output is kept as `(n,)`."""
    held = {}
    for split in SIZES:
        held[f"{split}_inputs"], labels = rows(task, split, outputs)
        held[f"{split}_labels"] = labels[:, 0] if outputs == 1 else labels
    np.savez(folder / "data.npz", **{**held, **changes})
    recipe = folder / "tiny.yaml"
    facts = {"data": folder / "data.npz", "task": task, "outputs": outputs, "loss": loss}
    recipe.write_text(TEXT.format(**facts))
    return recipe


KINDS = {
    "regression": ("regression", 1, "mean_squared_error", "[mean_value, median]"),
    "multilabel": (
        *("multilabel", 3, "binary_cross_entropy"),
        "[mean_probability, mean_logit, hard_vote]",
    ),
}


@pytest.fixture(scope="module", params=KINDS)
def done(request, tmp_path_factory):
    """Return a finished run of a kind."""
    folder, (task, outputs, loss, fusions) = tmp_path_factory.mktemp("run"), KINDS[request.param]
    recipe = recipe_of(folder, task, outputs, loss)
    recipe.write_text(recipe.read_text() + f"fusions: {fusions}\n")
    np.save(folder / "new.npy", rows(task, "test")[0])
    return SimpleNamespace(
        run=run(recipe, out=folder / "RUN"),
        recipe=recipe,
        new=folder / "new.npy",
        task=task,
        outputs=outputs,
    )


def submitted(root):
    head, *lines = (root / "submission.csv").read_text().splitlines()
    return head, [tuple(line.split(",")) for line in lines]


def test_the_board_decides_by_what_the_task_is_about(done):
    board, population = done.run.scoreboard, done.run.population
    assert board.document["metric"] == {"regression": "rmse", "multilabel": "nll"}[done.task]
    assert population.task == done.task
    labels, stack = population.labels("test"), population.stack("test")
    assert stack.shape == (2, 12, done.outputs)
    name, fusion = ("mean_value", None) if done.task == "regression" else ("mean_probability", 1)
    mean = population.said(name, "test")
    expected = stack.mean(0) if fusion is None else (1 / (1 + np.exp(-stack))).mean(0)
    np.testing.assert_allclose(mean, expected, rtol=1e-5)
    # Jensen: the mean of these is never worse than its members are on average.
    metric = board.document["metric"]
    power = 2 if metric == "rmse" else 1
    each = [board.row(f"member {i}")["test"][metric]["value"] ** power for i in (0, 1)]
    assert board.row(name)["test"][metric]["value"] ** power <= np.mean(each) * (1 + 1e-6)
    if done.task == "regression":
        assert board.row(name)["test"]["rmse"]["value"] == rmse(mean, labels).value
    rows_of = {row["name"]: row["kind"] for row in board.rows}
    assert rows_of["uniform_soup"] == "soup"
    assert f"{name}, ema" in rows_of


def test_members_record_scores_and_out_of_fold_predictions(done):
    population = done.run.population
    metrics = set(done.run.scoreboard.document["metrics"])
    for member in population.members:
        assert set(member.record["scores"]["out_of_fold"]) == metrics
        said = member.predictions("train")
        held = member.rows("held_out")
        assert np.isnan(np.delete(said, held, 0)).all()
        truth = population.labels("train")[held]
        if done.task == "regression":
            score = rmse(said[held], truth).value
            assert member.record["scores"]["out_of_fold"]["rmse"] == score
    honest = done.run.scoreboard.document["out_of_fold"]
    assert honest["rows"] == SIZES["train"]
    parts = [m.record["scores"]["out_of_fold"] for m in population.members]
    whole = honest["train"]["value"]
    if done.task == "regression":
        assert whole**2 == pytest.approx(np.mean([p["rmse"] ** 2 for p in parts]))
    else:
        assert whole == pytest.approx(np.mean([p["nll"] for p in parts]))


def test_the_submission_is_what_predict_says(done):
    head, lines = submitted(done.run.path)
    assert head == {"regression": "name,value", "multilabel": "name,labels"}[done.task]
    assert done.run.predict(done.new) == lines
    for row in done.run.scoreboard.rows:
        answers = done.run.predict(done.new, fusion=row["name"])
        assert len(answers) == len(lines)
    population = done.run.population
    if done.task == "regression":
        said = done.run.predict(done.new, fusion="member 1")
        numbers = np.array([text.split() for _, text in said], "f4")
        np.testing.assert_allclose(numbers, population.stack("test")[1], rtol=1e-5, atol=1e-6)
    else:
        votes = population.said("hard_vote", "test")
        shown = [text for _, text in done.run.predict(done.new, fusion="hard_vote")]
        assert shown == [" ".join(map(str, np.flatnonzero(row))) for row in votes]


def test_the_command_line_writes_the_same_table(done, tmp_path):
    out = tmp_path / "answers.csv"
    result = polyfuse("predict", done.run.path, done.new, "-o", out)
    assert result.exit_code == 0, result.output
    assert out.read_text() == (done.run.path / "submission.csv").read_text()


def test_a_second_call_changes_nothing(done):
    before = digests(done.run.path)
    run(done.recipe, out=done.run.path)
    assert digests(done.run.path) == before


def test_combinations_are_fitted_kept_and_asked(done):
    outs = ["mean", "caruana", "stack"]
    fitted = combine_population(done.run, outs, folds=2)
    assert fitted.names == tuple(outs)
    population = done.run.population
    shape = population.stack("test").shape[1:]
    for name in outs:
        assert population.said(name, "test").shape == shape
        assert len(done.run.predict(done.new, fusion=name)) == SIZES["test"]
        assert fitted.scoreboard.row(name)["kind"] == "fitted"
    np.testing.assert_allclose(
        population.said("mean", "test"), mean_of(done.task, population.stack("test")), rtol=1e-5
    )
    ours = done.run.predict(done.new, fusion="caruana")
    if done.task == "regression":
        numbers = np.array([text.split() for _, text in ours], "f8")
        np.testing.assert_allclose(numbers, population.said("caruana", "test"), rtol=1e-5)
        with pytest.raises(DataError, match="the task regression has none; leave out"):
            combine_population(done.run, "mean", calibrate=True)
    else:
        fitted = combine_population(done.run, "mean", calibrate=True, folds=2)
        assert fitted.names == ("mean", "mean calibrated")


def test_members_from_elsewhere_join(done, tmp_path):
    population, name = done.run.population, "other"
    said = {s: population.members[0].predictions(s) + 0.5 for s in ("val", "test")}
    if done.task == "multilabel":  # by their probabilities, and with the ids of the rows
        given = {}
        for split, logits in said.items():
            given[split] = tmp_path / f"{split}.csv"
            lines = [",".join(["id", *map(str, range(3))])]
            p = 1 / (1 + np.exp(-logits.astype("f8")))
            lines += [",".join([str(i), *map(str, p[i])]) for i in range(len(p))[::-1]]
            given[split].write_text("\n".join(lines))
    else:
        given = {split: numbers[:, 0] for split, numbers in said.items()}
    added = add_member(done.run, name, predictions=given)
    np.testing.assert_allclose(added.member.predictions("test"), said["test"], rtol=1e-5, atol=1e-5)
    assert added.scoreboard.row(name)["kind"] == "member"
    assert add_member(done.run, name, predictions=given).notes[-1].startswith("'other' is there")
    with pytest.raises(DataError, match="says the same of every row"):
        add_member(done.run, "again", predictions=given)
    if done.task == "regression":
        with pytest.raises(DataError, match=r"have \(\d,\); bring the same outputs"):
            add_member(done.run, "wide", predictions={s: np.zeros((9, 5)) for s in said})
        with pytest.raises(DataError, match="space prob; of a regression there are plain numbers"):
            add_member(done.run, "odd", predictions=given, space="prob")


# What does not fit is known before anything is trained -------------------------------------------

FAULTS = {
    "a vote": (
        "fusions: [hard_vote]",
        "regression",
        "fusions: hard_vote does not fit the task reg",
    ),
    "numbers": ("fusions: [mean_value]", "multilabel", "mean_value does not fit the task multilab"),
    "metrics": (
        *("scoreboard: {metrics: [ece]}", "regression"),
        "scoreboard.metrics: ece do not fit the task regression, which has rmse, mae",
    ),
}


@pytest.mark.parametrize(("line", "task", "fact"), FAULTS.values(), ids=FAULTS)
def test_what_does_not_fit_the_task_is_told_before_training(tmp_path, line, task, fact):
    recipe = recipe_of(tmp_path, task)
    key = line.split(":")[0]
    kept = [one for one in recipe.read_text().splitlines() if not one.startswith(key)]
    recipe.write_text("\n".join([*kept, line]))
    with pytest.raises(RecipeError) as caught:
        run(recipe, out=tmp_path / "RUN")
    assert fact in str(caught.value)
    assert not (tmp_path / "RUN" / "members").exists()


def test_a_loss_or_a_model_of_another_task_is_told_before_training(tmp_path):
    recipe = recipe_of(tmp_path, "regression", outputs=1)
    with pytest.raises(DataError, match=r"2 samples to \(2, 3\).* as many outputs as there are"):
        run(recipe, out=tmp_path / "RUN", settings=["model.classes=3"])
    bad = rows("regression", "val", 1)[1][:, 0].copy()
    bad[3] = np.nan
    recipe = recipe_of(tmp_path, "regression", outputs=1, val_labels=bad)
    with pytest.raises(DataError, match=r"data.npz', val split: labels hold NaN.* in 1 of 20"):
        run(recipe, out=tmp_path / "RUN")
    with pytest.raises(RecipeError, match="'multilabel', 'regression' or 'mean_v"):
        run(recipe, out=tmp_path / "RUN", settings=["data.task=regresion"])
    with pytest.raises(DataError, match=r"train split: labels must be whole .*task=\"regression\""):
        run(recipe, out=tmp_path / "RUN", settings=["data.task=classification"])


OWN = """\
def narrow(z): return z.max(0)[..., :1]
def decided(z): return (z.mean(0) > 0).astype(int)
"""


def test_a_fusion_of_ones_own_must_return_what_goes_out(tmp_path, monkeypatch):
    (tmp_path / "own_fusions.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)

    def told(recipe, name):
        with pytest.raises(RecipeError) as caught:
            run(recipe, out=tmp_path / "RUN", settings=[f"fusions=['own_fusions:{name}']"])
        return str(caught.value)

    recipe = recipe_of(tmp_path, "regression")
    assert "narrow maps (2, 1, 3) to float32 of (1, 1)" in told(recipe, "narrow")
    assert told(recipe, "decided").endswith("it must return numbers (1, 3)")
    recipe = recipe_of(tmp_path, "multilabel", loss="binary_cross_entropy")
    assert told(recipe, "narrow").endswith("probabilities (1, 3) or int64 classes (1, 3)")


def test_without_fusions_the_plain_mean_of_the_task_is_there(tmp_path):
    quick = ["soups=[]", "fit.epochs=1", "averaging={}"]
    board = run(recipe_of(tmp_path, "regression"), out=tmp_path / "RUN", settings=quick).scoreboard
    assert [row["name"] for row in board.rows] == ["member 0", "member 1", "mean_value"]
    assert str(Run(tmp_path / "RUN").scoreboard) == str(board)


def test_means_and_variances_go_through(tmp_path):
    labels = {f"{split}_labels": rows("regression", split)[1][:, 0] for split in SIZES}
    recipe = recipe_of(tmp_path, "mean_variance", 2, "gaussian_nll", **labels)
    finished = run(recipe, out=tmp_path / "RUN", settings=["soups=[]", "averaging={}"])
    population, board = finished.population, finished.scoreboard
    assert [row["name"] for row in board.rows] == ["member 0", "member 1", "mixture_moments"]
    assert board.document["metrics"] == ["crps", "rmse", "mae"]
    stack = population.stack("test").astype("f8")
    means, variances = stack[..., 0], np.exp(stack[..., 1])
    expected = np.stack([means.mean(0), variances.mean(0) + means.var(0)], -1)
    np.testing.assert_allclose(population.said("mixture_moments", "test"), expected, rtol=1e-5)
    head, lines = submitted(finished.path)
    assert head == "name,mean and variance"
    np.save(tmp_path / "new.npy", rows("regression", "test")[0])
    assert finished.predict(tmp_path / "new.npy") == lines
    fitted = combine_population(finished, ["mean", "caruana"], folds=2)
    assert fitted.names == ("mean", "caruana")
    np.testing.assert_allclose(population.said("mean", "test"), expected, rtol=1e-5)
    given = {
        s: np.stack([population.labels(s) + 0.1, np.full(SIZES[s], 0.2)], -1)
        for s in ("val", "test")
    }
    member = add_member(finished, "other", predictions=given).member
    outputs = member.predictions("test")
    np.testing.assert_allclose(outputs[:, 1], np.log(0.2), rtol=1e-6)
    assert finished.scoreboard.best == "other"
    with pytest.raises(DataError, match="negative variances"):
        add_member(finished, "odd", predictions={s: -np.ones((SIZES[s], 2)) for s in given})


# Every strategy sees rows, whatever their labels are ---------------------------------------------


def splits_of(task, shape=(3,)):
    made = []
    for name in SIZES:
        inputs, labels = rows(task, name)
        made.append(Arrays(inputs, labels if shape else labels[:, 0], task=task))
    return Splits(*made)


LOSS = {
    "regression": nn.functional.mse_loss,
    "multilabel": nn.functional.binary_cross_entropy_with_logits,
}
FEW = {"members": 2, "rounds": 2, "folds": 2, "samples": 3, "cycles": 2}
NOT_HERE = {
    "samme": (DataError, "one class a row"),
    "soft_boosting": (DataError, "one-hot labels"),
}


def net():
    layers = (nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3))
    return nn.Sequential(*layers)


# The others train members as these do, on other rows or from other weights.
TRIED = {
    "regression": ("bagging", "gradient_boosting", "joint", "mc_dropout", "samme", "swag"),
    "multilabel": ("bagging", "gradient_boosting", "snapshot", "soft_boosting"),
}


@pytest.mark.parametrize(("task", "name"), [(task, n) for task in TRIED for n in TRIED[task]])
def test_strategies_train_every_task_or_say_why_not(tmp_path, task, name):
    data, takes = splits_of(task), inspect.signature(STRATEGIES[name]).parameters
    quick = {"epochs": 4, "batch_size": 16, "accelerator": "cpu"}
    fit = FitOptions(**quick, loss=LOSS[task], optimizer=partial(OPTIMIZERS["adam"], lr=0.03))
    given = {key: value for key, value in {**FEW, "fit": fit}.items() if key in takes}
    if name in NOT_HERE:
        kind, fact = NOT_HERE[name]
        with pytest.raises(kind, match=fact):
            STRATEGIES[name](data.train, **given)
        return
    population = train(STRATEGIES[name](data.train, **given), Task(net, data, fit), tmp_path)
    assert population.members
    board = compare_fusions(population, replicates=9)
    shape = data.test.labels.shape
    for row in board.rows:
        if row["kind"] == "fusion":
            assert population.said(row["name"], "test").shape == shape


def test_members_in_lock_step_and_a_checkpoint_from_elsewhere(tmp_path):
    data, loss = splits_of("mean_variance", shape=()), LOSSES["gaussian_nll"]
    make, stacks = partial(mlp, inputs=4, classes=2, hidden=4), []
    for together in ("never", "always"):
        quick = {"epochs": 2, "batch_size": 16, "accelerator": "cpu", "together": together}
        plan, fit = STRATEGIES["kfold"](data.train, folds=2), FitOptions(**quick, loss=loss)
        population = train(plan, Task(make, data, fit), tmp_path / together)
        stacks.append(population.stack("test"))
    np.testing.assert_allclose(stacks[1], stacks[0], rtol=1e-4, atol=1e-5)
    net = make()
    torch.save(net.state_dict(), tmp_path / "mine.pt")
    told = {"checkpoint": tmp_path / "mine.pt", "model": make, "data": data}
    said = add_member(population, "mine", **told).member.predictions("test")
    np.testing.assert_allclose(said, net(data.test.values).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["joint", "negative_correlation"])
def test_joint_training_never_takes_the_softmax_of_numbers(tmp_path, name):
    data = splits_of("regression")
    with pytest.raises(TrainingError, match="type 'output'"):
        STRATEGIES[name](data.train, mean="probability")
    [job] = STRATEGIES[name](data.train).jobs([])
    assert job.facts["mean"] == "output"
    outputs = torch.randn(2, 5, 3)
    labels = torch.from_numpy(data.train.labels[:5])
    mse = nn.functional.mse_loss
    torch.testing.assert_close(
        job.given["judge"](mse, outputs, labels), mse(outputs.mean(0), labels)
    )


def test_one_number_a_row_goes_through_as_it_is(tmp_path):
    data = splits_of("regression", shape=())
    fit = FitOptions(epochs=2, batch_size=16, accelerator="cpu", loss=nn.functional.mse_loss)
    flat = partial(_Flat, 4)
    plan = STRATEGIES["kfold"](data.train, folds=2)
    population = train(plan, Task(flat, data, fit), tmp_path)
    assert population.stack("test").shape == (2, 12)
    board = compare_fusions(population, replicates=9)
    expected = rmse(population.stack("test").mean(0), data.test.labels).value
    assert board.row("mean_value")["test"]["rmse"]["value"] == pytest.approx(expected, rel=1e-6)
    fitted = combine_population(population, ["caruana", "stack"], folds=2)
    assert {population.said(name, "val").shape for name in fitted.names} == {(20,)}
    with pytest.raises(PolyfuseError, match="squeeze"):
        train(plan, Task(partial(mlp, inputs=4, classes=1), data, fit), tmp_path / "wide")
    assert task_of(data.train) == Population.open(tmp_path).task


class _Flat(nn.Module):
    """A line whose output has no axis of one."""

    def __init__(self, inputs):
        super().__init__()
        self.line = nn.Linear(inputs, 1)

    def forward(self, inputs):
        return self.line(inputs).squeeze(-1)
