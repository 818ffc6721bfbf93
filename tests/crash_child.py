"""A forked process that takes orders: it may fail or be killed, and its parent goes on."""

import json
import os
import signal
import traceback
from collections.abc import Callable
from typing import IO, Any, ClassVar


class Child:
    """A forked process that carries out one order after the other, until it is ended or killed."""

    running: ClassVar[list["Child"]] = []

    def __init__(self, work: Callable[..., Any]) -> None:
        orders, ordering = os.pipe()
        answering, answers = os.pipe()
        self.pid = os.fork()
        ours = (ordering, answering) if self.pid else (answers, orders)
        for end in {orders, ordering, answering, answers} - {*ours}:
            os.close(end)
        writing, reading = ours
        self.writing: IO[str] = os.fdopen(writing, "w")
        self.reading: IO[str] = os.fdopen(reading)
        self.status: int | None = None
        if self.pid == 0:
            self._serve(work)
        self.running.append(self)

    def _serve(self, work: Callable[..., Any]) -> None:
        try:
            for other in self.running:  # a pipe ends when nobody else has it open
                other._close()
            self.running.clear()
            for order in self.reading:
                print(json.dumps(outcome(work, json.loads(order))), file=self.writing, flush=True)
        finally:
            os._exit(0)

    def ask(self, *order: Any) -> Any:
        """Give an order; return the value, or None where SIGKILL ended the child."""
        print(json.dumps(order), file=self.writing, flush=True)
        text = self.reading.readline()
        if not text:
            status = self.end()
            if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
                raise AssertionError(f"a child ended with status {status}")
            return None
        answer = json.loads(text)
        if "crash" in answer:
            raise AssertionError(answer["crash"])
        return answer["value"]

    def end(self) -> int:
        """End the child, if that has not been done; return its status."""
        if self.status is None:
            self.running.remove(self)
            self._close()
            self.status = os.waitpid(self.pid, 0)[1]
        return self.status

    def _close(self) -> None:
        self.writing.close()
        self.reading.close()


def outcome(work: Callable[..., Any], order: list[Any]) -> dict[str, Any]:
    """Carry out an order; return its value, or where it crashed."""
    try:
        return {"value": work(*order)}
    except BaseException:
        return {"crash": traceback.format_exc()}
