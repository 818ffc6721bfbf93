"""`polyfuse average` and `merge`: what is chosen, shown, written and refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from polyfuse.checkpoints import load_checkpoint
from polyfuse.checkpoints.layouts import FOLDERS, SUFFIXES
from polyfuse.cli import base, weights
from polyfuse.merge import METHODS
from polyfuse.merge.buffers import POLICIES
from tiny_run import polyfuse, refused


def net(seed, count):
    torch.manual_seed(0)
    made = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    torch.manual_seed(seed)
    state = made.state_dict()
    for name in ("0.weight", "0.bias", "1.running_mean"):
        state[name] = state[name] + 0.1 * torch.randn_like(state[name])
    state["1.num_batches_tracked"] = torch.tensor(count)
    return state


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Work in a folder with the checkpoints of epochs 8 to 12."""
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    for i, acc in zip(range(8, 13), (0.5, 0.75, 0.25, 0.125, 0.375), strict=True):
        state = {"epoch": i, "state_dict": net(i, i)}
        torch.save(state, f"run/epoch={i}-acc={acc}.ckpt")


def mean_of(*epochs, name="0.weight"):
    return torch.stack([net(i, i)[name].double() for i in epochs]).mean(0)


def test_names_are_those_of_the_source():
    assert tuple(METHODS) == weights.METHODS
    assert tuple(POLICIES) == weights.POLICIES
    assert set(weights.FORMS) == {*SUFFIXES.values(), *FOLDERS}
    assert all(isinstance(getattr(torch, name), torch.dtype) for name in weights.DTYPES)


@pytest.mark.parametrize(
    ("wish", "epochs"),
    [
        ([], range(8, 13)),
        (["--range", "9:11"], (9, 10, 11)),
        (["--last", "2"], (11, 12)),
        (["--best", "2"], (8, 9)),
        (["--best", "2", "--metric", "acc", "--lower"], (10, 11)),
        (["--best", "1", "--table", "t.csv", "--metric", "loss"], (10,)),  # first by name
    ],
)
def test_what_is_chosen_is_averaged_and_shown(wish, epochs):
    rows = [f"{path.name},{i}" for i, path in enumerate(sorted(Path("run").iterdir()))]
    Path("t.csv").write_text("\n".join(["file,loss", *reversed(rows)]))
    result = polyfuse("average", "run", *wish, "-o", "a.safetensors")
    assert result.exit_code == 0, result.output
    for i in range(8, 13):
        assert (f"epoch={i}-" in result.stdout) == (i in epochs)
    averaged = load_checkpoint("a.safetensors")["0.weight"]
    assert torch.equal(averaged, mean_of(*epochs).float())


def test_the_plan_the_result_and_the_next_command():
    result = polyfuse("average", "run", "--last", "2", "-o", "a b.pt", "--quiet")
    lines = result.stdout.splitlines()
    assert result.stderr == ""
    assert "2 checkpoints" in lines[0]
    for text in ("state_dict", "0.5", "float32", "Reads ", " of memory"):
        assert text in result.stdout
    assert any(line.startswith("Note: ") and "re-estimate" in line for line in lines)
    assert lines[-2].startswith("a b.pt: mean of 2 checkpoints, ")
    assert "/s read)" in lines[-2]
    assert lines[-1] == "Next: polyfuse verify 'a b.pt'   polyfuse inspect 'a b.pt'"
    assert polyfuse("verify", "a b.pt").exit_code == 0


def test_the_average_loads_into_the_model_it_came_from():
    assert polyfuse("average", "run", "-o", "a.pt").exit_code == 0
    state = torch.load("a.pt", weights_only=True)
    made = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    made.load_state_dict(state, strict=True)
    assert int(state["1.num_batches_tracked"]) == 12


def test_weights_are_normalised_unless_told_otherwise():
    words = ["average", "run", "--last", "2", "--weights", "3,1", "-o", "a.pt"]
    parts = [net(i, i)["0.weight"].double() for i in (11, 12)]
    assert polyfuse(*words).exit_code == 0
    torch.testing.assert_close(
        load_checkpoint("a.pt")["0.weight"], (0.75 * parts[0] + 0.25 * parts[1]).float()
    )
    assert polyfuse(*words, "--no-normalize").exit_code == 0
    torch.testing.assert_close(
        load_checkpoint("a.pt")["0.weight"], (3 * parts[0] + parts[1]).float()
    )


def test_all_settings_reach_the_engine():
    words = ["--dtype", "float16", "--include", "*", "--exclude", "1.*", "--threads", "1"]
    words += ["--format", "safetensors", "--key", "state_dict", "--no-checksums"]
    result = polyfuse("average", "run", *words, "-o", "out.weights", "--json")
    document = json.loads(result.stdout)
    assert document["dtypes"] == {"float16": 2}
    assert (document["threads"], document["written"]) == (1, True)
    policy = ["--policy", "*.num_batches_tracked=sum", "--max-shard-size", "100B"]
    assert polyfuse("average", "run", *policy, "--resume", "-o", "folder").exit_code == 0
    assert int(load_checkpoint("folder")["1.num_batches_tracked"]) == 50
    assert len(list(Path("folder").glob("*.safetensors"))) > 1


def test_nan_is_refused_unless_it_is_let_through():
    torch.save({"w": torch.tensor([float("nan")])}, "nan.pt")
    assert "'w'" in polyfuse("average", "nan.pt", "-o", "a.pt", "--quiet").stderr
    assert not Path("a.pt").exists()
    assert polyfuse("average", "nan.pt", "-o", "a.pt", "--allow-nonfinite").exit_code == 0


def test_a_dry_run_writes_nothing():
    result = polyfuse("average", "run", "--dry-run")
    assert result.exit_code == 0
    assert result.stdout.endswith("Nothing is written: this is a dry run.\n")
    document = json.loads(polyfuse("average", "run", "--dry-run", "--json").stdout)
    assert document["seconds"] is None
    assert not document["written"]
    assert [one["weight"] for one in document["inputs"]] == [0.2] * 5
    assert [path.name for path in Path().iterdir()] == ["run"]


def test_json_names_the_inputs_and_why_they_were_chosen():
    document = json.loads(polyfuse("average", "run", "--best", 1, "-o", "a.pt", "--json").stdout)
    [one] = document["inputs"]
    assert one["path"] == "run/epoch=9-acc=0.75.ckpt"
    assert (one["metric"], one["weight"], one["key"]) == (0.75, 1, "state_dict")
    assert document["treatments"]["policy max"] == 1


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        (["--range", "8:9", "--last", "2"], "--range"),
        (["--last", "2", "--best", "2"], "exclude each other"),
        (["--metric", "acc"], "--best K"),
        (["--lower"], "--best K"),
        (["--range", "9"], "is not of the form 40:50"),
        (["--range", "9:8"], "type 8:9"),
        (["--last", "0"], "--last"),
        (["--weights", "1,2"], "2 weights for 5 checkpoints"),
        (["--weights", "1,x"], "is not like 0.5,0.3,0.2"),
        (["--weights", "1,nan"], "is not like 0.5,0.3,0.2"),
        (["--no-normalize"], "--weights"),
        (["--dtype", "bfloat61"], "did you mean 'bfloat16'"),
        (["--format", "onnx"], "none of safetensors, hf, torch, dcp"),
        (["--policy", "x"], "NAME=VALUE"),
        (["--policy", "x=men"], "did you mean 'mean'"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_read(monkeypatch, words, fact):
    monkeypatch.setattr("polyfuse.weights.average", None)
    result = polyfuse("average", "run", "-o", "a.pt", *words)
    assert result.exit_code == 2, result.output
    assert fact in " ".join(result.stderr.replace("│", " ").split())
    assert result.stdout == ""


def test_an_output_must_be_named():
    result = polyfuse("average", "run")
    assert result.exit_code == 2
    assert "-o OUT" in result.stderr


@pytest.mark.parametrize("name", ["run/epoch=8-acc=0.5.ckpt", "hard.ckpt", "soft.ckpt"])
def test_an_output_that_is_an_input_is_wrong_usage(name):
    os.link("run/epoch=8-acc=0.5.ckpt", "hard.ckpt")
    os.symlink("run/epoch=8-acc=0.5.ckpt", "soft.ckpt")
    before = Path("hard.ckpt").read_bytes()
    result = polyfuse("average", "run", "-o", name)
    assert result.exit_code == 2
    assert "is the input" in result.stderr
    assert Path("hard.ckpt").read_bytes() == before


def test_an_output_that_is_a_file_of_an_input():
    Path("hf").mkdir()
    torch.save(net(0, 0), "hf/pytorch_model.bin")
    result = polyfuse("average", "hf", "-o", "hf/pytorch_model.bin")
    assert result.exit_code == 2


def test_missing_numbers_are_a_failure():
    assert "lacks 13" in refused("average", "run", "--range", "12:13", "-o", "a.pt")


def test_an_interrupt_says_what_is_kept_and_how_to_go_on(monkeypatch):
    def interrupted(*args, **options):
        stop = KeyboardInterrupt()
        stop.add_note("type the same command with --resume to go on")  # as a kept draft does
        raise stop

    monkeypatch.setattr("polyfuse.weights.average", interrupted)
    result = polyfuse("average", "run", "-o", "a.pt")
    assert result.exit_code == 130
    assert "no output is there" in result.stderr
    assert "--resume" in result.stderr


def test_merge_takes_the_methods_options():
    files = ["run/epoch=8-acc=0.5.ckpt", "run/epoch=9-acc=0.75.ckpt"]
    result = polyfuse("merge", "lerp", *files, "--set", "t=0.25", "-o", "a.pt")
    assert result.exit_code == 0, result.output
    wanted = 0.75 * net(8, 8)["0.weight"].double() + 0.25 * net(9, 9)["0.weight"].double()
    torch.testing.assert_close(load_checkpoint("a.pt")["0.weight"], wanted.float())
    words = ["merge", "weighted_mean", *files, "--set", "weights=0.5,0.5", "-o", "b.pt"]
    assert polyfuse(*words).exit_code == 0
    assert torch.equal(load_checkpoint("b.pt")["0.weight"], mean_of(8, 9).float())


def test_a_method_without_weights_shows_none():
    document = json.loads(polyfuse("merge", "median", "run", "--dry-run", "--json").stdout)
    assert [one["weight"] for one in document["inputs"]] == [None] * 5


def test_misspelled_methods_and_options_are_told():
    assert "did you mean 'slerp'" in refused("merge", "slrep", "run", "-o", "a.pt", "--quiet")
    message = refused("merge", "lerp", "run", "--set", "tt=1", "-o", "a.pt", "--quiet")
    assert "has no option 'tt'" in message


def test_values_are_read_as_they_look():
    texts = ("0.5", "3", "true", "[1, 2]", "0.5,0.5", "abc", "a,b")
    assert [base.settings_of([f"a={text}"])["a"] for text in texts] == [
        *(0.5, 3, True, [1, 2], [0.5, 0.5], "abc", "a,b"),
    ]


def test_hostile_names_are_escaped():
    torch.save({"w\x1b[31m": torch.ones(1)}, "a.pt")
    os.rename("a.pt", "a\x1b[31m.pt")
    result = polyfuse("average", "a\x1b[31m.pt", "-o", "b.pt")
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.stdout + result.stderr


def test_averaging_loads_nothing_heavy_but_torch():
    code = "import sys; from polyfuse import cli\ntry: cli.call()\n"
    code += "finally: print(*sys.modules, file=sys.stderr)"
    words = [sys.executable, "-c", code, "average", "run", "-o", "a.pt", "--quiet"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    modules = set(done.stderr.split())
    assert "torch" in modules
    # pydantic is not in this list: newer versions of typer parse with it.
    assert not modules & {"yaml", "sklearn", "scipy", "lightning_fabric", "pandas", "PIL"}
    assert not modules & {"polyfuse.recipes.run", "polyfuse.fit", "polyfuse.inspection"}


def test_the_process_ends_with_the_code_and_all_of_the_output():
    for words, code in (["average", "run", "-o", "a.pt", "--json"], 0), (["inspect", "none.pt"], 1):
        command = [sys.executable, "-c", "from polyfuse.cli import main; main()", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert code or json.loads(done.stdout)["written"]
        assert not code or "none.pt" in done.stderr
