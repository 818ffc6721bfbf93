"""How long until `polyfuse --help` answers? Floor: `python -c pass`."""

import subprocess
import sys

from measure import in_turn, report

REPEATS = 9
PROGRAMS = {
    "python -c pass": "pass",
    "polyfuse --help": "import sys; sys.argv[1:] = ['--help']; "
    "from polyfuse.cli import main; main()",
    "import polyfuse": "import polyfuse",
    "import torch": "import torch",
    "polyfuse.train is there": "import polyfuse; polyfuse.train",
}


def program(code: str) -> None:
    """Run code in a fresh interpreter."""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Measure and report."""
    subjects = {name: lambda code=code: program(code) for name, code in PROGRAMS.items()}
    seconds = in_turn(subjects, REPEATS)
    report("help", seconds, floor="python -c pass", repeats=REPEATS, facts={})


if __name__ == "__main__":
    main()
