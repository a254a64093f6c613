"""The table of backends as a person sees it."""

from servers.backends.host_facts import HostFacts
from servers.backends.registry import BACKENDS
from servers.backends.requirements import Case, refusals
from servers.backends.table import as_table


def test_the_table_fits_80_columns_and_loses_no_word() -> None:
    host = HostFacts(vllm_build="cpu", vllm_version="0.32.0", modules=frozenset())
    rows = [(row, refusals(Case(row, host))) for row in BACKENDS.values()]
    table = as_table(rows, host)
    assert max(map(len, table.splitlines())) <= 80
    words = " ".join(table.split())
    for backend, reasons in rows:
        for sentence in (
            backend.describe,
            *reasons,
            *(o.describe for o in backend.options.values()),
        ):
            assert " ".join(sentence.split()) in words
