"""Every backend of `crad_kernels` as a fixture."""

import pytest

from crad_kernels import backends
from tests.cases import JUDGE


def _usable(name: str) -> str:
    record = backends()[name]
    if not record.usable:
        pytest.skip(f"backend {name}: {record.reason}")
    return name


@pytest.fixture(params=list(backends()))
def backend(request: pytest.FixtureRequest) -> str:
    """The name of a backend; those that cannot be used here are skipped with their reason."""
    return _usable(request.param)


@pytest.fixture(params=[name for name in backends() if name != JUDGE])
def compiled_backend(request: pytest.FixtureRequest) -> str:
    """The name of a backend that stands on the operators, and is judged by the reference."""
    return _usable(request.param)
