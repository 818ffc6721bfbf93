"""What every trainer's callback does with averages: begun late, swapped in and out, resumed."""

import contextlib
import importlib
import importlib.util
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import compress
from typing import Any, ClassVar

from torch import nn

from polyfuse.averaging import Averages, AveragingRule
from polyfuse.errors import MissingExtraError, PolyfuseError, did_you_mean, printable


class Late:
    """A class whose base classes of other packages are loaded when it makes its first instance.

    So what it is can be told, imported and subclassed without those packages.

    Attributes:
        foreign: module and name of each base; at least one has to be installed.
        extra: of polyfuse, that installs one.

    Example:
        >>> class Ordered(Late):
        ...     foreign = (("collections", "OrderedDict"),)
        >>> isinstance(Ordered(), dict)
        True
    """

    foreign: ClassVar[tuple[tuple[str, str], ...]] = ()
    extra: ClassVar[str] = ""

    def __new__(cls, *args: Any, **options: Any) -> Any:
        """Make an instance of this class and of those that are installed.

        Raises:
            MissingExtraError: none of them is.
        """
        own: Any = cls
        made = _with_bases(own)
        return super(Late, made).__new__(made)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the class that can be imported, for trainers that spawn processes."""
        return _blank, (type(self).__mro__[1],), vars(self)


def _blank(cls: Any) -> Any:
    return cls.__new__(cls)


@cache
def _with_bases(cls: Any) -> Any:
    packages = [module.partition(".")[0] for module, _ in cls.foreign]
    there = [importlib.util.find_spec(package) is not None for package in packages]
    if not any(there):
        raise MissingExtraError(
            f"{cls.__name__} needs {' or '.join(packages)}; "
            f"install it: pip install 'polyfuse[{cls.extra}]'"
        )
    pairs = compress(cls.foreign, there)
    bases = [getattr(importlib.import_module(module), name) for module, name in pairs]
    facts = {key: getattr(cls, key) for key in ("__module__", "__qualname__", "__doc__")}
    return type(cls.__name__, (cls, *bases), facts)


class Tracking:
    """Averages of a model that a trainer trains.

    Args:
        rules: by the names of the averages.
        validate_with: the average that is in the model while it is evaluated; None: its own
            weights.
        options: of `Averages`.

    Raises:
        PolyfuseError: no rules, or no average of that name.

    Example:
        >>> from polyfuse.averaging import ema
        >>> tracking = Tracking({"ema": ema(0.9)}, "ema", {})
        >>> tracking.begin(nn.Linear(2, 1))
        >>> tracking.averages.update()
        >>> with contextlib.closing(tracking):
        ...     tracking.swap_in()
        ...     tracking.swapped
        True
        >>> tracking.swapped
        False
    """

    def __init__(
        self,
        rules: Mapping[str, AveragingRule],
        validate_with: str | None,
        options: Mapping[str, Any],
    ) -> None:
        """Keep them; there is no model yet."""
        if not rules:
            raise PolyfuseError("no rules; for example {'ema': ema(0.999)}")
        self.rules, self.options = dict(rules), dict(options)
        self.validate_with = self.known(validate_with)
        self.averages: Averages | None = None
        self.swapped = False
        self._swap = contextlib.ExitStack()

    def known(self, name: str | None) -> str | None:
        """Return the name of an average, or None; refuse another one.

        Raises:
            PolyfuseError: no average has this name.
        """
        if name is not None and name not in self.rules:
            raise PolyfuseError(
                f"no average is called {printable(name)!r}{did_you_mean(name, self.rules)}; "
                f"known: {', '.join(self.rules)}"
            )
        return name

    def begin(self, model: nn.Module, state: Mapping[str, Any] | None = None) -> None:
        """Take hold of a model, and go on from a state where there is one."""
        self.close()
        self.averages = Averages(model, self.rules, **self.options)
        if state is not None:
            self.averages.load_state_dict(state)

    def of(self) -> Averages:
        """Return the averages.

        Raises:
            PolyfuseError: training has not begun.
        """
        if self.averages is None:
            raise PolyfuseError("there are no averages yet; they begin with training")
        return self.averages

    def has_begun(self, name: str | None) -> bool:
        """Tell whether an average has seen an update."""
        return name is not None and self.averages is not None and self.averages.updates(name) > 0

    def reach(self, epochs: int) -> None:
        """Tell the averages that so many epochs are over, each once."""
        while self.of().epoch < epochs:
            self.of().end_epoch()

    def swap_in(self, *, saving: bool = False) -> None:
        """Put the average to validate with into the model; nothing where it has not begun.

        Args:
            saving: let the model give its state dict meanwhile; else it refuses.
        """
        if self.validate_with is None or self.swapped or not self.has_begun(self.validate_with):
            return
        self._swap.enter_context(self.of().applied(self.validate_with, saving=saving))
        self.swapped = True

    def close(self) -> None:
        """Give the model its own weights back, if an average is in it."""
        self.swapped = False
        self._swap.close()


class Count:
    """Counts samples or tokens of batches, as told by a function of the batch.

    Example:
        >>> count = Count(len)
        >>> count.see([1, 2]), count.see([3]), count.taken(), count.taken()
        (None, None, 3, 0)
    """

    def __init__(self, function: Any) -> None:
        """Start at zero."""
        self.function, self.seen = function, 0

    def see(self, batch: Iterable[Any]) -> None:
        """Add a batch."""
        if self.function is not None:
            self.seen += int(self.function(batch))

    def taken(self) -> int | None:
        """Return what was counted since the last call; None where nothing counts."""
        seen, self.seen = self.seen, 0
        return None if self.function is None else seen
