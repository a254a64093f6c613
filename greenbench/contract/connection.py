"""The keys of a ``server:`` block that say how a running server is reached. None holds a secret.

What they mean is worked out in `greenbench.contract.access`.
"""

from typing import Any, Final, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from greenbench.contract.access import header_fault, variable_fault
from greenbench.contract.address import address_fault
from greenbench.contract.errors import UserError

Endpoint = Literal["auto", "completions", "chat"]
DEFAULTS: Final[dict[str, Any]] = {
    "endpoint": "auto", "api_key_env": None, "headers": {}, "headers_env": {}, "ca_file": None,
    "insecure": False,
}  # fmt: skip
# How one gets there changes nothing that is measured; what is asked for there does.
NO_MEASUREMENT: Final = frozenset(DEFAULTS) - {"endpoint"}


class ConnectionConfig(BaseModel):
    """How a server that is running is reached, for the sweep, the load, the probe and the scrape alike."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: Endpoint = (
        "auto"  # /v1/completions where the server has it, else /v1/chat/completions
    )
    api_key_env: str | None = (
        None  # environment variable that holds the key (Authorization: Bearer)
    )
    headers: dict[str, str] = Field(
        default_factory=dict[str, str]
    )  # further ones, e.g. for a router
    headers_env: dict[str, str] = Field(
        default_factory=dict[str, str]
    )  # header → variable of its value
    ca_file: str | None = (
        None  # PEM certificates to trust; default: SSL_CERT_FILE, else the system's
    )
    insecure: bool = False  # trust any certificate

    @model_validator(mode="before")
    @classmethod
    def _no_secrets(cls, given: object) -> object:
        """Refused before anything can show or store a value."""
        if not isinstance(given, dict):
            return given
        keys = cast("dict[str, object]", given)
        if "api_key" in keys:
            raise UserError(
                "server.api_key would be stored in each run; put the key into an environment variable and "
                "name it: api_key_env: OPENAI_API_KEY"
            )
        url = keys.get("base_url")
        if isinstance(url, str) and "@" in url and (fault := address_fault(url)):
            raise UserError(f"server.base_url: {fault}")
        headers, variables = keys.get("headers"), keys.get("headers_env")
        if isinstance(headers, dict):
            for name, value in cast("dict[object, object]", headers).items():
                if fault := header_fault(str(name), str(value)):
                    raise UserError(f"server.headers: {fault}")
        if isinstance(variables, dict):
            for name, variable in cast("dict[object, object]", variables).items():
                fault = header_fault(str(name), None) or variable_fault(str(variable))
                if fault:
                    raise UserError(f"server.headers_env: {fault}")
        key = keys.get("api_key_env")
        if key is not None and (fault := variable_fault(str(key))):
            raise UserError(f"server.api_key_env: {fault}")
        return keys

    @field_validator("headers", mode="before")
    @classmethod
    def _text(cls, given: object) -> object:
        """A number, as YAML reads one, is its text."""
        if not isinstance(given, dict):
            return given
        return {
            name: str(value) if type(value) in (int, float) else value
            for name, value in cast("dict[object, object]", given).items()
        }

    @property
    def connection(self) -> dict[str, Any]:
        """The keys of this class alone, as `greenbench.contract.access.access` takes them."""
        return self.model_dump(include=set(DEFAULTS))


def measured_part(server: dict[str, Any]) -> dict[str, Any]:
    """A dumped ``server`` block without what changes no measurement, and without keys at their default.

    So a point from before these keys is still the same measurement.
    """
    return {
        key: value
        for key, value in server.items()
        if key not in DEFAULTS or (key not in NO_MEASUREMENT and value != DEFAULTS[key])
    }
