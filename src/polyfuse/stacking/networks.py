"""A torch module as a meta-model: trained by a plain seeded loop, stored as plain numbers."""

import copy
import importlib
from collections.abc import Callable, Collection, Mapping
from inspect import signature
from itertools import chain
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polyfuse.determinism import seeded, threads
from polyfuse.errors import DataError, TrainingError, printable, refuse_unknown
from polyfuse.fitting import Floats
from polyfuse.models import mlp
from polyfuse.optimizers import OPTIMIZERS
from polyfuse.parameters import one_of

FACTORIES: dict[str, Callable[..., nn.Module]] = {"mlp": mlp}
LOOP = ("epochs", "batch_size", "optimizer")
_DTYPES = ("float32", "float64", "int64", "bool")


class Network(NamedTuple):
    """A trained module.

    Attributes:
        module: maps `(row, column)` float32 to `(row, output)` logits or numbers.
        factory: its name, or None where the module came as an object.
        sizes: columns and outputs.
        shift: that numbers are moved by after the module, and
        stretch: that they are multiplied by before; None for classes.
    """

    module: nn.Module
    factory: str | None
    sizes: tuple[int, int]
    shift: float | None = None
    stretch: float | None = None

    def predict(self, columns: Floats) -> Floats:
        """Return `(row, class)` probabilities, or `(row, 1)` numbers, float64."""
        self.module.eval()
        with torch.no_grad(), threads(1):
            raw = self.module(torch.as_tensor(columns, dtype=torch.float32)).double()
        if self.shift is None or self.stretch is None:
            return np.asarray(raw.softmax(-1).numpy())
        return np.asarray(raw.numpy() * self.stretch + self.shift)

    def document(self) -> dict[str, Any]:
        """Return the factory's name and the state as plain lists.

        Raises:
            DataError: the module came as an object, which no name makes again.
        """
        if self.factory is None:
            raise DataError(
                f"a {type(self.module).__name__} that came as an object cannot be stored without "
                'pickle; name what makes it: meta="package.module:factory"'
            )
        return {
            "factory": self.factory,
            "sizes": list(self.sizes),
            "shift": self.shift,
            "stretch": self.stretch,
            "state": {name: _plain(value) for name, value in self.module.state_dict().items()},
        }

    @classmethod
    def from_document(
        cls, document: Mapping[str, Any], sizes: tuple[int, int], trusted: Collection[str] = ()
    ) -> Self:
        """Return the module that a document describes.

        Args:
            document: as `document()` gives it.
            sizes: columns and outputs that it must have.
            trusted: names of factories that may be imported and called; those of `FACTORIES` are.

        Raises:
            DataError: a factory that is not trusted, or a state that does not fit its module.
        """
        factory = str(document["factory"])
        if document["sizes"] != list(sizes):
            raise DataError(f"a module of sizes {document['sizes']} does not fit {list(sizes)}")
        scale = [None if document[k] is None else float(document[k]) for k in ("shift", "stretch")]
        if factory not in FACTORIES and factory not in trusted:
            raise DataError(
                f"'{printable(factory)}' names code, which runs only where you trust it: "
                f'trusted=["{printable(factory)}"]'
            )
        module = made(factory, *sizes)
        try:
            module.load_state_dict({k: _tensor(v) for k, v in document["state"].items()})
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"the state does not fit what '{printable(factory)}' makes: {error}"
            ) from error
        return cls(module, factory, sizes, *scale)


def made(factory: str, inputs: int, outputs: int) -> nn.Module:
    """Return the module that a name makes.

    Args:
        factory: a name in `FACTORIES`, or `package.module:function`, called with `inputs=` and
            `classes=` (outputs; one for numbers).
        inputs: columns.
        outputs: classes, or 1.

    Raises:
        DataError: it cannot be imported, or makes no module.

    Example:
        >>> type(made("mlp", 4, 3)).__name__
        'Sequential'
    """
    module, _, attribute = factory.partition(":")
    try:
        make = FACTORIES.get(factory) or getattr(importlib.import_module(module), attribute)
        found = make(inputs=inputs, classes=outputs)
    except Exception as error:  # a user's module may raise anything
        raise DataError(
            f"'{printable(factory)}' makes no module from inputs={inputs} and classes={outputs}: "
            f"{printable(error)} ({type(error).__name__})"
        ) from error
    if not isinstance(found, nn.Module):
        raise DataError(f"'{printable(factory)}' made a {type(found).__name__}, no nn.Module")
    return found


def trained(
    meta: str | nn.Module,
    columns: Floats,
    targets: NDArray[Any],
    *,
    seed: int,
    training: Mapping[str, Any],
) -> Network:
    """Return a module that is trained on these rows: NLL of classes, squared error of numbers.

    The same seed gives the same module, with any number of threads.

    Args:
        meta: name of a factory (see `made`), or a module, of which a copy is trained.
        columns: `(row, column)`.
        targets: `(row,)` integers 0 to K - 1, or numbers, which are standardised for training.
        seed: of initial weights, batches and dropout.
        training: "epochs" (100), "batch_size" (all rows), "optimizer" ("adamw"), and options of
            the optimizer (where they are not said, "lr" is 0.01, and "weight_decay" of AdamW 1).

    Raises:
        DataError: unknown options, or a module whose outputs do not fit.
        TrainingError: the loss is not finite.

    Example:
        >>> x = np.linspace(-1, 1, 40)[:, None]
        >>> net = trained("mlp", x, (x[:, 0] > 0).astype(int), seed=0, training={"epochs": 30})
        >>> bool((net.predict(x).argmax(-1) == (x[:, 0] > 0)).mean() > 0.9)
        True
    """
    numbers = targets.dtype.kind == "f"
    shift, stretch = (
        (float(targets.mean()), float(targets.std()) or 1.0) if numbers else (None, None)
    )
    outputs = 1 if numbers else int(targets.max()) + 1
    x = torch.as_tensor(columns, dtype=torch.float32)
    y = torch.as_tensor(targets if shift is None else (targets - shift) / (stretch or 1.0))
    with seeded(seed), threads(1):
        name = meta if isinstance(meta, str) else None
        module = made(meta, x.shape[1], outputs) if isinstance(meta, str) else copy.deepcopy(meta)
        _check_outputs(module, x, outputs)
        _train(module, x, y.float()[:, None] if numbers else y, dict(training))
    return Network(module, name, (x.shape[1], outputs), shift, stretch)


def check_training(training: Mapping[str, Any]) -> None:
    """Refuse options that the training loop and its optimizer do not take.

    Raises:
        PolyfuseError: the first of them, with the nearest known one; a count below 1.

    Example:
        >>> check_training({"lr": 0.1, "epochs": 5})
    """
    name = training.get("optimizer", "adamw")
    one_of("optimizer", name, list(OPTIMIZERS))
    own = list(signature(OPTIMIZERS[name]).parameters)[1:]
    refuse_unknown("training", training, [*LOOP, *own])
    for count in ("epochs", "batch_size"):
        value = training.get(count)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise DataError(f"{count}={value} must be a whole number of 1 or more")


def _train(module: nn.Module, x: Tensor, y: Tensor, options: dict[str, Any]) -> None:
    epochs = options.pop("epochs", 100)
    size = options.pop("batch_size", None) or len(x)
    name = options.pop("optimizer", "adamw")
    # Columns say nearly the same: without a strong decay labels are soon learned by heart.
    usual = {"lr": 0.01, "weight_decay": 1.0} if name == "adamw" else {"lr": 0.01}
    optimizer = OPTIMIZERS[name](module.parameters(), **{**usual, **options})
    loss_of = nn.functional.mse_loss if y.is_floating_point() else nn.functional.cross_entropy
    batches = chain.from_iterable(torch.split(torch.randperm(len(x)), size) for _ in range(epochs))
    module.train()
    for rows in batches:
        loss = loss_of(module(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's stub lacks it
        optimizer.step()
    weights = torch.cat([one.detach().reshape(-1) for one in module.parameters()])
    if not (torch.isfinite(loss) and torch.isfinite(weights).all()):
        raise TrainingError(
            f"the meta-model's training diverged to a loss of {loss.item()}; lower its lr"
        )


def _check_outputs(module: nn.Module, x: Tensor, outputs: int) -> None:
    if not any(one.requires_grad for one in module.parameters()):
        raise DataError(f"a {type(module).__name__} has nothing to train; bring one that has")
    module.eval()
    try:
        with torch.no_grad():
            got = tuple(module(x[:2]).shape)
    except Exception as error:  # a user's module may raise anything
        raise DataError(
            f"the meta-model cannot take {x.shape[1]} columns: {printable(error)}"
        ) from error
    if got != (len(x[:2]), outputs):
        raise DataError(
            f"the meta-model maps {x.shape[1]} columns of {len(x[:2])} rows to shape {got}; "
            f"expected {(len(x[:2]), outputs)}: logits of classes, or one number"
        )


def _plain(value: Tensor) -> dict[str, Any]:
    kind = str(value.dtype).removeprefix("torch.")
    if kind not in _DTYPES:
        raise DataError(f"a state of {kind} is not stored; make the module float32")
    flat = value.detach().cpu().reshape(-1).tolist()
    return {"dtype": kind, "shape": list(value.shape), "values": flat}


def _tensor(value: Mapping[str, Any]) -> Tensor:
    one_of("dtype", value["dtype"], _DTYPES)
    flat = torch.tensor(value["values"], dtype=getattr(torch, value["dtype"]))
    return flat.reshape(value["shape"])
