"""The suite's options, what its table shows, and what its JSON keeps."""

import os
from typing import Any

import pytest

from benchmarks.machine import machine
from benchmarks.saved import SECONDS, pack

# The compiler's own processes would start and stop beside what is timed.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Ask for more."""
    parser.addoption("--long", action="store_true", help="run the cases that only plots need, too")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Sort by the median; behind it is its multiple of the first, mostly the floor."""
    config.option.benchmark_columns = ["median", "min", "rounds"]
    config.option.benchmark_sort = "median"
    config.addinivalue_line("markers", "long: runs with --long alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is long, unless it is asked for."""
    if not config.getoption("--long"):
        long = [item for item in items if item.get_closest_marker("long")]
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)


def pytest_benchmark_generate_machine_info() -> dict[str, Any]:
    """The processor, and the versions of what runs on it."""
    return machine()


def pytest_benchmark_generate_commit_info() -> dict[str, Any]:
    """Nothing: it stands beside the versions."""
    return {}


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Keep what a report needs: seconds of the quartiles, and what was timed, as numbers."""
    results = [
        {
            "test": result["fullname"].partition("[")[0],
            "group": result["group"],
            "name": result["name"],
            **result["extra_info"],
            **{name: result["stats"][name] for name in (*SECONDS, "rounds")},
        }
        for result in output_json["benchmarks"]
    ]
    date, about = output_json["datetime"][:10], output_json["machine_info"]
    output_json.clear()
    output_json.update(date=date, machine=about, groups=pack(results))
