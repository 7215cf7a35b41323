"""CNI_ARGS as Multus and the kubelet send it."""

from __future__ import annotations

import pytest

from conf.cni_args import parse
from conf.errors import InvalidEnvironment

KUBELET = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=p;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=u"


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("", {}),
        (";;", {}),
        ("MAC=02:00:00:00:00:01", {"MAC": "02:00:00:00:00:01"}),
        ("MAC=a;MAC=b", {"MAC": "b"}),
        ("MAC=", {"MAC": ""}),
        ("IP=a=b=c;", {"IP": "a=b=c"}),
        ("IgnoreUnknown=TRUE;mac=x", {"IgnoreUnknown": "TRUE", "mac": "x"}),
        ("X=1;IgnoreUnknown=0;IgnoreUnknown=1", {"X": "1", "IgnoreUnknown": "1"}),
        (
            f"{KUBELET};BLAHBLAH=foo=bar",
            {**dict(pair.split("=") for pair in KUBELET.split(";")), "BLAHBLAH": "foo=bar"},
        ),
    ],
)
def test_parse(text, pairs):
    assert parse(text) == pairs


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("MAC", '"MAC"'),
        ("=x", '"=x"'),
        ("ZEBRA=1;ANT=2", "ANT, ZEBRA"),
        ("mac=x", "mac"),
        ("IgnoreUnknown=0;X=1", "X"),
        ("IgnoreUnknown=yes", 'IgnoreUnknown="yes"'),
    ],
)
def test_what_is_refused_is_named(text, said):
    with pytest.raises(InvalidEnvironment) as refused:
        parse(text)
    assert said in refused.value.msg
    assert refused.value.code == 4


@pytest.mark.parametrize("text", ["MAC", "=x", "X=1", "IgnoreUnknown=yes", "junk;X=1"])
def test_lenient_refuses_nothing(text):
    assert "junk" not in parse(text, lenient=True)


def test_value_of_an_unknown_key_is_not_shown():
    with pytest.raises(InvalidEnvironment) as refused:
        parse("TOKEN=s3cret")
    assert "s3cret" not in str(refused.value)
