"""Members that were trained elsewhere: let in by what they say, counted once, never lost."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch

import polyfuse
from polyfuse import Arrays, Population, Splits
from polyfuse.adding import add_member
from polyfuse.errors import CheckpointError, DataError, PolyfuseError, RecipeError, RunError
from polyfuse.foreign import learned_rows
from polyfuse.labels import write_labels
from polyfuse.members import FIRST_ADDED
from polyfuse.recipes.folder import Run
from tiny_run import CLASSES, ROWS, digests, held_out_images, make_recipe, recipe_of_net

SPLITS = ("val", "test")


def softmax(logits):
    raised = np.exp(logits.astype(np.float64))
    return raised / raised.sum(-1, keepdims=True)


def stranger(split, seed=5):
    """Logits of a member that is good at it."""
    draw = np.random.default_rng(seed + ROWS[split])
    rows = ROWS[split]
    logits = draw.standard_normal((rows, CLASSES)) + 2 * np.eye(CLASSES)[np.arange(rows) % CLASSES]
    return logits.astype("f4")


def said(seed=5):
    return {split: stranger(split, seed) for split in SPLITS}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two folds with an average and a soup, done once."""
    folder = tmp_path_factory.mktemp("added")
    recipe = make_recipe(folder)
    text = recipe.read_text() + "averaging: {ema: {decay: 0.5}}\nsoups: [uniform_soup]\n"
    recipe.write_text(text.replace("replicates: 50", "replicates: 50, metrics: [brier]"))
    polyfuse.run(recipe, out=folder / "RUN", workers=1)
    return recipe, folder / "RUN"


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished[1], tmp_path / "RUN")
    return tmp_path / "RUN"


# By predictions ---------------------------------------------------------------------------------


def as_csv(path, logits):
    """Probabilities under ids, in another order than the run's."""
    lines = [f"{i},{','.join(map(repr, map(float, p)))}" for i, p in enumerate(softmax(logits))]
    path.write_text("id,0,1,2\n" + "\n".join(reversed(lines)) + "\n")


KINDS = {
    "logits.npy": lambda path, z: np.save(path, z),
    "probabilities.npy": lambda path, z: np.save(path, softmax(z).astype("f4")),
    "logarithms.npy": lambda path, z: np.save(path, np.log(softmax(z))),
    "several.npz": lambda path, z: np.savez(path, p=softmax(z)),
    "tensor.pt": lambda path, z: torch.save(torch.from_numpy(z), path),
    "shuffled.csv": as_csv,
}


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_every_kind_say_the_same_of_every_row(kind, run, tmp_path):
    files = {split: tmp_path / f"{split}_{kind}" for split in SPLITS}
    for split, file in files.items():
        KINDS[kind](file, stranger(split))
    done = add_member(run, "resnet", predictions=files)
    member = Population.open(run).members[-1]
    assert (member.name, member.added, member.has_weights) == ("resnet", True, False)
    for split in SPLITS:
        got = softmax(member.predictions(split))
        np.testing.assert_allclose(got, softmax(stranger(split)), atol=1e-6)
    assert np.isnan(member.predictions("train")).all()
    assert [row["name"] for row in done.scoreboard.rows if row["kind"] == "member"][:3] == [
        *("member 0", "member 1", "resnet")
    ]


def test_the_record_says_where_it_came_from(run, tmp_path):
    np.save(tmp_path / "v.npy", softmax(stranger("val")))
    done = add_member(
        run,
        "resnet",
        predictions={"val": tmp_path / "v.npy", "test": softmax(stranger("test"))},
        parameters=11_000_000,
        milliseconds=3.5,
    )
    record = json.loads((run / "members" / str(FIRST_ADDED) / "member.json").read_text())
    assert record["strategy"] == "foreign"
    assert record["weights"] is False
    assert record["trained_on"] == "unknown, vouched for by the user"
    source = record["source"]["predictions"]
    assert source["val"]["file"] == "v.npy"
    assert source["val"]["space"] == "prob"
    assert len(source["val"]["sha256"]) == 64
    row = done.scoreboard.row("resnet")
    assert (row["parameters"], row["milliseconds"]) == (11_000_000, 3.5)
    assert done.scoreboard.row("mean_probability")["members"] == [0, 1, FIRST_ADDED]
    assert done.scoreboard.row("mean_probability")["parameters"] == 11_000_000 + 2 * 683


def test_what_nobody_knows_is_a_dash_and_its_sums_are_unknown(run):
    board = add_member(run, "resnet", predictions=said()).scoreboard
    cells = {row[0].strip(): row[-2:] for row in board.table("test").rows}
    assert cells["resnet"] == cells["mean_probability"] == ["-", "-"]
    assert cells["member 0"][0] == "683"
    assert "Without weights: resnet." in board.to_markdown()


def test_scores_are_those_of_its_predictions(run):
    board = add_member(run, "resnet", predictions=said()).scoreboard
    labels = np.arange(ROWS["test"]) % CLASSES
    right = (stranger("test").argmax(1) == labels).mean()
    assert board.row("resnet")["test"]["accuracy"]["value"] == pytest.approx(right)
    assert board.document["metrics"][-1] == "brier"  # the recipe's wish is kept
    lines = (run / "submission.csv").read_text().splitlines()
    best = Run(run).population.fused(board.best, "test") if board.best != "resnet" else None
    answers = (stranger("test") if best is None else best).argmax(1)
    assert lines[1:] == [f"{i},{answer}" for i, answer in enumerate(answers)]


# A run goes on as if nobody had come --------------------------------------------------------------


def test_a_resumed_run_neither_loses_nor_miscounts_those_added(finished, run):
    recipe, untouched = finished
    add_member(run, "resnet", predictions=said())
    before = digests(run)
    polyfuse.run(recipe, out=run, workers=1)
    assert digests(run) == before
    board = Run(run).scoreboard
    assert (board.document["members"], board.document["expected"]) == (3, 3)
    assert not any("Unfinished" in line for line in board.summary())
    assert digests(untouched / "members").items() <= digests(run / "members").items()


def test_one_that_comes_before_the_others_are_done_takes_nobodys_place(finished, run):
    recipe, untouched = finished
    shutil.rmtree(run / "members" / "001")
    (run / "leaderboard.json").unlink()
    done = add_member(run, "resnet", predictions=said())
    assert done.scoreboard is None
    assert done.notes == ("There is no scoreboard yet; it will have this member, too",)
    polyfuse.run(recipe, out=run, workers=1)
    again = digests(run / "members")
    assert digests(untouched / "members").items() <= again.items()
    assert {name.split("/")[0] for name in again} == {"000", "001", str(FIRST_ADDED)}
    assert Run(run).scoreboard.document["expected"] == 3


def test_soups_and_averages_stay_those_of_the_members_trained_here(run):
    soup = digests(run / "fusions" / "uniform_soup")
    board = add_member(run, "resnet", predictions=said()).scoreboard
    assert digests(run / "fusions" / "uniform_soup") == soup
    assert board.row("uniform_soup")["members"] == [0, 1]
    assert board.row("mean_probability, ema")["members"] == [0, 1]
    assert any("Soups and averaged weights are of the members that" in n for n in board.summary())
    population = Population.open(run)
    assert population.averages == ("ema",)
    assert [m.index for m in population.averaged("ema").members] == [0, 1]


def test_numbers_are_never_given_twice(run):
    for number in range(3):
        add_member(run, f"stranger {number}", predictions=said(number))
    shutil.rmtree(run / "members" / str(FIRST_ADDED + 1))
    add_member(run, "another", predictions=said(9))
    assert [m.index for m in Population.open(run).members[2:]] == [
        *(FIRST_ADDED, FIRST_ADDED + 2, FIRST_ADDED + 3)
    ]


# Without weights ----------------------------------------------------------------------------------


def test_what_needs_weights_says_that_there_are_none_and_how_to_go_on(run):
    add_member(run, "resnet", predictions=said())
    member = Population.open(run).members[-1]
    for use in (member.state, member.checkpoint, lambda: member.model(torch.nn.Identity)):
        with pytest.raises(RunError, match=r"added by its predictions alone.*--checkpoint FILE"):
            use()
    with pytest.raises(RunError, match=r"'resnet' was added by its predictions.*\n.*--fusion ROW"):
        Run(run).predict(held_out(), fusion="mean_probability")
    assert len(Run(run).predict(held_out(), fusion="member 0")) == ROWS["test"]
    with pytest.raises(RunError, match="no average 'ema'; it has: none"):
        member.averaged("ema")


def held_out():
    return Arrays(held_out_images() / np.float32(255))


# By a checkpoint ----------------------------------------------------------------------------------


def net(hidden=8, seed=3):
    torch.manual_seed(seed)
    return polyfuse.mlp(inputs=72, classes=CLASSES, hidden=hidden)


def saved(path, model, prefix=""):
    torch.save({prefix + name: tensor for name, tensor in model.state_dict().items()}, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_predicts_the_runs_own_data(prefix, run, tmp_path):
    model = net().eval()
    add_member(run, "mine", checkpoint=saved(tmp_path / "mine.pt", model, prefix))
    member = Population.open(run).members[-1]
    images = torch.from_numpy(held_out().values.numpy())
    with torch.no_grad():
        wanted = model(images).numpy()
    np.testing.assert_allclose(member.predictions("test"), wanted, atol=1e-5)
    assert member.parameters == sum(p.numel() for p in model.parameters())
    assert member.milliseconds > 0
    assert member.record["source"]["checkpoint"]["file"] == "mine.pt"
    assert np.isnan(member.predictions("train")).all()
    assert member.trained_on() is None
    answers = [int(answer) for _, answer in Run(run).predict(held_out(), fusion="mine")]
    np.testing.assert_array_equal(answers, wanted.argmax(1))
    assert len(Run(run).predict(held_out(), fusion="mean_probability")) == ROWS["test"]


def test_train_is_predicted_where_it_is_known_to_be_unseen(run, tmp_path):
    learned = np.arange(5, 40)
    add_member(run, "mine", checkpoint=saved(tmp_path / "a.pt", net()), trained_on=learned)
    member = Population.open(run).members[-1]
    assert np.flatnonzero(~np.isnan(member.predictions("train")).any(1)).tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(member.trained_on(), learned)
    assert member.record["trained_on"] == "35 rows"


def test_a_checkpoint_of_another_model_is_refused_with_all_that_differs(run, tmp_path):
    state = net(hidden=5).state_dict()
    state["extra"] = torch.zeros(2)
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(CheckpointError) as raised:
        add_member(run, "mine", checkpoint=tmp_path / "other.pt")
    message = str(raised.value)
    assert "'extra'" in message
    narrow = [name for name, own in net().state_dict().items() if own.shape != state[name].shape]
    assert message.count("in the checkpoint and") == len(narrow) > 2
    assert "name the model that it was saved of: --model" in message
    assert len(Population.open(run).members) == 2


def test_a_model_of_its_own_is_named_when_it_is_added_and_when_it_is_used(run, tmp_path):
    model, spec = net(hidden=5).eval(), "{name: mlp, inputs: 72, classes: 3, hidden: 5}"
    add_member(run, "narrow", checkpoint=saved(tmp_path / "n.pt", model), model=spec)
    assert Population.open(run).members[-1].record["model"] == spec
    with pytest.raises(RunError, match=r"'narrow' was added with the model .*factories="):
        Run(run).predict(held_out(), fusion="narrow")
    bring = {"narrow": lambda: net(hidden=5)}
    answers = Run(run).predict(held_out(), fusion="narrow", factories=bring)
    with torch.no_grad():
        wanted = model(held_out().values).argmax(1).tolist()
    assert [int(answer) for _, answer in answers] == wanted


def test_code_runs_only_where_it_is_named(tmp_path):
    recipe, text = recipe_of_net(tmp_path, "foreign_net")
    recipe.write_text(text)
    run = tmp_path / "RUN"
    try:
        polyfuse.run(recipe, out=run, workers=1)
        checkpoint = run / "members" / "000" / "model.safetensors"
        state = polyfuse.load_checkpoint(checkpoint)
        state["1.weight"] = 2 * state["1.weight"]
        torch.save(state, tmp_path / "a.pt")
        del sys.modules["foreign_net"]
        done = add_member(run, "resnet", predictions=said())
        with pytest.raises(RecipeError, match="names code, which runs only from a recipe"):
            add_member(run, "mine", checkpoint=tmp_path / "a.pt")
        assert "foreign_net" not in sys.modules
        assert done.scoreboard is None
        assert "polyfuse run RECIPE --out" in done.notes[0]
        done = add_member(run, "mine", checkpoint=tmp_path / "a.pt", recipe=recipe)
        assert {"resnet", "mine"} <= {row["name"] for row in done.scoreboard.rows}
        with pytest.raises(DataError, match="'mine' says the same of every row"):
            add_member(
                run, "m", checkpoint=tmp_path / "a.pt", model="foreign_net:net", recipe=recipe
            )
    finally:
        sys.path.remove(str(tmp_path))


# Who trained on what ------------------------------------------------------------------------------


def test_rows_of_train_that_it_trained_on_are_left_out(run):
    train = np.random.default_rng(0).standard_normal((ROWS["train"], CLASSES))
    done = add_member(
        run, "resnet", predictions={**said(), "train": train}, space="logit", trained_on=[3, 1]
    )
    member = Population.open(run).members[-1]
    silent = np.isnan(member.predictions("train")).all(1)
    assert np.flatnonzero(silent).tolist() == [1, 3]
    assert "2 rows that it trained on are left out" in done.notes[0]
    trained = Population.open(run).trained("train")
    assert np.flatnonzero(trained[-1]).tolist() == [1, 3]


def test_a_population_knows_who_trained_on_which_row(run):
    add_member(run, "resnet", predictions=said())
    train = {"train": np.tile([0.2, 0.3, 0.5], (ROWS["train"], 1))}
    add_member(run, "honest", predictions={**said(8), **train}, space="logit", trained_on="none")
    population = Population.open(run)
    trained = population.trained("train")
    for number in (0, 1):
        member = population.members[number]
        seen = np.zeros(ROWS["train"], bool)
        seen[np.concatenate([member.rows("learned"), member.rows("stopped")])] = True
        np.testing.assert_array_equal(trained[number], seen)
        np.testing.assert_array_equal(trained[number], ~np.isfinite(said_of_train(member)))
    assert trained[2].all()  # unknown
    assert not trained[3].any()
    assert not population.trained("val").any()
    assert population.trained("test").shape == (4, ROWS["test"])


def said_of_train(member):
    return member.predictions("train").sum(1)


def test_folds_are_one_base_model_and_a_stranger_is_another(run):
    train = np.random.default_rng(1).standard_normal((ROWS["train"], CLASSES))
    add_member(run, "resnet", predictions={**said(), "train": train}, trained_on="none")
    population = Population.open(run)
    assert [(base.name, base.members) for base in population.base_models()] == [
        ("kfold of 2", (0, 1)),
        ("resnet", (2,)),
    ]
    joined = population.base_predictions("train")
    assert joined.shape == (2, ROWS["train"], CLASSES)
    for member in population.members[:2]:
        rows = member.rows("held_out")
        np.testing.assert_allclose(joined[0, rows], softmax(member.predictions("train")[rows]))
    np.testing.assert_allclose(joined[1], softmax(train.astype("f4")), rtol=1e-6)
    folds = np.mean([softmax(m.predictions("test")) for m in population.members[:2]], 0)
    np.testing.assert_allclose(population.base_predictions("test")[0], folds)
    assert not population.base_trained("train").any()


NAMED = [Arrays(np.zeros((4, 1)), [0, 1, 0, 1], names=[f"{s}{i}" for i in range(4)]) for s in "abc"]


@pytest.mark.parametrize(
    "given",
    ["a3\na1\n", "3\n1\n1\n", [1, 3], ["a3", "a1"], np.array([False, True, False, True])],
    ids=["names", "numbers", "list", "list of names", "booleans"],
)
@pytest.mark.parametrize("form", ["as it is", "npy"])
def test_rows_it_trained_on_come_as_names_numbers_or_booleans(given, form, tmp_path):
    write_labels(tmp_path, Splits(*NAMED))
    if isinstance(given, str):
        (tmp_path / "rows.txt").write_text(given)
        given = tmp_path / "rows.txt"
    elif form == "npy" and not isinstance(given[0], str):
        np.save(tmp_path / "rows.npy", given)
        given = tmp_path / "rows.npy"
    assert learned_rows(Population.open(tmp_path), given).tolist() == [1, 3]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a1", "b2"], "it trained on 1 rows of val, such as 'b2', where members are compared"),
        (["c2", "d1"], r"1 rows of test(.|\n)*1 of the rows it trained on are in no split: 'd1'"),
        ([4], "rows from 4 to 4; the training split has 4"),
        ([-1], "rows from -1"),
        ([[1]], r"row numbers \(n,\) or booleans \(4,\)"),
        ([0.5], "float64"),
    ],
)
def test_rows_that_are_none_of_train_are_refused(given, message, tmp_path):
    write_labels(tmp_path, Splits(*NAMED))
    with pytest.raises(DataError, match=message):
        learned_rows(Population.open(tmp_path), given)


# What is refused ----------------------------------------------------------------------------------


SPOILED = said()["val"].copy()
SPOILED[3, 1] = np.nan
REFUSED = {
    "nothing": ({}, "give either predictions"),
    "both": ({"predictions": said(), "checkpoint": "a.pt"}, "give either predictions"),
    "no test": ({"predictions": {"val": said()["val"]}}, "no predictions of test: --predictions"),
    "no split": ({"predictions": {**said(), "tset": 1}}, "'tset' is no split"),
    "too few rows": (
        {"predictions": {**said(), "val": said()["val"][1:]}},
        "has 20, .* has 19; add",
    ),
    "other classes": (
        {"predictions": {split: each[:, :2] for split, each in said().items()}},
        r"has \(2,\) a row, but members of .* have \(3,\)(.|\n)*has \(2,\)",
    ),
    "decided": (
        {"predictions": {split: each.argmax(1) for split, each in said().items()}},
        "has decided labels; a member of a population says probabilities",
    ),
    "a gap": ({"predictions": {**said(), "val": SPOILED}}, "NaN"),
    "two spaces": ({"predictions": {**said(), "val": softmax(said()["val"])}}, "logit, prob"),
    "train without a word": (
        {"predictions": {**said(), "train": np.random.default_rng(0).normal(size=(40, 3))}},
        "say which it did: --trained-on FILE",
    ),
    "a model of nothing": ({"predictions": said(), "model": "mlp"}, "predictions need none"),
    "below zero": (
        {"predictions": said(), "parameters": -1, "milliseconds": float("nan")},
        r"parameters must be 0 or more(.|\n)*milliseconds must be",
    ),
    "no model": ({"checkpoint": "a.pt", "model": "nlp"}, "unknown 'nlp'; did you mean 'mlp'"),
    "no file": ({"predictions": {**said(), "val": "nowhere.npy"}}, "nowhere.npy"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_what_does_not_fit_is_refused_and_nothing_is_added(how, finished):
    given, message = REFUSED[how]
    before = digests(finished[1])
    with pytest.raises(PolyfuseError, match=message):
        add_member(finished[1], "resnet", **given)
    assert digests(finished[1]) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mean_probability", "the name of a fusion"),
        ("uniform_soup", "the name of a fusion"),
        ("string_vote", "the name of a fusion"),
        ("member 7", "is no name for a member"),
        ("../up", "is no name for a member"),
        ("\x1b[31mred", "is no name for a member"),
        ("", "is no name for a member"),
        ("x" * 81, "is no name for a member"),
    ],
)
def test_names_that_are_taken_or_none_are_refused(name, message, finished):
    with pytest.raises(DataError, match=message) as raised:
        add_member(finished[1], name, predictions=said())
    assert str(raised.value).isprintable()


def test_a_member_that_is_there_is_not_let_in_again_in_whatever_space(run):
    add_member(run, "resnet", predictions=said())
    again = {split: softmax(each) for split, each in said().items()}
    before = digests(run)
    with pytest.raises(DataError, match="'resnet' says the same of every row of val and test"):
        add_member(run, "resnet, once more", predictions=again)
    with pytest.raises(DataError, match="there is a member 'resnet' already"):
        add_member(run, "resnet", predictions=said(6))
    done = add_member(run, "resnet", predictions=again)  # the same command once more
    assert done.member.index == FIRST_ADDED
    assert done.notes == ("'resnet' is there already, and says the same: nothing is added",)
    with pytest.raises(DataError, match="'member 0' says the same"):
        add_member(run, "copy", checkpoint=run / "members" / "000" / "model.safetensors")
    assert digests(run) == before
    add_member(run, "other", predictions={**said(), "test": stranger("test", 6)})


def test_a_population_without_a_recipe_takes_members_too(tmp_path):
    write_labels(tmp_path, Splits(*NAMED))
    draw = np.random.default_rng(0).random((2, 4, 2)) * [9, 1]
    done = add_member(
        tmp_path, "first", predictions={"val": draw[0], "test": draw[1]}, space="logit"
    )
    assert done.scoreboard is None
    with pytest.raises(RunError, match="no recipe that says data and model; bring both"):
        add_member(tmp_path, "second", checkpoint="a.pt")
    torch.save(torch.nn.Linear(1, 2).state_dict(), tmp_path / "a.pt")
    add_member(
        tmp_path,
        "second",
        checkpoint=tmp_path / "a.pt",
        model=lambda: torch.nn.Linear(1, 2),
        data=Splits(*NAMED),
    )
    board = polyfuse.compare_fusions(Population.open(tmp_path), replicates=20)
    assert board.document["out_of_fold"] is None
    with pytest.raises(RunError, match="made with other data"):
        add_member(
            tmp_path,
            "third",
            checkpoint=tmp_path / "a.pt",
            model=lambda: torch.nn.Linear(1, 2),
            data=Splits(NAMED[1], NAMED[0], NAMED[2]),
        )


def test_one_number_a_row_is_the_probability_of_class_one(tmp_path):
    write_labels(tmp_path, Splits(*NAMED))
    p = np.array([0.1, 0.8, 0.3, 0.9])
    add_member(tmp_path, "binary", predictions={"val": p, "test": p[::-1]}, space="prob")
    got = softmax(Population.open(tmp_path).members[0].predictions("val"))
    np.testing.assert_allclose(got, np.stack([1 - p, p], 1), rtol=1e-6)
