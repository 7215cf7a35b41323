"""What an API server makes of a custom resource's schema: unknown fields pruned, types and bounds checked, CEL rules.

What it accepts and refuses was compared with Kubernetes 1.36's library, field by field.

The schemas are those of conf/deploy/crds. Of CEL the few words are understood that our manifests use; any other is an
error, so that no rule is silently passed over.
Source: kubernetes.io/docs, "Extend the Kubernetes API with CustomResourceDefinitions".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import yaml

CRDS = Path(__file__).resolve().parents[2] / "conf" / "deploy" / "crds"


@dataclass(frozen=True)
class Resource:
    """One kind that the server serves."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool
    schema: dict | None = field(default=None, compare=False)

    @property
    def api_version(self):
        return f"{self.group}/{self.version}" if self.group else self.version


CORE = [
    Resource("", "v1", "pods", "Pod", True),
    Resource("", "v1", "nodes", "Node", False),
    Resource("", "v1", "events", "Event", True),
    Resource("coordination.k8s.io", "v1", "leases", "Lease", True),
]


def read_crds(directory=CRDS):
    """Return every kind that the manifests define."""
    found = []
    for path in sorted(directory.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            if not document or document.get("kind") != "CustomResourceDefinition":
                continue
            spec = document["spec"]
            names = spec["names"]
            assert document["metadata"]["name"] == f"{names['plural']}.{spec['group']}"
            for version in spec["versions"]:
                schema = version["schema"]["openAPIV3Schema"]
                namespaced = spec["scope"] == "Namespaced"
                found.append(
                    Resource(spec["group"], version["name"], names["plural"], names["kind"], namespaced, schema)
                )
    return found


def pruned(value, schema, *, top=False):
    """Return the value without what the schema does not name, and without nulls: nothing of ours is nullable."""
    if schema.get("type") == "object" and isinstance(value, dict):
        if schema.get("x-kubernetes-preserve-unknown-fields"):
            return value
        properties, rest = schema.get("properties", {}), schema.get("additionalProperties")
        kept = {}
        for key, member in value.items():
            if top and key in ("apiVersion", "kind", "metadata"):
                kept[key] = member
            elif member is None:
                continue
            elif key in properties:
                kept[key] = pruned(member, properties[key])
            elif isinstance(rest, dict):
                kept[key] = pruned(member, rest)
        return kept
    if schema.get("type") == "array" and isinstance(value, list):
        return [pruned(member, schema["items"]) for member in value]
    return value


_TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}


def complaints(value, schema, old=None, path="", top=False):
    """Yield what is wrong with the value; ``old`` is what is stored, for the rules about a change."""
    expected = schema.get("type")
    is_number = expected in ("integer", "number")
    if expected and (not isinstance(value, _TYPES[expected]) or (is_number and isinstance(value, bool))):
        yield f"{path}: Invalid value: must be of type {expected}"
        return
    if expected == "string":
        yield from _of_text(value, schema, path)
    if is_number:
        if value < schema.get("minimum", value):
            yield f"{path}: Invalid value: should be greater than or equal to {schema['minimum']}"
        if value > schema.get("maximum", value):
            yield f"{path}: Invalid value: should be less than or equal to {schema['maximum']}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: Unsupported value"
    if expected == "object":
        yield from (f"{path}.{key}: Required value" for key in schema.get("required", []) if key not in value)
        for key, member in value.items():
            below = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
            if isinstance(below, dict) and not (top and key == "metadata"):
                yield from complaints(member, below, (old or {}).get(key), f"{path}.{key}" if path else key)
    for rule in schema.get("x-kubernetes-validations", []):
        if ("oldSelf" not in rule["rule"] or old is not None) and not holds(
            rule["rule"], value, old, schema.get("properties", {})
        ):
            yield f"{path}: Invalid value: {rule['message']}"


def _of_text(value, schema, path):
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        yield f"{path}: Invalid value: length"
    # With Go nothing can stand behind "$".
    if "pattern" in schema and not re.search(re.sub(r"\$\Z", r"\\Z", schema["pattern"]), value):
        yield f"{path}: Invalid value: should match '{schema['pattern']}'"
    if schema.get("format") == "date-time" and instant(value) is None:
        yield f"{path}: Invalid value: must be of type date-time"


_DATE_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:[.,](\d+))?(?:[Zz]|([-+])(\d\d):(\d\d))\Z", re.ASCII
)


def instant(text):
    """Return what can be compared with the instant of another date-time, None for what Go does not take for one."""
    match = _DATE_TIME.match(text)
    if match is None:
        return None
    *date, hours, minutes = (int(each or 0) for each in match.group(1, 2, 3, 4, 5, 6, 9, 10))
    try:
        # Go has a year 0; after 400 years all dates come again.
        moment = datetime(date[0] % 400 + 400, *date[1:])
    except ValueError:
        return None
    if hours > 24 or minutes > 60:
        return None
    offset = timedelta(hours=hours, minutes=minutes) * (-1 if match[8] == "-" else 1)
    years = timedelta(days=date[0] // 400 * 146_097)
    return moment - datetime(400, 1, 1) + years - offset, f"{match[7] or '':0<9.9}"


_WORD = re.compile(r"\s*(&&|\|\||!=|==|!|\(|\)|has\b|(?:self|oldSelf)(?:\.\w+)*|\Z)")
_PYTHON = {"&&": " and ", "||": " or ", "!": " not "}


class _Missing(Exception):
    pass


def holds(rule, new, old, properties=None):
    """Evaluate a CEL rule of our small dialect; an absent field outside has() is an error, as in CEL.

    ``properties``: the schema of self, for date-times are no texts.
    """
    at, expression = 0, []
    while at < len(rule.rstrip()):
        word = _WORD.match(rule, at)
        assert word, f"CEL not understood: {rule[at:]}"
        at = word.end()
        text = word[1]
        if text.startswith(("self", "oldSelf")):
            reader = "present" if expression[-2:] == ["has", "("] else "read"
            text = f"{reader}({text!r})"
        expression.append(_PYTHON.get(text, text))

    def walk(path):
        root, *keys = path.split(".")
        value = new if root == "self" else old
        for key in keys:
            if key not in value:
                raise _Missing(path)
            value = value[key]
        is_time = keys and (properties or {}).get(keys[0], {}).get("format") == "date-time"
        return instant(value) if is_time else value

    def present(path):
        try:
            walk(path)
        except _Missing:
            return False
        return True

    try:
        return eval("".join(expression), {"read": walk, "present": present, "has": bool, "__builtins__": {}})
    except _Missing:
        return False
