# SPDX-License-Identifier: LGPL-2.1-or-later
"""What follows, for channels and the store, when guests and their devices come and go."""

from __future__ import annotations

from kvmchand.channels.channels import Channels
from kvmchand.channels.device import Device
from kvmchand.channels.registry import DomainKind, Registry
from kvmchand.channels.waitlist import Waitlist
from kvmchand.errors import VchanError
from kvmchand.host.detaching import Detaching
from kvmchand.host.holdings import Holdings
from kvmchand.host.requests import Desk
from kvmchand.ids import DomainId
from kvmchand.links.guest import GuestEvents
from kvmchand.services.store.store import Store


class GuestDesk(GuestEvents):
    """Keeps domains, channels and the store as the guests are."""

    def __init__(
        self,
        registry: Registry,
        channels: Channels,
        waitlist: Waitlist,
        holdings: Holdings,
        desk: Desk,
        detaching: Detaching,
        store: Store,
    ) -> None:
        """Know of no guest yet."""
        self._registry = registry
        self._channels = channels
        self._waitlist = waitlist
        self._holdings = holdings
        self._desk = desk
        self._detaching = detaching
        self._store = store

    def on_guest(self, domain: DomainId, name: str, uuid: str) -> None:
        """Make the guest a domain."""
        self._registry.add_domain(domain, DomainKind.GUEST)
        self._store.introduce(domain, name, uuid)

    def on_guest_store(self, domain: DomainId, message: object) -> None:
        """Pass what the guest's daemon says to the store."""
        self._store.take_guest_message(domain, message)

    def on_guest_messages_lost(self, domain: DomainId) -> None:
        """End the guest's connections to the store."""
        self._store.reset(domain)

    def on_guest_reset(self, domain: DomainId) -> None:
        """End all that the guest's clients have."""
        self._reset(domain)

    def _reset(self, domain: DomainId) -> None:
        self._store.reset(domain)
        self._desk.forget_domain(domain)
        self._holdings.end_all(domain)

    def on_guest_gone(self, domain: DomainId) -> None:
        """End all that the guest had, and tell those who waited for it."""
        self._reset(domain)
        self._channels.give_up_on(domain)
        self._forget(domain)

    def _forget(self, domain: DomainId) -> None:
        self._registry.remove_domain(domain)
        self._waitlist.serve_all_for(domain)
        self._store.release(domain)

    def on_guest_leaving(self, domain: DomainId) -> None:
        """End all that the guest's clients have. What is offered to it stays."""
        self._registry.detached.add(domain)
        self._reset(domain)

    def on_guest_left(self, domain: DomainId) -> None:
        """Tell who asked for that."""
        self._detaching.finish(domain)

    def on_guest_attached(self, domain: DomainId) -> None:
        """Note it."""
        self._registry.detached.discard(domain)

    def on_device_spoiled(self, domain: DomainId, device: Device) -> None:
        """Withdraw what is offered to the guest on the device, and tell the servers."""
        self._channels.give_up_on(domain, device)

    def on_guest_away(self, domain: DomainId, kept: DomainId) -> None:
        """End all that the guest had, but keep what is offered to it, though no domain finds it."""
        self._reset(domain)
        self._detaching.finish(domain)
        for channel in self._registry.offered_to(domain):
            channel.client_domain = kept
            self._store.unpublish(channel)
        self._forget(domain)

    def on_guest_returned(self, domain: DomainId, kept: DomainId) -> None:
        """Let the guest find what is offered to it."""
        for channel in self._registry.offered_to(kept):
            channel.client_domain = domain
            if self._registry.offered_at(channel.server_domain, channel.path) is channel:
                self._store.publish(channel)

    def on_guest_given_up(self, kept: DomainId) -> None:
        """Withdraw what was offered to the guest, and tell the servers."""
        self._channels.give_up_on(kept)

    def on_unserved(self, domain: DomainId, sentence: str) -> None:
        """Have those who ask for the domain be told why it is none of ours."""
        self._registry.unserved[domain] = sentence

    def on_unserved_gone(self, domain: DomainId) -> None:
        """Forget the domain."""
        self._registry.unserved.pop(domain, None)

    def on_device_lost(self, domain: DomainId, device: Device) -> None:
        """End what the guest's clients have on the device."""
        self._holdings.end_on(device, domain)

    def on_devices_changed(self) -> None:
        """Retry requests that raised NotYet."""
        self._desk.retry()

    def on_device_failed(self, domain: DomainId, device: Device, error: VchanError) -> None:
        """Fail the requests that wait for the device, and tell who offers something there."""
        self._desk.refuse_waiting_for(device, error)
        self._channels.give_up_on(domain, device)
