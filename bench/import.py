"""What `import muontrap` costs, and a script that runs one command."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

from rivals import BASE, Report, interleave, timed

# As installed: compiled once, by the first run.
ENV = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
TIMED = "import time; start = time.perf_counter(); {}; print((time.perf_counter() - start) * 1000)"


def in_new_interpreter(statement: str) -> float:
    """Milliseconds of the statement, measured by the interpreter that executes it."""
    argv = [sys.executable, "-c", TIMED.format(statement)]
    return float(subprocess.run(argv, capture_output=True, check=True, env=ENV).stdout)


def script(statement: str) -> float:
    return timed(partial(subprocess.run, [sys.executable, "-c", statement], check=True, env=ENV))


def main() -> None:
    report = Report("Imports and one-shot scripts, each in a new interpreter.", seconds=10)
    imports = (
        "import subprocess",
        "import muontrap",
        "from muontrap import run",
        "from muontrap import Launcher",
    )
    samples = interleave({text: partial(in_new_interpreter, text) for text in imports}, report.seconds)
    cost = report.section("import", samples, base=imports[0])
    scripts = {
        BASE: partial(script, "import subprocess; subprocess.run(['/bin/true'])"),
        "muontrap.run": partial(script, "import muontrap; muontrap.run(['/bin/true'])"),
        "an empty script": partial(script, ""),
    }
    whole = report.section("a script that runs /bin/true, whole", interleave(scripts, report.seconds))
    report.goal("import muontrap, ratio to import subprocess", cost[imports[1]] / cost[imports[0]], 1.5)
    report.goal("one-shot script, ms more than with subprocess", whole["muontrap.run"] - whole[BASE], 40)
    report.end()


if __name__ == "__main__":
    main()
