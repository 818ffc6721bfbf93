"""The contents page: every public name is there, explained, and loads only what it needs."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import polyfuse

STUB = Path(polyfuse.__file__).with_suffix(".pyi")
HEAVY = ["lightning_fabric", "pandas", "pydantic", "rich", "scipy", "sklearn", "typer"]


def listed():
    imports = [n for n in ast.parse(STUB.read_text()).body if isinstance(n, ast.ImportFrom)]
    return [(alias.name, alias.asname) for node in imports for alias in node.names]


NAMES = [name for name, _ in listed()]


def test_the_page_lists_what_the_package_has():
    assert sorted(NAMES) == sorted(polyfuse.__all__)
    assert set(NAMES) <= set(dir(polyfuse))
    assert all(name == exported for name, exported in listed())


def test_the_page_is_short_and_names_nothing_twice():
    assert len(set(NAMES)) == len(NAMES) <= 40


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_explained(name):
    value = getattr(polyfuse, name)
    explained = value.values() if isinstance(value, dict) else [value]
    assert explained
    assert all((one.__doc__ or "").strip() for one in explained)


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="nothing"):
        polyfuse.nothing


def loaded_by(code):
    """Return the heavy packages that a fresh Python has loaded after this code."""
    report = f"print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    command = [sys.executable, "-c", f"import json, sys\n{code}\n{report}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_importing_polyfuse_loads_nothing_heavy():
    assert loaded_by("import polyfuse") == []


def test_the_rig_sees_what_is_loaded():
    assert "rich" in loaded_by("import rich")


def test_getting_train_loads_neither_scikit_learn_nor_fabric():
    loaded = loaded_by("import polyfuse; polyfuse.train")
    assert not {"sklearn", "lightning_fabric", "scipy"} & set(loaded)
