"""The keys of ``sriov``, checked before anything is touched; what is done with them is in cni/sriov.py.

Stricter than upstream where upstream silently does harm: there ``"spoofchk": "On"`` turns the check off.

Source: k8snetworkplumbingwg/sriov-cni docs/configuration-reference.md; reference 2.1.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from conf.defaults import filled, read_table
from conf.device import pci_address, unicast_mac
from conf.errors import InvalidEnvironment
from conf.netconf import NetConf
from conf.request import Request
from conf.section import lookup, read, shown, tell_misspelt

_MAX_RATE_MBPS = 0xFFFFFFFF  # __u32 of struct ifla_vf_rate, linux/if_link.h
KEEP = "keep"


def _empty_is_absent(value: Any) -> Any:
    return None if value == "" else value


def _vlan(value: Any) -> Any:
    if value == KEEP or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 4094):
        return value
    raise ValueError(f'a whole number from 0 to 4094, or "{KEEP}"')


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


Mac = Annotated[str, AfterValidator(unicast_mac)]
Rate = Annotated[int, Field(ge=0, le=_MAX_RATE_MBPS)]
OnOff = Annotated[Literal["on", "off"] | None, BeforeValidator(_empty_is_absent)]


class SriovConf(NetConf):
    """The network configuration of ``sriov``."""

    device_id: Annotated[str, AfterValidator(pci_address)] = Field(
        alias="deviceID",
        description="PCI address of the VF; Multus fills it in from the device plugin's choice, "
        "given the annotation k8s.v1.cni.cncf.io/resourceName on the NAD",
    )
    vlan: Annotated[Annotated[int, Field(ge=0, le=4094)] | Literal["keep"] | None, BeforeValidator(_vlan)] = Field(
        default=None,
        description='VLAN tag 0-4094, 0: untagged; absent or "keep": the VF\'s VLAN is left as it is',
    )
    vlan_qos: Annotated[int, Field(ge=0, le=7)] = Field(
        default=0, alias="vlanQoS", description="VLAN priority 0-7; needs a vlan other than 0"
    )
    vlan_proto: Annotated[Literal["802.1q", "802.1ad"] | None, BeforeValidator(_lower)] = Field(
        default=None, alias="vlanProto", description="802.1q or 802.1ad (QinQ); 802.1ad needs a vlan other than 0"
    )
    mac: Annotated[Mac | None, BeforeValidator(_empty_is_absent)] = Field(
        default=None, description="unicast MAC of the interface; runtimeConfig.mac and MAC of CNI_ARGS go before it"
    )
    mtu: Annotated[int, Field(ge=68, le=65535)] | None = Field(
        default=None, description="MTU in bytes, 68-65535 and no more than the PF's; put back on DEL"
    )
    min_tx_rate: Rate | None = Field(default=None, description="guaranteed rate in Mbit/s, 0: none")
    max_tx_rate: Rate | None = Field(default=None, description="rate limit in Mbit/s, 0: none")
    spoofchk: OnOff = Field(default=None, description='"on" or "off": the NIC drops frames with a foreign source MAC')
    trust: OnOff = Field(default=None, description='"on" or "off": the VF may become promiscuous and change its MAC')
    link_state: Annotated[Literal["auto", "enable", "disable"] | None, BeforeValidator(_empty_is_absent)] = Field(
        default=None, description="auto, enable or disable: the link state that the VF sees"
    )
    promisc: bool = Field(default=False, description="receive all frames; most NICs want trust on for it")
    allmulti: bool = Field(default=False, description="receive all multicast; most NICs want trust on for it")
    rdma_isolation: bool = Field(
        default=False,
        alias="rdmaIsolation",
        description="move the VF's RDMA device into the pod too; needs the RDMA netns mode exclusive, "
        "and no rdma plugin in the chain",
    )

    @model_validator(mode="after")
    def _vlan_keys_agree(self) -> SriovConf:
        given = self.model_fields_set & {"vlan_qos", "vlan_proto"}
        for name, key in (("vlan_qos", "vlanQoS"), ("vlan_proto", "vlanProto")):
            value = getattr(self, name)
            if name in given and self.vlan in (None, KEEP) and value is not None:
                raise ValueError(f'{shown(key, value)} needs a "vlan"')
            if self.vlan == 0 and value not in (None, 0, "802.1q"):
                raise ValueError(f'{shown(key, value)} needs a "vlan" other than 0')
        return self

    @model_validator(mode="after")
    def _rates_agree(self) -> SriovConf:
        low, high = self.min_tx_rate or 0, self.max_tx_rate or 0
        if high and low > high:
            raise ValueError(f'"min_tx_rate": {low} is above "max_tx_rate": {high}')
        return self


def load(request: Request) -> SriovConf:
    """Read the configuration of one request, with the node's defaults and the MAC that was asked for.

    Raises: InvalidNetworkConfig with key and value; InvalidEnvironment for the MAC of CNI_ARGS.
    """
    config = filled(request.config, read_table("sriov"))
    conf = read(SriovConf, config, where="sriov")
    tell_misspelt(conf, where="sriov")
    asked = lookup(conf.runtime_config, "mac")
    if asked:
        return read(SriovConf, {**config, "mac": asked}, where="sriov: runtimeConfig")
    if request.args.get("MAC"):
        try:
            return conf.model_copy(update={"mac": unicast_mac(request.args["MAC"])})
        except ValueError as error:
            raise InvalidEnvironment(
                f'CNI_ARGS: MAC="{request.args["MAC"]}" is not valid', details=str(error)
            ) from error
    return conf
