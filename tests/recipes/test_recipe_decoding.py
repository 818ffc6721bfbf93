"""Strings decoded step by step in a run: what each step bought, kept, corrected and predicted."""

import csv
import io
import shutil
import sys
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from rich.console import Console

from polyfuse import durable, terminal
from polyfuse.adding import add_member
from polyfuse.corrections import corrections_of
from polyfuse.errors import DataError, RecipeError, RunError
from polyfuse.inference import Heads, predict_lengths
from polyfuse.population_decoding import decoded, making, pooled_heads
from polyfuse.population_lengths import pooled
from polyfuse.recipes import decoding as recipe_decoding
from polyfuse.recipes import run as module
from polyfuse.recipes.schema import check
from polyfuse.recipes.source import parse
from polyfuse.sequences import decode, strings
from polyfuse.significance import holm, mcnemar
from tiny_run import digests, polyfuse, refused
from tiny_strings import BLANK, make_lengths, make_net, make_recipe, make_strings

run = partial(module.run, workers=1)
EMA = "averaging: {ema: {decay: 0.9}}\n"
VIEWS = "tta: {views: [{name: multiply, factor: 1.5}], average: ema, choose: all}\n"
STEPS = ["joint_length", "position_prior", {"name": "forbid", "patterns": ["?????"]}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("strings")
    make_strings(path / "data.npz")
    make_net(path)
    yield path
    sys.path.remove(str(path))
    sys.modules.pop("tiny_reader", None)


@pytest.fixture(scope="module")
def done(folder):
    recipe = make_recipe(folder, STEPS, more=EMA + VIEWS, average="ema", tta=True)
    return recipe, run(recipe, out=folder / "RUN")


@pytest.fixture(scope="module")
def lengths(folder):
    return run(make_lengths(folder), out=folder / "LENGTHS").path


@pytest.fixture(scope="module")
def separate(folder, lengths):
    """Return a run without a length head that knows lengths by another one."""
    place = folder / "separate"
    place.mkdir()
    (place / "data.npz").write_bytes((folder / "data.npz").read_bytes())
    steps = [{"name": "length_model", "run": str(lengths)}, "length_prior"]
    recipe = make_recipe(place, steps, head=False)
    return recipe, run(recipe, out=place / "RUN")


def new_data(folder):
    with np.load(folder / "data.npz") as held:
        np.save(folder / "new.npy", held["test_inputs"])
    return folder / "new.npy"


def test_heads_that_disagree_about_the_length_gain_by_the_length_head(done):
    board = done[1].scoreboard
    ladder = [step["name"] for step in board.document["steps"]]
    base = ["mean_probability", "mean_probability, ema", "mean_probability, ema, tta"]
    assert ladder == [*base, "+ joint_length", "+ position_prior", "+ forbid"]
    assert [row["name"] for row in board.rows][-3:] == ladder[-3:]
    joint = board.document["steps"][3]
    assert joint["before"] == base[-1]
    assert joint["strength"] > 0
    for split in ("val", "test"):
        rows = [board.row(name)[split]["string_accuracy"]["value"] for name in ladder[2:4]]
        assert joint[split]["better"]
        assert joint[split]["low"] > 0.1
        assert joint[split]["value"] == pytest.approx(rows[1] - rows[0])
    assert board.document["steps"][0]["before"] == board.document["best_member"]
    assert board.best == "+ joint_length"


def test_gains_are_those_of_the_answers_corrected_for_all_steps(done):
    population, document = done[1].population, done[1].scoreboard.document
    for split in ("val", "test"):
        truth = population.labels(split)
        [best] = (m for m in population.members if m.name == document["best_member"])
        said = {best.name: best.predictions(split)}
        said |= {s["name"]: population.said(s["name"], split) for s in document["steps"]}
        right = {name: (decode(a, blank=BLANK) == truth).all(1) for name, a in said.items()}
        pairs = [(right[step["name"]], right[step["before"]]) for step in document["steps"]]
        wanted = holm([mcnemar(*pair) for pair in pairs])
        assert [step[split]["p"] for step in document["steps"]] == pytest.approx(wanted)
        for step, (after, before) in zip(document["steps"], pairs, strict=True):
            gain = step[split]
            assert gain["value"] == pytest.approx(after.mean() - before.mean())
            assert gain["low"] <= gain["value"] <= gain["high"]


def test_what_each_step_bought_is_told_within_80_columns(done, monkeypatch):
    title = "What each step bought, over the one before (whole string)"
    assert title in polyfuse("report", done[1].path).stdout
    screen = io.StringIO()
    console = Console(file=screen, width=80, force_terminal=True, color_system=None)
    monkeypatch.setattr(terminal, "_stdout", lambda: console)
    terminal.show_table(done[1].scoreboard.steps())
    table = screen.getvalue().splitlines()
    assert max(map(len, table)) <= 80
    [line] = [line for line in table if line.strip().startswith("+ joint_length ")]
    assert line.count("[+") == line.count("]") == 2  # both intervals whole, on one line
    starts = [line.split("  ")[0].strip() for line in table[4:] if line.strip()]
    assert starts[:3] == ["mean_probability", "+ ema", "+ tta"]
    told = done[1].scoreboard.to_markdown()
    assert f"### {title}" in told
    assert (
        "Strength 0 changes nothing: validation does not show that + position_prior helps" in told
    )
    assert done[1].scoreboard._repr_html_().count("<table>") == 3


def test_every_changed_answer_is_listed(done):
    population = done[1].population
    rows = ["mean_probability, ema, tta", "+ joint_length", "+ position_prior", "+ forbid"]
    read = [strings(population.said(row, "test"), blank=BLANK) for row in rows]
    wanted = [
        (name, before, after)
        for one, other in pairwise(read)
        for name, before, after in zip(population.names("test"), one, other, strict=True)
        if before != after
    ]
    with (done[1].path / "corrections.csv").open() as file:
        title, *lines = list(csv.reader(file))
    assert title == ["name", "before", "after", "why"]
    assert [tuple(line[:3]) for line in lines] == wanted
    assert len(wanted) == done[1].scoreboard.document["steps"][3]["test"]["changed"] > 5
    strength = population.fusion("+ joint_length")["decoding"]["strength"]
    for _, before, after, why in lines:
        told = f"length {len(after)}, not {len(before)}"
        assert why == f"joint_length, strength {strength:g}: {told}"


def test_the_submission_is_of_the_best_row_and_new_data_are_read_alike(done, folder):
    recipe, finished = done
    population = finished.population
    with (finished.path / "submission.csv").open() as file:
        submitted = [line[1] for line in list(csv.reader(file))[1:]]
    assert submitted == strings(population.said("+ joint_length", "test"), blank=BLANK)
    for row in ("+ joint_length", "+ position_prior", "+ forbid"):
        said = finished.predict(new_data(folder), fusion=row, recipe=recipe)
        assert [answer for _, answer in said] == submitted
    out = folder / "answers.csv"
    asked = polyfuse("predict", finished.path, folder / "new.npy", "-o", out, "--recipe", recipe)
    assert asked.exit_code == 0, asked.output
    assert [line.split(",")[1] for line in out.read_text().split()[1:]] == submitted


def test_members_keep_what_their_length_heads_say(done):
    population = done[1].population
    member = population.members[0]
    kept = [f"{place}lengths/{s}.npy" for place in ("", "averages/ema/") for s in ("test", "val")]
    assert [f for f in member.record["files"] if "lengths" in f] == sorted(kept)
    import tiny_reader

    for place, each in enumerate((member, member.averaged("ema"))):
        own = each.model(tiny_reader.reader)
        splits = module.data_of(module.load(module.recipe_source.read(done[0]), []))
        wanted = predict_lengths(own, splits.val)
        np.testing.assert_array_equal(each.lengths("val"), wanted)
        assert wanted.shape == (120, 4), place
    stacked = population.averaged("ema").lengths("test")
    assert stacked.shape == (2, 100, 4)
    assert np.isfinite(stacked).all()


def test_a_member_without_a_length_head_has_no_say_about_lengths(done):
    own = done[1].population.lengths("val")
    silent = np.full_like(own[:1], np.nan)
    np.testing.assert_allclose(pooled(np.concatenate([own, silent])), pooled(own))


def test_killed_between_two_steps_it_goes_on_with_the_same_bits(done, tmp_path, monkeypatch):
    recipe, finished = done
    root = shutil.copytree(finished.path, tmp_path / "RUN")
    for name in ("+ joint_length", "+ position_prior", "+ forbid"):
        shutil.rmtree(root / "fusions" / name)
    (root / "leaderboard.json").unlink()
    (root / "corrections.csv").unlink()
    real, written = making.write_fusion, []

    def dying(population, name, *rest, **how):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(name)
        real(population, name, *rest, **how)

    with monkeypatch.context() as patched:
        patched.setattr(making, "write_fusion", dying)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, out=root)
    assert written == ["+ joint_length"]
    run(recipe, out=root)
    assert digests(root) == digests(finished.path)


def test_what_is_there_is_not_made_again(done, monkeypatch):
    monkeypatch.setattr(recipe_decoding, "make_decoding", None)
    before = digests(done[1].path)
    run(done[0], out=done[1].path)
    assert digests(done[1].path) == before


def test_a_run_of_its_own_says_how_long_strings_are(separate, lengths, folder):
    recipe, finished = separate
    steps = finished.scoreboard.document["steps"]
    assert [step["name"] for step in steps][1:] == ["+ length_model", "+ length_prior"]
    assert steps[1]["strength"] > 0
    assert steps[1]["test"]["better"]
    wanted = strings(finished.population.said("+ length_model", "test"), blank=BLANK)
    ask = partial(finished.predict, new_data(folder), fusion="+ length_model", recipe=recipe)
    assert [answer for _, answer in ask(length_run=lengths)] == wanted
    with pytest.raises(RunError, match=r"knows lengths by another run.*--length-run RUN"):
        ask()
    with pytest.raises(RunError, match="is not the run that '\\+ length_model' was made with"):
        ask(length_run=fewer(folder, lengths))
    out, command = folder / "by_lengths.csv", ["--fusion", "+ length_model", "--recipe", recipe]
    told = polyfuse(
        *("predict", finished.path, folder / "new.npy", "-o", out, *command),
        *("--length-run", lengths),
    )
    assert told.exit_code == 0, told.output
    assert [line.split(",")[1] for line in out.read_text().split()[1:]] == wanted


def fewer(folder, lengths):
    """Return the same run with a member less."""
    root = shutil.copytree(lengths, folder / "FEWER")
    shutil.rmtree(root / "members" / "001")
    return root


def test_runs_of_other_rows_are_refused_before_anything_is_trained(done, folder, tmp_path):
    make_strings(tmp_path / "other.npz", seed=7)
    other = make_lengths(tmp_path, tmp_path / "other.npz")
    other = run(other, out=tmp_path / "OTHER", settings=["fit.epochs=1"]).path
    words = tmp_path / "words.txt"
    words.write_text("012\n0x\n01234\n")
    steps = [
        {"name": "length_model", "run": str(other)},
        {"name": "lexicon", "path": str(words)},
    ]
    recipe = make_recipe(tmp_path, steps)
    with pytest.raises(RecipeError) as raised:
        run(recipe, out=tmp_path / "RUN")
    told = str(raised.value)
    for fault in ("of val has length", "of test has length", "has 'x'", "has 5 characters"):
        assert fault in told
    assert "is a run of other rows" in told
    assert not list((tmp_path / "RUN" / "members").glob("*"))
    steps[0]["run"] = str(done[1].path)
    del steps[1]
    with pytest.raises(RecipeError, match=r"reads no lengths.*target: length"):
        run(make_recipe(tmp_path, steps), out=tmp_path / "RUN")


FAULTY = """\
name: x
data: {name: arrays, path: x.npz, blank: 4}
model: {name: mlp, inputs: 4, classes: 3}
training: kfold
fusions: [mean_logit]
decoding:
  average: emma
  tta: true
  steps:
    - joint_lenght
    - {name: lexicon, path: /no/such/words.txt}
    - {name: length_model, run: /no/such/run}
    - {name: position_prior, smoothing: 0.0}
    - {name: forbid, patterns: []}
    - {name: length_prior, weight: 2}
    - joint_length
    - joint_length
    - 7
"""


def test_all_faults_are_told_at_once_with_their_lines():
    with pytest.raises(RecipeError) as raised:
        check(parse(FAULTY, "mine.yaml"))
    told = str(raised.value)
    for fault in (
        "line 6: decoding: stands on mean_probability; list it under fusions",
        "line 7: decoding.average: the recipe tracks no averages",
        "line 8: decoding.tta: the recipe names no views",
        "line 10: decoding.steps.0: unknown 'joint_lenght'; did you mean 'joint_length'?",
        "line 11: decoding.steps.1: cannot read '/no/such/words.txt'",
        "line 12: decoding.steps.2: there is no RUN folder '/no/such/run'",
        "line 13: decoding.steps.3.smoothing: ",
        "line 14: decoding.steps.4.patterns: ",
        "line 15: decoding.steps.5.weight: unknown 'weight'",
        "line 17: decoding.steps.7: 'joint_length' is given twice",
        "line 18: decoding.steps.8: expected a name",
    ):
        assert fault in told
    assert told.startswith("11 faults")


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("decoding: 3", "expected a mapping"),
        ("decoding: {steps: []}", "is empty; name one: joint_length, length_model"),
        ("decoding: {steps: joint_length}", "decoding.steps: "),
        ("decoding: {}", "decoding.steps: is required"),
        ("decoding: {steps: [joint_length], average: emma}\n" + EMA, "did you mean 'ema'?"),
        ("decoding: {steps: [{name: forbid, patterns: [3]}]}", "decoding.steps.0.patterns"),
        ("decoding: {steps: [joint_length], tta: true}\n" + EMA + VIEWS, "name the same"),
    ],
)
def test_bad_decodings_are_refused(given, fault):
    known = FAULTY.split("fusions:")[0]
    with pytest.raises(RecipeError, match="decoding") as raised:
        check(parse(known + given, "mine.yaml"))
    assert fault in str(raised.value)


def test_files_that_a_folder_names_are_not_opened(tmp_path):
    named = FAULTY.split("fusions:")[0] + "decoding: {steps: [{name: lexicon, path: /no/words}]}"
    assert check(parse(named, "recipe.yaml"), trusted=False).decoding.rows == ["+ lexicon"]


def test_labels_that_are_no_strings_are_refused(tmp_path):
    make_strings(tmp_path / "data.npz")
    recipe = make_lengths(tmp_path)
    recipe.write_text(recipe.read_text() + "decoding: {steps: [position_prior]}\n")
    with pytest.raises(RecipeError, match="is for strings of characters"):
        run(recipe, out=tmp_path / "RUN")


def test_a_foreign_checkpoint_brings_its_length_head(done, folder, tmp_path):
    import tiny_reader

    recipe, finished = done
    root = shutil.copytree(finished.path, tmp_path / "RUN")
    net = tiny_reader.reader()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    added = add_member(
        root, "elsewhere", checkpoint=tmp_path / "net.pt", model=tiny_reader.reader, recipe=recipe
    )
    population = module.Population.open(root)
    assert added.member.has_lengths
    assert population.lengths("val").shape == (3, 120, 4)
    left_out = "Left out, because members have come or gone since: + forbid, + joint_length"
    assert any(left_out in note for note in added.scoreboard.document["notes"])
    assert corrections_of(population) == []
    again = run(recipe, out=root)
    assert again.scoreboard.row("+ joint_length")["average"] == "ema"


def test_foreign_predictions_bring_lengths_beside_them(done, tmp_path):
    recipe, finished = done
    root, own = shutil.copytree(finished.path, tmp_path / "RUN"), finished.population
    files = []
    for split in ("val", "test"):
        said = 1.5 * own.members[0].predictions(split) + 0.1 * own.members[1].predictions(split)
        np.save(tmp_path / f"{split}.npy", said)
        np.save(tmp_path / f"l_{split}.npy", own.lengths(split)[0])
        files += ["--predictions", f"{split}={tmp_path / f'{split}.npy'}"]
    given = [f"--lengths={split}={tmp_path / f'l_{split}.npy'}" for split in ("val", "test")]
    command = ("add", root, "--name", "other", *files, "--recipe", recipe)
    assert "lengths are of val and test, got val" in refused(*command, given[0])
    np.save(tmp_path / "odd.npy", own.lengths("test")[0][:, :3])
    odd = refused(*command, given[0], f"--lengths=test={tmp_path / 'odd.npy'}")
    assert "has (3,) a row, but members of" in odd
    assert polyfuse(*command, *given).exit_code == 0
    population = module.Population.open(root)
    np.testing.assert_array_equal(population.lengths("val")[2], own.lengths("val")[0])
    assert set(population.members[2].record["source"]["lengths"]) == {
        "lengths of val",
        "lengths of test",
    }
    with pytest.raises(DataError, match="lengths go with predictions"):
        add_member(root, "x", checkpoint="net.pt", lengths={"val": own.lengths("val")[0]})


def test_members_in_lock_step_have_length_heads_too(done, tmp_path):
    shutil.copy(done[0].parent / "data.npz", tmp_path)
    recipe = make_recipe(tmp_path, ["joint_length"])
    changed = ["fit.epochs=1", "fit.together=always"]
    population = run(recipe, out=tmp_path / "RUN", settings=changed).population
    assert population.lengths("val").shape == (2, 120, 4)
    assert population.fusion("+ joint_length")["decoding"]["strength"] > 0


def test_a_damaged_step_is_refused(done, folder, tmp_path):
    root = shutil.copytree(done[1].path, tmp_path / "RUN")
    durable.write_json(root / "fusions" / "+ joint_length" / "fitted.json", {"kind": "x"})
    with pytest.raises(RunError, match=r"fitted\.json"):
        module.Run(root).predict(new_data(folder), fusion="+ joint_length", recipe=done[0])
    file = root / "fusions" / "+ forbid" / "fusion.json"
    whole = durable.read_json(file)
    for damage in ({"place": "x"}, {"above": []}, {"above": [1]}, {"strength": None}, {"runs": 3}):
        durable.write_json(file, {**whole, "decoding": {**whole["decoding"], **damage}})
        with pytest.raises(RunError, match="is no record of a decoding"):
            corrections_of(module.Population.open(root))


def test_models_that_say_nothing_of_lengths_do_not_read_by_them(done):
    population = done[1].population
    silent = [Heads(member.predictions("val"), None) for member in population.members]
    with pytest.raises(RunError, match="knows lengths by length_head, and these models say not"):
        decoded(population, "+ joint_length", pooled_heads(silent, None))


def test_where_the_test_labels_are_unknown_it_is_decoded_all_the_same(folder, tmp_path):
    with np.load(folder / "data.npz") as held:
        known = {name: held[name] for name in held if name != "test_labels"}
    np.savez(tmp_path / "data.npz", **known)
    recipe = make_recipe(tmp_path, ["joint_length"])
    finished = run(recipe, out=tmp_path / "RUN", settings=["fit.epochs=1"])
    [_, joint] = finished.scoreboard.document["steps"]
    assert "test" not in joint
    assert joint["val"]["better"]
    table = finished.scoreboard.steps()
    assert list(table.columns) == ["", "strength", "gain, val", "changed"]
    assert len((finished.path / "corrections.csv").read_text().splitlines()) > 10
    assert len((finished.path / "submission.csv").read_text().splitlines()) == 101
