# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Python API's Listener on a real daemon: clients one after another, and at once."""

from __future__ import annotations

import gc
import select
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from kvmchan import AlreadyClosed, Busy, Listener, NotFound, State, TimedOut, Unreachable, Vchan, WouldBlock, connect, listen
from rig.daemon import Daemon, acting_as
from rig.deadline import eventually
from rig.processes import in_child, next_fd


def test_clients_are_accepted_in_the_order_in_which_they_come(daemon: Daemon) -> None:
    before = next_fd()
    with acting_as(daemon), listen(0, "x") as listener:
        assert (listener.path, listener.peer, listener.closed) == ("/local/domain/0/x", 0, False)
        for number in range(5):
            with connect(0, "x") as client, listener.accept() as server:
                client.sendall(b"%d" % number)
                client.close()
                assert list(server) == [b"%d" % number]
                assert server.is_server
    assert listener.closed
    assert next_fd() == before


def test_clients_are_served_at_once(daemon: Daemon) -> None:
    with acting_as(daemon), listen(0, "x") as listener, ExitStack() as stack:
        pairs = []
        for _ in range(20):
            client = stack.enter_context(connect(0, "x"))
            pairs.append((client, stack.enter_context(listener.accept())))
        for number, (client, server) in enumerate(pairs):
            client.sendall(b"%d" % number)
            server.sendall(b"to %d" % number)
        for number, (client, server) in enumerate(pairs):
            assert (server.recv(10), client.recv(10)) == (b"%d" % number, b"to %d" % number)


def test_clients_that_come_while_nobody_accepts_wait_for_their_turn(daemon: Daemon) -> None:
    """By an event: the second can connect once the first was accepted."""
    answers: list[bytes] = []

    def ask(number: int) -> None:
        with connect(0, "x", timeout=None) as client:
            client.sendall(b"%d" % number)
            answers.append(client.recv(10))

    with acting_as(daemon), listen(0, "x") as listener:
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(10)]
        for thread in threads:
            thread.start()
        for _ in threads:
            with listener.accept() as server:
                server.sendall(b"re: " + server.recv(10))
                assert server.recv(1) == b""
        for thread in threads:
            thread.join()
    assert sorted(answers) == [b"re: %d" % number for number in range(10)]


def test_no_client_can_follow_another_on_an_accepted_vchan(daemon: Daemon) -> None:
    """The end of its stream is final."""
    with acting_as(daemon), listen(0, "x") as listener:
        first = connect(0, "x")
        with listener.accept() as server:
            first.close()
            with connect(0, "x") as second, listener.accept() as other:
                assert (server.recv(1), server.state) == (b"", State.GONE)
                second.sendall(b"second")
                assert other.recv(10) == b"second"


def test_a_client_that_came_and_went_is_accepted(daemon: Daemon) -> None:
    with acting_as(daemon), listen(0, "x") as listener:
        with connect(0, "x") as client:
            client.sendall(b"last words")
        with listener.accept() as server:
            assert list(server) == [b"last words"]


def test_iterating_accepts_until_the_listener_is_closed(daemon: Daemon) -> None:
    served: list[bytes] = []

    def serve(listener: Listener) -> None:
        for server in listener:
            with server:
                served.append(server.recv(10))

    with acting_as(daemon), listen(0, "x") as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        for number in range(3):
            with connect(0, "x", timeout=None) as client:
                client.sendall(b"%d" % number)
                assert client.recv(1) == b""
        listener.close()
        thread.join()
    assert served == [b"0", b"1", b"2"]


def test_accepting_has_a_timeout(daemon: Daemon) -> None:
    with acting_as(daemon), listen(0, "x") as listener:
        assert listener.gettimeout() is None
        with pytest.raises(TimedOut, match=r"no client has come to /local/domain/0/x within 0\.01 s"):
            listener.accept(timeout=0.01)
        listener.settimeout(0)
        with pytest.raises(WouldBlock, match="no client has come"):
            listener.accept()
        with connect(0, "x"), listener.accept() as server:
            assert server.gettimeout() is None
        with pytest.raises(TypeError, match="timeout must be a number"):
            listener.accept(timeout="1")  # type: ignore[arg-type]


def test_a_second_thread_that_accepts_is_refused(daemon: Daemon) -> None:
    accepted: list[Vchan] = []
    with acting_as(daemon), listen(0, "x") as listener:
        thread = threading.Thread(target=lambda: accepted.append(listener.accept()))
        thread.start()
        eventually(lambda: listener._offered is not None and listener._offered._awaited)
        with pytest.raises(Busy, match="another thread accepts"):
            listener.accept()
        with connect(0, "x"):
            thread.join()
            accepted[0].close()


def test_a_closed_listener_offers_nothing(daemon: Daemon) -> None:
    with acting_as(daemon):
        with listen(0, "x") as listener:
            client = connect(0, "x")
            server = listener.accept()
        for use in (listener.accept, listener.fileno):
            with pytest.raises(AlreadyClosed, match="the listener at /local/domain/0/x has been closed here"):
                use()
        assert list(listener) == []
        listener.close()
        with pytest.raises(NotFound):
            connect(0, "x")
        client.sendall(b"goes on")
        assert server.recv(10) == b"goes on"
        client.close()
        server.close()
    assert repr(listener) == "<Listener for domain 0, /local/domain/0/x, closed>"


def test_a_listener_that_was_forgotten_is_closed_with_a_warning(daemon: Daemon) -> None:
    with acting_as(daemon):
        listener = listen(0, "x")
        with pytest.warns(ResourceWarning, match="unclosed <Listener for domain 0, /local/domain/0/x>"):
            del listener
            gc.collect()
        with pytest.raises(NotFound):
            connect(0, "x")


def test_a_listener_can_be_watched_by_its_descriptor(daemon: Daemon) -> None:
    def is_readable(listener: Listener) -> bool:
        return bool(select.select([listener], [], [], 0)[0])

    with acting_as(daemon), listen(0, "x") as listener:
        listener.settimeout(0)
        number = listener.fileno()
        for _ in range(3):
            assert not is_readable(listener)
            with connect(0, "x") as client:
                assert is_readable(listener)
                with listener.accept() as server:
                    client.sendall(b"x")
                    server.recv(1)
                    assert not is_readable(listener)
        assert listener.fileno() == number


def test_a_daemon_that_ends_is_seen_by_who_accepts(tmp_path: Path) -> None:
    started = Daemon(tmp_path)
    with acting_as(started):
        listener = listen(0, "x")
    started.kill()
    with pytest.raises(Unreachable, match="listen again"):
        listener.accept()
    listener.close()


def test_a_client_is_accepted_though_nothing_can_be_offered_afterwards(tmp_path: Path) -> None:
    started = Daemon(tmp_path)
    with acting_as(started):
        listener, client = listen(0, "x"), connect(0, "x")
        listener.fileno()
        started.kill()
        with listener.accept() as server:
            client.sendall(b"there")
            assert server.recv(10) == b"there"
        for _ in range(2):
            assert select.select([listener], [], [], 0)[0]  # so that accept() is called, and says why
            with pytest.raises(Unreachable):
                listener.accept()
    client.close()
    listener.close()


def test_a_forked_child_does_not_close_its_parents_listener(daemon: Daemon) -> None:
    with acting_as(daemon), listen(0, "x") as listener:

        def use() -> None:
            with pytest.raises(AlreadyClosed, match="which forked this one"):
                listener.accept()
            listener.close()

        assert in_child(use) == 0
        with connect(0, "x") as client, listener.accept() as server:
            client.sendall(b"x")
            assert server.recv(1) == b"x"
