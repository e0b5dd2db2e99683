"""What the table of pytest-benchmark shows."""

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Sort peers by their time, with the ratio to the fastest behind it."""
    config.option.benchmark_columns = ["min", "median", "rounds"]
    config.option.benchmark_sort = "min"
