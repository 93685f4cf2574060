"""Options and fixtures shared by every test."""

from __future__ import annotations

import gc
import importlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import settings

Done = subprocess.CompletedProcess[str]

#: `make fuzz`: so many inputs for each test that is marked `fuzz`.
settings.register_profile("fuzz", max_examples=2000, deadline=None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where kernel tests run")
    parser.addoption("--fault-table", type=Path, metavar="FILE", help="write which faults were injected and survived")
    parser.addoption("--part", metavar="K/N", help="of the tests chosen, every Nth from the Kth")


def pytest_configure(config: pytest.Config) -> None:
    # Triton reads this when it is imported, so it is set before any test module is: on the CPU the
    # kernels run in Triton's interpreter. Ahead-of-time compilation happens in processes without it.
    if config.getoption("--device") == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    # torch would compile five programs first, 9 s of a core, to try the vectors that the processor says it has.
    os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")
    if part := config.getoption("--part"):
        config.pluginmanager.register(Part(*map(int, part.split("/"))))
    table, in_a_process_of_xdist = config.getoption("--fault-table"), hasattr(config, "workerinput")
    if table and not in_a_process_of_xdist:
        config.pluginmanager.register(FaultTable(table))


class Part:
    """Keeps a part of the tests that are chosen; with fewer tests than parts, some are in several."""

    def __init__(self, number: int, of: int) -> None:
        self.number, self.of = number, of

    @pytest.hookimpl(trylast=True)  # after pytest has chosen by marker
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        step = max(1, min(self.of, len(items)))
        kept = items[(self.number - 1) % step :: step]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


class FaultTable:
    """Writes a line for each fault that a test injects: what survives, and whether it did."""

    HEAD = (
        "# Faults\n\nEach is injected by a test, into real processes and files wherever the machine allows it. Made by "
        "`make fault-table`,\nwhich runs them all; `make test-faults` does without writing this.\n\n"
        "| fault | injected | survives | result | test |\n| --- | --- | --- | --- | --- |\n"
    )

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[tuple[str, ...], list[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        told = [value for name, value in report.user_properties if name == "fault"]
        if told and (report.when == "call" or not report.passed):
            result = {"passed": "survived", "failed": "**failed**"}.get(report.outcome) or _why_skipped(report)
            for one in told:
                test = report.nodeid.partition("[")[0]
                self.results.setdefault((*map(str, one), test), []).append(result)

    def pytest_sessionfinish(self) -> None:
        rows = [
            f"| {name} | {injected} | {survives} | {'; '.join(sorted(set(results)))} | `{test}` |\n"
            for (name, injected, survives, test), results in sorted(self.results.items())
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(self.HEAD + "".join(rows), encoding="utf-8")


def _why_skipped(report: pytest.TestReport) -> str:
    return f"not run: {report.longrepr[2]}" if isinstance(report.longrepr, tuple) else "not run"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collects no garbage among what is imported, which is for good, and later little: tests leave few cycles."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that ask for `device` with `on_device`; the reports of those with a fault say which."""
    for item in items:
        item.user_properties += [("fault", list(mark.args)) for mark in item.iter_markers("fault")]
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


@pytest.fixture(scope="module")
def as_forked() -> None:
    """What measures in this process collects no garbage among what other tests left: no server has it in one that it
    forks, and it collects after each case, for half a second late in the suite."""
    gc.collect()
    gc.freeze()


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


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `vitbench` in processes of their own fork what measures from this process's server, as importing is slow."""
    from vitbench import warm
    from vitbench.process import python_environment

    environment = python_environment()
    warm._connect("vitbench.bench.worker", environment).close()  # which waits until it listens
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])
    monkeypatch.setenv("VITBENCH_SERVERS", json.dumps(warm._addresses()))


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


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium with a profile of its own; without one a test is skipped and says so."""
    pytest.importorskip("selenium", reason="selenium is not installed (vitbench[dev])")
    chromium, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not (chromium and driver):
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(chromium)
    profile = tmp_path_factory.mktemp("profile")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(driver)))
    try:
        yield opened
    finally:
        opened.quit()
