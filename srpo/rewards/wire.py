"""How requests reach worker processes, and answers come back: what a request holds lies in a file in memory that the
workers inherit, and only where it lies goes through a worker's channel.

So a problem's tests, megabytes of them, are written once and not with each of its responses, what waits for a worker is
small, and sending waits for nobody: a few bytes always fit the socket's buffer.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


class Store:
    """Values as JSON in a file in memory, which this process writes and those that inherit it read."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.memfd_create("srpo-requests"), "wb")
        self._places: dict[int, tuple[Any, tuple[int, int]]] = {}

    def fileno(self) -> int:
        return self._file.fileno()

    def put(self, value: Any) -> tuple[int, int]:
        """Where the value lies: (offset, bytes). The same object is written once: it must not change until `clear`."""
        if id(value) not in self._places:
            place = self._file.tell(), self._file.write(json.dumps(value).encode())
            self._file.flush()
            self._places[id(value)] = value, place            # held: another object would get its id
        return self._places[id(value)][1]

    def clear(self) -> None:
        """Forget everything; nobody reads any more."""
        self._places.clear()
        self._file.seek(0)
        self._file.truncate()

    def close(self) -> None:
        self._file.close()


def serve(channel: Connection, store: int, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """In a worker: answer requests until the pool closes."""
    send(channel, {"ready": True})
    while True:
        try:
            places = json.loads(channel.recv_bytes())
            request = {name: json.loads(_read(store, *place)) for name, place in places.items()}
        except (EOFError, ConnectionResetError):  # the latter where the pool had not read all
            return
        send(channel, answer(request))


def send(channel: Connection, message: dict[str, Any]) -> None:
    """In a worker. Raises SystemExit where the pool was closed meanwhile: another worker's error has ended it."""
    try:
        channel.send_bytes(json.dumps(message).encode())
    except BrokenPipeError:
        sys.exit()


def _read(store: int, offset: int, size: int) -> bytes:
    parts = []
    while size:
        parts.append(os.pread(store, size, offset))
        if not parts[-1]:
            raise EOFError(f"the store ends before byte {offset + size}")
        offset, size = offset + len(parts[-1]), size - len(parts[-1])
    return b"".join(parts)
