"""Files that are whole or absent, and the leftovers of killed processes."""

import contextlib
import errno
import itertools
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from semantic_aug import UserError

T = TypeVar("T")

_writes = itertools.count()
os.umask(_UMASK := os.umask(0o077))  # Python can read the umask only by setting it


def check_writable(folder: Path) -> Path:
    """`folder`, if files can be made there; it need not exist yet.

    Raises:
        UserError: a file or a broken link is in the way, or writing is not allowed.
    """
    nearest = folder.absolute()
    while not nearest.exists():
        if nearest.is_symlink():
            raise UserError(f"{folder} cannot be a folder: {nearest} is a link that leads nowhere")
        nearest = nearest.parent
    if not nearest.is_dir():
        raise UserError(f"{folder} cannot be a folder: {nearest} is a file")
    try:  # permissions are not enough: even root cannot write to /proc
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise UserError(
            f"{nearest} cannot be written to ({error.strerror}): choose another place for the "
            "output"
        ) from error
    return folder


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to `path` when the block ends without an error.

    So a file is whole or absent, even if the process is killed. The temporary name holds host and
    process and is always new, because several processes and threads may write the same file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        with _errors_of_system(path):
            yield temporary
        share(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _errors_of_system(path: Path) -> Iterator[None]:
    """An error of the system, such as a full disk, is an OSError, which safetensors hides."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def share(file: Path) -> None:
    """Give a file the mode of any new file; safetensors lets only the owner read its files."""
    if stat.S_IMODE(file.stat().st_mode) == 0o600:
        file.chmod(0o666 & ~_UMASK)


def _beside(path: Path) -> Path:
    """A new temporary name that `remove_leftovers` recognises."""
    return path.with_name(f".{path.name}.{next(_writes)}.{hostname()}-{os.getpid()}.tmp")


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """`atomic_path` for a folder: the temporary folder replaces the folder or file at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    temporary.mkdir()
    try:
        with _errors_of_system(path):
            yield temporary
        for file in filter(Path.is_file, temporary.iterdir()):
            share(file)
        while temporary.exists():
            try:
                os.replace(temporary, path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                remove_folder(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder, so that no process sees a part of it. An absent folder is no error."""
    gone = _beside(path)
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, gone)
        shutil.rmtree(gone, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text through `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def derive(sources: Callable[[], object], write: Callable[[], T]) -> T:
    """Write a file that is derived from files to which other processes may add.

    `sources()` gives their state. If the state has changed meanwhile, the file is written again:
    another process may have derived it from more, and this process may have overwritten that. So
    the process that adds last derives the file from everything. Returns the result of `write`.
    """
    for _ in range(10):  # not for ever, if many processes keep adding
        before = sources()
        written = write()
        if sources() == before:
            break
    return written


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes left directly in `folder`.

    A file of this host is removed when its process has ended. A file of another host is removed
    after a day, because this host cannot see whether its process lives.
    """
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.endswith(".tmp")]
    for name in names:
        match = re.fullmatch(r"\..+\.(?P<host>[^.]+)-(?P<pid>\d+)\.tmp", name)
        if match is None:
            continue
        path = folder / name
        with contextlib.suppress(OSError, OverflowError):
            if match["host"] == hostname():
                dead = int(match["pid"]) == os.getpid() or not is_alive(int(match["pid"]))
            else:
                dead = path.stat().st_mtime < now_at(folder) - 86400
            if dead and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif dead:
                path.unlink(missing_ok=True)


def hostname() -> str:
    """This machine's name as a part of file names."""
    return re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname()) or "host"


def is_alive(pid: int) -> bool:
    """Whether a process of this host exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def now_at(folder: Path) -> float:
    """The time by the clock of the file system, which may differ from this node's clock.

    If `folder` belongs to another user, the time is this node's.
    """
    try:
        os.utime(folder)
    except OSError:
        return time.time()
    return folder.stat().st_mtime
