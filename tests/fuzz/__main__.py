"""``python -m tests.fuzz NAME``: search for cases in which crad does what it must not."""

import argparse
import importlib
import sys

from tests.fuzz.search import Finding, search, tell

NAMES = ("layouts", "options", "checkpoints", "interrupts")


def main() -> int:
    """Run a fuzzer, or one of its cases again; 1 if a property does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="the same one draws the same cases")
    parser.add_argument("--case", help="run this case, as it was printed, instead of a search")
    options = parser.parse_args()
    module = importlib.import_module(f"tests.fuzz.{options.name}")
    if not options.case:
        return 1 if search(module.FUZZER, 60 * options.minutes, options.seed) else 0
    case = eval(options.case, vars(module))
    problems = list(module.FUZZER.check(case))
    for problem in problems:
        tell(Finding(problem, case))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
