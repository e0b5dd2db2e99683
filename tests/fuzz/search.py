"""Drawing cases until the time is over; what fails is made smaller, and told once."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import HypothesisException
from hypothesis.strategies import SearchStrategy

from tests.fuzz.harness import Problem

_ROUND = 500  # cases, after which another seed is taken
_SHORT = 60  # seconds of a search that makes no case smaller


@dataclass(frozen=True)
class Fuzzer:
    """A search for cases in which a property does not hold.

    Attributes:
        cases: what is drawn.
        check: what is wrong in a case.
        examples: cases that failed once; every search begins with them.
        shrink_seconds: how long a case that fails is made smaller; 0 leaves it as it is.
    """

    cases: SearchStrategy[Any]
    check: Callable[[Any], Iterable[Problem]]
    examples: Sequence[Any] = ()
    shrink_seconds: float = 10.0


@dataclass
class Finding:
    """A fault, and the smallest case that shows it."""

    problem: Problem
    case: Any
    times: int = 0


class _Fails(Exception):  # noqa: N818, it is a result
    """A case fails."""


def search(fuzzer: Fuzzer, seconds: float, first_seed: int = 0) -> dict[str, Finding]:
    """Run all examples, then draw cases for what is left of the time; print what fails, once.

    The same seed draws the same cases; how many depends on the machine.
    """
    findings: dict[str, Finding] = {}
    count, round_ = 0, first_seed
    shrinks = fuzzer.shrink_seconds > 0 and seconds > _SHORT

    def run(case: Any) -> tuple[list[Problem], list[Problem]]:
        """All problems of a case, and those that are new."""
        nonlocal count
        count += 1
        problems = list(fuzzer.check(case))
        new = [problem for problem in problems if problem.key not in findings]
        for problem in problems:
            findings.setdefault(problem.key, Finding(problem, case)).times += 1
        for problem in new:
            tell(findings[problem.key])
        return problems, new

    end = time.monotonic() + seconds
    for example in fuzzer.examples:
        run(example)
    while time.monotonic() < end:
        pinned: str | None = None
        shrink_end = end

        def try_case(case: Any) -> None:
            nonlocal pinned, shrink_end
            if time.monotonic() > min(end, shrink_end):
                return
            problems, new = run(case)
            quick = [problem for problem in new if not problem.key.startswith("hangs")]
            if shrinks and pinned is None and quick:
                pinned = quick[0].key
                shrink_end = time.monotonic() + fuzzer.shrink_seconds
            for problem in problems:
                if problem.key == pinned:  # those drawn while shrinking are ever smaller
                    findings[pinned].problem, findings[pinned].case = problem, case
                    raise _Fails

        search_once = settings(
            database=None,
            deadline=None,
            max_examples=_ROUND,
            phases=(Phase.generate, Phase.shrink),
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )(seed(round_)(given(fuzzer.cases)(try_case)))
        try:
            search_once()
        except _Fails:
            pass
        except HypothesisException:  # as the time was over, a case that failed no longer does
            if pinned is None:
                raise
        if pinned is not None:
            print("smaller:", flush=True)
            tell(findings[pinned])
        round_ += 1
    print(f"{count} cases, {len(findings)} findings", flush=True)
    for finding in findings.values():
        print(f"  {finding.times} x {finding.problem.key}", flush=True)
    return findings


def tell(finding: Finding) -> None:
    """Print a finding, and the case to reproduce it with ``--case``."""
    indented = finding.problem.detail.strip().replace("\n", "\n    ")
    print(f"FINDING {finding.problem.key}\n  case: {finding.case!r}\n    {indented}", flush=True)
