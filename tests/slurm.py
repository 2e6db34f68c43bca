"""A real SLURM of one node for tests, without systemd: munged, slurmctld and slurmd in a folder.

Needs Debian's slurmctld, slurmd, slurm-client and munge. Whoever starts it is its only user.
"""

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
CPUS = 4
CONFIGURATION = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# Short-lived credentials, because a job that is requeued waits until the old one has run out.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=4
MinJobAge=3600
MailProg=/bin/true
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName=localhost NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


def missing_programs() -> list[str]:
    """What is not installed here."""
    return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


def start(folder: Path) -> dict[str, str]:
    """Start one in an empty folder. Returns the environment in which sbatch and so on speak to it.

    Raises:
        RuntimeError: it does not come up, with what its daemons have written.
    """
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir(mode=0o755)
    (folder / "munge.key").touch(mode=0o600)
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(
            folder=folder, user=getpass.getuser(), cpus=CPUS, controller_port=_free_port(),
            node_port=_free_port(),
        )
    )  # fmt: skip
    environ = {"PATH": _path(), "SLURM_CONF": str(folder / "slurm.conf")}
    munge = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log"}
    munge |= {"seed-file": "seed"}
    for line in (
        ["munged", *(f"--{flag}={folder}/munge.{name}" for flag, name in munge.items())],
        ["slurmctld", "-c"],
        ["slurmd", "-c"],
    ):
        subprocess.run(line, check=True, env=os.environ | environ)

    def is_idle():
        asked = ["sinfo", "--noheader", "--format=%t"]
        done = subprocess.run(asked, capture_output=True, text=True, env=os.environ | environ)
        return done.stdout.strip() == "idle"

    try:
        wait_for(is_idle, 20)
    except TimeoutError:
        logs = [path.read_text()[-2000:] for path in sorted(folder.glob("slurm*.log"))]
        stop(folder, environ)
        raise RuntimeError("SLURM does not come up:\n" + "\n".join(logs)) from None
    return environ


def stop(folder: Path, environ: Mapping[str, str]) -> None:
    """Cancel all jobs, and end the daemons."""
    subprocess.run(["scancel", f"--user={getpass.getuser()}"], env={**os.environ, **environ})
    time.sleep(1)
    for name in ("slurmctld", "slurmd", "munge"):
        path = folder / f"{name}.pid"
        if path.exists() and path.read_text().strip():
            pid = int(path.read_text())
            os.kill(pid, 15)
            wait_for(lambda pid=pid: not _alive(pid), 20)


def wait_for(condition: Callable[[], object], seconds: float):
    """What `condition` gives as soon as that is true.

    Raises:
        TimeoutError: it has not become true in time.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.1)
    return value


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def _path() -> str:
    return os.environ["PATH"] + ":/usr/sbin:/sbin"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
