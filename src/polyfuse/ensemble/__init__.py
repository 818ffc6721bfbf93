"""Ensemble: members and a combiner as one `nn.Module`."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from polyfuse.combine import mean_probability
from polyfuse.ensemble.base import Call, follow, name_of, tracing
from polyfuse.ensemble.choosing import Execution, check_executor
from polyfuse.ensemble.gathering import Gathered, check_numbers
from polyfuse.ensemble.members import check_places, modules_of
from polyfuse.ensemble.offload import device_in, moved, visiting
from polyfuse.ensemble.outputs import Kind, check_same, selected, selectors
from polyfuse.ensemble.rules import rule_of
from polyfuse.errors import DataError
from polyfuse.inference import evaluating


class _Heard(NamedTuple):
    """The members that have a weight."""

    numbers: tuple[int, ...]
    weights: Tensor | None
    shares: list[Any] | None
    key: tuple[int, int] | None


class Ensemble(nn.Module):
    """Trained members of any kind that answer as one.

    A member without a weight is not run. Means of small outputs are taken of one stack, those of
    large ones are added up member by member; both equal the combiner's own answer but for rounding.

    Args:
        members: modules, or functions, that map the same inputs to logits `(n, ..., classes)` (or
            to whatever the combiner takes); they may differ, and may share submodules.
        combiner: maps `(member, n, ..., classes)` logits to the answer `(n, ...)`: a function, a
            module, a name in `COMBINERS`, or `package.module:function`. Or what was fitted:
            `GreedySelection`, `SimplexWeights`, `CalibratedPool`, any object with `weights_`, or an
            array of weights: these take means of probabilities.
        weights: `(member,)`, 0 or more; equal where None.
        select: where logits lie in what members return: an index, a key or attribute, a function
            of it, or a list of these, one a member. Tensors need none.
        executor: "loop"; "vmap" of members of one architecture; "auto" measures both once for
            each kind of input, without gradients, and takes the faster. What is compiled or
            exported loops.
        offload: the device where members rest: each comes to the inputs' device for its turn only.
        check: look for NaN in means and say which member it is from; on a GPU this waits for the
            answer.
        **options: of the combiner.

    Raises:
        DataError: no members, or what is no member; an unknown combiner or option; weights that do
            not fit; `executor="vmap"` for members that differ.

    Example:
        >>> two = Ensemble([nn.Linear(4, 3), nn.Linear(4, 3)], weights=[3, 1])
        >>> two(torch.zeros(5, 4)).shape
        torch.Size([5, 3])
    """

    weights: Tensor | None

    def __init__(
        self,
        members: Iterable[Callable[..., Any]],
        combiner: Any = mean_probability,
        *,
        weights: Any = None,
        select: Any = None,
        executor: str = "auto",
        offload: str | torch.device | None = None,
        check: bool = True,
        **options: Any,
    ) -> None:
        """Keep the members as submodules, so that `.to()` and `.eval()` reach them."""
        super().__init__()
        self.members = nn.ModuleList(modules_of(members))
        self.select = selectors(select, len(self.members))
        check_executor(executor, list(self.members), self.select)
        self.executor, self.check = executor, check
        self.rule = rule_of(combiner, weights, options, len(self.members))
        self.combiner = self.rule.combiner
        self.calibrators = nn.ModuleList(self.rule.calibrators)
        self.register_buffer("weights", self.rule.weights)
        self.names = [name_of(number, member) for number, member in enumerate(self.members)]
        self.offload = None if offload is None else torch.device(offload)
        self._executions: dict[tuple[int, ...], Execution] = {}
        self._last: _Heard | None = None
        self._note_weights()
        if self.offload is not None:
            self.members.to(self.offload)

    def forward(
        self, inputs: Any = None, *more: Any, return_members: bool = False, **keywords: Any
    ) -> Any:
        """Return the combined answer; every member gets the same arguments.

        Args:
            inputs: a tensor, or whatever members take first.
            *more: further arguments of the members.
            return_members: return the members' logits, too.
            **keywords: of the members, as in `ensemble(**batch)`.

        Returns:
            The answer `(n, ...)`; with `return_members` the pair (answer, logits
            `(member, n, ..., classes)`).

        Raises:
            DataError: outputs that differ or are no tensors, a combiner that returns something
                else than an answer a sample, NaN.
        """
        call = _call(inputs, more, keywords)
        heard = self._heard()
        if return_members:
            outputs: Iterable[Any] = self._stack(call).unbind(0)
            each = [output for i, output in enumerate(outputs) if i in heard.numbers]
            return self._answer(call, heard, each), torch.stack(list(outputs))
        return self._answer(call, heard, self._outputs(call, heard.numbers))

    def logits(self, inputs: Any = None, *more: Any, **keywords: Any) -> Tensor:
        """Return every member's logits, `(member, n, ..., classes)`."""
        return self._stack(_call(inputs, more, keywords))

    def chosen(self, inputs: Any = None, *more: Any, **keywords: Any) -> str:
        """Return how these inputs are run, "loop" or "vmap"; measured where it was not yet.

        Example:
            >>> Ensemble([nn.Linear(4, 3), nn.Linear(4, 2)]).chosen(torch.zeros(5, 4))
            'loop'
        """
        if self.executor != "auto" or self._loops():
            return "loop" if self._loops() else self.executor
        call, numbers = _call(inputs, more, keywords), self._heard().numbers
        return self._execution(numbers).choose(call, lambda: list(self._loop(call, numbers)))

    def predict(
        self,
        batches: Iterable[Any],
        *,
        device: str | torch.device | None = None,
        inputs: Callable[[Any], Any] | None = None,
    ) -> Tensor:
        """Return the answers to all batches, in eval mode without gradients.

        With `offload`, each member comes to the device once, for all batches. A sequence of
        batches is then read once a member; other iterables, such as a DataLoader, are read once
        and kept, so that all members see the same rows.

        Args:
            batches: of tensors; tuples or lists, which are the members' arguments in turn; or
                dicts, which are their keyword arguments.
            device: where to compute; by default where the members are, or with `offload` where the
                batches are.
            inputs: what to take of a batch, as in `lambda batch: batch[0]` where labels come along.

        Returns:
            `(n, ...)` on the CPU.

        Raises:
            DataError: no batches, and as `forward`.

        Example:
            >>> one = Ensemble([nn.Linear(4, 3)])
            >>> one.predict([torch.zeros(5, 4), torch.zeros(2, 4)]).shape
            torch.Size([7, 3])
        """
        place = device if self.offload is not None else device or self._device()
        place = None if place is None else torch.device(place)

        def call(batch: Any) -> Call:
            return _call_of(moved(inputs(batch) if inputs else batch, place))

        with evaluating(self):
            answers = self._turns(batches, call) if self.offload else self._passes(batches, call)
        if not answers:
            raise DataError("there are no batches to predict; a generator gives them only once")
        return torch.cat(answers)

    def extra_repr(self) -> str:
        """Return combiner, weights and executor, with what was measured."""
        said = [f"combiner={self.rule.name}", f"executor={self.executor!r}"]
        if self.weights is not None and self.weights.ndim == 1:
            said.append(f"weights={[round(w, 4) for w in self.weights.tolist()]}")
        chosen = [how for run in self._executions.values() for how in run.choices.values()]
        if chosen:
            said.append(f"chosen={', '.join(chosen)}")
        return ", ".join(said)

    def _answer(self, call: Call, heard: _Heard, outputs: Iterable[Any]) -> Tensor:
        """Combine outputs, and look whether they are numbers."""
        gathered = self._gathered(heard)
        for output in outputs:
            gathered.add(output)
        answer = gathered.answer()
        if self.check and self.rule.mean is not None and not tracing():
            self._check(answer, call, heard.numbers)
        return answer

    def _check(self, answer: Tensor, call: Call, numbers: Sequence[int]) -> None:
        names = [self.names[number] for number in numbers]
        check_numbers(answer, lambda: list(self._loop(call, numbers)), names)

    def _gathered(self, heard: _Heard) -> Gathered:
        """Return an empty gathering of these members."""
        calibrators = list(self.calibrators)
        if self.rule.per_member:
            calibrators = [calibrators[number] for number in heard.numbers]
        return Gathered(
            self.rule,
            self.combiner,
            [self.names[number] for number in heard.numbers],
            weights=heard.weights,
            shares=heard.shares,
            calibrators=calibrators,
            running=self.offload is not None,
        )

    def _stack(self, call: Call) -> Tensor:
        outputs = list(self._outputs(call, tuple(range(len(self.members)))))
        check_same([o if isinstance(o, str) else Kind.of(o) for o in outputs], self.names)
        return torch.stack(outputs)

    def _outputs(self, call: Call, numbers: tuple[int, ...]) -> Iterable[Any]:
        """Return the logits of these members, or what is wrong with their outputs."""
        if self.executor == "loop" or self._loops():
            return self._loop(call, numbers)
        execution = self._execution(numbers)
        loop = self._loop(call, numbers)
        stacked = execution.run(call, self.executor, lambda: list(self._loop(call, numbers)))
        return loop if stacked is None else stacked.unbind(0)

    def _loops(self) -> bool:
        """Tell whether it is the loop, whatever the executor."""
        # A replica of DataParallel has no names for its parameters.
        return self.offload is not None or tracing() or getattr(self, "_is_replica", False)

    def _execution(self, numbers: tuple[int, ...]) -> Execution:
        if numbers not in self._executions:
            members, select = list(self.members), self.select
            chosen = [members[number] for number in numbers]
            self._executions[numbers] = Execution(chosen, [select[n] for n in numbers])
        return self._executions[numbers]

    def _loop(self, call: Call, numbers: Sequence[int]) -> Iterator[Any]:
        members = list(self.members)
        if tracing():
            return iter([selected(call.of(members[n]), self.select[n]) for n in numbers])
        self._check_offloaded()
        return (self._one(members[number], number, call) for number in numbers)

    def _one(self, member: nn.Module, number: int, call: Call) -> Any:
        """Run one member.

        Raises:
            DataError: it failed, and the members are of several dtypes or devices.
        """
        try:
            if self.offload is None:
                return selected(member(*call.inputs, **call.keywords), self.select[number])
            with visiting(member, device_in(call) or self.offload, self.offload):
                return selected(call.of(member), self.select[number])
        except Exception as error:
            check_places(self.members)
            error.add_note(f"raised by {self.names[number]} of an ensemble")
            raise

    def _check_offloaded(self) -> None:
        if self.offload is not None and torch.is_grad_enabled():
            raise DataError(
                "an ensemble with offload= only predicts: call it under torch.no_grad(), or call "
                "predict(batches)"
            )

    def _passes(self, batches: Iterable[Any], call: Callable[[Any], Call]) -> list[Tensor]:
        """Return each batch's answer, one batch after the other."""
        heard, answers = self._heard(), []
        for batch in batches:
            asked = call(batch)
            answer = self._answer(asked, heard, self._outputs(asked, heard.numbers))
            answers.append(answer.cpu())
        return answers

    def _turns(self, batches: Iterable[Any], call: Callable[[Any], Call]) -> list[Tensor]:
        """Return each batch's answer, one member after the other: each is moved once."""
        assert self.offload is not None
        kept = batches if isinstance(batches, Sequence) else list(batches)
        if not len(kept):
            return []
        heard = self._heard()
        gathered = [self._gathered(heard) for _ in kept]
        members = list(self.members)
        for number in heard.numbers:
            device = device_in(call(kept[0])) or self.offload
            with visiting(members[number], device, self.offload):
                for batch, so_far in zip(kept, gathered, strict=True):
                    output = selected(call(batch).of(members[number]), self.select[number])
                    so_far.add(moved(output, self.offload))
        answers = [so_far.answer() for so_far in gathered]
        if self.check and self.rule.mean is not None:
            for batch, answer in zip(kept, answers, strict=True):
                self._check(answer, call(batch), heard.numbers)
        return [answer.cpu() for answer in answers]

    def _device(self) -> torch.device | None:
        return next((p.device for p in self.members.parameters()), None)

    def _heard(self) -> _Heard:
        """Return the members that have a weight; looked up again when the weights are others."""
        weights = self.weights
        if weights is None or tracing() or self.rule.mean is None:
            return _Heard(tuple(range(len(self.members))), weights, self._constants, None)
        key = None if weights.is_inference() else (id(weights), weights._version)
        if self._last is None or self._last.key is None or self._last.key != key:
            rows = weights.tolist()
            said = [any(row) if isinstance(row, list) else bool(row) for row in rows]
            numbers = tuple(number for number, says in enumerate(said) if says)
            chosen = weights if all(said) else weights[list(numbers)]
            self._last = _Heard(numbers, chosen, [rows[number] for number in numbers], key)
        return self._last

    def _note_weights(self) -> None:
        """Keep the weights as numbers for graphs: combiners that are no means want constants."""
        self._constants: list[float] | None = None
        if self.weights is not None and self.weights.device.type != "meta":
            self._constants = self.weights.tolist()

    def _load_from_state_dict(self, *given: Any) -> None:
        super()._load_from_state_dict(*given)
        self._note_weights()

    def _apply(self, fn: Any, recurse: bool = True) -> "Ensemble":
        """Move and cast the members; the weights keep their precision."""
        weights = self._buffers.pop("weights")
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._buffers["weights"] = follow(weights, fn)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for copies, which measure for themselves."""
        return {**self.__dict__, "_executions": {}, "_last": None}


def _call(inputs: Any, more: tuple[Any, ...], keywords: dict[str, Any]) -> Call:
    alone = inputs is None and not more and keywords
    return Call(() if alone else (inputs, *more), keywords)


def _call_of(batch: Any) -> Call:
    """Return a batch as the arguments of the members."""
    if isinstance(batch, dict):
        return Call((), batch)
    return Call(tuple(batch) if isinstance(batch, list | tuple) else (batch,), {})
