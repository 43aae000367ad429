"""Signals that end a study, held back until it is safe to obey them."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """Holds back Ctrl-C, SIGTERM and SIGHUP while in use, until `check` finds it safe to obey.

    A signal that raises in the middle of starting a run would leave a run that nobody knows of. Outside the
    main thread, where Python delivers no signals, it does nothing; neither does it bring back a signal that
    is ignored (nohup).
    """

    def __init__(self) -> None:
        self._received: list[int] = []
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                # None is a handler that was not installed from Python and cannot be put back.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._handlers[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if kind is None:
            self.check()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received.append(number)

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C came, SystemExit(128 + signal) if another of the signals did."""
        if self._received:
            number = self._received[0]
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
