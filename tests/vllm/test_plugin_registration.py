"""The entry points: nothing happens unasked, and whatever is wrong is said before a server serves."""

import os
import subprocess
import sys

import pytest
import vllm
from vllm.v1.attention.backends.registry import AttentionBackendEnum

import servers.plugins as plugins
from greenbench.contract.errors import UserError
from greenbench.contract.vllm_versions import release_of

SDPA = "servers.plugins.sdpa.SdpaBackend"

BOOT = """
from vllm.plugins import load_general_plugins
load_general_plugins()
from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum
print(type(current_platform).__name__, AttentionBackendEnum.CUSTOM.is_overridden())
"""
SPAWNED = """
import multiprocessing
from vllm.config import AttentionConfig

def main(config):
    print(config.backend.name, config.backend.get_path(), end=" ")

if __name__ == "__main__":
    from vllm.plugins import load_general_plugins
    load_general_plugins()
    config = AttentionConfig(backend="GREENBENCH_SDPA")
    child = multiprocessing.get_context("spawn").Process(target=main, args=(config,))
    child.start()
    child.join()
"""
BY_NAME = pytest.mark.skipif(
    not release_of(vllm.__version__).names_backends, reason="this vLLM takes no new names"
)


def load_plugins(**env: str) -> subprocess.CompletedProcess[str]:
    """What a vLLM process does with the installed entry points under ``env``."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("GREENBENCH_", "VLLM_"))}
    return subprocess.run(
        [sys.executable, "-c", BOOT], env=clean | env, capture_output=True, text=True, timeout=120
    )


def test_a_stock_server_is_left_alone(monkeypatch):
    """Guards against the installed plugin changing servers that did not ask for it."""
    monkeypatch.delenv(plugins.CLASS_ENV, raising=False)
    plugins.register()
    assert plugins.cpu_platform() is None
    assert not AttentionBackendEnum.CUSTOM.is_overridden()


def test_the_named_class_becomes_custom():
    done = load_plugins(GREENBENCH_ATTENTION_CLASS=SDPA, VLLM_PLUGINS="greenbench,greenbench_cpu")
    assert done.stdout.split() == ["CustomCpuPlatform", "True"], done.stderr[-500:]


@BY_NAME
def test_a_name_of_ours_reaches_spawned_workers(tmp_path):
    """They read a config with the name in it before general plugins are loaded."""
    script = tmp_path / "spawned.py"
    script.write_text(SPAWNED)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("GREENBENCH_", "VLLM_"))}
    named = {
        "GREENBENCH_ATTENTION_CLASS": SDPA,
        "GREENBENCH_ATTENTION_NAME": "GREENBENCH_SDPA",
        "VLLM_PLUGINS": "greenbench,greenbench_cpu",
    }
    done = subprocess.run(
        [sys.executable, str(script)],
        env=clean | named,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.split() == ["GREENBENCH_SDPA", SDPA], done.stderr[-800:]


def test_a_persons_own_class_becomes_custom_from_its_folder(tmp_path):
    (tmp_path / "my_attn.py").write_text(
        "from servers.plugins.sdpa_gather import SdpaGatherBackend\n"
        "class MyBackend(SdpaGatherBackend): ...\n"
    )
    (tmp_path / "torch.py").write_text(
        "raise SystemExit('a file of that folder stood in for torch')"
    )
    named = {
        "GREENBENCH_ATTENTION_FOLDER": str(tmp_path),
        "VLLM_PLUGINS": "greenbench,greenbench_cpu",
    }
    done = load_plugins(GREENBENCH_ATTENTION_CLASS="my_attn.MyBackend", **named)
    assert done.stdout.split() == ["CustomCpuPlatform", "True"], done.stderr[-500:]
    done = load_plugins(GREENBENCH_ATTENTION_CLASS="your_attn.MyBackend", **named)
    assert done.returncode != 0
    assert f"no module your_attn in {tmp_path}" in done.stderr


def test_without_our_platform_the_process_dies():
    """Guards against vLLM quietly serving CPU_ATTN under the name of our backend."""
    done = load_plugins(GREENBENCH_ATTENTION_CLASS=SDPA, VLLM_PLUGINS="greenbench")
    assert done.returncode != 0
    assert "platform plugin greenbench_cpu is not active" in done.stderr


@pytest.mark.parametrize(
    ("path", "options", "sentence"),
    [
        (
            "vllm.v1.attention.backends.cpu_attn.CPUAttentionBackend",
            "{}",
            "no backend of this project",
        ),
        ("servers.plugins.absent.AbsentBackend", "{}", "no backend of this project"),
        (SDPA, "{window: 3}", "is not JSON"),
        (SDPA, "[1]", "a JSON object of plain values is wanted"),
        (SDPA, '{"window": [1]}', "a JSON object of plain values is wanted"),
    ],
)
def test_bad_environment_is_refused(monkeypatch, path, options, sentence):
    monkeypatch.setenv(plugins.CLASS_ENV, path)
    monkeypatch.setenv(plugins.OPTIONS_ENV, options)
    with pytest.raises(UserError, match=sentence):
        plugins.register()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ('{"windw": 3}', "no option 'windw'; did you mean 'window'"),
        ('{"window": "wide"}', "option 'window' wants int, found 'wide'"),
        ('{"free_blocks": 1}', "option 'free_blocks' wants bool, found 1"),
    ],
)
def test_bad_options_are_refused(monkeypatch, given, sentence):
    monkeypatch.setenv(plugins.OPTIONS_ENV, given)
    with pytest.raises(UserError, match=sentence):
        plugins.backend_options("sink_window", {"window": 1024, "sink": 4, "free_blocks": False})


def test_options_overlay_the_defaults(monkeypatch):
    monkeypatch.setenv(plugins.OPTIONS_ENV, '{"window": 256}')
    assert plugins.backend_options("sink_window", {"window": 1024, "sink": 4}) == {
        "window": 256,
        "sink": 4,
    }
