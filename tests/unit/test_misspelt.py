"""Unknown keys that look like known ones are told; everything that may stand in a configuration is not."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from conf.host_device import HostDeviceConf
from conf.host_local import HostLocalConf
from conf.netconf import NetConf
from conf.rdma import RdmaConf
from conf.schema import MODELS
from conf.section import read, tell_misspelt
from conf.sriov import SriovConf
from conf.static import StaticConf
from conf.whereabouts import WhereaboutsConf

EXAMPLES = Path(__file__).resolve().parents[2] / "conf" / "examples"
DEVICE = {"name": "net", "deviceID": "0000:01:10.0"}


def told(caplog, model, keys):
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="vferry.conf"):
        tell_misspelt(read(model, keys, where="x"), where="x")
    return [record.getMessage().removeprefix("x: ") for record in caplog.records]


@pytest.mark.parametrize(
    ("model", "keys", "key", "meant"),
    [
        (SriovConf, DEVICE, "spoofchek", "spoofchk"),
        (SriovConf, DEVICE, "spofchk", "spoofchk"),
        (SriovConf, DEVICE, "SpoofCheck", "spoofchk"),
        (SriovConf, DEVICE, "maxTxRate", "max_tx_rate"),
        (SriovConf, DEVICE, "vlan-qos", "vlanQoS"),
        (SriovConf, DEVICE, "link_sate", "link_state"),
        (SriovConf, DEVICE, "mut", "mtu"),
        (SriovConf, DEVICE, "vlna", "vlan"),
        (SriovConf, DEVICE, "rdmaIsolaton", "rdmaIsolation"),
        (HostDeviceConf, {"name": "net"}, "devcie", "device"),
        (HostDeviceConf, {"name": "net"}, "kernelPaht", "kernelpath"),
        (RdmaConf, DEVICE, "shared_mode", "sharedMode"),
        (WhereaboutsConf, {}, "ragne", "range"),
        (WhereaboutsConf, {}, "ip_ranges", "ipRanges"),
        (WhereaboutsConf, {}, "excludes", "exclude"),
        (WhereaboutsConf, {}, "networkName", "network_name"),
        (WhereaboutsConf, {}, "cooldown_seconds", "cooldownSeconds"),
        (HostLocalConf, {}, "range", "ranges"),
        (HostLocalConf, {}, "data_dir", "dataDir"),
        (StaticConf, {}, "adresses", "addresses"),
    ],
)
def test_a_slip_is_told(caplog, model, keys, key, meant):
    assert told(caplog, model, {**keys, key: 1}) == [f'unknown key "{key}"; did you mean "{meant}"?']


def test_within_objects_and_lists_too(caplog):
    keys = {
        "ipRanges": [{"range": "192.0.2.0/24", "rangeStart": "192.0.2.9"}],
        "etcd": {"endpoint": "x"},
        "dns": {"nameserver": "192.0.2.1"},
    }
    assert sorted(told(caplog, WhereaboutsConf, keys)) == [
        'dns: unknown key "nameserver"; did you mean "nameservers"?',
        'etcd: unknown key "endpoint"; did you mean "endpoints"?',
        'ipRanges: unknown key "rangeStart"; did you mean "range_start"?',
    ]


def test_a_key_that_is_given_as_well_is_not_meant(caplog):
    assert told(caplog, SriovConf, {**DEVICE, "spoofchk": "on", "spoofchek": "on"}) == []


# Of the specification, runtimes, Multus, and of other plugins that are told the same things.
SPEC = """cniVersion cniVersions type args capabilities runtimeConfig prevResult ipMasq disableCheck disableGC
loadOnlyInlinedPlugins deviceID pciBusID logFile logLevel logToStderr logOptions delegates kubeconfig confDir cniDir
binDir readinessindicatorfile namespaceIsolation clusterNetwork defaultNetworks systemNamespaces globalNamespaces
multusNamespace retryDeleteOnError resourceName cni.dev/valid-attachments cni.dev/attachments _range _comment
x.io/range"""
OTHERS = """bridge isGateway isDefaultGateway forceAddress hairpinMode promiscMode vlanTrunk preserveDefaultVlan
macspoofchk enabledad portIsolation disableContainerInterface master mode linkInContainer bcqueuelen vlanId sysctl
txQLen table vrfname snat portMappings conditionsV4 externalSetMarkChain backend firewallPolicy ingressRate
ingressBurst egressRate egressBurst dataDir subnetFile guid pkey ibKubernetesEnabled ipoibMode l2enable dpdk if0 pf
pfName"""
WHEREABOUTS = """log_file log_level etcd_host etcd_username etcd_password etcd_key_file etcd_cert_file etcd_ca_cert_file
leader_lease_duration leader_renew_deadline leader_retry_period overlapping_ranges namespace sleep_for_race
reconciler_cron_expression omitempty PodName PodNamespace"""


@pytest.mark.parametrize("model", [SriovConf, HostDeviceConf, RdmaConf])
def test_what_may_stand_in_a_network_is_not_told(caplog, model):
    own = {field.alias or name for name, field in model.model_fields.items()}
    for key in sorted({*SPEC.split(), *OTHERS.split()} - own):
        assert told(caplog, model, {**DEVICE, key: {}}) == [], key


def test_upstreams_keys_of_ipam_are_not_told(caplog):
    for key in WHEREABOUTS.split():
        keys = {key: ""}
        assert told(caplog, WhereaboutsConf, keys) == [], key


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.conflist")), ids=lambda path: path.name)
def test_no_example_is_told_anything(caplog, path):
    for plugin in json.loads(path.read_text())["plugins"]:
        ipam = plugin.get("ipam", {})
        if (model := MODELS.get(plugin["type"])) and issubclass(model, NetConf):
            assert told(caplog, model, {**DEVICE, **plugin}) == []
        if model := MODELS.get(ipam.get("type", "")):
            assert told(caplog, model, ipam) == []
