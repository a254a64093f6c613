"""The files of deploy/, without any tool: nothing open, no secret in them, nothing that drifts."""

import json
import re
import tomllib
from typing import Any

import pytest
import yaml

from greenbench.contract.config import load_sweep
from greenbench.contract.installation import ROOT
from greenbench.contract.vllm_versions import SUPPORTED
from servers.backends.registry import BACKENDS
from tests.fakes.deploy_files import COMPOSE, DEPLOY, KUBERNETES, documents, pods

VLLM = next(r for r in SUPPORTED if r.name == "0.32")  # of the image in the Dockerfile
SECRETS = ("HF_TOKEN", "VLLM_API_KEY", "GRAFANA_PASSWORD", "GF_SECURITY_ADMIN_PASSWORD")


def candidate(folder: str) -> tuple[dict[str, str], list[str]]:
    """Variables and flags that a candidate adds to the server."""
    patches = yaml.safe_load(
        (KUBERNETES / "candidates" / folder / "kustomization.yaml").read_text()
    )["patches"]
    env: dict[str, str] = {}
    flags: list[str] = []
    for patch in (yaml.safe_load(each["patch"]) for each in patches):
        if isinstance(patch, list):
            flags += [step["value"] for step in patch]
        else:
            (container,) = patch["spec"]["template"]["spec"]["containers"]
            env |= {each["name"]: each["value"] for each in container["env"]}
    return env, flags


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_compose_publishes_on_loopback_alone(name: str) -> None:
    for port in COMPOSE["services"][name].get("ports", []):
        assert port.startswith("127.0.0.1:"), port


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_each_service_of_compose_is_read_only_and_without_capabilities(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]


def test_secrets_come_from_the_environment() -> None:
    for service in COMPOSE["services"].values():
        for name, value in service.get("environment", {}).items():
            if name in SECRETS:
                assert value is None or re.fullmatch(r"\$\{\w+:\?.*\}", value), (name, value)
    for name, pod in pods():
        for container in pod["containers"]:
            for variable in container.get("env", []):
                if variable["name"] in SECRETS:
                    assert "secretKeyRef" in variable["valueFrom"], (name, variable)
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            assert not re.search(r"\bhf_[A-Za-z0-9]{20}|password: *\w", path.read_text()), path


@pytest.mark.parametrize(
    ("name", "pod"), pods(), ids=lambda part: part if isinstance(part, str) else ""
)
def test_a_pod_runs_as_nobody_special_and_writes_to_its_volumes_alone(
    name: str, pod: dict[str, Any]
) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        secure = container["securityContext"]
        assert secure == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"requests", "limits"} <= set(container["resources"])
        assert {mount["name"] for mount in container["volumeMounts"]} == {
            volume["name"] for volume in pod["volumes"]
        }


def test_cards_are_taken_by_servers_and_sweeps_alone() -> None:
    taken = {
        name
        for name, pod in pods()
        if any("nvidia.com/gpu" in c["resources"]["limits"] for c in pod["containers"])
    }
    assert taken == {"server", "sweep"}


def test_every_long_running_pod_is_probed() -> None:
    probed = {name: set(pod["containers"][0]) for name, pod in pods()}
    for name in ("server", "exporter", "gateway"):
        assert {"readinessProbe", "livenessProbe"} <= probed[name], name
    assert "startupProbe" in probed["server"]


def test_the_job_has_an_index_for_each_repeat_of_its_sweep() -> None:
    (job,) = yaml.safe_load_all((KUBERNETES / "sweep" / "job.yaml").read_text())
    sweep = load_sweep(KUBERNETES / "sweep" / "sweep.yaml")
    assert job["spec"]["completionMode"] == "Indexed"
    assert job["spec"]["completions"] == sweep.repeats
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["args"][:2] == ["--blocks", "$(JOB_COMPLETION_INDEX)"]


@pytest.mark.parametrize("folder", ["flash-attn3", "sdpa"])
def test_a_candidate_asks_for_the_backend_that_it_is_called(folder: str) -> None:
    """By the registry that `greenbench run` starts servers with."""
    backend = BACKENDS[folder.replace("-", "_")]
    env, flags = candidate(folder)
    name = backend.name_in(VLLM)
    assert f"--attention-backend={name}" in flags
    if backend.flash_attn_version is not None:
        assert f"--attention-config.flash_attn_version={backend.flash_attn_version}" in flags
    if backend.is_ours:
        assert env == {"VLLM_PLUGINS": "greenbench", **backend.plugin_env({}, name)}
        assert f"--block-size={backend.block_sizes['cuda']}" in flags
    else:
        assert env == {}


def test_every_flag_of_a_server_is_one_of_each_supported_vllm() -> None:
    flags = {flag.partition("=")[0] for flag in COMPOSE["services"]["server"]["command"]}
    for name, pod in pods():
        if name == "server":
            flags |= {flag.partition("=")[0] for flag in pod["containers"][0]["args"]}
    for folder in ("flash-attn3", "sdpa"):
        flags |= {flag.partition("=")[0].partition(".")[0] for flag in candidate(folder)[1]}
    flags = {flag for flag in flags if flag.startswith("--")}
    assert len(flags) > 8
    for release in SUPPORTED:
        record = ROOT / "tests" / "vllm" / "data" / f"interfaces-{release.name}.0.json"
        assert flags <= set(json.loads(record.read_text())["flags"]), release


def test_the_image_is_made_of_all_that_the_wheel_holds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    held = project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    ignore = (DEPLOY / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in ignore if line.startswith("!")}
    assert {path.partition("/")[0] for path in held} <= let_in
    assert {"pyproject.toml", project["project"]["readme"], "LICENSE"} <= let_in


def test_images_of_compose_and_kubernetes_are_those_of_the_dockerfile() -> None:
    stages = re.findall(r"^FROM \S+ AS (\w+)", (DEPLOY / "docker/Dockerfile").read_text(), re.M)
    used = {c["image"] for _, pod in pods() for c in pod["containers"]}
    used |= {service["image"] for service in COMPOSE["services"].values()}
    ours = {image.removeprefix("greenbench-") for image in used if image.startswith("greenbench-")}
    assert ours == {"bench", "server", "gateway"} <= set(stages)
    assert used - {f"greenbench-{name}" for name in ours} == {
        "prom/prometheus:v3.5.0",
        "grafana/grafana:12.2.0",
    }


def test_every_monitor_finds_a_pod_and_its_port() -> None:
    templates = [
        each["spec"]["template"]
        for each in documents(KUBERNETES)
        if "template" in each.get("spec", {})
    ]
    monitors = [each for each in documents(KUBERNETES) if each["kind"] == "PodMonitor"]
    assert len(monitors) == 3
    for monitor in monitors:
        wanted = monitor["spec"]["selector"]["matchLabels"]
        found = [t for t in templates if wanted.items() <= t["metadata"]["labels"].items()]
        assert found, monitor["metadata"]["name"]
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        ports = {
            port["name"] for t in found for c in t["spec"]["containers"] for port in c["ports"]
        }
        assert endpoint["port"] in ports
        added = {rule["targetLabel"] for rule in endpoint["relabelings"]}
        assert {"job", "node"} <= added
