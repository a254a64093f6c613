"""What a CPU can do at most: of which dtype, whose file, and a measurement that does not get on."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from analysis.bottleneck import peaks
from analysis.bottleneck.peaks import (
    FILE,
    HostCeilings,
    find_host_ceilings,
    gpu_ceilings,
    run_ceilings,
)
from analysis.runs.run import Run, load_run
from greenbench.contract.errors import UserError
from greenbench.contract.manifest import Gpu
from tests.fakes.rundirs import FakeRun, write_run

AVX2 = {"float32": 173e9, "bfloat16": 20e9}  # no instructions for bfloat16: slower than float32
AVX512_BF16 = {"float32": 400e9, "bfloat16": 1000e9}


def measured(flops: dict[str, float], cpu: str = "x", cores: int = 2) -> HostCeilings:
    return HostCeilings(
        host_cpu=cpu,
        cores=cores,
        device="cpu",
        threads=2,
        torch="2.13.0",
        flops_per_s=flops,
        copy_bytes_per_s=30e9,
        read_bytes_per_s=40e9,
    )


@pytest.mark.parametrize(
    ("flops", "dtype", "expected"),
    [
        (AVX2, "float32", 173e9),
        (AVX2, "bfloat16", 173e9),  # attention in bfloat16 computes in float32 there
        (AVX512_BF16, "float32", 400e9),
        (AVX512_BF16, "bfloat16", 1000e9),
        (AVX2, "float16", None),
    ],
)
def test_the_ceiling_is_that_of_the_served_dtype(
    flops: dict[str, float], dtype: str, expected: float | None
) -> None:
    found = measured(flops).ceiling(dtype)
    assert (found and found.flops_per_s) == expected
    assert found is None or found.bytes_per_s == 40e9


def test_a_run_is_held_against_its_own_host_alone(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path, FakeRun(backend="cpu_attn")).path)
    host, dtype = run.manifest.host, run.manifest.server.dtype
    assert not host.gpus
    own = measured(AVX512_BF16, host.cpu, host.cores)
    assert [c.flops_per_s for c in run_ceilings(run, own)] == [AVX512_BF16[dtype]]
    assert run_ceilings(run, measured(AVX512_BF16, host.cpu, host.cores + 1)) == []
    assert run_ceilings(run, measured(AVX512_BF16, "another", host.cores)) == []
    assert run_ceilings(run, measured({}, host.cpu, host.cores)) == []


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("NVIDIA B200", 2.25e15),
        ("NVIDIA GB200", 2.5e15),
        ("NVIDIA H200", 9.89e14),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA H100 80GB HBM3", 9.89e14),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA A100-SXM4-80GB", 3.12e14),
        ("A100-SXM4-80GB", 3.12e14),  # by a driver before 470
        ("NVIDIA A100-SXM4-40GB", None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
        ("", None),
    ],
)
def test_a_card_has_the_peaks_of_its_whole_name(name: str, flops: float | None) -> None:
    specs = [ceiling.flops_per_s for ceiling in gpu_ceilings(name) if ceiling.kind == "spec"]
    assert specs == ([] if flops is None else [flops])


H200, A100 = "NVIDIA H200", "NVIDIA A100-SXM4-80GB"


def gpu_run(
    tmp_path: Path, names: list[str], facts: list[dict[str, Any]], tensor_parallel: int = 1
) -> Run:
    """A run on a host of these cards; ``facts`` are what the recorder found of each."""
    made = write_run(tmp_path, FakeRun())
    manifest = made.manifest()
    cards = [Gpu(index=i, uuid=f"GPU-{i}", name=name) for i, name in enumerate(names)]
    made.write_manifest(
        manifest.model_copy(
            update={
                "host": manifest.host.model_copy(update={"gpus": cards}),
                "server": manifest.server.model_copy(update={"tensor_parallel": tensor_parallel}),
            }
        )
    )
    gpus = [{"uuid": f"GPU-{i}"} | fact for i, fact in enumerate(facts)]
    (made.telemetry_dir / "sources.json").write_text(json.dumps({"facts": {"gpus": gpus}}))
    return load_run(made.path)


NOT, SHOWN, OWN = {"visible": False}, {"visible": True}, {"visible": True, "own_pids": [7]}


@pytest.mark.parametrize(
    ("names", "facts", "cards", "flops"),
    [
        ([H200, A100], [NOT, SHOWN], 1, 3.12e14),
        ([H200, A100], [SHOWN, OWN], 1, 3.12e14),
        ([H200, A100], [SHOWN, NOT], 1, 6.62e14),  # measured before spec
        ([H200, A100], [SHOWN, SHOWN], 1, None),  # one of the two
        ([H200, A100], [], 1, None),
        # two unequal cards wait for the slower one
        ([H200, A100], [OWN, OWN], 2, 2 * 3.12e14),
        ([A100, A100], [SHOWN, SHOWN], 1, 3.12e14),  # whichever it is
        ([A100, A100], [SHOWN, SHOWN], 2, 2 * 3.12e14),
        ([A100], [SHOWN | {"mig": True}], 1, None),  # of a part of a card
        ([A100, "NVIDIA X"], [OWN, OWN], 2, None),
    ],
)
def test_ceilings_are_of_the_cards_that_serve(
    names: list[str],
    facts: list[dict[str, Any]],
    cards: int,
    flops: float | None,
    tmp_path: Path,
) -> None:
    found = run_ceilings(gpu_run(tmp_path, names, facts, cards), None)
    assert [c.flops_per_s for c in found[:1]] == ([] if flops is None else [flops])


def test_a_file_of_the_older_form_is_no_ceiling_and_no_fault(tmp_path: Path) -> None:
    """It held a product of matrices that no server calls: by it points were 15 times beyond it."""
    old = {"host_cpu": "x", "cores": 2, "bf16_flops": 1.24e9, "fp32_flops": 173e9}
    (tmp_path / FILE).write_text(json.dumps(old))
    assert find_host_ceilings(tmp_path) is None
    (tmp_path / FILE).write_text(measured(AVX2).model_dump_json())
    assert find_host_ceilings(tmp_path / "demo") == measured(AVX2)


def child(code: str) -> list[str]:
    return [sys.executable, "-c", f"import json, os, signal, time\n{code}"]


def test_what_the_child_says_is_passed_on_and_its_last_word_kept() -> None:
    code = (
        "print('INFO of a library')\n"
        "print(json.dumps({'says': 'one'}))\nprint(json.dumps({'says': 'two'}))\n"
        "print('7')\nprint(json.dumps({'found': {'threads': 2}}))"
    )
    said: list[str] = []
    assert peaks._told(child(code), said.append, 60) == {"threads": 2}
    assert said == ["one", "two"]


@pytest.mark.parametrize(
    ("code", "limit_s", "sentence"),
    [
        ("time.sleep(600)", 0.5, "took longer than 0 s; try again on a quiet machine"),
        ("os.kill(os.getpid(), signal.SIGILL)", 60, r"it died of SIGILL \(Illegal instruction\)"),
        ("raise ImportError('no torch here')", 60, "ImportError: no torch here"),
        ("", 60, "it ended with 0"),
    ],
)
def test_a_measurement_that_fails_is_one_sentence(code: str, limit_s: float, sentence: str) -> None:
    with pytest.raises(UserError, match=f"ceilings .*{sentence}$"):
        peaks._told(child(code), lambda _: None, limit_s)


def test_no_python_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PYTHON", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"none: cannot be started .* or set VLLM_PYTHON"):
        peaks.measure_host(tmp_path / FILE, lambda _: None)
    assert not (tmp_path / FILE).exists()


def test_the_stored_host_is_named_as_a_manifest_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against two countings of cores (all, and those we may use) that never match."""
    from greenbench.sweep import provenance

    told = measured(AVX2).model_dump(exclude={"host_cpu", "cores"})
    monkeypatch.setattr(peaks, "_told", lambda *_: told)
    found = peaks.measure_host(tmp_path / FILE, lambda _: None)
    host = provenance.host()
    assert (found.host_cpu, found.cores) == (host.cpu, host.cores)
    assert find_host_ceilings(tmp_path) == found
    assert found.cores == len(os.sched_getaffinity(0))
