"""Ending at a scheduler's request, so that the same command can go on later.

SLURM sends SIGTERM before it takes a node away, and the signal of --signal before a time limit.
Commands then end with the status `TRY_AGAIN`; all finished work is on disk.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h
INTERRUPTED = "interrupted; the same command goes on from what is written"
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)
)  # fmt: skip


class Stopped(BaseException):
    """A signal asked this process to end. Not an Exception: code may take that for a failure."""


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Raise `Stopped` at once if a signal arrives within the block; ignore later signals."""

    def stop(number, frame):
        _end(number)

    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with _handled_by(stop):
        yield


def end_at_once_by_ctrl_c() -> None:
    """Let Ctrl-C end this process with one line, until `stoppable` turns it into an exception.

    Without this, Ctrl-C would print a long traceback while a command imports its packages.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # unless it is ignored
        signal.signal(signal.SIGINT, _end_at_once)


def _end_at_once(number, frame) -> NoReturn:
    print(INTERRUPTED, file=sys.stderr, flush=True)
    os._exit(130)


@contextlib.contextmanager
def stop_deferred() -> Iterator[Callable[[], bool]]:
    """Let a block end by itself, at a point from which it can go on.

    Gives a function that says whether a signal has arrived. After a signal, the end of the block
    raises `Stopped`, or KeyboardInterrupt after Ctrl-C. A second Ctrl-C ends the block at once.
    """
    arrived: list[int] = []

    def note(number, frame):
        if number == signal.SIGINT and number in arrived:
            raise KeyboardInterrupt
        arrived.append(number)

    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # in the background of a shell
    with _handled_by(note, SIGNALS if ignored else (*SIGNALS, signal.SIGINT)):
        yield lambda: bool(arrived)
    if arrived:
        _end(arrived[0])


def _end(number: int) -> NoReturn:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # further signals must not disturb the clean-up
    raise Stopped(signal.Signals(number).name)


@contextlib.contextmanager
def _handled_by(handler, signals=SIGNALS) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = {each: signal.signal(each, handler) for each in signals}
    try:
        yield
    finally:
        for each, old in before.items():
            signal.signal(each, old)
