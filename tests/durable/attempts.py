"""What tests of drafts share: attempts that are stopped, calls that are watched or fail."""

import os

import pytest

from polyfuse import durable

ONE, PAIR = {"": 8}, {"a": 4, "b": 4}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def interrupted(path, sizes=ONE, kind=KeyboardInterrupt, claims=1, **options):
    """Begin a draft, claim its first four bytes, write some more, and stop."""
    first = next(iter(sizes))

    def attempt():
        with durable.draft(path, sizes, key="k", **options) as output:
            output.write(first, 0, b"0123")
            for number in range(claims):
                output.claim(number)
            if first == "":
                output.write("", 4, b"??")
            raise kind("stop")

    with pytest.raises(kind) as caught:
        attempt()
    return caught.value


def spying(monkeypatch, *calls):
    seen = []
    for call in calls:
        real = getattr(os, call)
        monkeypatch.setattr(
            os, call, lambda *given, call=call, real=real: (seen.append(call), real(*given))[1]
        )
    return seen


def failing(monkeypatch, call, *, after=0):
    """Let a system call fail as a failing disk does, once it was called a few times."""
    real, count = getattr(os, call), iter(range(1000))

    def refuse(*given):
        if next(count) >= after:
            raise OSError(5, "Input/output error")
        return real(*given)

    monkeypatch.setattr(os, call, refuse)


def one_draft(path):
    with durable.draft(path, ONE, key="k") as output:
        output.write("", 0, b"0123")
        output.claim(1)


def read(output, name, offset, length):
    """Return bytes of a draft."""
    buffer = bytearray(length)
    output.read_into(name, offset, memoryview(buffer))
    return bytes(buffer)
