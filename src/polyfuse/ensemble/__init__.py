"""Ensemble: members and a combiner as one `nn.Module`."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polyfuse.combine import mean_probability
from polyfuse.ensemble.base import Call, follow, name_of, tracing
from polyfuse.ensemble.choosing import Execution, check_executor
from polyfuse.ensemble.gathering import (
    Gathered,
    Heard,
    check_numbers,
    plain_mean,
    stack,
)
from polyfuse.ensemble.looping import Loop
from polyfuse.ensemble.members import modules_of
from polyfuse.ensemble.offload import device_in, moved, visiting
from polyfuse.ensemble.outputs import selected, selectors
from polyfuse.ensemble.rules import rule_of
from polyfuse.errors import DataError
from polyfuse.inference import evaluating

KINDS = 1000  # of inputs that are remembered


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
        check: look for NaN in means, and say which member it is from. None does so in `predict`,
            not in a call, where it costs a small model dear and a GPU has to be waited for: there
            NaN shows in the answer. Combiners that are no means look by themselves.
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
        check: bool | None = None,
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
        self._known: set[Any] = set()
        self._last: Heard | None = None
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
        kind = None
        if type(inputs) is Tensor and not (more or keywords or return_members or tracing()):
            mode = self.training, torch.is_grad_enabled(), self.executor
            kind = inputs.shape, inputs.dtype, inputs.device, mode
            if kind in self._known and not self.check:
                return self._straight(inputs)
        call, heard = _call(inputs, more, keywords), self._heard()
        if not return_members:
            return self._answer(call, heard, self._outputs(call, heard.numbers), kind)
        stacked = self._stack(call)
        return self._answer(call, heard, [stacked[n] for n in heard.numbers]), stacked

    def logits(self, inputs: Any = None, *more: Any, **keywords: Any) -> Tensor:
        """Return every member's logits, `(member, n, ..., classes)`."""
        return self._stack(_call(inputs, more, keywords))

    def chosen(self, inputs: Any = None, *more: Any, **keywords: Any) -> str:
        """Return how these inputs are run, "loop" or "vmap"; measured where it was not yet.

        Example:
            >>> Ensemble([nn.Linear(4, 3), nn.Linear(4, 2)]).chosen(torch.zeros(5, 4))
            'loop'
        """
        if self._loops() or self.executor != "auto":
            return "loop" if self._loops() else self.executor
        call, numbers = _call(inputs, more, keywords), self._heard().numbers
        return self._execution(numbers).choose(call, self._loop(call, numbers))

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

    def _straight(self, inputs: Tensor) -> Tensor:
        """Return the mean of small outputs of a loop by the shortest way: the rest is known."""
        members: Any = self._modules["members"]
        outputs: list[Any] = []
        try:
            for member in members._modules.values():
                output = member(inputs)
                outputs.append(output if type(output) is Tensor else selected(output, None))
        except Exception as error:
            self._loop(Call((inputs,), {}), ()).explain(len(outputs), error)
            raise
        if len(outputs) != len(self.names):
            self._loop(Call((inputs,), {}), ())  # says so
        return plain_mean(outputs, self.rule, self.names)

    def _answer(self, call: Call, heard: Heard, outputs: Iterable[Any], kind: Any = None) -> Tensor:
        """Combine outputs, look whether they are numbers, and note what may go straight next time.

        Args:
            call: what the members got.
            heard: who answers.
            outputs: theirs, as they come.
            kind: of a single input.
        """
        gathered = self._gathered(heard).taking(outputs)
        answer = gathered.answer()
        if self.check and not tracing():
            self._look(answer, call, heard)
        elif kind and gathered.plain and type(outputs) is Loop and len(self._known) < KINDS:
            self._known |= {kind} if all(one is None for one in self.select) else set()
        return answer

    def _look(self, answer: Tensor, call: Call, heard: Heard) -> None:
        """Look for NaN in a mean; other combiners have looked."""
        if self.rule.mean is not None:
            check_numbers(answer, self._loop(call, heard.numbers), heard.names)

    def _gathered(self, heard: Heard) -> Gathered:
        """Return an empty gathering of these members."""
        calibrators: Sequence[nn.Module] = ()
        if self.rule.calibrators:
            calibrators = list(self.calibrators)
        if self.rule.per_member:
            calibrators = [calibrators[number] for number in heard.numbers]
        running = self.offload is not None
        return Gathered(self.rule, self.combiner, heard, calibrators, running=running)

    def _stack(self, call: Call) -> Tensor:
        numbers = tuple(range(len(self.members)))
        return stack(list(self._outputs(call, numbers)), self.names)

    def _outputs(self, call: Call, numbers: tuple[int, ...]) -> Iterable[Any]:
        """Return the logits of these members, or what is wrong with their outputs."""
        loop = self._loop(call, numbers)
        if tracing():
            return loop.traced()
        if self.executor == "loop" or self._loops():
            return loop
        stacked = self._execution(numbers).run(call, self.executor, loop)
        return loop if stacked is None else stacked.unbind(0)

    def _loops(self) -> bool:
        """Tell whether it is the loop, whatever the executor."""
        # A replica of DataParallel has no names for its parameters.
        return self.offload is not None or "_is_replica" in self.__dict__

    def _execution(self, numbers: tuple[int, ...]) -> Execution:
        found, members = self._executions.get(numbers), list(self.members)
        chosen = [members[number] for number in numbers]
        if found is None or found.members != chosen:
            found = Execution(chosen, [self.select[number] for number in numbers])
            self._executions[numbers] = found
        return found

    def _loop(self, call: Call, numbers: Sequence[int]) -> Loop:
        members: Any = self._modules["members"]
        each = list(members._modules.values())
        if len(each) != len(self.names):
            raise DataError(
                f"this ensemble was made of {len(self.names)} members and has {len(each)} now; "
                "make a new one of the members that count"
            )
        return Loop(each, self.select, numbers, call, self.offload)

    def _passes(self, batches: Iterable[Any], call: Callable[[Any], Call]) -> list[Tensor]:
        """Return each batch's answer, one batch after the other."""
        heard, answers = self._heard(), []
        for batch in batches:
            asked = call(batch)
            answer = self._answer(asked, heard, self._outputs(asked, heard.numbers))
            if self.check is None:
                self._look(answer, asked, heard)
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
                    output = self._loop(call(batch), heard.numbers).one(number)
                    so_far.add(moved(output, self.offload))
        answers = [so_far.answer() for so_far in gathered]
        for batch, answer in zip(kept, answers, strict=True):
            if self.check is not False:
                self._look(answer, call(batch), heard)
        return [answer.cpu() for answer in answers]

    def _device(self) -> torch.device | None:
        return next((p.device for p in self.members.parameters()), None)

    def _heard(self) -> Heard:
        """Return the members that have a weight; looked up again when the weights are others."""
        weights = self._buffers["weights"]
        if weights is None:
            return self._everyone
        if self.rule.mean is None or tracing():
            return self._everyone._replace(weights=weights)
        version = None if weights.is_inference() else (id(weights), weights._version)
        if self._last is None or version is None or self._last.version != version:
            rows = weights.tolist()
            said = [any(row) if isinstance(row, list) else bool(row) for row in rows]
            numbers = tuple(number for number, says in enumerate(said) if says)
            chosen = weights if all(said) else weights[list(numbers)]
            names, shares = [self.names[n] for n in numbers], [rows[n] for n in numbers]
            self._last = Heard(numbers, names, chosen, shares, version)
        return self._last

    def _note_weights(self) -> None:
        """Keep the weights as numbers, too: in a graph all but means want constants."""
        weights, everyone = self._buffers["weights"], tuple(range(len(self.names)))
        shares = None if weights is None or weights.is_meta else weights.tolist()
        self._everyone = Heard(everyone, self.names, None, shares)

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
        return {**self.__dict__, "_executions": {}, "_known": set(), "_last": None}


def _call(inputs: Any, more: tuple[Any, ...], keywords: dict[str, Any]) -> Call:
    alone = inputs is None and not more and keywords
    return Call(() if alone else (inputs, *more), keywords)


def _call_of(batch: Any) -> Call:
    """Return a batch as the arguments of the members."""
    if isinstance(batch, dict):
        return Call((), batch)
    return Call(tuple(batch) if isinstance(batch, list | tuple) else (batch,), {})
