"""Watches a rank of a running launch from threads of its own: collectives that hang, hosts that are gone, SIGTERM.

The main thread may be stuck in C++ for ever, in a collective to which another rank never comes; these threads are not.
What they find ends the rank with one line and a non-zero exit code, so that torchrun restarts the launch from the last
checkpoint. Before that the stacks of all ranks go to RUN/stacks/TIME, named for when this start of the launch began.

- A collective hangs: c10d's own timeout raises in every rank that waited (gloo), or aborts it (NCCL). Who raised says
  so in the store that all ranks share, and who did not is named.
- A host is gone: every host counts up a key of its own in the store, and the next host looks whether it does. A host
  that is cut off sees that the store no longer answers.
- SIGTERM: a wish to stop after the step in flight. It comes from whoever ends the job, and from torchrun when another
  rank of this host has failed; then there is nothing to finish.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist

from srpo.comm import START, all_gather, broadcast, broken, hung, set_timeout
from srpo.errors import Fault, report

log = logging.getLogger(__name__)

BEAT = 2.0
"""Seconds between two looks at the store."""
SILENCE = 60.0
"""Seconds without a sign from a host, or from the store, after which it is gone; less with a shorter timeout, before
which a lost host is to be named, rather than the collective that waits for it."""
PATIENCE = 3.0
"""Seconds for ranks to find out that they waited for the same one, and for a rank to write its stacks."""
SAME = 3.0
"""Seconds within which two SIGTERMs are one: the scheduler's own, and the one that torchrun passes on."""
TERMINATED = 128 + signal.SIGTERM
"""Exit code after SIGTERM without a clean end."""


class Member(NamedTuple):
    """A rank. `host` is torchrun's number of its machine, `stacks` the descriptor that it writes its stacks to."""

    rank: int
    host: str
    name: str
    pid: int
    stacks: int


class Watchdog:
    """One a process, made in its main thread before it joins the process group.

    While the run starts, SIGTERM ends it at once, and hosts and collectives are given `comm.START`; see `arm`.
    """

    def __init__(self, folder: Path) -> None:
        """`folder`: where the stacks go; made when there are any."""
        self._folder = folder
        self._armed = self._stopping = self._ending = False
        self._minutes, self._limit = START.total_seconds() / 60, START.total_seconds()
        self._members: list[Member] = []
        self._failure: str | None = None
        self._failing = threading.Lock()
        self._failed, self._closed = threading.Event(), threading.Event()
        self._raised, self._hurry = threading.Event(), threading.Event()
        self._lost: str | None = None
        # Open beforehand and in memory: the handler is C and needs neither the interpreter nor a disk, so that a thread
        # shows its stack whatever it is stuck in.
        self._stacks = os.memfd_create("stacks")
        faulthandler.register(signal.SIGUSR2, file=self._stacks, all_threads=True)
        self._signals, self._wakeup = os.pipe()
        os.set_blocking(self._wakeup, False)
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)  # Python's own handler waits for the main thread
        signal.signal(signal.SIGTERM, lambda *_: None)
        self._threads = [threading.Thread(target=self._heed_signals, name="signals", daemon=True)]
        self._threads[0].start()

    # -- what the main thread calls ---------------------------------------------------------------------------------

    def begin(self, store: dist.TCPStore, prefix: str) -> None:
        """Watch the launch from now on. Collective. `store`, `prefix`: see comm.join."""
        name, pid = socket.gethostname(), os.getpid()
        self._me = Member(dist.get_rank(), os.environ.get("GROUP_RANK", name), name, pid, self._stacks)
        self._folder /= broadcast(time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()))
        self._address = f"{store.host}:{store.port}"
        # A connection of its own: the process group's is blocked while a group is being made.
        self._store = dist.PrefixStore(f"{prefix}/watchdog", store.clone())  # type: ignore[attr-defined]
        self._answered = time.monotonic()
        self._members = all_gather(self._me)
        self._threads.append(threading.Thread(target=self._watch, name="watchdog", daemon=True))
        self._threads[1].start()

    def arm(self, minutes: float) -> None:
        """The run has started: from now on a collective that takes `minutes` hangs, and SIGTERM waits for a step."""
        set_timeout(timedelta(minutes=minutes))
        self._minutes, self._limit, self._armed = minutes, max(5 * BEAT, min(SILENCE, 30 * minutes)), True

    def stop_requested(self) -> bool:
        """Whether a rank was asked to stop: the same answer on all of them. Collective."""
        return broadcast(self._stopping)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Raise Fault in place of what a collective raises when it hangs or another rank is gone."""
        try:
            yield
        except RuntimeError as e:  # c10d's own errors are among them
            if not broken(e):
                raise
            text = " ".join(str(e).split())[:200]
            if not hung(e):
                self._lost = f"the connection to another rank is gone, whose own output says why ({text})"
            self._raised.set()
            self._hurry.set()
            self._failed.wait(BEAT + 5 * PATIENCE)
            self._fail(self._lost or f"a collective took more than {self._minutes:g} minutes ({text})")
            raise Fault(str(self._failure)) from e

    def close(self) -> None:
        """The work is done: nothing is watched any more, and a SIGTERM has nothing to stop."""
        self._closed.set()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        os.write(self._wakeup, b"\0")
        self._hurry.set()
        for thread in self._threads:  # the interpreter's end would tear one out of C++, which aborts the process
            thread.join(PATIENCE)

    # -- signals ----------------------------------------------------------------------------------------------------

    def _heed_signals(self) -> None:
        """Body of a thread. It does nothing that can block."""
        terminated = None
        before = time.monotonic()
        while not self._closed.is_set():
            ready, _, _ = select.select([self._signals], [], [], 1.0)
            received = os.read(self._signals, 64) if ready else b""
            now = time.monotonic()
            if now - before > SAME:  # this process itself was stopped, or starved
                self._answered = now
            before = now
            if signal.SIGTERM in received:
                if terminated is None:
                    terminated = now
                    self._terminate()
                elif now - terminated > SAME:
                    os._exit(TERMINATED)
            if self._members and not self._failure and now - self._answered > self._limit:
                self._end(f"the launch's store at {self._address} has not answered for {self._limit:g} s: either this "
                          f"host ({self._me.name}) is cut off, or that one is gone")

    def _terminate(self) -> None:
        if any(_process_state(m.pid) in "XZ" for m in self._others()):  # what is left of a launch that has failed
            if self._failure:
                self._failed.wait(5 * PATIENCE)
            elif self._armed:
                self._write_stacks([])
            os._exit(TERMINATED)
        self._stopping, self._ending = True, not self._armed
        self._hurry.set()
        if self._ending:
            time.sleep(BEAT / 2)  # in which the others are told
            os._exit(0)
        if os.environ.get("LOCAL_RANK", "0") == "0":
            log.warning("SIGTERM: saving and stopping after this step; another one ends the run at once")

    def _others(self) -> list[Member]:
        """The other ranks of this host."""
        return [m for m in self._members if m.host == self._me.host and m.rank != self._me.rank]

    # -- the store --------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Body of a thread. It blocks when the store does not answer."""
        try:
            self._watch_store()
        except RuntimeError as e:
            if not self._closed.is_set():
                self._end(f"the launch's store at {self._address} is gone, and so is rank 0 or its host "
                          f"({' '.join(str(e).split())[:100]})")

    def _watch_store(self) -> None:
        hosts = sorted({m.host for m in self._members})
        watched = hosts[(hosts.index(self._me.host) + 1) % len(hosts)]
        beats, since = -1, time.monotonic()
        while not self._closed.is_set() and not self._failure:
            self._store.add(f"alive/{self._me.host}", 1)
            now = time.monotonic()
            count = self._store.add(f"alive/{watched}", 0)
            if count != beats or now - self._answered > 2 * BEAT:  # the latter: this process was stopped, or starved
                beats, since = count, now
            self._answered = now
            self._pass_on_stop()  # first: those that end at once break their connections
            if self._store.check(["failure"]):
                self._end(self._store.get("failure").decode())
            elif now - since > self._limit:
                self._publish(f"nothing was heard of {self._describe(watched)} for {self._limit:g} s: the host or its "
                              "network is down")
            elif self._raised.is_set():
                self._find_cause()
            self._hurry.wait(BEAT)
            self._hurry.clear()

    def _pass_on_stop(self) -> None:
        """What the rank that got SIGTERM does all others do, whether they have begun their first step or not."""
        if self._ending:
            self._store.set("end", "")
        elif self._store.check(["end"]):
            os._exit(0)
        elif self._stopping:
            self._store.set("stop", "")
        elif self._store.check(["stop"]):
            self._stopping = True

    def _find_cause(self) -> None:
        """A collective has raised in this rank. After a hang, the first such rank finds out who did not come."""
        self._store.set(f"raised/{self._me.rank}", "")
        time.sleep(PATIENCE)
        if self._store.check(["failure"]):
            self._end(self._store.get("failure").decode())
        elif self._lost:
            self._publish(self._lost)
        elif self._store.compare_set("judge", "", str(self._me.rank)) == str(self._me.rank).encode():
            absent = [f"{m.rank} ({m.name})" for m in self._members if not self._store.check([f"raised/{m.rank}"])]
            more = f" and {len(absent) - 8} more" if len(absent) > 8 else ""
            who = f"rank {', '.join(absent[:8])}{more} did not come to" if absent else "all ranks were in"
            self._publish(f"{who} a collective that took more than {self._minutes:g} minutes (parallel.timeout)")

    def _publish(self, reason: str) -> None:
        """End the launch for this reason, or for the one that another rank has given before."""
        self._end(self._store.compare_set("failure", "", reason).decode())

    def _describe(self, host: str) -> str:
        members = [m for m in self._members if m.host == host]
        return f"host {members[0].name} (ranks {', '.join(str(m.rank) for m in members)})"

    # -- the end ----------------------------------------------------------------------------------------------------

    def _end(self, reason: str) -> None:
        """End this rank, unless its main thread is about to do that by itself."""
        self._fail(reason)
        if not self._raised.wait(PATIENCE):
            report(f"srpo: error: {self._failure}")
            os._exit(1)

    def _fail(self, reason: str) -> None:
        """Settle on a reason and write the stacks, once. A disk that does not answer must not keep the rank alive."""
        with self._failing:
            if self._failure:
                return
            self._failure = f"{reason}; stacks of all ranks: {self._folder}"
            writer = threading.Thread(target=self._write_stacks, args=(self._others(),), daemon=True)
            writer.start()
            writer.join(5 * PATIENCE)
            self._failed.set()

    def _write_stacks(self, others: list[Member]) -> None:
        """This rank's, then those of `others` on this host that have not written their own."""
        self._folder.mkdir(parents=True, exist_ok=True)
        _write_stack(self._folder, self._me)
        if others:
            time.sleep(PATIENCE)
        for member in others:
            _write_stack(self._folder, member)
        deadline = time.monotonic() + 2 * PATIENCE  # whoever ends first takes the others along
        while not all(_stack_file(self._folder, m).exists() for m in others) and time.monotonic() < deadline:
            time.sleep(0.1)


def _stack_file(folder: Path, member: Member) -> Path:
    return folder / f"rank-{member.rank:05d}.txt"


def _write_stack(folder: Path, member: Member) -> None:
    """Have a rank of this host dump its stacks, with what the kernel says about it; nothing if another one does."""
    final = _stack_file(folder, member)
    partial = final.with_suffix(".partial")
    try:
        if final.exists():
            return
        file = partial.open("x")
    except FileExistsError:
        return
    state = _process_state(member.pid)
    with file, suppress(ProcessLookupError, FileNotFoundError):
        kernel = Path(f"/proc/{member.pid}/wchan").read_text()
        file.write(f"rank {member.rank}, process {member.pid} on {member.name}, state {state} (proc(5)), main "
                   f"thread in kernel function {kernel}\n\n")
        file.flush()
        ctypes.CDLL(None).tgkill(member.pid, member.pid, signal.SIGUSR2)  # its main thread, which then stands still
        if state == "T":
            os.kill(member.pid, signal.SIGCONT)
        stacks = Path(f"/proc/{member.pid}/fd/{member.stacks}")
        text, before = "", None
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and (not text or text != before):
            time.sleep(0.3)
            before, text = text, stacks.read_text()
        file.write(text or "It does not answer: it hangs in the kernel.\n")
    partial.rename(final)


def _process_state(pid: int) -> str:
    """The letter of proc(5): R running, S sleeping, D waiting for a device, T stopped, Z ended; X when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"
