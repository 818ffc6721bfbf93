"""The pages say what is: every public name, every name and key of a recipe, the limits."""

import re
from dataclasses import fields
from inspect import signature
from pathlib import Path

import polyfuse
from polyfuse import METHODS, FitOptions, durable
from polyfuse.averaging import RULES
from polyfuse.checkpoints.base import LIMITS
from polyfuse.data import DATASETS
from polyfuse.data.image_files import FILE_LIMIT
from polyfuse.data.images import _PIXELS
from polyfuse.merge.buffers import POLICIES
from polyfuse.predictions.npz_files import LIMIT
from polyfuse.recipes import source
from polyfuse.recipes.schema import KINDS, _Recipe
from polyfuse.row_scores import MORE_METRICS

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
        f"| an `.npz` data set | {LIMIT // (mega << 10)} GB, packed and unpacked |",
    ):
        assert line in page


def test_limits_of_checkpoints_are_those_of_the_code():
    page, mega = read("weights.md"), 1 << 20
    limits = LIMITS
    for line in (
        f"| header of a safetensors file | {limits.header_bytes:,} bytes |",
        f"| tensors, zip entries or shards | {limits.names:,} |",
        f"| a name | {limits.name_characters:,} characters |",
        f"| dimensions of a tensor | {limits.rank} |",
        f"| an `index.json` | {limits.index_bytes // mega} MB |",
        f"| a pickle | {limits.pickle_bytes // mega} MB, {limits.pickle_operations:,} operations, "
        f"{limits.pickle_depth} levels |",
        f"| a `.metadata` of DCP | {limits.metadata_bytes // mega} MB |",
        f"| directory of a zip archive | {limits.directory_bytes // mega} MB |",
        f"| a compressed zip entry | {limits.inflation} times its packed size |",
    ):
        assert line in page


def test_weights_page_names_every_method_and_policy():
    page = read("weights.md")
    assert all(f"`{name}`" in page for name in METHODS)
    assert all(name in page for name in POLICIES)


def test_averaging_page_names_every_rule_and_its_options():
    page = read("averaging.md")
    for name, make in RULES.items():
        assert f"`{name}`" in page
        assert all(
            f"`{option}`" in page or f"`{option}=" in page for option in signature(make).parameters
        )


def test_data_page_names_every_option_and_limit_of_image_files():
    page = read("data.md")
    for name in ("mchar", "svhn_format1", "svhn_format2", "labelled_images"):
        options = set(signature(DATASETS[name]).parameters) - {"notify", "test", "sample"}
        assert f"| `{name}` |" in page
        assert [option for option in options if not re.search(rf"`{option}\b", page)] == []
    assert f"above {_PIXELS >> 20} megapixels or {FILE_LIMIT >> 20} MB" in page


def test_recipes_page_names_every_metric_of_a_scoreboard():
    assert all(f"`{name}`" in read("recipes.md") for name in MORE_METRICS)
