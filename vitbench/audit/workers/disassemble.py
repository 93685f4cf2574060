"""Machine code as text, of several kernels in one call of nvdisasm, which takes 0.3 s of a processor to start."""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_HEADER = struct.Struct("<IIQQQQIIQQ")  # of a section
_ALIGNMENT = 128
_STRINGS = 3  # the type of a section
_BEGINS = re.compile(r"^//-+ \.text\.[^/]*\.align \d+\n", re.MULTILINE)
_SPACES = re.compile(r" {2,}|\t")
_LABEL = re.compile(r"\.L_x_\d+")


class _Section(NamedTuple):
    """Of an ELF file; `name` is where it begins among the strings."""

    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int


def tool(name: str) -> str:
    """The path of a tool of CUDA that Triton ships, or its name where it does not."""
    import triton

    shipped = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return str(shipped) if shipped.exists() else name


def run(*command: str) -> str:
    """What a command prints. Raises: subprocess.CalledProcessError."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def disassembled(cubins: Sequence[bytes]) -> list[str]:
    """The text of each kernel, from cubins of one architecture; the same whichever others are beside it.

    The code is linked, so that no address in it is left to other sections; labels take the place of functions' names.

    Raises: subprocess.CalledProcessError.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(merged(cubins))
        file.flush()
        # Its dataflow analysis only adds comments, and takes a quarter of its time.
        text = run(tool("nvdisasm"), "-c", "-ndf", "-hex", file.name)
    text = _SPACES.sub(" ", text)  # as many as the widest line of all kernels asks for
    return [_renumbered(part.rstrip()) for part in _BEGINS.split(text)[1:]]


def _renumbered(text: str) -> str:
    """With labels numbered from zero, as if the kernel were alone."""
    numbers: dict[str, str] = {}
    return _LABEL.sub(lambda found: numbers.setdefault(found[0], f".L_x_{len(numbers)}"), text)


def _sections(cubin: bytes) -> dict[str, _Section]:
    (at,) = struct.unpack_from("<Q", cubin, 40)
    count, names = struct.unpack_from("<HH", cubin, 60)
    found = [_Section(*_HEADER.unpack_from(cubin, at + _HEADER.size * i)) for i in range(count)]
    start = found[names].offset
    return {cubin[start + x.name : cubin.index(b"\0", start + x.name)].decode(): x for x in found}


def merged(cubins: Sequence[bytes]) -> bytes:
    """One ELF file with the code of all, and no symbols."""
    names, body, heads = b"\0", bytearray(), [bytes(_HEADER.size)]
    start = 64  # of the ELF header

    def add(name: str, like: _Section, data: bytes) -> None:
        nonlocal names
        body.extend(bytes(-len(body) % _ALIGNMENT))
        heads.append(_HEADER.pack(*like._replace(name=len(names), offset=start + len(body), size=len(data))))
        names += name.encode() + b"\0"
        body.extend(data)

    strings = _Section(0, _STRINGS, 0, 0, 0, 0, 0, 0, 1, 0)
    add(".strtab", strings, b"\0")
    add(".symtab", _Section(0, 2, 0, 0, 0, 0, 1, 1, 8, 24), bytes(24))
    for cubin in cubins:
        name, code = next(item for item in _sections(cubin).items() if item[0].startswith(".text."))
        add(name, code._replace(link=2), cubin[code.offset : code.offset + code.size])
    add(".shstrtab", strings, names + b".shstrtab\0")
    header = bytearray(cubins[0][:start])
    struct.pack_into("<QQ", header, 32, 0, start + len(body))
    struct.pack_into("<HHHHH", header, 54, 0, 0, _HEADER.size, len(heads), len(heads) - 1)
    return bytes(header) + bytes(body) + b"".join(heads)
