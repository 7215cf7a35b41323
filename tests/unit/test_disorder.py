"""What verify finds, and what it must not find."""

from __future__ import annotations

from netaddr import IPAddress, IPNetwork

from ipam.disorder import Use, duplicates, unaccounted, unleased
from ipam.ranges import Range
from ipam.stores.contract import Lease, Owner, Pool

ADDRESS = "192.0.2.1"


def lease(name, address=ADDRESS, *, space="", network_name="", node="n1"):
    return Lease(Owner(name, "net1", node=node), network_name, space, IPAddress(address), 1.0, name)


def kinds(found):
    return [each.kind for each in found]


def test_two_owners_of_one_address_are_a_duplicate():
    (found,) = duplicates([lease("a"), lease("b"), lease("c", "192.0.2.2")])
    assert found.text.startswith(f"{ADDRESS} is leased to container a ")
    assert "container b" in found.text


def test_one_address_in_two_name_spaces_is_none():
    assert not list(duplicates([lease("a"), lease("b", space="blue", network_name="blue")]))
    own_ranges = [lease("a", space="/192.0.2.0/24"), lease("b", space="/192.0.2.0/25")]
    assert not list(duplicates(own_ranges))


def test_range_of_its_own_and_the_networks_meet():
    assert kinds(duplicates([lease("a"), lease("b", space="/192.0.2.0/24")])) == ["duplicate"]


def test_one_owner_twice_is_no_duplicate():
    assert not list(duplicates([lease("a"), lease("a")]))


def use(name, network_name=""):
    return Use(IPAddress(ADDRESS), (name, "net1"), network_name, "rail1")


def test_use_without_a_lease_tells_who_has_it():
    assert not list(unleased([use("a")], [lease("a")]))
    (nobody,) = unleased([use("a")], [])
    assert nobody.text.endswith("but is leased to nobody")
    (another,) = unleased([use("a")], [lease("b")])
    assert another.text.endswith("but is leased to b net1")
    (elsewhere,) = unleased([use("a", "blue")], [lease("a")])
    assert elsewhere.text.endswith("leased to nobody")


def test_lease_of_this_node_that_nothing_knows_is_noticed():
    leases = [lease("a"), lease("b"), lease("c", node="n2")]
    (found,) = unaccounted(leases, node="n1", known={("a", "net1")}, pools=[])
    assert "container b " in found.text
    # A node that keeps no records at all says nothing.
    assert not list(unaccounted(leases, node="n1", known=set(), pools=[]))


def test_lease_in_no_range_is_noticed_where_ranges_of_its_network_are_known():
    pools = [Pool("", Range.of(IPNetwork("192.0.2.0/28")))]
    leases = [lease("a"), lease("b", "192.0.2.77"), lease("c", "192.0.2.77", space="blue", network_name="blue")]
    (found,) = unaccounted(leases, node="n9", known=set(), pools=pools)
    assert (found.kind, "container b " in found.text) == ("outside", True)
