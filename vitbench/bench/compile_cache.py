"""torch.compile keeps code and pickles under a name in /tmp that others can guess: nothing is read that is not ours."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from vitbench.cache import cache_folder


def guard() -> None:
    """Has this process compile into the user's cache where somebody else has, or can write, the usual folder."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    folder = Path(default_cache_dir())
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        own = cache_folder("compiled")
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(own)


__all__ = ["guard"]
