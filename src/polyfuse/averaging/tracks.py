"""One average of several: its rule, its memory, how far it has come, and when it is due."""

from collections.abc import Mapping

from torch import Tensor

from polyfuse.averaging.base import AveragingRule, Moment, Timing, checked
from polyfuse.averaging.shadows import Shadow, Share, Slot
from polyfuse.errors import PolyfuseError, printable

COUNTERS = ("updates", "last", "copied", "begun", "samples", "tokens")


class Track:
    """An average and its counters.

    Args:
        rule: how it follows the weights.
        default: times, where the rule has none.
        slots: where its tensors lie.

    Attributes:
        updates: so far, the initial copy included.
        last: the step of the latest update, counted from where the averaging began.
        copied: the step of the initial copy.
        begun: steps and epochs before the averaging began; None until then.
        samples: since the latest update; None where they are not counted.
        tokens: likewise.
        statistics: of batch-norm, by the buffers' names, where they were measured anew.
    """

    def __init__(self, rule: AveragingRule, default: Timing, slots: Mapping[str, Slot]) -> None:
        """Allocate the memory."""
        given = {key: value for key, value in rule.timing._asdict().items() if value is not None}
        self.rule = rule
        self.timing = checked(default._replace(**given))
        self.updates = self.last = self.copied = 0
        self.begun: list[int] | None = None
        self.samples: int | None = 0
        self.tokens: int | None = 0
        self.statistics: dict[str, Tensor] = {}
        self.loose: dict[str, Tensor] = {}  # what a custom rule keeps
        self.slots = slots
        self.shadow = Shadow({} if self.is_loose else slots, max(rule.window, 1))

    @property
    def is_loose(self) -> bool:
        """Tell whether the rule is called tensor by tensor, and keeps what it likes."""
        return self.rule.weight is None and not self.rule.window

    @property
    def is_plain(self) -> bool:
        """Tell whether the memory is the average itself."""
        return self.rule.weight is not None

    def count(self, samples: int | None, tokens: int | None) -> None:
        """Count what a step has seen."""
        self.samples = _sum(self.samples, samples)
        self.tokens = _sum(self.tokens, tokens)

    def is_due(self, step: int, epoch: int, *, end: bool = False) -> bool:
        """Tell whether to update after a step, or at the end of an epoch."""
        every = self.timing.update_every
        starts = step > (self.timing.start_step or 0) and epoch >= (self.timing.start_epoch or 0)
        if self.begun is None and starts and not end:
            self.begun = [step - 1, epoch]
        if self.begun is None or (every == "epoch") != end:
            return False
        return end or (step - self.begun[0]) % int(every or 1) == 0

    def moment(self, step: int, epoch: int) -> Moment:
        """Return the moment of an update that is due."""
        assert self.begun is not None
        now = step - self.begun[0]
        copied = self.copied if self.updates else now
        counts = self.samples, self.tokens
        return Moment(
            self.updates, now, now - self.last, copied, epoch - self.begun[1] + 1, *counts
        )

    def share(self, moment: Moment) -> Share:
        """Return what the memory takes of the values at a moment."""
        if self.rule.window:
            return Share(self.shadow, moment.n % self.rule.window, 1.0)
        assert self.rule.weight is not None
        return Share(self.shadow, 0, self.rule.weight(moment) if moment.n else 1.0)

    def take_loose(self, tensors: Mapping[str, Tensor], moment: Moment) -> None:
        """Let a custom rule take in the values, tensor by tensor."""
        rule = self.rule
        for name, tensor in tensors.items():
            device, dtype = self.slots[name].bucket
            values = tensor.to(device, dtype, copy=True)
            new = rule.update(self.loose[name], values, moment) if moment.n else rule.init(values)
            if rule.value is None and new.shape != tensor.shape:
                raise PolyfuseError(
                    f"the custom rule made {tuple(new.shape)} of '{printable(name)}', which is "
                    f"{tuple(tensor.shape)}; return the average, of the tensor's shape"
                )
            self.loose[name] = new

    def advance(self, moment: Moment) -> None:
        """Count an update; statistics that were measured before it are of the past."""
        self.updates += 1
        self.last, self.copied = moment.step, moment.copied
        self.samples = self.tokens = 0
        self.statistics = {}

    def value(self, name: str) -> Tensor:
        """Return a tensor of the average, as local values; it may share the memory."""
        if self.is_plain:
            return self.shadow.view(name)
        kept = self.loose[name] if self.is_loose else self.shadow.views(name)
        return self.rule.value(kept, self.updates - 1) if self.rule.value else kept

    def rows(self) -> list[dict[str, Tensor]]:
        """Return all that is kept, by name; it shares the memory."""
        if self.is_loose:
            return [self.loose]
        shadow, names = self.shadow, self.slots
        return [{name: shadow.view(name, row) for name in names} for row in range(shadow.rows)]

    def move(self, slots: Mapping[str, Slot]) -> None:
        """Lay the memory out anew, for a model that went to another device."""
        if slots == self.slots:
            return
        self.slots = slots
        if self.is_loose:
            self.loose = {n: t.to(*slots[n].bucket) for n, t in self.loose.items()}
            return
        old, self.shadow = self.shadow, Shadow(slots, self.shadow.rows)
        self.shadow.copy(old)


def _sum(before: int | None, more: int | None) -> int | None:
    return None if before is None or more is None else before + more
