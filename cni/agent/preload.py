"""Everything a request may need, imported and used once before the first one comes.

What a child uses for the first time it pays for itself, and loses at its end: an ADD that has not been rehearsed takes
500 page faults, 3 ms, more. Nothing here changes anything: no file, no lock, no link.
"""

from __future__ import annotations

import gc
import io
import json
import logging
from contextlib import suppress

from cni import attach, plugins, skel
from cni.attachments import Attachments
from cni.kernel import Kernel
from cni.linux.netns import Netns
from cni.linux.rtnetlink import Rtnetlink
from cni.recorded_sandbox import sandbox_record
from conf.attachment import Attachment
from conf.errors import CniError
from conf.executables import EXECUTABLES, SUPPORTED_VERSIONS
from conf.host_local import read_host_local
from conf.request import read_request
from conf.result import Interface, Ip, Result, Route
from conf.section import Json, Section, decode, read
from ipam.round_robin import next_free
from ipam.stores import door

# No link has this number, so that the kernel refuses what is asked of it.
_NOWHERE = 0x7FFFFFF0
# Requests that are answered, or refused, before anything is touched: each one's netns does not exist.
_ENVIRON = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "rehearsal",
    "CNI_IFNAME": "net1",
    "CNI_NETNS": "/nonexistent/netns",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=rehearsal",
}
_ADDRESSES = [{"address": "192.0.2.5/24", "gateway": "192.0.2.1"}, {"address": "2001:db8::5/64"}]
_ROUTES = [{"dst": "198.51.100.0/24", "gw": "192.0.2.1"}]
_REHEARSED: dict[str, Json] = {
    "static": {"ipam": {"type": "static", "addresses": _ADDRESSES, "routes": _ROUTES}},
    "whereabouts": {"ipam": {"type": "whereabouts", "datastore": "local", "addresses": _ADDRESSES}},
    "host-device": {"device": "rehearsal0", "ipam": {"type": "static", "addresses": _ADDRESSES}},
}


def preload() -> None:
    """Import every plugin and store, and put all of it out of the garbage collector's sight.

    Raises: what the kernel refuses; where it does, no request could be served either.
    """
    for name in EXECUTABLES:
        plugins.load(name)
    door.preload()
    build_models()
    rehearse()
    gc.collect()
    # Collections of the parent would otherwise write to objects on pages that are shared with every child.
    gc.freeze()


def build_models() -> None:
    """Have every model ready that is built when first used: a child would build it for itself alone."""
    models = [Section]
    for model in models:  # grows while it is walked
        model.model_rebuild()
        models += model.__subclasses__()


def rehearse() -> None:
    """Go the ways of a request that change nothing."""
    logging.disable()
    try:
        for name, keys in _REHEARSED.items():
            conf = {"cniVersion": "1.0.0", "name": "rehearsal", "type": name, **keys}
            skel.serve(name, environ=_ENVIRON, stdin=io.BytesIO(json.dumps(conf).encode()))
        with Netns.current() as own, Kernel().rtnetlink(own) as host:
            _rehearse_attaching(host, own)
        _rehearse_answering()
    finally:
        logging.disable(logging.NOTSET)


def _rehearse_attaching(host: Rtnetlink, own: Netns) -> None:
    """Write and read what an attachment is made of, and ask the kernel for what it refuses, of no link there is."""
    links = host.links()
    link = host.link_get(index=links[0].index) if links else None
    if link is None:
        return
    record = Attachment(
        plugin="rehearsal",
        network="rehearsal",
        container_id="rehearsal",
        ifname="net1",
        sandbox=sandbox_record(own),
        device_id="",
        link=attach.link_record(link, host),
    )
    read(Attachment, decode(record.model_dump_json(indent=1).encode(), "it"), where="rehearsal")
    Attachments().every()
    for say in (
        lambda: host.link_set_alias(_NOWHERE, "rehearsal"),
        lambda: host.link_set_up(_NOWHERE),
        lambda: host.addr_add(_NOWHERE, "192.0.2.5/24"),
        lambda: host.addr_add(_NOWHERE, "2001:db8::5/64"),
        lambda: host.route_add(dst="198.51.100.0/24", gateway="192.0.2.1", index=_NOWHERE),
    ):
        with suppress(CniError):
            say()


def _rehearse_answering() -> None:
    conf = {"cniVersion": "1.0.0", "name": "rehearsal", "type": "host-local", "ipam": {"subnet": "192.0.2.0/24"}}
    order = read_host_local(read_request(_ENVIRON, json.dumps(conf).encode()), {})
    given = next_free(order.sets[0], None, taken=frozenset())
    result = Result(
        interfaces=[Interface(name="net1", mac="02:00:00:00:00:01", sandbox="/run/netns/rehearsal")],
        ips=[Ip(address=f"{given}/24", gateway=str(order.sets[0].ranges[0].router), interface=0)],
        routes=[Route(dst="0.0.0.0/0")],
    )
    for version in SUPPORTED_VERSIONS:
        json.dumps(result.to_json(version))
