"""The shipped recipes: found by name, without a fault in full and in quick form."""

from inspect import unwrap
from pathlib import Path

import pytest

import polyfuse.recipes
from polyfuse.errors import RecipeError
from polyfuse.recipes import source
from polyfuse.recipes.run import load
from polyfuse.recipes.shipped import find, purpose, shipped


def test_every_yaml_file_of_the_package_is_shipped():
    folder = Path(polyfuse.recipes.__file__).parent
    assert sorted(shipped().values()) == sorted(folder.rglob("*.y*ml"))
    assert "street_numbers" in shipped()


@pytest.mark.parametrize("name", shipped())
@pytest.mark.parametrize("quick", [False, True])
def test_shipped_recipes_have_no_fault(name, quick):
    plan = load(source.read(find(name)), [], quick=quick)
    assert plan.name == name  # it names the RUN folder
    assert source.parse(source.write(dict(plan.tree)), name).tree == plan.tree


@pytest.mark.parametrize("name", shipped())
def test_quick_changes_only_what_the_full_recipe_says(name):
    tree = source.read(find(name)).tree
    for key in tree["quick"]:
        node = tree
        for part in key.split("."):
            node = node[part]


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_say_what_they_are_for_and_name_no_code_outside(name):
    first = find(name).read_text().splitlines()[0]
    assert first.startswith("# ")
    assert purpose(find(name)) == first[2:]
    assert len(purpose(find(name))) > 20
    plan = load(source.read(find(name)), [])
    functions = [plan.data, plan.factory, plan.strategy, *plan.fusions.values()]
    assert all(unwrap(f).func.__module__.startswith("polyfuse.") for f in functions)


def test_a_file_wins_over_a_shipped_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find("street_numbers") == shipped()["street_numbers"]
    Path("street_numbers").write_text("name: mine")
    assert find("street_numbers") == Path("street_numbers")


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("street_nubmers", "did you mean 'street_numbers'?"),
        ("zebra", "no recipe 'zebra'\\. Name a file, or a shipped recipe: soup, street_numbers"),
        ("a\x1b[31m", "no recipe 'a\\\\x1b\\[31m'"),
        ("../street_numbers", "no recipe"),
    ],
)
def test_unknown_recipes(name, fact, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=fact):
        find(name)
