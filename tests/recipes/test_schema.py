"""What a recipe may say: all faults at once, options checked against the functions' signatures."""

import inspect
import sys

import pytest
import torch

from polyfuse.errors import RecipeError
from polyfuse.fit import FitOptions
from polyfuse.models import MODELS
from polyfuse.recipes.run import load
from polyfuse.recipes.schema import KINDS, check, resolve
from polyfuse.recipes.source import parse
from polyfuse.training import STRATEGIES

PLAIN = """\
name: mine
data: {name: arrays, path: data.npz}
model: {name: mlp, inputs: 4, classes: 3}
training: kfold
"""
OWN = """\
import torch
def net(*, width: int = 4): return torch.nn.Linear(width, 3)
def fuse(stack): return stack.mean(0)
def broken(): raise OSError("no\\x1b[31m weights")
class Net(torch.nn.Linear):
    def __init__(self, width: int): super().__init__(width, 3)
def hinted(x: "Nowhere" = 3): return torch.nn.Linear(4, 3)
def free(**options): return torch.nn.Linear(4, 3)
NUMBER = 7
"""


def plan(text, **options):
    return check(parse(text, "mine.yaml"), **options)


def faults(text, **options):
    with pytest.raises(RecipeError) as caught:
        plan(text, **options)
    head, *lines = str(caught.value).splitlines()
    assert head.endswith("in recipe 'mine.yaml':")
    assert head.startswith("1 fault " if len(lines) == 1 else f"{len(lines)} faults ")
    return lines


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Return the name of a module of the user's own that lies in the working folder."""
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield name
    sys.modules.pop(name, None)


def test_three_typos_are_three_faults_with_lines_and_suggestions():
    text = """\
name: mine
data: {name: arrays, path: data.npz}
model:
  name: character_cmm
training: {name: kfold, fold: 3}
fit:
  epochs: ten
"""
    assert faults(text) == [
        "line 4: model.name: unknown 'character_cmm'; did you mean 'character_cnn'? "
        f"Known: {', '.join(MODELS)}, or package.module:function",
        "line 5: training.fold: unknown 'fold'; did you mean 'folds'? "
        "Known: folds, kind, repeats, stop_fraction, seed",
        "line 7: fit.epochs: should be a valid integer; got 'ten'",
    ]


def test_all_parts_are_checked_though_others_are_faulty():
    text = "nam: x\ndata: {name: arrays}\nmodel: 3\nfit: {loss: cros_entropy}\nfusions: [vote]\n"
    found = "\n".join(faults(text))
    for fact in (
        "line 1: name: is required",
        "line 1: training: is required",
        "line 1: nam: unknown 'nam'; did you mean 'name'?",
        "line 2: data.path: is required by arrays",
        "line 3: model: expected a name, or a mapping with one; got 3",
        "line 4: fit.loss.name: unknown 'cros_entropy'; did you mean 'cross_entropy'?",
        "line 5: fusions.0.name: unknown 'vote'",
    ):
        assert fact in found


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("seed: '3'", "seed: should be a valid integer; got '3'"),
        ("seed: true", "seed: should be a valid integer; got True"),
        ("seed: 1.0", "seed: should be a valid integer; got 1.0"),
        ("seed: -1", "seed: should be greater than or equal to 0; got -1"),
        ("seed: 4294967296", "seed: should be less than 4294967296; got 4294967296"),
        ("scoreboard: {replicates: 0}", "scoreboard.replicates: should be greater than or equal"),
        ("scoreboard: {replicate: 9}", "did you mean 'replicates'?"),
        ("scoreboard: {metrics: [breir]}", "scoreboard.metrics.0: unknown 'breir'; did you mean"),
        ("scoreboard: 3", "scoreboard: expected a mapping of options, got 3"),
        ("fusions: []", "fusions: an empty list; name at least one: [mean_probability]"),
        ("fusions: mean_logit", "fusions: should be a valid list; got 'mean_logit'"),
        ("fusions: [mean_logit, {name: mean_logit}]", "'mean_logit' is given twice; keep one"),
        ("fusions: [mean_logits]", "did you mean 'mean_logit'?"),
        ("fusions: [3]", "fusions.0: expected a name, or a mapping with one; got 3"),
        ("fusions: [{name: mean_logit, cut: 1}]", "fusions.0.cut: unknown 'cut'"),
        ("fit: 3", "fit: expected a mapping of options, got 3"),
        ("fit: {epoch: 3}", "fit.epoch: unknown 'epoch'; did you mean 'epochs'?"),
        ("fit: {epochs: 0}", "fit.epochs: epochs=0; it must be 1 or more"),
        ("fit: {epochs: true}", "fit.epochs: should be a valid integer; got True"),
        ("fit: {batch_size: '3'}", "fit.batch_size: should be a valid integer; got '3'"),
        ("fit: {patience: 1.5}", "fit.patience: should be a valid integer; got 1.5"),
        ("fit: {clip: .inf}", "fit.clip: must be a finite number, got inf"),
        ("fit: {clip: .nan}", "fit.clip: must be a finite number, got nan"),
        ("fit: {optimizer: {name: adamw, lr: '1e-3'}}", "lr: should be a valid number; got '1e-3'"),
        ("fit: {optimizer: {name: adamw, lr: true}}", "lr: should be a valid number; got True"),
        ("fit: {optimizer: {name: adamw, lr: -1}}", "fit.optimizer: cannot be built: ValueError"),
        ("fit: {optimizer: {lr: 1}}", "expected a name, or a mapping with one"),
        ("fit: {optimizer: {name: sgd, nesterov: 1}}", "nesterov: should be a valid boolean"),
        ("fit: {optimizer: {name: sgd, parameters: 1}}", "unknown 'parameters'"),
        ("fit: {schedule: cosin}", "did you mean 'cosine'?"),
        ("fit: {augmentation: shfit}", "did you mean 'shift'?"),
        ("name: ../up", "name: names a folder, so it has no slash and no dot in front"),
        ("name: a/b", "name: names a folder"),
        ("name: a\\b", "name: names a folder"),
        ("name: ..", "name: names a folder"),
        ("name: ''", "name: names a folder"),
        ("name:", "name: should be a valid string; got None"),
        ("data:", "data: is empty; name one: street_digits, "),
        ("model: ~", "model: is empty; name one: character_cnn, course_cnn"),
        ("training: null", f"training: is empty; name one: {', '.join(STRATEGIES)}"),
        ("data: {name: arrays, path: 3}", "data.path: should be a valid string; got 3"),
        ("data: {name: arrays, path: x, notify: 3}", "data.notify: unknown 'notify'"),
        ("data: street_digit", "data.name: unknown 'street_digit'; did you mean 'street_digits'?"),
        ("model: {name: mlp, inputs: 4}", "model.classes: is required by mlp"),
        ("model: {name: mlp, inputs: 4, classes: 3, dropout: 2}", "model: cannot be built: ValueE"),
        ("model: [3]", "model.0: expected a name, or a mapping with one; got 3"),
        ("model: []", "model: is empty; name one: character_cnn, course_cnn"),
        ("model: {name: 3}", "model: expected a name, or a mapping with one"),
        ("training: {name: kfold, stop_fraction: x}", "should be a valid number; got 'x'"),
        ("training: {name: kfold, split: x}", "training.split: unknown 'split'"),
        ("quick: {fit.epochs: 1}", "quick: unknown 'quick'"),
    ],
)
def test_each_kind_of_fault(change, fault):
    key = change.split(":")[0]
    kept = [line for line in PLAIN.splitlines() if not line.startswith(f"{key}:")]
    lines = faults("\n".join([*kept, change]))
    assert len(lines) == 1
    assert lines[0].startswith(f"line {len(kept) + 1}: ")
    assert fault in lines[0]


def test_whole_numbers_are_fine_for_floats_and_reach_the_function():
    made = plan(PLAIN + "fit: {optimizer: {name: sgd, lr: 1, momentum: 0}, clip: 2}")
    optimizer = made.options.optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert optimizer.param_groups[0]["lr"] == 1
    assert made.options.clip == 2


def test_null_stands_for_the_default_or_for_none():
    made = plan(PLAIN + "fit: {schedule: null, augmentation: null, patience: null, clip: null}")
    assert made.options == FitOptions()
    assert plan(PLAIN + "fit:\n").options == FitOptions()


def test_options_are_passed_on():
    made = plan(PLAIN.replace("classes: 3", "classes: 5, hidden: 7, layers: 1") + "seed: 9\n")
    assert [tuple(p.shape) for p in made.factory().parameters()] == [(7, 4), (7,), (5, 7), (5,)]
    assert made.strategy.keywords == {"seed": 9}
    assert "seed" not in made.data.keywords  # arrays takes none
    assert made.data.keywords == {"path": "data.npz"}
    assert (made.name, made.seed, made.replicates) == ("mine", 9, 2000)
    assert list(made.fusions) == ["mean_probability"]


TWO = PLAIN.replace("model: {", "model:\n  - {").replace(
    "classes: 3}\n", "classes: 3}\n  - {name: resnet18_small, classes: 3, width: 4}\n"
)


def test_a_list_of_models_is_a_factory_each_and_the_strategy_is_told_how_many():
    made = plan(TWO.replace("training: kfold", "training: {name: heterogeneous, folds: 3}"))
    assert [type(factory()).__name__ for factory in made.factories] == [
        "Sequential",
        "ResNet18Small",
    ]
    assert made.factory is made.factories[0]
    assert made.strategy.keywords == {"folds": 3, "seed": 0, "factories": 2}
    assert plan(PLAIN.replace("kfold", "heterogeneous")).strategy.keywords["factories"] == 1


def test_several_models_need_a_strategy_that_trains_each_and_make_no_soup():
    found = faults(TWO + "soups: [greedy_soup]\n")
    assert found[0].startswith(
        "line 6: training: trains one model, and the recipe lists 2; keep one, or name a strategy "
        "that trains each: "
    )
    assert "heterogeneous" in found[0]
    assert found[1] == (
        "line 7: soups: a soup mixes the weights of one model, and the recipe lists 2; "
        "leave soups out, or keep one model"
    )
    assert len(found) == 2


def test_faults_of_several_models_are_told_together():
    text = TWO.replace("inputs: 4", "inputs: -4").replace("width: 4", "width: 0")
    first, second = faults(text.replace("training: kfold", "training: heterogeneous"))
    assert first.startswith("line 4: model.0: cannot be built: PolyfuseError: inputs=-4")
    assert second.startswith("line 5: model.1: cannot be built: PolyfuseError: width=0")


def test_members_of_random_subspaces_make_no_soup():
    text = PLAIN.replace("kfold", "{name: bagging, features: 0.5}") + "soups: [uniform_soup]\n"
    (fault,) = faults(text)
    assert fault.startswith("line 5: soups: members that see other features have weights")


def test_an_own_seed_wins_over_the_recipe_s():
    made = plan(PLAIN.replace("training: kfold", "training: {name: kfold, seed: 3}") + "seed: 9")
    assert made.strategy.keywords["seed"] == 3


def test_fusions_keep_their_options_and_order():
    made = plan(PLAIN + "fusions: [hard_vote, {name: mean_logit}]\nscoreboard: {replicates: 7}")
    assert list(made.fusions) == ["hard_vote", "mean_logit"]
    assert made.replicates == 7
    assert made.metrics == ()


ENTRIES = [(kind, name) for kind, entry in KINDS.items() for name in entry.known]


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_every_entry_of_every_visible_dict_is_reachable(kind, name):
    source = parse("name: x", "mine.yaml")
    entry, path = KINDS[kind], tuple(kind.split("."))
    function = resolve(source, path, name, entry, True)
    needed = required(entry, name)
    if not needed:
        assert source.faults == []
        assert function.func is entry.known[name]
        assert function.keywords == {}
    else:
        facts = sorted(fault.message for fault in source.faults)
        assert facts == [f"is required by {name}"] * len(needed)
        assert {fault.key.split(".")[-1] for fault in source.faults} == set(needed)


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_every_entry_refuses_an_unknown_option_and_suggests_the_nearest(kind, name):
    entry, source = KINDS[kind], parse("name: x", "mine.yaml")
    options = offered(entry, name)
    wrong = f"{options[0]}x" if options else "zzz"
    resolve(source, tuple(kind.split(".")), {"name": name, wrong: 1}, entry, True)
    (message,) = [f.message for f in source.faults if f.key.endswith(f".{wrong}")]
    assert message.startswith(f"unknown '{wrong}'")
    assert not options or f"did you mean '{options[0]}'?" in message


def parameters(entry, name):
    found = list(inspect.signature(entry.known[name]).parameters.values())[entry.given :]
    return [parameter for parameter in found if parameter.name not in entry.without]


def required(entry, name):
    return [p.name for p in parameters(entry, name) if p.default is p.empty]


def offered(entry, name):
    return [p.name for p in parameters(entry, name) if p.name != "notify"]


def test_kinds_name_every_part_of_a_recipe_that_is_a_function():
    parts = {key.removeprefix("fit.") for key in KINDS if key.startswith("fit.")} | {"averaging"}
    hints = inspect.signature(FitOptions).parameters
    assert parts == {name for name, p in hints.items() if "Callable" in str(p.annotation)}
    assert KINDS["model"].known is MODELS


def test_own_functions_are_used_where_trusted(own):
    made = plan(
        PLAIN.replace("{name: mlp, inputs: 4, classes: 3}", f"{{name: {own}:net, width: 6}}")
        + f"fusions: ['{own}:fuse']\n"
    )
    assert made.factory().in_features == 6
    assert list(made.fusions) == ["fuse"]
    assert made.fusions["fuse"](torch.ones(2, 3)).tolist() == [1, 1, 1]


def model_faults(spec, **options):
    return faults(PLAIN.replace("{name: mlp, inputs: 4, classes: 3}", spec), **options)


@pytest.mark.parametrize("trusted", [False, set(), {"mlp", "other:net"}])
def test_own_functions_are_refused_and_not_imported_where_not_trusted(own, trusted):
    (line,) = model_faults(f"'{own}:net'", trusted=trusted)
    assert f"line 3: model.name: '{own}:net' names code, which runs only from a recipe" in line
    assert "--recipe FILE" in line
    assert own not in sys.modules


def test_a_name_that_is_trusted_is_imported(own):
    text = PLAIN.replace("{name: mlp, inputs: 4, classes: 3}", f"'{own}:net'")
    assert plan(text, trusted={f"{own}:net"}).factory().in_features == 4


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ("nowhere_at_all:net", "cannot import 'nowhere_at_all:net': No module named"),
        ("OWN:nothing", "has no attribute 'nothing'"),
        ("OWN:NUMBER", "is a int, not a function"),
        ("OWN:", "cannot import"),
        (":net", "cannot import ':net'"),
        ("{name: OWN:net, widht: 3}", "model.widht: unknown 'widht'; did you mean 'width'?"),
        ("{name: OWN:net, width: wide}", "model.width: should be a valid integer; got 'wide'"),
        ("OWN:Net", "model.width: is required by OWN:Net"),
        ("{name: OWN:Net, self: 3, width: 2}", "model.self: unknown 'self'"),
        ("OWN:broken", "model: cannot be built: OSError: no\\x1b[31m weights"),
    ],
)
def test_own_functions_that_do_not_fit(own, spec, fault):
    quoted = f"'{spec}'" if spec[0] != "{" else spec.replace("OWN:net", "'OWN:net'")
    (line,) = model_faults(quoted.replace("OWN", own))
    assert fault.replace("OWN", own) in line


def test_own_classes_and_hints_that_cannot_be_read(own):
    text = PLAIN.replace("{name: mlp, inputs: 4, classes: 3}", "SPEC")
    made = plan(text.replace("SPEC", f"{{name: '{own}:Net', width: 6}}"))
    assert made.factory().in_features == 6
    assert plan(text.replace("SPEC", f"{{name: '{own}:hinted', x: [1]}}")).factory.keywords
    free = plan(text.replace("SPEC", f"{{name: '{own}:free', any: 1}}"))
    assert free.factory.keywords == {"any": 1}


def test_quick_and_settings_are_checked_like_the_rest():
    source = parse(PLAIN + "quick: {model.hiden: 3}\n", "mine.yaml")
    with pytest.raises(RecipeError) as caught:
        load(source, ["fit.epochs=many", "training.folds=2"], quick=True)
    lines = str(caught.value).splitlines()
    assert lines[1].startswith("line 5: model.hiden: unknown 'hiden'; did you mean 'hidden'?")
    assert lines[2] == "--set fit.epochs=many: fit.epochs: should be a valid integer; got 'many'"


def test_settings_win_over_quick():
    text = PLAIN + "quick: {fit.epochs: 1, model.hidden: 2}\n"
    made = load(parse(text, "mine.yaml"), ["fit.epochs=5"], quick=True)
    assert (made.options.epochs, made.factory.keywords["hidden"]) == (5, 2)
    assert "hidden" not in load(parse(text, "mine.yaml"), []).factory.keywords
    assert "quick" not in made.tree


@pytest.mark.parametrize("quick", ["3", "[a]", "x"])
def test_quick_is_a_mapping(quick):
    with pytest.raises(RecipeError, match="line 5: quick: expected a mapping"):
        load(parse(PLAIN + f"quick: {quick}\n", "mine.yaml"), [])
