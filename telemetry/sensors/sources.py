"""Which readings a GPU gives, and how often each of them changes."""

from collections.abc import Collection

from telemetry.sensors.capability import Capability, available, unavailable
from telemetry.sensors.gpu import Reader
from telemetry.sensors.refresh_rate import Refresh, measure_refresh

GPU_SOURCES = ("counter", "average", "instant", "memory_scope", "gpm")


def watch_refresh(reader: Reader, watch_s: float) -> dict[str, Refresh]:
    """UUID → refresh of one card of each name: watching eight equal cards would take half a minute."""
    one_of_each_name = {gpu.name: gpu for gpu in reversed(reader.gpus())}
    return {
        gpu.uuid: measure_refresh(reader, gpu.index, watch_s) for gpu in one_of_each_name.values()
    }


def merge_capabilities(
    reader: Reader, refreshes: dict[str, Refresh], asked: Collection[str] = ()
) -> dict[str, Capability]:
    """One status a source: available only where every card has it, else it names the cards without.

    ``asked``: UUIDs of the cards that count, those of the server; none: all.
    """
    merged: dict[str, Capability] = {}
    every = {gpu.uuid: reader.capabilities(gpu.index) for gpu in reader.gpus()}
    probed = {uuid: caps for uuid, caps in every.items() if uuid in asked} or every
    for source in GPU_SOURCES:
        lacking = {
            uuid: caps[source].reason for uuid, caps in probed.items() if not caps[source].ok
        }
        refresh = {
            uuid: r.period_s[source] for uuid, r in refreshes.items() if source in r.period_s
        }
        detail = {"reader": reader.name, "refresh_s": refresh}
        if not lacking:
            merged[source] = available(**detail)
        elif len(lacking) == len(probed):
            merged[source] = unavailable(next(iter(lacking.values())) or "not supported", **detail)
        else:
            named = ", ".join(f"{uuid}: {reason}" for uuid, reason in lacking.items())
            merged[source] = unavailable(
                f"not on every GPU ({named})", without=list(lacking), **detail
            )
    return merged
