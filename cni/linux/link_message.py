"""The message of a link, as far as it is written here; what the kernel says of a link is read in link.py.

Not pyroute2's own ``ifinfmsg``: with its plugins for every kind of link it takes 4 ms to import, it cuts InfiniBand's
addresses to 6 bytes, and its VLAN of a VF lacks the padding that it has in C, where the kernel compares sizes.

Source: linux/if_link.h, linux/rtnetlink.h (struct ifinfomsg).
"""

from __future__ import annotations

from cni.linux.pyroute2_messages import NLA_F_NESTED, nla, nla_base_string, nlmsg


class linkmsg(nlmsg):  # type: ignore[misc]
    """RTM_NEWLINK and its like."""

    prefix = "IFLA_"
    fields = (("family", "B"), ("__align", "x"), ("ifi_type", "H"), ("index", "i"), ("flags", "I"), ("change", "I"))
    nla_map = (
        (1, "IFLA_ADDRESS", "l2addr"),
        (3, "IFLA_IFNAME", "asciiz"),
        (4, "IFLA_MTU", "uint32"),
        (13, "IFLA_TXQLEN", "uint32"),
        (20, "IFLA_IFALIAS", "asciiz"),
        (22, "IFLA_VFINFO_LIST", "vflist"),
        (28, "IFLA_NET_NS_FD", "uint32"),
        (29, "IFLA_EXT_MASK", "uint32"),
        (52, "IFLA_PROP_LIST", "proplist"),
        (53, "IFLA_ALT_IFNAME", "asciiz"),
    )

    class l2addr(nla_base_string):  # type: ignore[misc]
        """A link-layer address of any length as colon-separated hex."""

        def encode(self) -> None:
            self["value"] = bytes.fromhex(self.value.replace(":", ""))
            nla_base_string.encode(self)

        def decode(self) -> None:
            nla_base_string.decode(self)
            self.value = self["value"].hex(":")

    class proplist(nla):  # type: ignore[misc]
        nla_flags = NLA_F_NESTED
        nla_map = ((53, "IFLA_ALT_IFNAME", "asciiz"),)

    class vflist(nla):  # type: ignore[misc]
        nla_map = ((1, "IFLA_VF_INFO", "vfinfo"),)

        class vfinfo(nla):  # type: ignore[misc]
            prefix = "IFLA_VF_"
            nla_map = (
                (1, "IFLA_VF_MAC", "vf_mac"),
                (2, "IFLA_VF_VLAN", "vf_vlan"),
                (4, "IFLA_VF_SPOOFCHK", "vf_spoofchk"),
                (5, "IFLA_VF_LINK_STATE", "vf_link_state"),
                (6, "IFLA_VF_RATE", "vf_rate"),
                (9, "IFLA_VF_TRUST", "vf_trust"),
                (12, "IFLA_VF_VLAN_LIST", "vf_vlist"),
            )

            class vf_mac(nla):  # type: ignore[misc]
                fields = (("vf", "I"), ("mac", "32s"))

                def encode(self) -> None:
                    self["mac"] = bytes.fromhex(self["mac"].replace(":", ""))
                    nla.encode(self)

                def decode(self) -> None:
                    nla.decode(self)
                    self["mac"] = self["mac"][:6].hex(":")

            class vf_vlan(nla):  # type: ignore[misc]
                fields = (("vf", "I"), ("vlan", "I"), ("qos", "I"))

            class vf_spoofchk(nla):  # type: ignore[misc]
                fields = (("vf", "I"), ("spoofchk", "I"))

            class vf_link_state(nla):  # type: ignore[misc]
                fields = (("vf", "I"), ("link_state", "I"))

            class vf_rate(nla):  # type: ignore[misc]
                fields = (("vf", "I"), ("min_tx_rate", "I"), ("max_tx_rate", "I"))

            class vf_trust(nla):  # type: ignore[misc]
                fields = (("vf", "I"), ("trust", "I"))

            class vf_vlist(nla):  # type: ignore[misc]
                nla_map = ((1, "IFLA_VF_VLAN_INFO", "ivvi"),)

                class ivvi(nla):  # type: ignore[misc]
                    fields = (("vf", "I"), ("vlan", "I"), ("qos", "I"), ("proto", ">H"), ("__pad", "2x"))


vfinfo = linkmsg.vflist.vfinfo
