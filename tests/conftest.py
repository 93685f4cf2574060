"""Options and fixtures shared by every test."""

from __future__ import annotations

import os

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where kernel tests run")


def pytest_configure(config: pytest.Config) -> None:
    # Triton reads this when it is imported, so it is set before any test module is: on the CPU the
    # kernels run in Triton's interpreter. Ahead-of-time compilation happens in processes without it.
    if config.getoption("--device") == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--device"))
