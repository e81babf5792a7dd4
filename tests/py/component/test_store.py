# SPDX-License-Identifier: LGPL-2.1-or-later
"""The store as programs meet it: vchans in it, its sockets, and its process's end."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import struct
import threading
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from kvmchand.errors import NotFound
from kvmchand.ids import HOST, ChannelId, ClientId, Size
from kvmchand.runtime.supervisor import Service
from kvmchand.services.store.connections import CONNECTIONS_MAX
from kvmchand.services.store.streams import DOMAIN_OUTPUT_MAX, OUTPUT_MAX
from kvmchand.wire import local
from kvmchand.wire import store as wire
from kvmchand.wire.packet import receive_packet, send_packet
from kvmchand.xenstore import protocol
from kvmchand.xenstore.protocol import Kind
from libxenvchan_shim import Vchan, connect
from libxenvchan_shim import offer as offer_vchan
from rig.clients import RawClient, StoreClient, packet, write_packet
from rig.daemon import Daemon, acting_as
from rig.deadline import eventually
from rig.paths import PYTHON
from rig.processes import NOBODY, is_asleep, run_as, socket_of
from rig.program import Program


def store(daemon: Daemon, domain: int = 0) -> StoreClient:
    return StoreClient(daemon.store_path(domain))


def refused(number: int) -> pytest.RaisesExc[OSError]:
    return pytest.raises(OSError, match=errno.errorcode[number])


def offer(daemon: Daemon, path: str = "x", server: int = 1, client: int = 2) -> Vchan:
    with acting_as(daemon, server):
        return offer_vchan(client, path)


def connect_to(daemon: Daemon, path: str = "/local/domain/1/x", server: int = 1, client: int = 2) -> Vchan:
    with acting_as(daemon, client):
        return connect(server, path)


def moves_data(server: Vchan, client: Vchan) -> bool:
    return client.send(b"there") == 5 and server.recv(5) == b"there" and server.send(b"back") == 4 and client.recv(4) == b"back"


def kill_store(daemon: Daemon) -> None:
    """Kills the store process while it does nothing, and returns when another is there.

    One that is killed in the midst of a client's request drops that client, and it is in the midst
    of it until a moment after the answer.
    """
    eventually(lambda: is_asleep(daemon.service("store")))
    daemon.kill_service("store")


# ---- vchans ----


def test_a_vchan_stands_in_the_store_when_its_server_is_answered(daemon: Daemon) -> None:
    with store(daemon) as looking, store(daemon, 2) as peer, store(daemon, 1) as own, RawClient(daemon) as listing:
        listing.hello()
        for _ in range(50):
            server = offer(daemon, "data/vchan/2/1")
            assert sorted(own.children("data/vchan/2/1")) == ["event-channel", "ring-ref"]
            path = "/local/domain/1/data/vchan/2/1"
            (channel,) = (each["channel"] for each in listing.list()["channels"])
            for reader in (looking, peer, own):
                assert reader.read(f"{path}/ring-ref") == str(channel)
                assert reader.read(f"{path}/event-channel") == str(2 * channel)
            assert looking.permissions(f"{path}/ring-ref") == ["n1", "r2"]
            assert looking.permissions(f"{path}/event-channel") == ["n1", "r2"]
            server.close()
            assert not looking.exists(path)


def test_other_domains_may_not_read_what_a_vchan_is_made_of(daemon: Daemon) -> None:
    with acting_as(daemon, 1):
        server = offer_vchan(0, "x")
    with store(daemon, 2) as other, refused(errno.EACCES):
        other.read("/local/domain/1/x/ring-ref")
    server.close()


def test_a_vchan_that_the_store_can_not_show_is_logged_and_works(daemon: Daemon) -> None:
    with store(daemon, 1) as own, store(daemon) as looking:
        depth, folders = 500, 0
        while depth:
            try:
                own.ask(Kind.MKDIR, f"{folders}" + "/d" * (depth - 1))
                folders += 1
            except OSError as error:
                assert error.errno == errno.ENOSPC
                depth //= 2
        server = offer(daemon, "deep/er/path")
        client = connect_to(daemon, "/local/domain/1/deep/er/path")
        assert moves_data(server, client)
        assert not looking.exists("/local/domain/1/deep")
        # The store process has written this before it answered.
        (line,) = [line for line in daemon.log().splitlines() if "not shown" in line]
        assert "domain 1's vchan at /local/domain/1/deep/er/path is not shown" in line
        assert "its quota of 32768 nodes" in line
        looking.write("/local/domain/1/hosts", "")
        looking.ask(Kind.SET_PERMS, "/local/domain/1/hosts", "n0", "r1")
        other = offer(daemon, "hosts")
        assert looking.children("/local/domain/1/hosts") == []
        assert "domain 1's vchan at /local/domain/1/hosts is not shown in the store, for it may not write" in daemon.log()
        for each in (client, server, other):
            each.close()
        for number in range(folders):
            own.remove(f"{number}")
        looking.remove("/local/domain/1/hosts")


def test_a_vchan_is_gone_from_the_store_when_its_server_is_killed(daemon: Daemon) -> None:
    code = "import libxenvchan_shim as v; c = v.offer(2, 'x'); print('there', flush=True); input()"
    with store(daemon) as looking, Program(PYTHON, "-c", code, env=daemon.environment(1)) as server:
        looking.watch("/local/domain/1/x")
        server.expect("there")
        looking.await_event("/local/domain/1/x/event-channel")
        assert looking.exists("/local/domain/1/x/ring-ref")
        server.process.kill()
        server.status = -signal.SIGKILL
        looking.await_event("/local/domain/1/x")
        assert not looking.exists("/local/domain/1/x")


@pytest.mark.parametrize("removed", ["", "/ring-ref", "/event-channel"])
def test_a_program_that_removes_the_nodes_withdraws_the_offer_and_who_is_connected_goes_on(daemon: Daemon, removed: str) -> None:
    server = offer(daemon)
    client = connect_to(daemon)
    with store(daemon, 1) as own:
        own.remove("/local/domain/1/x" + removed)
    with pytest.raises(NotFound):
        connect_to(daemon)
    assert moves_data(server, client)
    client.close()
    server.close()


def test_a_program_that_writes_to_a_vchans_node_withdraws_the_offer(daemon: Daemon) -> None:
    server = offer(daemon)
    with store(daemon, 1) as own:
        own.write("x/ring-ref", "1")
        with pytest.raises(NotFound):
            connect_to(daemon)
        server.close()
        assert own.read("x/ring-ref") == "1"  # it is the program's now
        own.remove("x")


def test_no_offer_is_withdrawn_by_a_transaction_that_is_not_committed(daemon: Daemon) -> None:
    server = offer(daemon)
    with store(daemon, 1) as own:
        begun = own.begin()
        own.ask(Kind.RM, "x", transaction=begun)
        client = connect_to(daemon)
        client.close()
        own.end(begun, commits=False)
        client = connect_to(daemon)
        assert own.exists("x/ring-ref")
    client.close()
    server.close()


def test_a_vchan_that_is_taken_over_has_the_later_ones_numbers(daemon: Daemon) -> None:
    with store(daemon) as looking:
        first = offer(daemon)
        before = looking.read("/local/domain/1/x/ring-ref")
        second = offer(daemon)
        after = looking.read("/local/domain/1/x/ring-ref")
        assert int(after) > int(before)
        first.close()
        assert looking.read("/local/domain/1/x/ring-ref") == after
        client = connect_to(daemon)
        assert moves_data(second, client)
        client.close()
        second.close()
        assert not looking.exists("/local/domain/1/x")


def test_two_hundred_vchans_each_with_a_connection_a_watch_and_a_transaction(daemon: Daemon) -> None:
    with ExitStack() as stack:
        servers = []
        clients = []
        for number in range(200):
            servers.append(stack.enter_context(offer(daemon, f"x{number}")))
            client = stack.enter_context(store(daemon, 1))
            client.watch(f"x{number}", str(number))
            client.write(f"mine/{number}", "")
            begun = client.begin()
            client.write(f"mine/{number}", "here", begun)
            clients.append((client, begun))
        for number, (client, begun) in enumerate(clients):
            assert client.read(f"x{number}/ring-ref", begun)
            client.end(begun)
        with store(daemon, 1) as looking:
            assert [looking.read(f"mine/{number}") for number in range(200)] == ["here"] * 200
        for number, server in enumerate(servers):
            server.close()
            clients[number][0].await_event(f"x{number}", str(number))


# ---- domains ----


def test_a_domain_finds_its_own_number_and_name(daemon: Daemon) -> None:
    for domain in (0, 1, 2):
        with store(daemon, domain) as own:
            assert (own.read("domid"), own.read("name")) == (str(domain), f"Domain-{domain}")
            assert own.ask(Kind.GET_DOMAIN_PATH, str(domain)) == f"/local/domain/{domain}\0".encode()


def test_a_domain_writes_below_its_own_node_only(daemon: Daemon) -> None:
    with store(daemon, 1) as own, store(daemon, 2) as other, store(daemon) as host:
        own.write("data/x", "1")
        with refused(errno.EACCES):
            other.write("/local/domain/1/data/x", "2")
        with refused(errno.EACCES):
            other.read("/local/domain/1/data/x")
        host.write("/local/domain/1/data/x", "0")
        assert own.read("data/x") == "0"


# ---- connections ----


def test_a_request_may_come_in_pieces_and_many_at_once(daemon: Daemon) -> None:
    with store(daemon) as client:
        for byte in packet(Kind.READ, "/local/domain/0/domid"):
            client.say(bytes([byte]))
        assert client.reply() == b"0"
        client.say(b"".join(write_packet(f"/many/{number}", "x") for number in range(1000)))
        assert [client.reply() for _ in range(1000)] == [protocol.OK] * 1000
        client.remove("/many")


@pytest.mark.parametrize("data", [protocol.HEADER.pack(Kind.READ, 0, 0, 4097), b"\xff" * 16, b"\xff" * 5000])
def test_a_request_that_is_too_long_ends_its_connection_and_no_other(daemon: Daemon, data: bytes) -> None:
    with store(daemon) as rogue, store(daemon) as other:
        rogue.say(data)
        rogue.hear_end()
        assert other.read("domid") == "0"


def test_a_client_that_closes_its_direction_is_gone(daemon: Daemon) -> None:
    with store(daemon) as client:
        client.say(packet(Kind.READ, "domid")[:10])
        client.sock.shutdown(socket.SHUT_WR)
        client.hear_end()


def test_a_client_that_never_reads_its_events_is_dropped_and_others_go_on(daemon: Daemon) -> None:
    token = "t" * 3000
    with store(daemon) as deaf, store(daemon) as other, store(daemon) as writer:
        deaf.watch("/many", token)
        other.watch("/many")
        for number in range(2 * OUTPUT_MAX // 3000):
            writer.write(f"/many/{number}", "x")
            assert other.event() == (f"/many/{number}", "t")
        deaf.hear_end()
        writer.remove("/many")
    assert "does not read what it watches" in daemon.log()


def test_the_same_event_does_not_wait_twice(daemon: Daemon) -> None:
    token = "t" * 3000
    with store(daemon) as deaf, store(daemon) as writer:
        deaf.watch("/one", token)
        for number in range(2 * OUTPUT_MAX // 3000):
            writer.write("/one", str(number))
        writer.write("/one/last", "x")
        deaf.await_event("/one/last", token)
        writer.remove("/one")


def test_a_change_that_makes_more_events_than_there_is_room_for_ends_those_who_watch_it(daemon: Daemon) -> None:
    """Before they are made: a domain's watches and the nodes of a transaction multiply."""
    token = "t" * 3000
    with ExitStack() as stack:
        watching = [stack.enter_context(store(daemon, 1)) for _ in range(10)]
        for each in watching:
            for number in range(400):
                each.watch("many", f"{number}{token}")
        writer = stack.enter_context(store(daemon, 1))
        transaction = writer.begin()
        for number in range(30):
            writer.write(f"many/{number}", "", transaction)
        writer.end(transaction)
        for each in watching:
            each.hear_end()
        peak = Path(f"/proc/{daemon.service('store')}/status").read_text().split("VmHWM:")[1].split()[0]
        assert int(peak) < 200 << 10
        writer.remove("many")


def test_all_clients_of_a_domain_have_so_much_room_for_events_together(daemon: Daemon) -> None:
    token = "t" * 3000
    with ExitStack() as stack:
        deaf = [stack.enter_context(store(daemon, 1)) for _ in range(3 * DOMAIN_OUTPUT_MAX // OUTPUT_MAX)]
        for each in deaf:
            each.watch("many", token)
        other = stack.enter_context(store(daemon, 2))
        writer = stack.enter_context(store(daemon, 1))
        for number in range((OUTPUT_MAX - (300 << 10)) // 3000):  # too few for one to have too many
            writer.write(f"many/{number}", "x")
        assert "its domain does not read" in daemon.log()
        assert other.read("domid") == "2"
        writer.remove("many")


def test_who_does_not_read_its_answers_is_not_heard_meanwhile(daemon: Daemon) -> None:
    with store(daemon) as deaf, store(daemon) as other:
        deaf.write("/long", "x" * 4000)
        deaf.sock.setblocking(False)
        asked = 0
        request = packet(Kind.READ, "/long")
        with pytest.raises(BlockingIOError):
            while True:
                assert deaf.sock.send(request) == len(request)
                asked += 1
        deaf.sock.setblocking(True)
        assert other.read("domid") == "0"
        assert [len(deaf.reply()) for _ in range(asked)] == [4000] * asked
        other.remove("/long")


def test_a_domain_with_many_connections_has_no_more_turns_than_others(daemon: Daemon) -> None:
    with ExitStack() as stack:
        watching = stack.enter_context(store(daemon))
        watching.watch("/local/domain")
        many = [stack.enter_context(store(daemon, 1)) for _ in range(40)]
        one = stack.enter_context(store(daemon, 2))
        for each in (*many, one):
            each.read("domid")
        os.kill(daemon.service("store"), signal.SIGSTOP)
        for number, each in enumerate(many):
            each.say(write_packet(f"{number}", "x"))
        one.say(b"".join(write_packet(f"{number}", "x") for number in range(5)))
        os.kill(daemon.service("store"), signal.SIGCONT)
        order = [watching.event()[0] for _ in range(45)]
        assert order.index("/local/domain/2/4") < 20
        for number in range(40):
            many[0].remove(f"{number}")
        for number in range(5):
            one.reply()
            one.remove(f"{number}")


def test_a_domain_has_so_many_connections_and_room_again(daemon: Daemon) -> None:
    with ExitStack() as stack:
        many = [stack.enter_context(store(daemon, 1)) for _ in range(CONNECTIONS_MAX)]
        for each in many:
            assert each.read("domid") == "1"
        with store(daemon, 1) as surplus:
            surplus.hear_end()
        with store(daemon, 2) as other:
            assert other.read("domid") == "2"
        many.pop().close()
        eventually(lambda: can_read(daemon, 1))


@pytest.mark.skipif(os.geteuid() != 0, reason="acts as another user, which needs root")
def test_another_user_is_refused_though_the_sockets_mode_was_loosened(daemon: Daemon) -> None:
    daemon.store_path().chmod(0o666)
    # pytest's folder is closed to others, but a socket is found through a descriptor of its folder,
    # too.
    folder = os.open(daemon.runtime_dir, os.O_PATH | os.O_DIRECTORY)
    code = "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.recv(1))"
    assert run_as(NOBODY, code, f"/proc/self/fd/{folder}/store.sock", fds=[folder]) == "b''\n"
    os.close(folder)
    assert f"user {NOBODY} may not use kvmchand" in daemon.log()


# ---- the end of the store process ----


def test_a_store_process_that_is_killed_is_started_again_and_all_goes_on(daemon: Daemon) -> None:
    server = offer(daemon)
    client = connect_to(daemon)
    with store(daemon) as host, store(daemon, 1) as own, store(daemon, 2) as fresh:
        own.write("data/x", "kept")
        own.ask(Kind.SET_PERMS, "data/x", "n1", "r2")
        host.watch("/local/domain/1/data", "host's")
        begun = own.begin()
        own.write("data/y", "lost", begun)
        kill_store(daemon)
        with refused(errno.EAGAIN):
            own.end(begun)
        assert own.read("data/x") == "kept"
        assert fresh.read("/local/domain/1/data/x") == "kept"
        assert host.permissions("/local/domain/1/data/x") == ["n1", "r2"]
        assert not host.exists("/local/domain/1/data/y")
        own.write("data/x", "anew")
        host.await_event("/local/domain/1/data/x", "host's")
        assert host.read("/local/domain/1/x/ring-ref")
    assert moves_data(server, client)
    client.close()
    server.close()
    with store(daemon) as host:
        assert not host.exists("/local/domain/1/x")


def test_half_a_request_is_completed_after_the_process_is_killed(daemon: Daemon) -> None:
    with store(daemon) as client, store(daemon) as other:
        request = packet(Kind.READ, "domid")
        client.say(request[:20])
        assert other.read("domid") == "0"
        kill_store(daemon)
        client.say(request[20:])
        assert client.reply() == b"0"


def test_a_vchan_that_went_while_the_process_was_down_is_gone_from_the_store(daemon: Daemon) -> None:
    server = offer(daemon)
    with store(daemon) as looking:
        looking.watch("/local/domain/1/x")
        os.kill(daemon.service("store"), signal.SIGSTOP)
        server.close()
        daemon.kill_service("store")
        looking.await_event("/local/domain/1/x")
        assert not looking.exists("/local/domain/1/x")


def test_nothing_that_was_acknowledged_is_lost_however_often_the_process_is_killed(daemon: Daemon) -> None:
    acknowledged = [0]
    is_over = threading.Event()

    def write() -> None:
        while not is_over.is_set():
            try:
                with store(daemon) as writer:
                    while not is_over.is_set():
                        writer.write("/count", str(acknowledged[0] + 1))
                        acknowledged[0] += 1
            except (EOFError, OSError):
                acknowledged[0] += 1  # it may have been done, without an answer

    writing = threading.Thread(target=write)
    writing.start()
    try:
        for _ in range(5):
            wanted = acknowledged[0] + 20
            eventually(partial(lambda wanted: acknowledged[0] >= wanted, wanted))
            daemon.kill_service("store")
            with store(daemon) as looking:
                least = acknowledged[0]
                assert int(looking.read("/count")) >= least - 1
    finally:
        is_over.set()
        writing.join()
    with store(daemon) as looking:
        looking.remove("/count")


def test_a_client_that_had_not_taken_all_it_was_told_is_dropped_with_the_process(daemon: Daemon) -> None:
    with store(daemon) as deaf, store(daemon) as writer:
        deaf.watch("/many", "t" * 3000)
        for number in range(200):
            writer.write(f"/many/{number}", "x")
        kill_store(daemon)
        deaf.hear_end()
        writer.remove("/many")


def test_the_client_whose_bytes_ended_the_process_is_dropped_and_no_other(daemon: Daemon) -> None:
    with store(daemon) as rogue, store(daemon) as other:
        rogue.say(b"\xff" * 16)
        rogue.hear_end()
        number = int(daemon.log().rpartition("store client ")[2].partition(",")[0]) + 1  # connections are numbered as they come
        assert other.read("domid") == "0"
        with store(daemon) as third:
            third.write("/kept", "yes")
            store_pid = daemon.service("store")
            eventually(lambda: is_asleep(store_pid))
            marker = next(
                each
                for each in Path(f"/proc/{store_pid}/fd").iterdir()
                if "memfd:kvmchand-store " in str(each.readlink()) and each.stat().st_size == 4096
            )
            with marker.open("r+b") as page:
                page.write(struct.pack("=Q", number))
            kill_store(daemon)
            other.hear_end()
            assert third.read("/kept") == "yes"
            third.remove("/kept")
    assert f"store client {number} is dropped" in daemon.log()


def test_the_store_process_runs_as_nobody(daemon: Daemon) -> None:
    if os.geteuid() == 0:
        uid = next(line for line in Path(f"/proc/{daemon.service('store')}/status").read_text().splitlines() if "Uid:" in line)
        assert uid.split()[1:] == [str(NOBODY)] * 4


def test_a_large_journal_is_written_anew_and_understood(daemon: Daemon) -> None:
    with store(daemon) as client:
        client.watch("/big")
        for number in range(1000):
            client.write("/big", str(number) + "x" * 4000)
            client.event()
        client.write("/big", "last")
        kill_store(daemon)
        assert client.read("/big") == "last"
        client.write("/big", "after")
        client.await_event("/big")
        client.remove("/big")
    journal = next(
        each
        for each in Path(f"/proc/{daemon.pid}/fd").iterdir()
        if "memfd:kvmchand-store " in str(each.readlink()) and each.stat().st_size != 4096
    )
    assert journal.stat().st_blocks * 512 < 3 << 20


# ---- a store process that was taken over, and a daemon short of descriptors ----


@pytest.mark.parametrize(
    ("packet_", "fds"),
    [
        (b"not JSON", 0),
        (b'{"type":"connected","client":274877906944}', 0),
        (b'{"type":"connected","client":274877906944}', 1),
        (b'{"type":"connected","client":1}', 1),
        (b'{"type":"withdraw","channel":-1}', 0),
        (b'{"type":"output","client":1,"data":"%s","answers":true}' % (b"AAAA" * 2731), 0),
        (b'{"type":"output","client":1,"data":"?","answers":true}', 0),
        (bytes(70000), 0),
    ],
)
def test_a_store_process_that_was_taken_over_is_replaced_and_harms_no_channel(daemon: Daemon, packet_: bytes, fds: int) -> None:
    server = offer(daemon)
    client = connect_to(daemon)
    before = daemon.service("store")
    with socket_of(before) as taken_over, Path("/dev/null").open() as other:
        socket.send_fds(taken_over, [packet_], [other.fileno()] * fds)
    eventually(lambda: daemon.services().get("store", before) != before)
    assert moves_data(server, client)
    with store(daemon) as looking:
        assert looking.read("/local/domain/1/x/ring-ref")
    client.close()
    server.close()


def test_vchans_whose_nodes_go_while_others_are_withdrawn_are_withdrawn_too(tmp_path: Path) -> None:
    """What main says of the outer vchan comes between a program's request and the answer for its
    own.
    """
    path = tmp_path / "store.sock"
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
        listener.bind(str(path))
        listener.listen()
        service = Service("store")
        stack.callback(service.stop)

        def say(message: object, *fds: int) -> None:
            service.marker.count_sent()
            send_packet(service.sock, wire.to_store.encode(message), fds)

        def hear() -> object:
            data, fds = receive_packet(service.sock)
            fds.close()
            return wire.from_store.decode(data)

        journal = os.memfd_create("journal")
        stack.callback(os.close, journal)
        say(wire.Journal(), journal)
        say(wire.Domain(HOST, "Domain-0", ""))
        outer, inner, removed = ChannelId(1), ChannelId(2), ChannelId(3)
        for number, where in ((outer, "/tool/a"), (inner, "/tool/a/b"), (removed, "/tool/c")):
            say(wire.Offered(number, where, HOST, HOST, number, number))
        say(local.Listen(HOST, "domain 0", True, Size(0), -1, 10), listener.fileno())
        say(local.Start(ClientId(1), "nobody"))
        assert isinstance(hear(), local.Started)
        with StoreClient(path) as program:
            assert isinstance(hear(), wire.Connected)
            program.say(packet(Kind.RM, "/tool/c/ring-ref"))
            assert hear() == wire.Withdraw(removed)
            say(wire.Withdrawn(outer))
            say(wire.Withdrawn(removed))
            assert hear() == wire.Withdraw(inner)
            say(wire.Withdrawn(inner))
            assert program.reply() == protocol.OK
            assert program.children("/tool") == ["xenstored", "c"]


def test_connections_end_where_the_daemon_has_no_descriptors_left_for_them(own_daemon: Daemon) -> None:
    with ExitStack() as stack:
        before = own_daemon.service("store")
        least = len(own_daemon.baseline["main"])  # and not what it has just now, which may be on its way out
        resource.prlimit(own_daemon.pid, resource.RLIMIT_NOFILE, (least + 100, least + 100))
        alive = [stack.enter_context(store(own_daemon, 1)) for _ in range(200)]

        def at_most_a_hundred() -> bool:
            # One may be answered once before main has heard of it, and ends it.
            alive[:] = [each for each in alive if is_answered(each, "1")]
            return len(alive) <= 100

        eventually(at_most_a_hundred)
        assert alive
        assert own_daemon.service("store") == before
    assert "a new connection to the store is ended" in own_daemon.log()
    # One that it has for the store is not yet one for the next who asks.
    eventually(lambda: own_daemon.fds() == own_daemon.baseline, lambda: str(own_daemon.fds()))
    assert can_read(own_daemon)


def can_read(daemon: Daemon, domain: int = 0) -> bool:
    with store(daemon, domain) as client:
        return is_answered(client, str(domain))


def is_answered(client: StoreClient, domid: str) -> bool:
    """Whether the store answers, and does so rightly."""
    try:
        return client.read("domid") == domid
    except (EOFError, OSError):
        return False
