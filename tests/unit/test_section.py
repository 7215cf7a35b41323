"""How a JSON object is read: keys as Go matches them, null as absent, unknown keys kept, no type for another."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import Field

from conf.errors import DecodeFailure, InvalidNetworkConfig, IoFailure
from conf.section import Section, decode, lookup, read, shown


class Wheel(Section):
    spokes: int = 0


class Cart(Section):
    device_id: str = Field(default="", alias="deviceID", description="which cart it is")
    load: int = Field(default=0, ge=0, le=9, description="how much is on it")
    empty: bool | None = None
    colour: Literal["red", "blue"] = "red"
    front_wheel: Wheel = Field(default=Wheel(), alias="frontWheel")


def cart(**keys):
    return read(Cart, keys, where="the cart")


@pytest.mark.parametrize(
    ("keys", "device_id"),
    [
        ({"deviceID": "a"}, "a"),
        ({"deviceid": "a"}, "a"),
        ({"DEVICEID": "a"}, "a"),
        ({"deviceId": "a", "DEVICEID": "b"}, "b"),
        ({"deviceID": "a", "DEVICEID": "b"}, "a"),
        ({"DEVICEID": "b", "deviceID": "a"}, "a"),
        ({"deviceID": None, "DEVICEID": "b"}, "b"),
        ({"DEVICEID": None, "deviceId": "a"}, "a"),
        ({"deviceID": None}, ""),
        ({}, ""),
        ({"device_id": "a"}, ""),
    ],
)
def test_keys_match_without_regard_to_case_an_exact_one_first(keys, device_id):
    assert cart(**keys).device_id == device_id
    assert lookup(keys, "deviceID", "") == device_id


def test_objects_within_objects_are_read_alike():
    assert cart(FRONTWHEEL={"Spokes": 7}).front_wheel.spokes == 7


def test_unknown_keys_are_kept():
    assert cart(lantern={"lit": True}, Load=1).model_extra == {"lantern": {"lit": True}}


@pytest.mark.parametrize(
    "keys",
    [
        {"load": True},
        {"load": "1"},
        {"load": 1.0},
        {"load": 1.5},
        {"load": [1]},
        {"empty": 1},
        {"empty": "true"},
        {"deviceID": 7},
        {"colour": "Red"},
        {"frontWheel": []},
        {"frontWheel": "7"},
    ],
)
def test_no_type_is_taken_for_another(keys):
    with pytest.raises(InvalidNetworkConfig) as refused:
        cart(**keys)
    (key,) = keys
    assert refused.value.msg.startswith(f'the cart: "{key}"')


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"load": "1"}, "not a whole number"),
        ({"empty": 1}, "not true or false"),
        ({"deviceID": 7}, "not a string"),
        ({"frontWheel": "7"}, "not an object"),
        ({"colour": "Red"}, "should be 'red'"),
        ({"load": -1}, "should be greater than or equal to 0"),
    ],
)
def test_error_speaks_json_and_no_library_words(keys, said):
    with pytest.raises(InvalidNetworkConfig, match=f"is not valid: {said}") as refused:
        cart(**keys)
    assert "Input" not in str(refused.value)


def test_error_names_key_and_value_the_other_complaints_and_the_description():
    with pytest.raises(IoFailure) as refused:
        read(Cart, {"LOAD": -1, "colour": "green"}, where="the cart", error=IoFailure)
    assert refused.value.msg.startswith('the cart: "load": -1 is not valid: ')
    assert '"colour": "green" is not valid' in refused.value.details
    assert refused.value.hint == "how much is on it"


def test_error_within_an_object_names_the_whole_path():
    with pytest.raises(InvalidNetworkConfig, match=r'"frontWheel\.spokes": "7" is not valid'):
        cart(frontWheel={"spokes": "7"})


def test_missing_key_is_named():
    class Need(Section):
        what: int

    with pytest.raises(InvalidNetworkConfig) as refused:
        read(Need, {"what": None}, where="it")
    assert refused.value.msg == 'it: "what" is missing'


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (b"", "line 1, column 1"),
        (b'{"a": }', "line 1, column 7"),
        (b'{"a": 1} x', "line 1, column 10"),
        (b'{"token": "s3cret"', "line 1, column 19"),
        (b"\xff\xfe\xfd", "UnicodeDecodeError"),
        (b'{"a":' * 100_000, "RecursionError"),
        (b"[]", "it is a list"),
        (b'"s3cret"', "it is a string"),
        (b"null", "it is null"),
        (b"true", "it is true or false"),
    ],
)
def test_decode_says_where_and_quotes_nothing(document, said):
    with pytest.raises(DecodeFailure) as refused:
        decode(document, "stdin")
    assert said in str(refused.value)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("vlan", 4095, '"vlan": 4095'),
        ("mac", "x", '"mac": "x"'),
        ("spoofchk", True, '"spoofchk": true'),
        ("password_file", "/p", '"password_file"'),
        ("apiToken", "s3cret", '"apiToken"'),
        ("etcd", {"password": "s3cret"}, '"etcd"'),
        ("list", [{"password": "s3cret"}], '"list"'),
        ("long", "x" * 200, '"long": "' + "x" * 79 + "…"),
    ],
)
def test_shown_is_short_and_keeps_secrets(key, value, text):
    assert shown(key, value) == text
