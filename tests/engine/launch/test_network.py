"""The interface that leads to other hosts."""

from __future__ import annotations

import os
import socket
from collections import namedtuple

import psutil
import pytest

from engine.launch import network

Entry = namedtuple("Entry", "family address")
LOOPBACK = {"lo": [Entry(socket.AF_INET, "127.0.0.1"), Entry(socket.AF_INET6, "::1")]}


@pytest.fixture
def host(monkeypatch):
    """Sets this host's interfaces and the source addresses of its routes."""

    def make(interfaces: dict[str, list[str]], sources: dict[str, list[str]]) -> None:
        entries = {
            name: [Entry(socket.AF_INET6 if ":" in a else socket.AF_INET, a) for a in addresses]
            for name, addresses in interfaces.items()
        }
        monkeypatch.setattr(psutil, "net_if_addrs", lambda: {**LOOPBACK, **entries})
        monkeypatch.setattr(network, "_sources", lambda address: iter(sources.get(address, [])))

    return make


def test_the_route_to_rank_zero_decides(host):
    host({"eth0": ["10.0.0.5"], "ib0": ["10.1.0.5", "fe80::1%ib0"]}, {"node-0-ib": ["10.1.0.5"]})
    assert network.interface_towards("node-0-ib") == "ib0"


def test_a_name_that_its_own_host_resolves_to_itself(host):
    host({"eth0": ["10.0.0.5"], "docker0": ["172.17.0.1"]}, {"node-0": ["127.0.0.1"], network.ANYWHERE: ["10.0.0.5"]})
    assert network.interface_towards("node-0") == "eth0"
    host({"ds0": ["10.0.0.5", "fe80::1%ds0"]}, {"node-0": ["127.0.0.1"]})  # without a default route
    assert network.interface_towards("node-0") == "ds0"
    host({"eth0": ["10.0.0.5"], "docker0": ["172.17.0.1"]}, {"node-0": ["127.0.0.1"]})
    assert network.interface_towards("node-0") is None


def test_all_ranks_on_one_host_need_none(host):
    host({"eth0": ["10.0.0.5"]}, {})
    assert [network.interface_towards(address) for address in ("127.0.0.1", "localhost", "::1")] == [None] * 3


def test_the_system_is_asked_without_sending_anything():
    (own,) = set(network._sources("127.0.0.1"))
    assert own == "127.0.0.1"
    assert list(network._sources("no such host")) == []


def test_what_the_user_set_stays(monkeypatch):
    monkeypatch.setattr(network, "interface_towards", lambda address: f"towards-{address}")
    monkeypatch.setenv(network.VARIABLE, "mine")
    network.choose_interface("node-0")
    assert os.environ[network.VARIABLE] == "mine"
    monkeypatch.delenv(network.VARIABLE)
    network.choose_interface("node-0")
    assert os.environ[network.VARIABLE] == "towards-node-0"
