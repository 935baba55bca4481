"""How requests reach worker processes: what they hold lies in a file in memory that the workers inherit, and only where
it lies goes through a worker's channel.

So a problem's tests, megabytes of them, are written once and not with each of its responses, what waits for a worker is
small, and sending waits for nobody: a few bytes always fit the socket's buffer.
"""

from __future__ import annotations

import json
import os
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


def receive(channel: Connection, store: int) -> dict[str, Any]:
    """The next request, in a worker. Raises EOFError when the pool has closed."""
    places = json.loads(channel.recv_bytes())
    return {name: json.loads(_read(store, *place)) for name, place in places.items()}


def _read(store: int, offset: int, size: int) -> bytes:
    parts = []
    while size:
        parts.append(os.pread(store, size, offset))
        if not parts[-1]:
            raise EOFError(f"the store ends before byte {offset + size}")
        offset, size = offset + len(parts[-1]), size - len(parts[-1])
    return b"".join(parts)
