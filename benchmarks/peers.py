"""The peers: how to import those that want torchvision, and a check that all of them import.

python benchmarks/peers.py torchensemble timm
"""

import importlib
import os
import sys
from pathlib import Path

import torch

_declared = []  # an operator is forgotten with the object that declared it


def allow_torchvision() -> None:
    """Let torchvision import beside a torch it was not built for.

    Its compiled operators do not load there, and its Python part stops at once where two of them
    are not even declared. No peer that is measured here calls them.
    """
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)


def site_packages() -> Path | None:
    """Return where the peers' environment has its packages; None where it is not made.

    POLYFUSE_PEERS names another one.
    """
    home = os.environ.get("POLYFUSE_PEERS", Path(__file__).parents[1] / ".venv-peers")
    return next(Path(home).glob("lib/python3*/site-packages"), None)


def main(names: list[str]) -> None:
    """Import each peer and print its version."""
    allow_torchvision()
    for name in names:
        module = importlib.import_module(name)
        print(name, getattr(module, "__version__", "imported"))


if __name__ == "__main__":
    main(sys.argv[1:])
