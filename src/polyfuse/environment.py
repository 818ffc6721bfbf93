"""Versions and hardware, to paste into an issue."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

PACKAGES = (
    "polyfuse",
    "torch",
    "numpy",
    "lightning-fabric",
    "scikit-learn",
    "safetensors",
    "pydantic",
    "typer",
    "rich",
)


def environment() -> dict[str, str]:
    """Return versions and hardware by name.

    Example:
        >>> environment()["polyfuse"]
        '0.1.0'
    """
    facts = {"python": platform.python_version(), "system": platform.platform()}
    facts |= {name: _version(name) for name in PACKAGES}
    facts["cpu"] = f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    found = torch.accelerator.is_available()
    facts["accelerator"] = str(torch.accelerator.current_accelerator()) if found else "none"
    return facts


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
