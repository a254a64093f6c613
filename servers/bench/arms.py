"""What both benches compare, taken from the table of backends, and the steps they time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from greenbench.contract.config import BackendChoice
from greenbench.contract.errors import UserError
from servers.backends.choice import parse_choices, resolve
from servers.backends.host_facts import Device
from servers.backends.registry import BACKENDS, Backend
from servers.plugins import Option

if TYPE_CHECKING:
    from vllm.v1.attention.backends.registry import AttentionBackendEnum


@dataclass(frozen=True, slots=True)
class Arm:
    """One backend with its options."""

    name: str  # as a person types it
    backend: Backend  # the table's row as it holds with ``options``
    options: Mapping[str, Option]

    @property
    def env(self) -> dict[str, str]:
        """What our plugins read; nothing for vLLM's own."""
        return self.backend.plugin_env(self.options)


def arms_on(device: Device, names: str | None) -> list[Arm]:
    """Those of a comma-separated list, else all that run on ``device``: vLLM's own, which stand first.

    The first is what the others are compared with. UserError: an unknown one, or one of another device.
    """
    if names is None:
        chosen = [BackendChoice(name=row.name) for row in BACKENDS.values()]
        arms = [arm for arm in map(arm_of, chosen) if device in arm.backend.devices]
        return sorted(arms, key=lambda arm: arm.backend.is_ours)
    arms = [arm_of(choice) for choice in parse_choices(names)]
    for arm in arms:
        if device not in arm.backend.devices:
            raise UserError(
                f"{arm.name} does not run on {device}; leave it out, or name the device that it wants"
            )
    return arms


def arm_of(choice: BackendChoice) -> Arm:
    return Arm(choice.label, *resolve(choice))


def vllm_backend(row: Backend) -> "AttentionBackendEnum":
    """vLLM's own name of what computes it; CUSTOM is ours, or a person's."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    return getattr(AttentionBackendEnum, row.vllm_name)


@dataclass(frozen=True, slots=True)
class Point:
    kind: Literal["decode", "prefill"]  # one token of each request, or one request's whole prompt
    context: int  # tokens
    batch: int  # requests

    @property
    def label(self) -> str:
        return f"{self.kind} {self.context:,} × {self.batch}"


def points(
    contexts: tuple[int, ...], batches: tuple[int, ...], prompts: tuple[int, ...]
) -> list[Point]:
    return [
        *(Point("decode", context, batch) for batch in batches for context in contexts),
        *(Point("prefill", context, 1) for context in prompts),
    ]


POINTS: dict[Device, list[Point]] = {
    "cpu": points(contexts=(128, 2048, 7000), batches=(1, 8), prompts=(2048, 7000)),
    "cuda": points((2048, 8192, 32768), batches=(1, 8, 32), prompts=(2048, 8192, 32768)),
}
