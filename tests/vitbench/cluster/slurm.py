"""A SLURM of one node in a folder: controller, node daemon and munge on sockets and ports of their own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue")
#: What the node says are its GPUs.
DEVICES = ("/dev/null", "/dev/zero")

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0
ReturnToService=2
SlurmdParameters=config_overrides
SwitchType=switch/none
MpiDefault=none
KillWait=2
InactiveLimit=0
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} Gres=gpu:{gpus} State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""

CGROUPS = """
CgroupPlugin=cgroup/v1
ConstrainCores=no
ConstrainDevices=no
ConstrainRAMSpace=no
ConstrainSwapSpace=no
"""


def missing() -> str:
    """Why no SLURM can be started here, or nothing."""
    lacks = [name for name in PROGRAMS if _which(name) is None]
    if lacks:
        return f"SLURM is not installed (no {', '.join(lacks)}): apt-get install slurm-wlm munge"
    return "" if os.getuid() == 0 else "the daemons of SLURM and munge are started as root"


def _which(name: str) -> str | None:
    return shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")


def wait_until(what: str, holds: Callable[[], object], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"waited {seconds:g} s: {what}"
        time.sleep(0.2)


class Slurm:
    """The daemons; `environment` is what makes sbatch, srun and the rest speak to them.

    Args:
        folder: of their own.
        cpus: that the node says it has, beside a GPU for each of DEVICES.
    """

    def __init__(self, folder: Path, cpus: int) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        host = socket.gethostname().partition(".")[0]
        text = CONFIG.format(host=host, ports=_free_ports(2), folder=folder, cpus=cpus, gpus=len(DEVICES))
        (folder / "slurm.conf").write_text(text)
        (folder / "cgroup.conf").write_text(CGROUPS)
        # A device must be one for SLURM to hand it out; none of them is opened.
        (folder / "gres.conf").write_text("".join(f"Name=gpu File={device}\n" for device in DEVICES))
        for name in ("state", "spool"):
            (folder / name).mkdir()

    def start(self) -> None:
        self._start_munge()
        self.start_controller()
        self._daemon("slurmd", "-D", "-f", str(self.folder / "slurm.conf"))
        self._wait_for("slurmd", lambda: "idle" in self.ask("sinfo", "-h", "-o", "%T"))

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        self.folder.chmod(0o700)
        files = {name: f"{self.folder}/munge.{name}" for name in ("socket", "pid", "log", "seed")}
        options = [f"--{name}={files[name.split('-')[0]]}" for name in ("socket", "pid-file", "log-file", "seed-file")]
        # Only root must reach its socket here, which munge takes for a mistake.
        self._daemon("munged", "--force", "--foreground", f"--key-file={key}", *options)
        self._wait_for("munged", Path(files["socket"]).exists)

    def start_controller(self) -> None:
        self._daemon("slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))
        self._wait_for("slurmctld", lambda: "UP" in self.ask("scontrol", "ping"))

    def stop_controller(self) -> None:
        self._end("slurmctld")

    def _daemon(self, name: str, *arguments: str) -> None:
        self._daemons[name] = subprocess.Popen(
            [_which(name) or name, *arguments],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _wait_for(self, daemon: str, serves: Callable[[], object]) -> None:
        def alive() -> object:
            assert self._daemons[daemon].poll() is None, f"{daemon} ended: see {self.folder}"
            return serves()

        wait_until(f"{daemon} serves", alive, 60)

    def _end(self, name: str) -> None:
        one = self._daemons.pop(name)
        one.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            one.wait(10)
        one.kill()
        one.wait()

    def ask(self, *command: str) -> str:
        """What a command of SLURM prints, or complains of."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        return done.stdout + done.stderr

    def states(self) -> dict[str, str]:
        """The state of every job that is not over, by its number (12) or its place in an array (12_3)."""
        lines = self.ask("squeue", "-h", "-r", "-o", "%i %T").splitlines()
        return dict(line.split(maxsplit=1) for line in lines)

    def stop(self) -> None:
        if "slurmctld" in self._daemons:
            self.ask("scancel", "--user=root")
            with contextlib.suppress(AssertionError):
                wait_until("no job is left", lambda: not self.states(), 15)
        for name in reversed(list(self._daemons)):
            self._end(name)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return [int(one.getsockname()[1]) for one in sockets]


@contextlib.contextmanager
def running(folder: Path, cpus: int) -> Iterator[Slurm]:
    """A SLURM that accepts jobs, ended with all that it runs."""
    slurm = Slurm(folder, cpus)
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.stop()
