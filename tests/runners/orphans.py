"""Run two jobs that never end in two workers; the test kills this process.

python orphans.py PIPE
"""

import sys
from pathlib import Path

import jobs

from polyfuse.runners.local import LocalRunner

if __name__ == "__main__":
    pipe = Path(sys.argv[1])
    list(LocalRunner(2).map(jobs.wait_for_ever, [pipe, pipe], lambda *seen: None))
