# SPDX-License-Identifier: LGPL-2.1-or-later
"""The settings file: each setting, its limits, and each kind of mistake, whose sentence names the
file and the setting.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from kvmchand import config
from kvmchand.config import RING_MAX, GuestSettings, Limits, LinkSettings, RingSettings, Settings, SocketSettings
from kvmchand.errors import InvalidArgument

EVERYTHING = """
runtime_dir = "/run/elsewhere"
local_domains = [1, 32751]
service_user = "daemon"
libvirt = "qemu:///session"
noiommu = true

[socket]
mode = 0o660
group = "users"

[limits]
max_ring = 4194304
max_channels = 7
max_bytes = "3G"
max_shared = 4096
guest_channels = 8
guest_devices = 9
guest_bytes = 1048576
guest_requests = 10

[rings]
unasked = "128K"
minimum = {"data/vchan/*" = "64K", "/local/domain/7/x" = 5}

[guests]
serve = ["web", "all"]

[links]
size = "64K"
vectors = 2
dedicated = true
pairs = [["web", "database"]]
"""


SECTIONS = ("socket", "limits", "rings", "guests", "links")


def load(folder: Path, text: str | bytes) -> Settings:
    file = folder / "kvmchand.toml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return config.load(file)


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "") == Settings()


def test_the_defaults() -> None:
    made = Settings()
    assert (made.runtime_dir, made.local_domains, made.service_user) == (Path("/run/kvmchand"), (), "nobody")
    assert (made.socket.mode, made.socket.group) == (0o600, "")
    assert made.limits.max_ring == 1 << 20


def test_every_setting_is_read(tmp_path: Path) -> None:
    read = load(tmp_path, EVERYTHING)
    assert read == Settings(
        runtime_dir=Path("/run/elsewhere"),
        local_domains=(1, 32751),  # type: ignore[arg-type]
        service_user="daemon",
        socket=SocketSettings(mode=0o660, group="users"),
        libvirt="qemu:///session",
        noiommu=True,
        limits=Limits(
            max_ring=4 << 20,
            max_channels=7,
            max_bytes=3 << 30,
            max_shared=4096,
            guest_channels=8,
            guest_devices=9,
            guest_bytes=1 << 20,
            guest_requests=10,
        ),
        guests=GuestSettings(serve=("web", "all")),
        rings=RingSettings(unasked=128 << 10, minimum=(("data/vchan/*", 65536), ("/local/domain/7/x", 5))),
        links=LinkSettings(size=65536, vectors=2, dedicated=True, pairs=(("web", "database"),)),  # type: ignore[arg-type]
    )
    default = Settings()
    sections = (default, default.socket, default.limits, default.rings, default.guests, default.links)
    for section in (read, read.socket, read.limits, read.rings, read.guests, read.links):
        before: Any = next(each for each in sections if type(each) is type(section))
        for field in fields(section):
            assert getattr(section, field.name) != getattr(before, field.name), f"EVERYTHING has no {field.name}"


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        # of the wrong type
        ("runtime_dir = 1", "runtime_dir"),
        ('runtime_dir = ""', "runtime_dir"),
        ('runtime_dir = "a\\u0000b"', "runtime_dir"),
        ("service_user = true", "service_user"),
        ('service_user = ""', "service_user"),
        ("local_domains = 1", "local_domains"),
        ('local_domains = ["1"]', "local_domains"),
        ("local_domains = [true]", "local_domains"),
        ("local_domains = [1.0]", "local_domains"),
        ("socket = 1", "socket"),
        ("limits = []", "limits"),
        ('[socket]\nmode = "660"', "socket.mode"),
        ("[socket]\nmode = true", "socket.mode"),
        ("[socket]\nmode = 384.0", "socket.mode"),
        ("[socket]\ngroup = 100", "socket.group"),
        ('[limits]\nmax_ring = "1T"', "limits.max_ring"),
        ('[limits]\nmax_ring = "M"', "limits.max_ring"),
        ('[limits]\nmax_ring = "-1"', "limits.max_ring"),
        ('[limits]\nmax_ring = "1 K"', "limits.max_ring"),
        ('[limits]\nmax_ring = "\u0661K"', "limits.max_ring"),
        (f'[limits]\nmax_ring = "{"9" * 5000}K"', "limits.max_ring"),
        ('[limits]\nmax_channels = "1K"', "limits.max_channels"),
        ("[rings]\nminimum = 1", "rings.minimum"),
        ('[rings]\nminimum = {"a" = "b"}', "rings.minimum.a"),
        ('[rings]\nminimum = {"a" = 0}', "rings.minimum.a"),
        ("[rings]\nunasked = -1", "rings.unasked"),
        ("[links]\nsize = 3000000", "links.size"),
        ("[links]\nsize = 2048", "links.size"),
        ("[links]\nvectors = 1", "links.vectors"),
        ("[links]\nvectors = 2049", "links.vectors"),
        ("[links]\ndedicated = 1", "links.dedicated"),
        ('[links]\npairs = ["a"]', "links.pairs"),
        ('[links]\npairs = [["a", "b", "c"]]', "links.pairs"),
        ('[links]\npairs = [["a", 1]]', "links.pairs"),
        ("guests = 1", "guests"),
        ('[guests]\nserve = "web"', "guests.serve"),
        ('[guests]\nserve = ""', "guests.serve"),
        ("[guests]\nserve = true", "guests.serve"),
        ("[guests]\nserve = 1", "guests.serve"),
        ('[guests]\nserve = ["web", 1]', "guests.serve"),
        ('[guests]\nserve = ["web", ""]', "guests.serve"),
        ('[guests]\nserve = [["web"]]', "guests.serve"),
        ('[guests]\nserve = {"web" = 1}', "guests.serve"),
        ('[guests]\nservers = "all"', "servers"),
        ("libvirt = 1", "libvirt"),
        ('noiommu = "yes"', "noiommu"),
        ("[limits]\nmax_channels = 1.5", "limits.max_channels"),
        # out of range
        ("local_domains = [0]", "local_domains"),
        ("local_domains = [-1]", "local_domains"),
        ("local_domains = [32752]", "local_domains"),
        ("[socket]\nmode = -1", "socket.mode"),
        ("[socket]\nmode = 0o1000", "socket.mode"),
        (f"[socket]\nmode = {10**30}", "socket.mode"),
        ("[limits]\nmax_ring = -1", "limits.max_ring"),
        (f"[limits]\nmax_ring = {RING_MAX + 1}", "limits.max_ring"),
        ("[limits]\nmax_channels = -1", "limits.max_channels"),
        (f"[limits]\nmax_channels = {config.CHANNELS_MAX + 1}", "limits.max_channels"),
        (f"[limits]\nmax_channels = {10**30}", "limits.max_channels"),
        # unknown
        ("runtime_dri = 'x'", "runtime_dri"),
        ("[sockets]\nmode = 0", "sockets"),
        ("[socket]\nmod = 0", "mod"),
        ("[limits]\nmax_rings = 1", "max_rings"),
        # no TOML
        ("runtime_dir = ", "at end of document"),
        ("\n\n[socket\n", "at line 3"),
        ("[limits]\nmax_ring = 1\nmax_ring = 2\n", "at line 3"),
        (b"runtime_dir = '\xff'", "utf-8"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_file_and_the_setting(tmp_path: Path, text: str | bytes, setting: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        load(tmp_path, text)
    assert str(tmp_path / "kvmchand.toml") in caught.value.sentence
    assert setting in caught.value.sentence
    assert "\n" not in caught.value.sentence


@pytest.mark.parametrize(
    ("text", "serve"),
    [
        ("", "prepared"),
        ('[guests]\nserve = "prepared"', "prepared"),
        ('[guests]\nserve = "all"', "all"),
        ('[guests]\nserve = ["web", "a b"]', ("web", "a b")),
        ('[guests]\nserve = ["all"]', ("all",)),
        ("[guests]\nserve = []", ()),
    ],
)
def test_which_guests_are_served(tmp_path: Path, text: str, serve: config.Serve) -> None:
    assert load(tmp_path, text).guests.serve == serve


def test_what_serve_takes_is_said_to_who_gives_something_else(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument) as caught:
        load(tmp_path, '[guests]\nserve = "web"')
    assert caught.value.sentence.endswith(
        'guests.serve takes "prepared", "all", or domains\' names, as ["web", "database"], not \'web\''
    )


@pytest.mark.parametrize(
    "text",
    [
        "[socket]\nmode = 0",
        "[socket]\nmode = 0o777",
        "[limits]\nmax_ring = 0",
        '[limits]\nmax_ring = "1024M"',
        '[limits]\nmax_bytes = "1"',
        f"[limits]\nmax_ring = {RING_MAX}",
        "[limits]\nmax_channels = 0",
        f"[limits]\nmax_channels = {config.CHANNELS_MAX}",
        "local_domains = []",
        "local_domains = [1]",
        f"local_domains = [{config.DOMAIN_MAX}]",
        "[socket]",
        "[limits]",
    ],
)
def test_the_limits_themselves_are_allowed(tmp_path: Path, text: str) -> None:
    load(tmp_path, text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument) as caught:
        config.load(tmp_path / "missing.toml")
    assert str(tmp_path / "missing.toml") in caught.value.sentence


@pytest.mark.parametrize("value", [1, config.DOMAIN_MAX])
def test_a_local_domains_number(value: int) -> None:
    assert config.domain_number(value, "--local-domain") == value


@pytest.mark.parametrize("value", [0, -1, config.DOMAIN_MAX + 1, True, 1.0, "1", None])
def test_no_local_domains_number(value: object) -> None:
    with pytest.raises(InvalidArgument):
        config.domain_number(value, "--local-domain")
