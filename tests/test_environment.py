"""Versions and hardware, to paste into an issue."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from polyfuse import environment as module
from polyfuse.environment import environment


def test_versions_are_those_that_are_installed():
    facts = environment()
    assert facts["python"] == platform.python_version()
    assert facts["torch"] == version("torch")
    assert set(module.PACKAGES) < facts.keys()


def test_hardware():
    facts = environment()
    assert facts["cpu"].split()[1] == "cores,"
    assert int(facts["cpu"].split()[0]) >= 1
    found = torch.accelerator.is_available()
    expected = str(torch.accelerator.current_accelerator()) if found else "none"
    assert facts["accelerator"] == expected


def test_a_package_that_is_missing_is_said_to_be(monkeypatch):
    def missing(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(module, "version", missing)
    assert {environment()[name] for name in module.PACKAGES} == {"not installed"}


def test_all_facts_are_text_of_one_line():
    assert all(isinstance(v, str) and v and "\n" not in v for v in environment().values())
