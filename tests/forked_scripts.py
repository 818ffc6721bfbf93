"""Run scripts as `python SCRIPT` does, in forks of a process that has imported what is dear.

    python forked_scripts.py

Each line that it is given is JSON, a list of what is to run at the same time: a script and its
arguments, the working folder, and the files for its output and its errors. The answer is the list
of their exit statuses. Nothing of polyfuse is imported before a script does it. One core is all
there is: a script that starts one process a core, each of which imports torch, starts one.
"""

import importlib
import json
import os
import runpy
import sys
import traceback

DEAR = "torch.profiler", "torch._dynamo", "lightning_fabric", "sklearn.model_selection"


def become(words: list[str], folder: str, output: str, errors: str) -> None:
    """Turn this process into one that was started with a script."""
    os.chdir(folder)
    for number, file in ((0, os.devnull), (1, output), (2, errors)):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
    sys.argv, sys.path[0] = words, os.path.dirname(words[0])
    try:
        runpy.run_path(words[0], run_name="__main__")
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def main() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    for name in DEAR:
        importlib.import_module(name)
    for line in sys.stdin:
        children = []
        for order in json.loads(line):
            children.append(os.fork())
            if children[-1] == 0:
                become(*order)
                return
        ends = [os.waitpid(child, 0)[1] for child in children]
        print(json.dumps([os.waitstatus_to_exitcode(end) for end in ends]), flush=True)
    os._exit(0)  # there is nothing to tidy up, and doing so takes a second


if __name__ == "__main__":
    main()
