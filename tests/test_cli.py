"""The command line: exit codes, one JSON document, help with examples, no torch for help."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml

from polyfuse import cli
from polyfuse.recipes.shipped import shipped
from tiny_run import digests, held_out_images, make_recipe, polyfuse, refused

COMMAND = str(Path(sys.executable).with_name("polyfuse"))


def walk(command, words=()):
    """Return every verb as (words, click command)."""
    if hasattr(command, "commands"):
        return [verb for n, c in command.commands.items() for verb in walk(c, (*words, n))]
    return [(words, command)]


VERBS = walk(typer.main.get_command(cli.app))
NAMES = [" ".join(words) for words, _ in VERBS]
every_verb = pytest.mark.parametrize(("words", "verb"), VERBS, ids=NAMES)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Return the recipe and the folder of a finished run, and new data; nobody changes them."""
    folder = tmp_path_factory.mktemp("tiny")
    recipe = make_recipe(folder)
    result = polyfuse("run", recipe, "--out", folder / "RUN", "--quick", "--workers", 1)
    assert result.exit_code == 0, result.output
    np.save(folder / "new.npy", held_out_images())
    averaged = polyfuse(
        "average", folder / "RUN" / "members", "-o", folder / "averaged.safetensors"
    )
    assert averaged.exit_code == 0, averaged.output
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)


def arguments(words, tiny):
    """Return arguments with which a verb succeeds at once."""
    said = [tiny / "RUN" / "members" / f"00{i}" / "predictions" / "val.npy" for i in (0, 1)]
    truth = ["--labels", tiny / "RUN" / "labels" / "val.npy"]
    if words == ("add",):
        shutil.copytree(tiny / "RUN", "RUN")
    return {
        "demo": ["--out", tiny / "RUN"],  # refused: it holds another recipe
        "run": [tiny / "tiny.yaml", "--out", tiny / "RUN", "--quick", "--quiet"],
        "report": [tiny / "RUN"],
        "predict": [tiny / "RUN", tiny / "new.npy", "-o", "answers.csv"],
        "combine": [*said, *truth, "--space", "logit", "-o", "combined"],
        "add": ["RUN", "--name", "mean", "--checkpoint", tiny / "averaged.safetensors"],
        "average": [tiny / "RUN" / "members", "-o", "averaged.safetensors"],
        "merge": ["lerp", tiny / "RUN" / "members", "--set", "t=0.3", "-o", "merged.pt"],
        "inspect": [tiny / "RUN" / "members"],
        "verify": [tiny / "averaged.safetensors"],
        "env": [],
        "recipes ls": [],
        "recipes cp": ["street_numbers"],
        "recipes check": [tiny / "tiny.yaml"],
        "data stats": [tiny / "tiny.yaml", "-o", "picture.svg"],
        "data check": [tiny / "RUN" / "submission.csv", "--sample", tiny / "RUN/submission.csv"],
    }[" ".join(words)]


def test_the_verbs_are_those_of_the_issue():
    assert set(NAMES) == {
        *("demo", "run", "report", "predict", "env", "combine", "add"),
        *("average", "merge", "inspect", "verify"),
        *("recipes ls", "recipes cp", "recipes check", "data check", "data stats"),
    }


@every_verb
def test_every_verb_has_help_with_an_example_that_names_it(words, verb):
    result = polyfuse(*words, "--help")
    assert result.exit_code == 0
    assert f"Example: polyfuse {' '.join(words)}" in " ".join(result.stdout.split())
    assert verb.help


@every_verb
def test_every_example_parses(words, verb):
    example = verb.epilog.removeprefix("Example: polyfuse ").split()
    assert example[: len(words)] == list(words)
    context = verb.make_context(words[-1], example[len(words) :], resilient_parsing=False)
    assert context.command is verb


@every_verb
def test_every_verb_prints_one_json_document(words, verb, tiny):
    result = polyfuse(*words, *arguments(words, tiny), "--json")
    document = json.loads(result.stdout)
    assert (document["schema"], document["command"]) == (1, " ".join(words))
    assert result.exit_code == (1 if "error" in document else 0)
    assert ("error" in document) == (words == ("demo",))


FAILING = {
    "demo": ["--set", "fit.epoch=3"],
    "run": ["no_such_recipe"],
    "report": ["no_such_run"],
    "predict": ["no_such_run", "new.npy", "-o", "x.csv"],
    "combine": ["no_such.npy", "nor_this.npy", "--labels", "y.npy", "-o", "x"],
    "add": ["no_such_run", "--name", "resnet", "--checkpoint", "no_such.pt"],
    "average": ["no_such.pt", "-o", "x.pt"],
    "merge": ["mean", "no_such.pt", "-o", "x.pt"],
    "inspect": ["no_such.pt"],
    "verify": ["no_such.pt"],
    "recipes cp": ["no_such_recipe"],
    "recipes check": ["no_such_recipe"],
    "data stats": ["no_such.json"],
    "data check": ["no_such.csv", "--sample", "nor_this.csv"],
}
KINDS = {"report": "RunError", "predict": "RunError", "add": "RunError", "combine": "DataError"}
KINDS |= {"data check": "DataError", "data stats": "DataError"}
KINDS |= dict.fromkeys(("average", "merge", "inspect", "verify"), "CheckpointError")


@pytest.mark.parametrize("name", FAILING)
def test_every_failure_is_one_json_document_too(name):
    result = polyfuse(*name.split(), *FAILING[name], "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["command"] == name
    assert document["error"]["kind"] == KINDS.get(name, "RecipeError")
    assert document["error"]["message"]
    assert "error" not in result.stderr


@pytest.mark.parametrize("name", FAILING)
def test_every_failure_is_a_message_on_stderr_and_exit_code_1(name):
    message = refused(*name.split(), *FAILING[name])
    assert message.startswith("error: ")


def test_failures_without_a_way_to_fail_are_listed():
    assert set(NAMES) - set(FAILING) == {"env", "recipes ls"}


@pytest.mark.parametrize(
    "wrong",
    [
        ["nonsense"],
        ["run"],
        ["run", "a", "b"],
        ["run", "street_numbers", "--nonsense"],
        ["run", "street_numbers", "--minutes", "-1"],
        ["run", "street_numbers", "--minutes", "soon"],
        ["run", "street_numbers", "--workers", "0"],
        ["report", "RUN", "--format", "pdf"],
        ["predict", "RUN", "new.npy"],
        ["recipes", "nonsense"],
        ["average"],
        ["inspect"],
        ["verify"],
        ["merge", "mean"],
        ["report", "--json"],
    ],
)
def test_wrong_usage_is_exit_code_2_and_nothing_on_stdout(wrong):
    result = polyfuse(*wrong)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage: polyfuse" in result.stderr


def test_nothing_at_all_is_the_help():
    result = polyfuse()
    assert "Usage: polyfuse" in result.output
    assert all(name.split()[0] in result.output for name in NAMES)


def test_version():
    result = polyfuse("--version")
    assert (result.exit_code, result.stdout) == (0, "polyfuse 0.1.0\n")


def test_run_prints_both_tables_and_where_the_submission_is(tiny):
    result = polyfuse(*["run", tiny / "tiny.yaml", "--out", tiny / "RUN", "--quick"])
    for text in ("Validation", "Test", "mean_probability", "member 1", "Best on validation"):
        assert text in result.stdout
    assert f"Submission: {tiny / 'RUN' / 'submission.csv'}" in result.stdout
    assert "members: 2 done" in result.stderr


def test_run_without_out_goes_to_runs_name(tiny, tmp_path):
    command = ["run", tiny / "tiny.yaml", "--quiet", "--workers", 1]
    quick = polyfuse(*command, "--quick")
    full = polyfuse(*command, "--set", "name=other")
    assert (quick.exit_code, full.exit_code) == (0, 0)
    assert (quick.stderr, full.stderr) == ("", "")
    assert {p.name for p in (tmp_path / "runs").iterdir()} == {"tiny-quick", "other"}


def test_set_is_repeatable_and_wins_over_quick(tiny, tmp_path):
    settings = ["--set", "fit.epochs=3", "--set", "training.folds=3", "--set", "fit.epochs=1"]
    command = ["run", tiny / "tiny.yaml", "--out", "RUN", "--quick", "--json", "--workers", 1]
    document = json.loads(polyfuse(*command, *settings).stdout)
    assert document["leaderboard"]["members"] == 3
    assert document["run"] == "RUN"
    record = json.loads((tmp_path / "RUN" / "members" / "000" / "member.json").read_text())
    assert len(record["history"]) == 1


def test_reports(tiny):
    root = tiny / "RUN"
    board = json.loads((root / "leaderboard.json").read_text())
    csv = polyfuse("report", root, "--format", "csv").stdout.splitlines()
    assert csv[0].startswith("name,kind,members,split,accuracy,")
    assert len(csv) == 1 + 2 * len(board["rows"])
    markdown = polyfuse("report", root, "--format", "markdown").stdout
    assert markdown.startswith("### Validation")
    assert markdown.count("|---") == 2
    as_json = polyfuse("report", root, "--format", "json").stdout
    assert as_json == polyfuse("report", root, "--json").stdout
    assert json.loads(as_json)["leaderboard"] == board
    table = polyfuse("report", root).stdout
    assert table == polyfuse("report", root, "--format", "table").stdout
    assert all(row["name"] in table for row in board["rows"])


def test_predict_writes_a_csv(tiny, tmp_path):
    result = polyfuse("predict", tiny / "RUN", tiny / "new.npy", "-o", "a.csv")
    assert result.exit_code == 0, result.stderr
    assert "a.csv: 12 rows, read by " in result.stdout
    assert (tmp_path / "a.csv").read_bytes() == (tiny / "RUN" / "submission.csv").read_bytes()
    polyfuse(*["predict", tiny / "RUN", tiny / "new.npy", "-o", "b.csv", "--fusion", "member 1"])
    assert (tmp_path / "b.csv").read_text().count("\n") == 13


def test_predict_into_a_folder_that_is_not_there(tiny):
    message = refused("predict", tiny / "RUN", tiny / "new.npy", "-o", "no/such/a.csv")
    assert "cannot write 'no/such/a.csv'" in message


def test_recipes_are_listed_copied_and_checked(tmp_path):
    listed = polyfuse("recipes", "ls").stdout
    assert [line.split()[0] for line in listed.splitlines()] == list(shipped())
    assert polyfuse("recipes", "cp", "street_numbers").exit_code == 0
    assert polyfuse("recipes", "cp", "street_numbers", "mine.yaml").exit_code == 0
    original = shipped()["street_numbers"].read_bytes()
    assert Path("street_numbers.yaml").read_bytes() == original
    assert Path("mine.yaml").read_bytes() == original
    assert polyfuse("recipes", "check", "mine.yaml").stdout == "mine.yaml: no faults\n"
    Path("folder").mkdir()
    polyfuse("recipes", "cp", "street_numbers", "folder")
    assert Path("folder/street_numbers.yaml").read_bytes() == original


def test_a_copy_replaces_nothing():
    Path("mine.yaml").write_text("precious")
    assert "'mine.yaml' exists" in refused("recipes", "cp", "street_numbers", "mine.yaml")
    assert Path("mine.yaml").read_text() == "precious"


def test_check_finds_faults_of_quick_and_of_settings(tiny):
    Path("a.yaml").write_text((tiny / "tiny.yaml").read_text().replace("fit.epochs", "fit.epoch"))
    assert "did you mean 'epochs'" in refused("recipes", "check", "a.yaml")
    settings = ["--set", "fit.batch=3"]
    assert "did you mean 'batch_size'" in refused("recipes", "check", tiny / "tiny.yaml", *settings)


@pytest.mark.parametrize("form", ["table", "csv", "markdown", "json"])
def test_names_from_a_hostile_run_are_escaped(tiny, tmp_path, form):
    root = shutil.copytree(tiny / "RUN", tmp_path / "RUN")
    text = (root / "leaderboard.json").read_text()
    hostile = text.replace("mean_probability", "\\u001b[31m[red]\\u009bx\\u202e")
    (root / "leaderboard.json").write_text(hostile)
    result = polyfuse("report", root, "--format", form)
    assert result.exit_code == 0, result.stderr
    assert "[red]" in result.stdout
    assert all(c.isprintable() or c == "\n" for c in result.stdout)


def test_file_names_are_escaped_in_errors(tiny):
    result = polyfuse("report", "a\x1b[31m\udcff")
    assert result.exit_code == 1
    assert "a\\x1b[31m\\udcff" in result.stderr
    Path("\x1b[31m").touch()
    message = refused("run", tiny / "tiny.yaml", "--out", "\x1b[31m", "--quiet")
    assert "\\x1b[31m" in message
    assert "\x1b" not in message


def test_an_interrupt_says_how_to_go_on(tiny, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("polyfuse.recipes.run.run", interrupted)
    result = polyfuse("run", tiny / "tiny.yaml")
    assert result.exit_code == 130
    assert "run the same command again to go on" in result.stderr


def loaded(*words):
    """Return what a fresh process has imported after a command."""
    code = "import sys; from polyfuse import cli\ntry: cli.main()\n"
    code += "finally: print(*sys.modules, file=sys.stderr)"
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "words", [["--help"], ["run", "--help"], ["average", "--help"], ["recipes", "ls"]]
)
def test_help_and_lists_load_no_torch(words):
    heavy = {"torch", "numpy", "sklearn", "lightning_fabric", "pandas", "PIL"}
    modules = loaded(*words)
    assert "polyfuse.cli" in modules
    assert not modules & heavy


def completed(words):
    """Return what the shell offers after these words."""
    variables = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    environment = {"_POLYFUSE_COMPLETE": "complete_bash", **variables}
    done = subprocess.run([COMMAND], env=environment, capture_output=True, text=True, check=False)
    return done.stdout.split()


def test_completion_offers_recipes_formats_and_verbs():
    offered = completed("polyfuse run str")
    assert offered == ["street_numbers", "street_numbers_full", "street_numbers_lengths"]
    assert completed("polyfuse report RUN --format m") == ["markdown"]
    assert set(completed("polyfuse re")) == {"report", "recipes"}


OWN = """\
import torch
def net(hidden: int = 4):
    layers = torch.nn.Flatten(), torch.nn.Linear(72, hidden), torch.nn.Linear(hidden, 3)
    return torch.nn.Sequential(*layers)
"""


def test_an_own_model_beside_the_recipe_runs_in_several_processes(tmp_path, monkeypatch):
    recipe = make_recipe(tmp_path)
    tree = yaml.safe_load(recipe.read_text())
    tree["model"] = {"name": "my_nets:net", "hidden": 5}
    recipe.write_text(yaml.safe_dump(tree))
    (tmp_path / "my_nets.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    two = polyfuse("run", recipe.name, "--quick", "--json", "--workers", 2, "--out", "two")
    sys.modules.pop("my_nets", None)
    assert two.exit_code == 0, two.stderr
    document = json.loads(two.stdout)
    assert document["leaderboard"]["members"] == 2
    assert document["leaderboard"]["rows"][0]["parameters"] == 73 * 5 + 6 * 3
    one = polyfuse("run", recipe, "--quick", "--workers", 1, "--out", tmp_path / "one")
    sys.modules.pop("my_nets", None)
    assert one.exit_code == 0, one.stderr
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
