"""Files of others: small ones that unpack to more than a memory holds, and links to what is not theirs."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.archive import archive
from analysis.runs import archived
from analysis.runs.check_forms import read_forms
from analysis.runs.run import load_run
from analysis.runs.validity import faults
from greenbench.contract import unpack
from greenbench.contract.errors import UserError
from tests.fakes.rundirs import FakeRun, write_run

RUN = FakeRun(measure_s=10, gpu_power_w=300.0)


def test_a_bomb_in_a_recording_costs_its_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some KB that unpack to more than is read."""
    path = write_run(tmp_path, RUN).path
    part = path / "telemetry" / "gpu.0000.jsonl.gz"
    part.write_bytes(gzip.compress(bytes(2**20)) * 4)
    assert part.stat().st_size < 2**14
    monkeypatch.setattr(unpack, "MOST_BYTES", 4 * 2**20)
    assert len(unpack.gunzip(part)) == 4 * 2**20
    monkeypatch.setattr(unpack, "MOST_BYTES", 3 * 2**20)
    for said in (
        " ".join(fault.sentence for fault in faults(load_run(path))),
        " ".join(read_forms(tmp_path).faults),
    ):
        assert "unpacks to over 3 MiB" in said


def test_a_table_of_repeated_values_is_refused_where_memory_would_not_hold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "requests.parquet"
    pq.write_table(pa.table({"n": pa.array([7] * 1_000_000)}), path)
    assert path.stat().st_size < 20_000  # eight MB in it
    monkeypatch.setattr(archived, "MEMORY_BYTES", 2**24 + 1)
    assert archived.opened(path).metadata.num_rows == 1_000_000
    monkeypatch.setattr(archived, "MEMORY_BYTES", 15_000_000)
    with pytest.raises(pa.ArrowInvalid, match="1,000,000 values take more than half"):
        archived.opened(path)


@pytest.mark.parametrize("name", ["logs/server.log", "client_audit/other.json"])
def test_a_link_puts_no_file_of_this_machine_into_an_archive(name: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text('{"private": 1}\n')
    runs = tmp_path / "runs"
    linked = write_run(runs, RUN).path / name
    write_run(runs, FakeRun(backend="beta", measure_s=10))
    linked.parent.mkdir(exist_ok=True)
    linked.unlink(missing_ok=True)
    linked.symlink_to(secret)
    kept = archive(runs, tmp_path / "out")
    assert len(kept.runs) == 1 and len(kept.unreadable) == 1
    found = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert found and not any(b"private" in path.read_bytes() for path in found)


def test_nor_does_one_in_a_servers_folder(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs", RUN)
    server = run.path.parent / "servers" / run.manifest().server.server_id
    server.mkdir(parents=True, exist_ok=True)
    (tmp_path / "secret").write_text("private")
    (server / "model_inspection.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=r"model_inspection.txt: is a link to .*/secret"):
        archive(tmp_path / "runs", tmp_path / "out")
    assert not (tmp_path / "out").exists()
