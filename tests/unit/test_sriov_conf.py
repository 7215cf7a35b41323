"""The keys of ``sriov``: every row of the reference's table 2.1, and what is refused. Nothing is touched by reading."""

from __future__ import annotations

import json

import pytest

from conf.errors import CniError
from conf.request import read_request
from conf.sriov import load

DEVICE = "0000:3b:02.0"


def loaded(*, args="", **keys):
    conf = {"cniVersion": "1.1.0", "name": "rail", "type": "sriov", "deviceID": DEVICE, **keys}
    environ = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c",
        "CNI_NETNS": "/n",
        "CNI_IFNAME": "net1",
        "CNI_ARGS": args,
    }
    return load(read_request(environ, json.dumps(conf).encode()))


def refusal(**keys):
    with pytest.raises(CniError) as refused:
        loaded(**keys)
    return refused.value


@pytest.mark.parametrize(
    ("keys", "read"),
    [
        ({}, {"vlan": None, "vlan_qos": 0, "vlan_proto": None, "mac": None, "mtu": None, "promisc": False}),
        ({"deviceID": "0000:3B:02.0"}, {"device_id": DEVICE}),
        ({"deviceId": "10000:af:06.7", "deviceID": None}, {"device_id": "10000:af:06.7"}),
        ({"vlan": 0}, {"vlan": 0}),
        ({"VLAN": 4094}, {"vlan": 4094}),
        ({"vlan": "keep"}, {"vlan": "keep"}),
        ({"vlan": None}, {"vlan": None}),
        ({"vlan": 1, "vlanQoS": 7, "VlanProto": "802.1AD"}, {"vlan_qos": 7, "vlan_proto": "802.1ad"}),
        ({"vlan": 0, "vlanQoS": 0, "vlanProto": "802.1q"}, {"vlan_proto": "802.1q"}),
        ({"vlanQoS": None, "vlanProto": None}, {"vlan_qos": 0, "vlan_proto": None}),
        ({"mac": "02-00-5E-10-00-01"}, {"mac": "02:00:5e:10:00:01"}),
        ({"mac": ""}, {"mac": None}),
        ({"min_tx_rate": 0, "max_tx_rate": 0}, {"min_tx_rate": 0, "max_tx_rate": 0}),
        ({"min_tx_rate": 10}, {"min_tx_rate": 10, "max_tx_rate": None}),
        ({"min_tx_rate": 10, "max_tx_rate": 10}, {"max_tx_rate": 10}),
        ({"spoofChk": "off", "trust": "on"}, {"spoofchk": "off", "trust": "on"}),
        ({"spoofchk": "", "trust": "", "link_state": ""}, {"spoofchk": None, "trust": None, "link_state": None}),
        ({"link_state": "disable"}, {"link_state": "disable"}),
        ({"mtu": 68}, {"mtu": 68}),
        ({"promisc": True, "allmulti": True, "rdmaIsolation": True}, {"promisc": True, "rdma_isolation": True}),
        ({"logLevel": "debug", "logFile": "/l"}, {"log_level": "debug", "log_file": "/l"}),
        ({"resourceName": "x/y", "capabilities": {"mac": True}, "ipam": {"type": "x", "more": 1}}, {}),
        # What the Go plugin writes into its own state and takes from a configuration without a word.
        ({"Master": "ens1", "VFID": 3, "OrigVfState": {}}, {}),
    ],
)
def test_what_is_read(keys, read):
    conf = loaded(**keys)
    assert {name: getattr(conf, name) for name in read} == read


BAD = [
    ({"vlan": 4095}, '"vlan": 4095'),
    ({"vlan": -1}, '"vlan": -1'),
    ({"vlan": True}, '"vlan": true'),
    ({"vlan": "100"}, '"vlan": "100"'),
    ({"vlan": 1.0}, '"vlan": 1.0'),
    ({"vlan": "Keep"}, '"vlan": "Keep"'),
    ({"vlanQoS": 3}, '"vlanQoS": 3'),
    ({"vlanQoS": 0}, '"vlanQoS": 0'),
    ({"vlan": "keep", "vlanQoS": 3}, '"vlanQoS": 3'),
    ({"vlan": 0, "vlanQoS": 3}, '"vlanQoS": 3'),
    ({"vlan": 1, "vlanQoS": 8}, '"vlanQoS": 8'),
    ({"vlan": 1, "vlanQoS": -1}, '"vlanQoS": -1'),
    ({"vlan": 1, "vlanQoS": "3"}, '"vlanQoS": "3"'),
    ({"vlanProto": "802.1q"}, '"vlanProto": "802.1q" needs a "vlan"'),
    ({"vlan": 0, "vlanProto": "802.1ad"}, '"vlanProto": "802.1ad" needs a "vlan" other than 0'),
    ({"vlan": 1, "vlanProto": "802.1x"}, '"vlanProto": "802.1x"'),
    ({"vlan": 1, "vlanProto": ""}, '"vlanProto": ""'),
    ({"min_tx_rate": 100, "max_tx_rate": 10}, '"min_tx_rate": 100 is above "max_tx_rate": 10'),
    ({"min_tx_rate": -1}, '"min_tx_rate": -1'),
    ({"max_tx_rate": -5}, '"max_tx_rate": -5'),
    ({"max_tx_rate": 2**32}, '"max_tx_rate": 4294967296'),
    ({"max_tx_rate": "10"}, '"max_tx_rate": "10"'),
    ({"max_tx_rate": True}, '"max_tx_rate": true'),
    ({"spoofchk": "On"}, '"spoofchk": "On"'),
    ({"spoofchk": "true"}, '"spoofchk": "true"'),
    ({"spoofchk": True}, '"spoofchk": true'),
    ({"trust": "yes"}, '"trust": "yes"'),
    ({"trust": False}, '"trust": false'),
    ({"link_state": "Enable"}, '"link_state": "Enable"'),
    ({"link_state": 1}, '"link_state": 1'),
    ({"mac": "02:00:5e:10:00"}, '"mac": "02:00:5e:10:00"'),
    ({"mac": "02:00:5e:10:00:0g"}, '"mac": "02:00:5e:10:00:0g"'),
    ({"mac": "02:00:5e:10:00:01:02:03"}, '"mac": "02:00:5e:10:00:01:02:03"'),
    ({"mac": "01:00:5e:00:00:01"}, '"mac": "01:00:5e:00:00:01"'),
    ({"mac": "ff:ff:ff:ff:ff:ff"}, '"mac": "ff:ff:ff:ff:ff:ff"'),
    ({"mac": "00:00:00:00:00:00"}, '"mac": "00:00:00:00:00:00"'),
    ({"mac": 7}, '"mac": 7'),
    ({"runtimeConfig": {"mac": "nonsense"}}, '"mac": "nonsense"'),
    ({"runtimeConfig": {"MAC": "nonsense"}}, '"mac": "nonsense"'),
    ({"mtu": 67}, '"mtu": 67'),
    ({"mtu": 65536}, '"mtu": 65536'),
    ({"mtu": "1400"}, '"mtu": "1400"'),
    ({"promisc": "on"}, '"promisc": "on"'),
    ({"allmulti": 1}, '"allmulti": 1'),
    ({"deviceID": None}, '"deviceID" is missing'),
    ({"deviceID": ""}, '"deviceID": ""'),
    ({"deviceID": "../../../etc"}, '"deviceID": "../../../etc"'),
    ({"deviceID": f"../{DEVICE}"}, f'"deviceID": "../{DEVICE}"'),
    ({"deviceID": f"{DEVICE}/.."}, f'"deviceID": "{DEVICE}/.."'),
    ({"deviceID": f"{DEVICE}\n"}, '"deviceID"'),
    ({"deviceID": "3b:02.0"}, '"deviceID": "3b:02.0"'),
    ({"deviceID": "0000:3b:02.8"}, '"deviceID": "0000:3b:02.8"'),
    ({"deviceID": "ens1v0"}, '"deviceID": "ens1v0"'),
    ({"deviceID": 7}, '"deviceID": 7'),
    ({"ipam": {"type": 7}}, '"ipam.type": 7'),
    ({"ipam": "whereabouts"}, '"ipam": "whereabouts"'),
    ({"dns": {"nameservers": "10.0.0.1"}}, '"dns.nameservers": "10.0.0.1"'),
]


@pytest.mark.parametrize(("keys", "said"), BAD, ids=json.dumps)
def test_bad_input_is_one_error_with_code_key_and_value(keys, said):
    refused = refusal(**keys)
    assert (refused.code, said in refused.msg) == (7, True), refused
    assert refused.msg.startswith("sriov: ")


def test_several_faults_are_told_together():
    refused = refusal(vlan=4095, spoofchk="On", mtu=1)
    assert all(said in str(refused) for said in ('"vlan": 4095', '"spoofchk": "On"', '"mtu": 1'))


def test_mac_of_the_runtime_of_cni_args_of_the_configuration():
    macs = [f"02:00:00:00:00:0{number}" for number in range(3)]
    args = f"IgnoreUnknown=1;MAC={macs[1].upper()}"
    assert loaded(mac=macs[0]).mac == macs[0]
    assert loaded(mac=macs[0], args=args).mac == macs[1]
    assert loaded(mac=macs[0], args=args, runtimeConfig={"mac": macs[2]}).mac == macs[2]
    assert loaded(MAC=macs[0], args=args, RuntimeConfig={"Mac": macs[2]}).mac == macs[2]
    assert loaded(mac=macs[0], args="MAC=", runtimeConfig={"mac": ""}).mac == macs[0]


@pytest.mark.parametrize("mac", ["x", "01:00:5e:00:00:01"])
def test_bad_mac_of_cni_args_is_the_environments_fault(mac):
    refused = refusal(args=f"MAC={mac}")
    assert (refused.code, f'MAC="{mac}"' in refused.msg) == (4, True)


def test_nads_that_people_copy_parse():
    copied = '{"cniVersion":"0.3.1","name":"sriov-rdma-net","type":"sriov","vlan":0,"ipam":{"type":"whereabouts",'
    copied += '"range":"192.168.100.0/24","exclude":["192.168.100.0/32","192.168.100.255/32"]}}'
    conf = loaded(**json.loads(copied))
    assert (conf.vlan, conf.ipam.type, conf.cni_version) == (0, "whereabouts", "0.3.1")
