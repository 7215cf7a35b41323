"""Which stores a node looks through when it starts, in ``vferry ipam reconcile --node-startup``.

A node has no NADs at hand then; where an ADD leased is in its attachment's record. What is given back there is
ipam/reaping.py's.
"""

from __future__ import annotations

from collections.abc import Callable

from cni.attachments import Attachments
from cni.cli.store_choice import Choice, node_defaults, place_of
from cni.linux import netns
from conf.defaults import filled
from conf.network import DEFAULT_DIRECTORY
from conf.section import Json
from conf.whereabouts import StoreConf, read_store_conf
from ipam.stores import door


def recorded_choices(
    given: Json,
    *,
    attachments: Attachments | None = None,
    defaults: Callable[[], Json] = node_defaults,
    boot_id: Callable[[], str] = netns.boot_id,
) -> list[Choice]:
    """Return the stores that attachments of earlier boots leased from, none where there are none; ``given`` wins.

    The node's own one is among them then: a store on record may have moved to other servers since.
    Raises: InvalidNetworkConfig, DecodeFailure when the node's own files cannot be read.
    """
    now = boot_id()
    earlier = [each for each in (attachments or Attachments()).every() if each.sandbox.boot_id not in ("", now)]
    places = [each.ipam_store for each in earlier if each.ipam_type == "whereabouts"]
    if not places:
        return []
    own = filled(given, defaults())
    confs = [read_store_conf(filled(place, own)) for place in [*places, {}]]
    distinct = {place_of(conf): conf for conf in confs if _is_usable(conf)}
    return [Choice(conf, DEFAULT_DIRECTORY) for conf in distinct.values()]


def _is_usable(conf: StoreConf) -> bool:
    return conf.chosen in door.STORES and (conf.chosen != "etcd" or bool(conf.etcd.endpoints))
