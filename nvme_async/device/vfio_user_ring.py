"""Doorbells that are messages: a thread sends them, so that no event loop waits for the peer."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from nvme_async.errors import ControllerError, DeviceError, DeviceTimeout

log: logging.Logger = logging.getLogger("nvme_async")


class Ringer:
    """Writes doorbells one after another. A value that is replaced by a later one for the same
    doorbell before it was sent is not sent at all.

    write(offset, value): sends one and waits for the peer's answer. on_failure(error): called in
    the thread when a doorbell could not be written; nothing more is written.
    Threads: any, except for close().
    """

    def __init__(self, write: Callable[[int, int], None], on_failure: Callable[[ControllerError], None]) -> None:
        self._write = write
        self._on_failure = on_failure
        self._changed = threading.Condition()
        self._due: dict[int, tuple[int, Callable[[], None]]] = {}
        self._writing = False
        self._closed = False
        self._thread: threading.Thread | None = None

    def ring(self, offset: int, value: int, done: Callable[[], None]) -> None:
        """Schedules the write of `value` to the doorbell. Never waits for the peer. done():
        called in the thread once the peer has it.
        """
        with self._changed:
            if self._closed:
                return
            self._due[offset] = value, done
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="nvme doorbells", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def settle(self, timeout: float) -> None:
        """Waits until all doorbells are written, so that later messages come after them.
        DeviceTimeout.
        """
        if threading.current_thread() is self._thread:
            return
        with self._changed:
            if not self._changed.wait_for(lambda: self._closed or not (self._due or self._writing), timeout):
                raise DeviceTimeout(f"vfio-user peer has not taken a doorbell for {timeout:g} s")

    @property
    def settled(self) -> bool:
        """Are all doorbells written?"""
        with self._changed:
            return self._closed or not (self._due or self._writing)

    def close(self) -> None:
        """Drops pending writes; a write in progress ends with the connection."""
        with self._changed:
            self._closed = True
            self._due.clear()
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._due or self._closed)
                if self._closed:
                    return
                offset = next(iter(self._due))
                value, done = self._due.pop(offset)
                self._writing = True
            began = time.monotonic()
            try:
                self._write(offset, value)
                done()
            except DeviceError as error:
                log.warning("the doorbell at %#x was refused: %s", offset, error)
            except ControllerError as error:
                self.close()
                self._on_failure(error)
            except Exception as error:
                self.close()
                self._on_failure(ControllerError(f"the doorbell at {offset:#x} could not be written: {error!r}"))
            finally:
                with self._changed:
                    self._writing = False
                    self._changed.notify_all()
            log.debug("doorbell %#x=%d took %.6f s", offset, value, time.monotonic() - began)
