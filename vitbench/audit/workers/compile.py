"""The working side of the audit: a process that imports triton without the interpreter and answers jobs.

It is asked a `Job` and answers an `Examined` or `Failed`; asked a list of them it compiles them, so that they will be
answered sooner. Run by `vitbench.audit.workers.pool`, never by hand.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import os
import re
import sys
import tempfile
import traceback
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from vitkernels import Descriptor, Launch

from vitbench.audit.job import Compiled, Failed, FunctionRef, Job, resolve
from vitbench.audit.model.chips import chip_for
from vitbench.audit.model.profile import launched
from vitbench.audit.model.simulate import Moved, simulate
from vitbench.audit.sass import listing
from vitbench.audit.sass.graph import build_graph
from vitbench.audit.sass.trace import trace
from vitbench.audit.traffic import Traffic
from vitbench.audit.workers.disassemble import disassembled, run, tool
from vitbench.audit.workers.examine import Examined, examine, source_fingerprint
from vitbench.audit.workers.process import Worker
from vitbench.process import answers

_CACHE_VERSION = 5
#: What decides the bytes that are followed.
_INTERPRETER = ("workers/follow.py", "workers/interpreting.py", "workers/replaying.py")
_FOLLOWING = (*_INTERPRETER, "traffic.py", "sampling.py", "job.py")
_ENDS = """
        /*0000*/                   EXIT ;                                     /* 0x000000000000794d */
                                                                              /* 0x000fea0003800000 */
"""
_PARAMETER_BASE = {9: 0x210, 8: 0x160}  # bank 0 offset of the first kernel parameter, by major version
_PTX_PARAMETER = re.compile(r"\.param\s+(?:\.align\s+\d+\s+)?\.([busf](?:8|16|32|64))[^,)]*?_param_\d+(?:\[(\d+)\])?")


def _integer_type(value: int) -> str:
    if -(2**31) <= value < 2**31:
        return "i32"
    return "i64" if value < 2**63 else "u64"


def specialise(fn: Any, job: Job) -> tuple[dict[str, str], dict[tuple[int, ...], Any], dict[tuple[int, ...], Any]]:
    """Signature, constants and attributes as a launch with these values would give.

    Raises: ValueError when a parameter has no value or a value no parameter.
    """
    names = [p.name for p in fn.params]
    args = job.launch.args
    if missing := [p.name for p in fn.params if p.name not in args and not p.has_default]:
        raise ValueError(f"kernel {job.kernel.name}: args lack {', '.join(missing)}")
    if extra := [name for name in args if name not in names]:
        raise ValueError(f"kernel {job.kernel.name} has no parameter {', '.join(extra)}; it has {', '.join(names)}")
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for position, p in enumerate(fn.params):
        value = args.get(p.name, p.default)
        if isinstance(value, FunctionRef):
            value = resolve(value)
        specialised = not p.do_not_specialize
        if p.is_constexpr or value is None or (value is not True and value == 1 and specialised and _whole(value)):
            signature[p.name] = "constexpr"
            constants[(position,)] = value
            continue
        aligned = specialised and not p.do_not_specialize_on_alignment
        if isinstance(value, Descriptor):
            signature[p.name], aligned = value.type, False
        elif isinstance(value, str):
            signature[p.name] = value
            aligned = aligned and value.startswith("*") and p.name not in job.launch.unaligned
        elif isinstance(value, bool):
            signature[p.name], aligned = p.annotation_type or "u1", False
        elif isinstance(value, int):
            signature[p.name] = p.annotation_type or _integer_type(value)
            aligned = aligned and value % 16 == 0
        else:
            signature[p.name], aligned = p.annotation_type or "fp32", False
        if aligned:
            attributes[(position,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _parameters(ptx: str, signature: dict[str, str], arch: int) -> tuple[tuple[int, int, str], ...]:
    start = ptx.index(".entry")
    found = _PTX_PARAMETER.findall(ptx[start : ptx.index("{", start)])
    sizes = [int(count) if count else int(kind.lstrip("busf")) // 8 for kind, count in found]
    plain = [(name, kind) for name, kind in signature.items() if kind != "constexpr"]
    descriptors = sum(kind.startswith("tensordesc") for _, kind in plain)
    # A host tensor descriptor is followed by its shape and strides; Triton appends two scratch pointers.
    trailing = (len(sizes) - 2 - len(plain)) // descriptors if descriptors else 0
    names: list[str] = []
    for name, kind in plain:
        names.append(name)
        names.extend([""] * (trailing if kind.startswith("tensordesc") else 0))
    names.extend([""] * (len(sizes) - len(names)))
    layout = []
    offset = _PARAMETER_BASE.get(arch // 10, 0x380)
    for size, name in zip(sizes, names, strict=True):
        alignment = 64 if size > 8 else size
        offset = -(-offset // alignment) * alignment
        layout.append((offset, size, name))
        offset += size
    return tuple(layout)


def _key(fn: Any, job: Job, signature: object, constants: object, attributes: object) -> str:
    import triton

    shown = (_CACHE_VERSION, triton.__version__, fn.cache_key, signature, str(constants), attributes, job.arch)
    launch = (job.launch.num_warps, job.launch.num_stages, sorted(job.launch.options.items()))
    return hashlib.sha256(repr((shown, launch)).encode()).hexdigest()


class _Draft(NamedTuple):
    """What a job compiled to, before its code is text, and where it will be kept."""

    compiled: Compiled
    cubin: bytes
    stored: Path

    def keep(self, sass: str) -> Compiled:
        compiled = replace(self.compiled, sass=sass)
        self.stored.parent.mkdir(parents=True, exist_ok=True)
        draft = self.stored.with_suffix(f".{os.getpid()}.part")
        draft.write_bytes(gzip.compress(json.dumps(vars(compiled)).encode(), 3))
        draft.replace(self.stored)
        return compiled


def compile_job(job: Job, cache: Path) -> Compiled:
    """Compile, disassemble where counts are asked for, or read the same from the cache folder.

    Raises: whatever the compiler raises.
    """
    draft = _draft(job, cache)
    if isinstance(draft, Compiled):
        return draft
    return draft.keep(disassembled([draft.cubin])[0] if job.counted else "")


def prepare(jobs: Sequence[Job], cache: Path) -> None:
    """Fills the cache folder with what will be asked for, all of an architecture disassembled at once."""
    drafts: defaultdict[int, dict[Path, _Draft]] = defaultdict(dict)
    for job in jobs:
        with suppress(Exception):  # is met again, and told, when that job is asked for
            draft = _draft(job, cache)
            if isinstance(draft, _Draft):
                drafts[job.arch][draft.stored] = draft
    for found in drafts.values():
        for draft, sass in zip(found.values(), disassembled([x.cubin for x in found.values()]), strict=True):
            draft.keep(sass)


def _draft(job: Job, cache: Path) -> Compiled | _Draft:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    fn = resolve(job.kernel)
    signature, constants, attributes = specialise(fn, job)
    key = _key(fn, job, signature, constants, attributes)
    with_code, without_code = cache / f"{key}.json.gz", cache / f"{key}.resources.gz"
    for stored in [with_code] if job.counted else [with_code, without_code]:
        if stored.exists():
            record = json.loads(gzip.decompress(stored.read_bytes()))
            record["parameters"] = tuple(tuple(p) for p in record["parameters"])
            return Compiled(**record if job.counted else {**record, "sass": ""})
    options = {"num_warps": job.launch.num_warps, "num_stages": job.launch.num_stages, **job.launch.options}
    source = ASTSource(fn, signature, constants, attributes)
    kernel = triton.compile(source, target=GPUTarget("cuda", job.arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = run(tool("cuobjdump"), "-res-usage", file.name)
    numbers = {name: int(value) for name, value in re.findall(r"\b(REG|STACK):(\d+)", usage)}
    compiled = Compiled(
        sass="",
        matrix_instruction=_matrix_instruction(kernel.asm["ptx"]),
        registers=numbers["REG"],
        stack_bytes=numbers["STACK"],
        shared_bytes=kernel.metadata.shared,
        tensor_memory_columns=getattr(kernel.metadata, "tmem_size", 0) or 0,
        num_warps=_warps(kernel.asm["ptx"], job.launch.num_warps),
        parameters=_parameters(kernel.asm["ptx"], signature, job.arch),
        triton=triton.__version__,
    )
    return _Draft(compiled, kernel.asm["cubin"], with_code if job.counted else without_code)


def _matrix_instruction(ptx: str) -> str:
    names = {"tcgen05.mma": "UTCHMMA", "wgmma.mma_async": "HGMMA", "mma.sync": "HMMA"}
    return next((name for text, name in names.items() if text in ptx), "")


def _warps(ptx: str, asked: int) -> int:
    """Warps per program that are really launched: warp specialisation adds some."""
    found = re.search(r"\.reqntid\s+(\d+)", ptx)
    return int(found.group(1)) // 32 if found else asked


def _traffic(job: Job, cache: Path, interpreter: Worker) -> Traffic | None:
    """The bytes that the launch's loads and stores move, or None where the interpreter cannot follow them."""
    arguments = sorted(map(repr, [*job.launch.args.items(), *job.launch.values.items()]))
    shown = (source_fingerprint(*_FOLLOWING), resolve(job.kernel).cache_key, arguments, job.launch.grid)
    stored = cache / (hashlib.sha256(repr(shown).encode()).hexdigest() + ".traffic.gz")
    if stored.exists():
        record: dict[str, Any] = json.loads(gzip.decompress(stored.read_bytes()))
        known: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in record.items()}
        return Traffic(**known)
    found = interpreter.ask(job)
    if not isinstance(found, Traffic):
        print(f"{job.launch.id}: bytes without masks: {found.reason}\n{found.detail}", file=sys.stderr)
        return None
    draft = stored.with_suffix(f".{os.getpid()}.part")
    draft.write_bytes(gzip.compress(json.dumps(vars(found)).encode(), 3))
    draft.replace(stored)
    return found


def answer(job: Job, cache: Path, interpreter: Worker) -> Examined | Failed:
    try:
        compiled = compile_job(job, cache)
        traffic = _traffic(job, cache, interpreter) if compiled.sass else None
        return examine(job.launch, compiled, job.arch, cache, traffic, job.card)
    except Exception as problem:  # every failure of the compiler is a row of the audit, with its reason
        return Failed(_one_line(problem), traceback.format_exc())


def _one_line(problem: Exception) -> str:
    """The line of a compiler's message that says what is wrong: its first error, else its last line."""
    lines = [text.strip() for text in str(problem).splitlines() if text.strip()] or [""]
    telling = [text for text in lines if " fatal " in text] or [text for text in lines if " error " in text]
    return f"{type(problem).__name__}: {telling[0] if telling else lines[-1]}"[:300]


def warm() -> None:
    """Does what the first launch would: imports, Triton's hash of itself, and a simulation, so that numba is ready."""
    for name in ("triton.compiler", "triton.backends.compiler"):
        importlib.import_module(name)
    importlib.import_module("triton.runtime.cache").triton_key()  # reads 400 MB, 0.5 s in each process that compiles
    if importlib.util.find_spec("numba"):
        graph = build_graph(listing.parse(_ENDS))
        launch = Launch(kernel=None, op="", case="", pass_name="", dtype="", args={}, grid=(1,), elements=1, bytes=0)
        compiled = Compiled("", "", 32, 0, 0, 0, 1, (), "")
        traced = trace(graph, launched(launch, compiled, 90))
        simulate(graph, traced, launch, compiled, chip_for(90, ""), Moved(0, 0, 0))


def main() -> None:
    cache = Path(sys.argv[1])
    say, jobs = answers()
    interpreter = Worker("vitbench.audit.workers.follow", interprets=True)
    for job in jobs:
        if isinstance(job, list):
            prepare(job, cache)
            say(None)
        else:
            say(answer(job, cache, interpreter))
    interpreter.close()


if __name__ == "__main__":
    main()
