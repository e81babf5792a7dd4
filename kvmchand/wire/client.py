# SPDX-License-Identifier: LGPL-2.1-or-later
"""The messages between a client and the daemon's local socket.

Clients are libxenvchan, the Python API and the tool.

A connection opens with Hello, which is answered only if it is refused. Each request gets one reply:
its own, or Error. A connection that has opened a channel is that channel's end, one that shares or
maps pages holds these. To close it the client shuts its direction of the connection down, and the
daemon ends the connection once the end is released; without that, the end lives until the
connection and the memory's mapping are gone.

Changes by version:
    1: the first.
    2: ends in guests, and guests in listings.
    3: what Xen programs use beside vchans: event channels, shared pages, domains; offers to one
        client only, connect that waits.
    4: a grant is called so, and its fields by the names that they have everywhere; text as it is,
        in UTF-8.
    5: who waits for an offer is told of one, and asks again for it.
    6: domains have names and uuids, and an answer has as many domains as fit into a packet.
    7: ends may share an interrupt vector; guests are detached, and attached again; a packet of
        move.py may follow the grant of a server's end.
"""

from __future__ import annotations

from kvmchand.wire.codec import Codec
from kvmchand.wire.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvmchand.ids import ChannelId, DomainId, Size

VERSION = 7

EVENTS = ("socket", "eventfd", "doorbell", "shared eventfd", "shared doorbell")
"""What `Grant.events` may be, by number: enum kvmchan_events of
libxenvchan_shim/csrc/dataplane/grant.h."""

PORT_STATES = ("closed", "unbound", "interdomain")
"""What `Port.state` may be, by number: Xen's EVTCHNSTAT_."""

DOMAINS_MAX = 256
"""Domains in one answer to GetDomains, which may have room for fewer."""

SOCKET_NAME = "kvmchand.sock"
"""The default socket in the runtime directory: the host's, or in a guest the guest's."""

STORE_SOCKET_NAME = "store.sock"
"""The same for xenstore's protocol, which libxenstore finds by $XENSTORED_PATH."""


def port_of(channel: int, *, is_server: bool) -> int:
    """Return the number of an event channel or vchan in the domain of one of its ends."""
    return (2 * channel + (not is_server)) & 0x7FFFFFFF


def socket_name(domain: int) -> str:
    """Return the name of a local domain's socket.

    Processes that connect to it act as that domain.
    """
    return f"domain-{domain}.sock"


def store_socket_name(domain: int) -> str:
    """Return the name of the socket of a local domain's store."""
    return f"store-{domain}.sock"


class Hello(Record):
    """First, once. The daemon ends a connection of a version it does not speak, with an Error."""

    version: int


class Offer(Record):
    """libxenvchan_server_init: offers `peer` a vchan at `path`.

    `once`: no other client finds it after the first. Reply: Grant.
    """

    peer: int
    path: str
    read_min: Size
    write_min: Size
    once: bool


class Connect(Record):
    """libxenvchan_client_init: connects to what `domain` offers at `path`.

    `waits`: where nothing is offered there, the reply comes when something may be, or the domain is
    gone. Reply: Grant, or Vacant to one that has waited.
    """

    domain: int
    path: str
    waits: bool


class Bind(Record):
    """xenevtchn_bind_unbound_port: an event channel for `peer` to join.

    Reply: Grant, of which only the events are of use.
    """

    peer: int


class Join(Record):
    """xenevtchn_bind_interdomain: joins the event channel that is `port` in `domain`.

    Reply: Grant.
    """

    domain: int
    port: Size


class Share(Record):
    """xengntshr_share_pages: so many zeroed pages for `peer` to map. Reply: Pages."""

    peer: int
    pages: int
    writable: bool


class Map(Record):
    """xengnttab_map_grant_refs: maps the pages that `domain` shares with us, `ref` among them.

    Reply: Pages, all of that share.
    """

    domain: int
    ref: Size
    writable: bool


class Notify(Record):
    """Asks for what the daemon does when this connection's pages are let go, however that comes.

    It clears the byte at `offset`, if `clears`, then sends an event on our event channel `port`, if
    that is not 0. Reply: Done.
    """

    clears: bool
    offset: Size
    port: Size


class GetPort(Record):
    """xc_evtchn_status: what the event channel is that is `port` in `domain`, -1 for our own.

    Reply: Port.
    """

    domain: int
    port: Size


class GetDomains(Record):
    """Asks for the domains from number `first` on. Reply: Domains."""

    first: int


class Detach(Record):
    """Asks for the devices of the guest `domain` back, and so ends all of its channels.

    For the host's administrator. Reply: Done, when libvirt says that it has none any more.
    """

    domain: int


class Attach(Record):
    """Asks for devices again for the guest `domain`, which was detached.

    For the host's administrator. Reply: Done.
    """

    domain: int


class Grant(Record):
    """An end of a channel.

    `events`: what it waits on and how it wakes its peer, and so which descriptors come beside this:

    socket: the region, and this end of the event channel.
    eventfd, the peer is in a guest: the device's memory, an eventfd to wait on, and one whose
        writing interrupts the guest.
    doorbell, this end is in a guest: the VFIO device, and an eventfd to wait on. `doorbell` is
        where mmap has BAR 0 of the device, whose doorbell register takes `doorbell_value` to
        interrupt the peer.
    shared eventfd, shared doorbell: the same where other ends wait for the same eventfd. Instead of
        it comes an epoll with it, edge-triggered; each end then gets each event, and nobody may
        read the eventfd. A server's end in a guest always has an epoll: see move.py.

    `offset` is where mmap of the first descriptor has the region. What has no use is 0.
    """

    channel: ChannelId
    path: str
    left_order: int
    right_order: int
    events: str
    offset: Size
    doorbell: Size
    doorbell_value: Size


class Pages(Record):
    """`pages` pages, whose references count up from `ref`.

    The memory comes beside this; `offset` is where mmap has the pages, in a VFIO device if this is
    in a guest.
    """

    ref: Size
    pages: int
    offset: Size


class Vacant(Record):
    """There may be a vchan now for a client that has waited: it has to ask again.

    It is not given one unasked, because a wait may have been left, and nobody know.
    """


class Done(Record):
    """It is done."""


class Port(Record):
    """`state`: closed, unbound, interdomain.

    Unbound: `domain` may join. Interdomain: it has, and its own number is `port`.
    """

    state: str
    domain: DomainId
    port: Size


class Domains(Record):
    """Domains by rising number, as many as fit into a packet, and at most DOMAINS_MAX.

    `own`: the number of the domain that asks. `more`: others follow the last of them, for which one
    asks again from its number + 1 on.
    """

    own: DomainId
    domains: tuple[DomainInfo, ...]
    more: bool


FIRST: Size = 0  # type: ignore[assignment]  # a name for the type checker only
"""Asks for the first page of a listing. As `following` it says that there is none."""


class List(Record):
    """Asks for a page of what there is.

    `after`: FIRST for the first, then each page's `following`. Reply: Listing.
    """

    after: Size


class DomainInfo(Record):
    """A domain the daemon knows. `kind`: host, local, guest.

    `name`, `uuid`: a guest's are libvirt's, and "" to clients outside domain 0, whom it does not
    concern what the host's machines are called. The host's name is "host"; its uuid, and both of a
    local domain, are "".
    """

    domain: DomainId
    kind: str
    name: str
    uuid: str


class GuestInfo(Record):
    """A guest, as the host shows it.

    `name`: its hypervisor's. `ready`: its kvmchand is there. `devices`: ivshmem devices it has.
    `detached`: it was detached, and gets none.
    """

    domain: DomainId
    name: str
    ready: bool
    devices: int
    detached: bool


class LinkInfo(Record):
    """The devices that the channels between two domains share, as the host shows them.

    `size`: bytes of all.
    """

    domain: DomainId
    other: DomainId
    devices: int
    size: Size
    channels: int


class DeviceInfo(Record):
    """An ivshmem device, as a guest shows its own. `speed`: MB/s of reading its memory."""

    address: str
    size: Size
    vectors: int
    speed: Size


class ChannelInfo(Record):
    """A channel. A pid of 0: nobody is at that end. Ready: bytes waiting to be read by that end."""

    channel: ChannelId
    path: str
    state: str
    server: DomainId
    client: DomainId
    server_pid: int
    client_pid: int
    server_ring: Size
    client_ring: Size
    server_ready: Size
    client_ready: Size


class Listing(Record):
    """A page.

    `following`: with which to ask for the next one, always more than what this was asked for with;
    0 where there is none. Devices are on a guest's first, which names no domain: those are the
    host's to show. A host's first names at least one.
    """

    domains: tuple[DomainInfo, ...]
    guests: tuple[GuestInfo, ...]
    links: tuple[LinkInfo, ...]
    devices: tuple[DeviceInfo, ...]
    channels: tuple[ChannelInfo, ...]
    following: Size


def joined(pages: Iterable[Listing]) -> Listing:
    """Return pages as one."""
    listed = list(pages)
    parts = ("domains", "guests", "links", "devices", "channels")
    of_all = {name: tuple(each for page in listed for each in getattr(page, name)) for name in parts}
    return Listing(**of_all, following=FIRST)


class Error(Record):
    """The request failed.

    `code` is of kvmchand.errors. After a protocol error the daemon ends the connection; also when
    it lacks resources, if the connection has no channel.
    """

    code: str
    sentence: str


REQUESTS: dict[str, type] = {
    "hello": Hello,
    "offer": Offer,
    "connect": Connect,
    "bind": Bind,
    "join": Join,
    "share": Share,
    "map": Map,
    "notify": Notify,
    "get-port": GetPort,
    "get-domains": GetDomains,
    "list": List,
    "detach": Detach,
    "attach": Attach,
}

REPLIES: dict[str, type] = {
    "grant": Grant,
    "vacant": Vacant,
    "pages": Pages,
    "done": Done,
    "port": Port,
    "domains": Domains,
    "listing": Listing,
    "error": Error,
}

if TYPE_CHECKING:
    Request = Hello | Offer | Connect | Bind | Join | Share | Map | Notify | GetPort | GetDomains | List | Detach | Attach
    Reply = Grant | Vacant | Pages | Done | Port | Domains | Listing | Error

requests = Codec(REQUESTS)
replies = Codec(REPLIES, {each.__name__: each for each in (DomainInfo, GuestInfo, LinkInfo, DeviceInfo, ChannelInfo)})
