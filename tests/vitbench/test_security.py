"""Nothing that others can write is run: no pickle, no eval, no markup, and no name of a file that leads elsewhere."""

from __future__ import annotations

import ast
import html.parser
import os
import pickle
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from tests.vitbench.report import problems
from tests.vitbench.results.test_journal import make_row
from vitbench.bench import compile_cache
from vitbench.bench.command import default_out
from vitbench.bench.plan import Case
from vitbench.names import file_name
from vitbench.report import page, timm
from vitbench.results import journal

ROOT = Path(__file__).parents[2]
#: What runs what it reads. Questions and answers of our own processes go through pipes, which nobody else can write.
RUNS = {
    "shell", "eval", "exec", "os.system", "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads",
    "shelve.open", "torch.load", "torch.hub.load", "joblib.load", "yaml.load", "np.load", "numpy.load",
    "pd.read_pickle",
}  # fmt: skip
PIPES = {("vitbench/process.py", "pickle.loads")}


def calls(path: Path) -> set[str]:
    """The names of what is called, and "shell" where something is called by one."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    by_shell = {str(word.arg) for node in nodes for word in node.keywords if word.arg == "shell"}
    return by_shell | {ast.unparse(node.func) for node in nodes if isinstance(node.func, ast.Name | ast.Attribute)}


def test_nothing_runs_what_it_reads() -> None:
    files = [path for package in ("vitbench", "kernels/vitkernels") for path in (ROOT / package).rglob("*.py")]
    assert len(files) > 200
    found = {(path.relative_to(ROOT).as_posix(), name) for path in files for name in calls(path) & RUNS}
    assert found == PIPES


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth", "weights.bin"])
def test_weights_are_safetensors_whatever_they_are_called(name: str, tmp_path: Path, command: Any) -> None:
    path, planted = tmp_path / name, tmp_path / "planted"
    path.write_bytes(pickle.dumps(Bomb(planted)))
    done = command("bench", "--model", "resnet18", "--weights", str(path), "--dry-run", "--device", "cpu")
    assert done.returncode == 2
    assert "is not a readable .safetensors file" in done.stderr
    assert not planted.exists()


def test_a_pickle_among_results_is_no_result(tmp_path: Path, command: Any) -> None:
    path, planted = tmp_path / "a.csv", tmp_path / "planted"
    bomb = pickle.dumps(Bomb(planted), protocol=0) + b"\n"
    path.write_bytes(bomb)
    assert command("report", str(path)).returncode == 2
    path.unlink()
    journal.append(path, make_row(), [1.0])
    journal.samples_path(path).write_bytes(bomb)
    assert command("compare", str(path), str(path)).returncode == 2
    assert not planted.exists()


@pytest.mark.parametrize(("mode", "owner", "own"), [(0o755, 0, True), (0o777, 0, False), (0o755, 1, False)])
def test_what_others_may_have_compiled_is_not_run(
    mode: int, owner: int, own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if owner and os.getuid():
        pytest.skip("only root can give a folder away")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    folder = Path(default_cache_dir())
    assert folder.parent == tmp_path
    folder.mkdir()
    folder.chmod(mode)
    os.chown(folder, owner or os.getuid(), -1)
    compile_cache.guard()
    used = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    assert (used is None) == own
    assert own or (used == str(cache / "vitbench" / "compiled") and stat.S_IMODE(Path(used).stat().st_mode) == 0o700)


class Elements(html.parser.HTMLParser):
    """The names of elements, and of attributes that run something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names += [tag, *(name for name, _ in attrs if name.startswith("on"))]


def test_a_page_has_the_same_elements_whatever_its_rows_say(tmp_path: Path) -> None:
    pytest.importorskip("altair")
    plain = {"model": "m", "reason": "r", "device_name": "d", "impl": "i", "dtype": "t", "input": "x", "commit": "c"}
    pages = []
    for number, hostile in enumerate(("", problems.MARKUP, problems.SCRIPT, "</style><style>", "--><b onclick=x>")):
        row = make_row(**{name: text + hostile for name, text in plain.items()}, img_per_s=1.0, latency_ms_p50=1.0)
        page.write([row], tmp_path / f"{number}.html", "title " + hostile)
        pages.append(Elements((tmp_path / f"{number}.html").read_text(encoding="utf-8")).names)
    assert "script" in pages[0]
    assert pages == [pages[0]] * len(pages)


HOSTILE = [
    "../../etc/x", "/etc/passwd", "a\0b", "x" * 5000, "CON", "nul.csv", "..", ".", "", "~root", "a\nb", "C:\\x", "-",
]  # fmt: skip


@pytest.mark.fast
@given(st.sampled_from(HOSTILE) | st.text(max_size=300))
def test_any_text_is_a_name_in_its_folder(text: str) -> None:
    name = file_name(text)
    assert Path("folder", name).parent == Path("folder")
    assert 1 <= len(os.fsencode(name)) <= 81
    assert name.split(".")[0].upper() not in ("CON", "NUL", "AUX", "COM1")
    assert not name.startswith((".", "-", "~"))


@pytest.mark.parametrize("text", HOSTILE)
def test_files_of_a_case_stay_in_their_folder(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = default_out(text, [Case("resnet18", "eager", "infer", "fp32", "nchw", (32, 32), 1, "cpu")])
    assert out.resolve().parents[1] == tmp_path / "results"
    folder = tmp_path / "exports"
    folder.mkdir()
    timed = {"img_per_s": 1.0, "latency_ms_p50": 1.0, "device_name": text}
    for column in ("mode", "dtype", "layout", "impl", "torch"):
        rows = [make_row(**timed, **{column: text})]
        assert all(path.parent == folder and path.exists() for path in timm.export(rows, folder))
    assert {path.name for path in tmp_path.iterdir()} <= {"exports", "results"}


def test_pictures_of_a_report_stay_in_its_folder(tmp_path: Path, command: Any) -> None:
    rows = [problems.row(batch=batch, mode="../../planted", latency_ms_p50=2.0 * batch) for batch in (1, 4)]
    path = problems.write(tmp_path / "a.csv", rows)
    out = tmp_path / "in" / "report"
    assert command("report", str(path), "--out", str(out)).returncode == 0
    assert any("planted" in one.name for one in out.iterdir())
    assert {one.name for one in tmp_path.rglob("*") if one.is_dir()} == {"in", "report"}
