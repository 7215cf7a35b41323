"""How a JSON object is read: as Go's encoding/json does where that is harmless, stricter where it does harm.

Keys match without regard to case (an exact match is preferred, then the last one given), ``null`` is absent, unknown
keys are kept and tolerated, and no type is converted to another: ``true`` is not 1 and ``"100"`` is not 100.
What the keys of a plugin are lives in that plugin's module. Reading touches nothing outside its arguments.

Source: Go encoding/json Unmarshal; reference "Fields" 2.1.
"""

from __future__ import annotations

import functools
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from conf.errors import CniError, DecodeFailure, InvalidNetworkConfig

# pydantic looks for plugins in every installed distribution, which takes 11 ms of imports (email, zipfile, …).
# There are none: the archive has no distributions, and what others have installed must not change what we read.
sys.modules.setdefault("pydantic.plugin._loader", SimpleNamespace(get_plugins=tuple))  # type: ignore[arg-type]

_SECRET_WORDS = ("password", "token", "secret", "key")
_SHOWN_CHARACTERS = 80
# What JSON calls the types of Python, and the complaints of pydantic that a value is of another type.
_JSON_TYPES = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
_WANTED_TYPES = {
    "bool_type": "true or false",
    "dict_type": "an object",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_type": "an object",
    "string_type": "a string",
    "tuple_type": "a list",
}

# Keys of the specification, of runtimes and of Multus, which any plugin may find in its configuration.
_LEGAL = frozenset({
    "cniversion", "cniversions", "name", "type", "args", "capabilities", "runtimeconfig", "prevresult", "ipam",
    "ipmasq", "dns", "disablecheck", "disablegc", "loadonlyinlinedplugins", "deviceid", "pcibusid", "loglevel",
    "logfile", "logtostderr", "logoptions", "delegates", "kubeconfig",
})  # fmt: skip

Json = dict[str, Any]

log = logging.getLogger("vferry.conf")


class Section(BaseModel):
    """One JSON object of a configuration or result; a field's alias is its key, its description the documentation."""

    # Built when first used: a cold ADD imports forty models and uses fifteen.
    model_config = ConfigDict(strict=True, extra="allow", frozen=True, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _match_keys_as_go_does(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        folded = {}
        by_lower = _keys(cls)
        for key, value in given.items():
            wanted = by_lower.get(key.lower(), key)
            if value is None or (wanted != key and given.get(wanted) is not None):
                continue
            folded[wanted] = value
        return folded


@functools.cache
def _keys(model: type[BaseModel]) -> dict[str, str]:
    """Return the keys of a model by what they are in lower case."""
    keys = (field.alias or name for name, field in model.model_fields.items())
    return {key.lower(): key for key in keys}


SectionType = TypeVar("SectionType", bound=Section)


def lookup(obj: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """Return the value of a key matched as Go matches it; ``null`` counts as absent."""
    if obj.get(key) is not None:
        return obj[key]
    lowered = key.lower()
    found = [value for name, value in obj.items() if name.lower() == lowered and value is not None]
    return found[-1] if found else default


def decode(document: bytes, what: str) -> Json:
    """Decode one JSON object.

    Raises: DecodeFailure when it is no JSON, or no object; the text itself is never quoted.
    """
    try:
        decoded = json.loads(document)
    except (ValueError, RecursionError) as error:
        where = (
            f"line {error.lineno}, column {error.colno}: {error.msg}"
            if isinstance(error, json.JSONDecodeError)
            else type(error).__name__
        )
        raise DecodeFailure(
            f"{what} is not JSON", details=where, hint="check it with 'python3 -m json.tool'"
        ) from error
    if not isinstance(decoded, dict):
        raise DecodeFailure(
            f"{what} is not a JSON object", details=f"it is {_JSON_TYPES.get(type(decoded), 'a number')}"
        )
    return decoded


def read(
    model: type[SectionType],
    obj: Mapping[str, Any],
    *,
    where: str,
    error: type[CniError] = InvalidNetworkConfig,
) -> SectionType:
    """Read one object by its model.

    Raises: ``error`` with the offending key and value in the message, every further one in the details, and the
    field's own description as the hint.
    """
    try:
        return model.model_validate(obj)
    except ValidationError as invalid:
        complaints = [_complaint(item) for item in invalid.errors(include_url=False)]
        first, *others = dict.fromkeys(complaints)
        raise error(f"{where}: {first}", details="; ".join(others), hint=_description(model, invalid)) from invalid


def tell_misspelt(conf: Section, *, where: str) -> None:
    """Warn of each unknown key that looks like a known one that is not given: the default would count without a word.

    Nothing is compared where every key is known.
    """
    for key in conf.model_extra or ():
        meant = _meant_by(key, conf)
        if meant:
            log.warning('%s: unknown key "%s"; did you mean "%s"?', where, key, meant)
    for name, field in type(conf).model_fields.items():
        if name in conf.model_fields_set:
            for part in _sections(getattr(conf, name)):
                tell_misspelt(part, where=f"{where}: {field.alias or name}")


def _sections(value: Any) -> Iterator[Section]:
    if isinstance(value, Section):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _sections(part)


def _meant_by(key: str, conf: Section) -> str | None:
    if key.lower() in _LEGAL or not key.replace("_", "").replace("-", "").isalnum() or key.startswith("_"):
        return None
    absent = (
        field.alias or name
        for name, field in type(conf).model_fields.items()
        # An unknown key may be called as the attribute of a known one, "data_dir" as that of "dataDir".
        if name not in conf.model_fields_set or (name == key and getattr(conf, name) == field.default)
    )
    return _nearest(_letters(key), absent)


def _nearest(letters: str, keys: Iterable[str]) -> str | None:
    """Return the key with the fewest slips, two at most, in a short one a single one."""
    slips = {key: _slips(letters, _letters(key)) for key in keys}
    likely = [key for key, number in slips.items() if number <= (0 if len(key) < 3 else 1 if len(key) < 7 else 2)]
    return min(likely, key=slips.__getitem__, default=None)


def _letters(key: str) -> str:
    return key.lower().replace("_", "").replace("-", "")


def _slips(one: str, other: str) -> int:
    """Count letters that were left out, added, changed or swapped (difflib would cost 3 ms at each start)."""
    rows = [list(range(len(other) + 1))]
    for at, letter in enumerate(one):
        rows.append([at + 1])
        for to, wanted in enumerate(other):
            fewest = min(rows[at][to + 1] + 1, rows[-1][to] + 1, rows[at][to] + (letter != wanted))
            if at and to and (letter, one[at - 1]) == (other[to - 1], wanted):
                fewest = min(fewest, rows[at - 1][to - 1] + 1)
            rows[-1].append(fewest)
    return rows[-1][-1]


def shown(key: str, value: Any) -> str:
    """Return ``"key": value`` fit for a message: short, and without the value of anything that may be a secret."""
    may_hold_one = isinstance(value, dict) or (
        isinstance(value, list) and any(isinstance(part, dict | list) for part in value)
    )
    if may_hold_one or any(word in key.lower() for word in _SECRET_WORDS):
        return f'"{key}"'
    text = json.dumps(value, default=str)
    return f'"{key}": {text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"}'


def _complaint(item: Any) -> str:
    path = [str(part) for part in item["loc"] if not str(part).startswith(("function-", "constrained-"))]
    key = ".".join(path)
    message = item["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ").removeprefix("Input ")
    if item["type"] in _WANTED_TYPES:
        message = f"not {_WANTED_TYPES[item['type']]}"
    if item["type"] == "missing":
        return f'"{key}" is missing'
    if not key:
        return str(message)
    return f"{shown(key, item['input'])} is not valid: {message}"


def _description(model: type[Section], invalid: ValidationError) -> str:
    location = invalid.errors(include_url=False)[0]["loc"]
    for name, field in model.model_fields.items():
        if location and (field.alias or name) == location[0]:
            return field.description or ""
    return ""
