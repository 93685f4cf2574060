"""Options and fixtures shared by every test."""

from __future__ import annotations

import importlib
import os
import subprocess
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

Done = subprocess.CompletedProcess[str]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where kernel tests run")


def pytest_configure(config: pytest.Config) -> None:
    # Triton reads this when it is imported, so it is set before any test module is: on the CPU the
    # kernels run in Triton's interpreter. Ahead-of-time compilation happens in processes without it.
    if config.getoption("--device") == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that ask for `device` with `on_device`."""
    for item in items:
        if "device" in getattr(item, "fixturenames", ()):
            item.add_marker("on_device")


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, object]) -> None:
    """Puts into a benchmark's JSON what `vitbench compare` refuses to mix: GPU, driver, torch, triton, threads."""
    from vitbench.measure import device

    measured_on = str(config.getoption("--device"))
    found = device.environment(measured_on)
    names = ("device_name", "device_uuid", "driver", "torch", "triton", "threads")
    machine_info.update({name: getattr(found, name) for name in names})


@pytest.fixture(scope="session", autouse=True)
def _interpret_for_good(pytestconfig: pytest.Config) -> None:
    if pytestconfig.getoption("--device") == "cpu":
        from vitbench.audit.workers.interpreting import interpret_for_good

        interpret_for_good()


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--device"))


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Runs `vitbench` with arguments, in this process, since importing torch once more takes seconds."""
    from vitbench import cli

    def run(*arguments: str) -> Done:
        monkeypatch.setattr("sys.argv", ["vitbench", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit:
            cli.main()
        return subprocess.CompletedProcess(arguments, int(exit.value.code or 0), *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def timm() -> Iterator[ModuleType]:
    """timm, the reference for several families; skips where it is not installed."""
    import torch

    try:
        yield pytest.importorskip("timm")
    except RuntimeError as error:
        # timm imports torchvision, whose wheel needs the schemas of its own missing C++ operators
        # beside a CPU build of torch. No model runs them.
        if "torchvision::nms" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        yield importlib.import_module("timm")
