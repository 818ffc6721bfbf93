"""Take one result of three, and end with the others pending: python left_open.py"""

import jobs

from polyfuse.runners.base import Attempts
from polyfuse.runners.processes import Crew

if __name__ == "__main__":
    results = Crew(jobs.double, [1, 2, 3], lambda *seen: None, Attempts(), ()).results(2)
    print(next(results).error)
