"""The pages say what is: every public name, every name and key of a recipe, the limits."""

import re
from dataclasses import fields
from pathlib import Path

import polyfuse
from polyfuse import FitOptions, durable
from polyfuse.data.arrays import _LIMIT
from polyfuse.data.images import _PIXELS
from polyfuse.recipes import source
from polyfuse.recipes.schema import KINDS, _Recipe

DOCS = Path(__file__).parents[1] / "docs"


def read(page):
    return (DOCS / page).read_text(encoding="utf-8")


def test_api_lists_every_public_name_once():
    directive = r"^\.\. (?:autofunction|autoclass|autoexception|py:data):: polyfuse\.(\w+)"
    assert sorted(re.findall(directive, read("api.md"), re.MULTILINE)) == sorted(polyfuse.__all__)


def test_recipes_page_lists_every_key_and_every_name():
    rows = re.findall(r"^\| `([\w.]+)` \| (.*) \|$", read("recipes.md"), re.MULTILINE)
    keys = {key for key, _ in rows}
    assert keys == {*_Recipe.model_fields, "quick", *KINDS, *(f.name for f in fields(FitOptions))}
    named = dict(row for row in rows if "**options" in row[1])
    for part, kind in KINDS.items():
        assert set(re.findall(r"`(\w+)`", named[part])) == set(kind.known), part


def test_concepts_explain_every_fusion():
    assert set(polyfuse.FUSIONS) <= set(
        re.findall(r"^\| `(\w+)`", read("concepts.md"), re.MULTILINE)
    )


def test_limits_are_those_of_the_code():
    page = read("run_folder.md")
    mega = 1 << 20
    for line in (
        f"| a recipe | {source.LIMIT // mega} MB, {source.DEPTH} levels |",
        f"| a JSON file that is read | {durable.JSON_LIMIT // mega} MB |",
        f"| one image that is read | {_PIXELS // mega} megapixels |",
        f"| an `.npz` data set | {_LIMIT // (mega << 10)} GB, packed and unpacked |",
    ):
        assert line in page
