"""Run two jobs that never end in two processes; the test kills this one.

python orphans.py PIPE
"""

import sys
from pathlib import Path

import jobs

from polyfuse.runners.base import Attempts
from polyfuse.runners.processes import Crew

if __name__ == "__main__":
    pipe = Path(sys.argv[1])
    crew = Crew(jobs.wait_for_ever, [pipe, pipe], lambda *seen: None, Attempts(), ())
    list(crew.results(2))
