"""``vferry agent``: the process that serves the plugins of this node warm; what it does is in cni/agent/."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import click

from cni.agent import child, listener, preload
from cni.agent.lease_counts import Counts, count_leases
from cni.agent.logs import open_log
from cni.agent.server import Server
from cni.linux import capabilities, mounts
from conf.agent import read_agent
from conf.errors import InvalidEnvironment

# For each request that waits or runs: its connection and four descriptors; and a little for ourselves.
_DESCRIPTORS_WANTED = 65536


@click.command()
@click.option("--max-children", type=int, help="Serve so many requests at once (default: four for each core).")
@click.option("--request-timeout", "request_timeout_s", type=int, help="Interrupt after so many seconds (180).")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="One line an event, on stderr (text).")
@click.option("--metrics", metavar="HOST:PORT", help="Where /metrics, /healthz and /readyz are (nowhere).")
@click.option("--stand-by", is_flag=True, default=None, help="Once replaced, end when nobody else listens any more.")
@click.option("--host-mounts", metavar="FILE", help="Serve in this mount namespace; in a container: /proc/1/ns/mnt.")
@click.option("--socket", "path", type=click.Path(path_type=Path), hidden=True)
@click.pass_context
def agent(context: click.Context, /, path: Path | None, **given: Any) -> None:
    """Serve this node's plugins warm: each ADD is spared the start of Python and its libraries.

    The plugins find it by its socket and run on their own when it is not there. Stop it with SIGTERM: what runs is
    finished first. Starting another one replaces it without a gap. The table [agent] of /etc/vferry/vferry.toml has
    the same options; SIGHUP reads it again.
    """
    stamp = context.find_root().obj
    if stamp is None:
        raise InvalidEnvironment(
            "the agent runs from an installed archive only",
            details="its build must be that of the plugins it serves",
            hint="scripts/install-binaries.sh, then /opt/cni/bin/vferry agent",
        )
    read_conf = partial(read_agent, {key: value for key, value in given.items() if value is not None})
    conf = read_conf()
    open_log(conf.log_format)
    os.chdir("/")
    os.umask(0o022)
    _allow_descriptors()
    _allow_priority()
    capabilities.keep_only(capabilities.NEEDED)
    if conf.host_mounts:
        _be_of_the_host(conf.host_mounts, (path or Path(stamp.agent_socket)).parent)
    preload.preload()
    Server(
        lambda: listener.activated(os.environ) or listener.listen(path or Path(stamp.agent_socket)),
        build_id=stamp.build_id,
        read_conf=read_conf,
        life=partial(child.live, host_mounts=conf.host_mounts),
        count=partial(_count, conf.host_mounts),
    ).run()


def _count(host_mounts: str) -> Counts:
    if host_mounts:
        mounts.enter(host_mounts)
    return count_leases()


def _be_of_the_host(host_mounts: str, directory: Path) -> None:
    mounts.require_host(host_mounts, shared=directory)
    # A plugin of the host is in no pod, and has no account of one.
    os.environ.pop("KUBERNETES_SERVICE_HOST", None)


def _allow_descriptors() -> None:
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS_WANTED)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _allow_priority() -> None:
    """Let children that step back while they rehearse come forward again; RLIMIT_NICE 20 is the priority of us all."""
    with suppress(ValueError, OSError):  # without CAP_SYS_RESOURCE they do not step back
        resource.setrlimit(resource.RLIMIT_NICE, (20, 20))
