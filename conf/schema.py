"""The JSON Schema of every plugin's configuration, from the models that read it; nothing is described twice.

Source: https://json-schema.org/draft/2020-12/schema.
"""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from conf.host_device import HostDeviceConf
from conf.host_local import HostLocalConf
from conf.rdma import RdmaConf
from conf.section import Json, Section
from conf.sriov import SriovConf
from conf.static import StaticConf
from conf.whereabouts import WhereaboutsConf

# Executable -> the model of its keys. For an IPAM plugin that is its ``ipam`` object.
MODELS: dict[str, type[Section]] = {
    "host-device": HostDeviceConf,
    "host-local": HostLocalConf,
    "rdma": RdmaConf,
    "sriov": SriovConf,
    "static": StaticConf,
    "whereabouts": WhereaboutsConf,
}


class _WithoutTitles(GenerateJsonSchema):
    """Pydantic's schema, without the titles it makes up from the names of the fields ("Cniversion")."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def schema_of(name: str) -> Json:
    """Return the schema of one plugin's configuration; KeyError when there is no such plugin."""
    schema = MODELS[name].model_json_schema(by_alias=True, schema_generator=_WithoutTitles)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": name}
