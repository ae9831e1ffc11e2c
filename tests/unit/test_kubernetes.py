"""The Kubernetes manifests: what Kubernetes accepts, and what the code does."""

import re
import shutil
import subprocess
from collections import UserDict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from pkgutil import resolve_name
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from jsonschema import Draft202012Validator

from orchestrator.cli.consumer import start_consumer
from orchestrator.cli.exit_codes import USAGE
from orchestrator.cli.parser import new_parser
from orchestrator.cli.relay import start_relay
from orchestrator.cli.setup import set_up_servers
from orchestrator.config.settings import Settings, read_settings
from orchestrator.observability.health import Health
from orchestrator.runtime.process import SHUTDOWN_GRACE_S
from tests.unit.test_health import served

Manifest = dict[str, Any]

ROOT = Path(__file__).parent.parent.parent
KUBERNETES = ROOT / "deploy" / "kubernetes"
EXAMPLE = KUBERNETES / "overlays" / "example"
AUTOSCALING = KUBERNETES / "components" / "autoscaling"


def read_yaml(text: str) -> list[Manifest]:
    return list(yaml.safe_load_all(text))


KUSTOMIZATIONS = {
    file.parent: read_yaml(file.read_text())[0] for file in KUBERNETES.rglob("kustomization.yaml")
}
MANIFESTS: list[Manifest] = [
    manifest
    for file in sorted(KUBERNETES.rglob("*.yaml"))
    if file.name != "kustomization.yaml"
    for manifest in read_yaml(file.read_text())
]


def name_of(manifest: Manifest) -> str:
    return f"{manifest['kind']}-{manifest['metadata']['name']}"


def of_kind(*kinds: str) -> dict[str, Manifest]:
    """Return the manifests of these kinds by name."""
    found = [manifest for manifest in MANIFESTS if manifest["kind"] in kinds]
    return {manifest["metadata"]["name"]: manifest for manifest in found}


WORKLOADS = of_kind("Deployment", "Job")
PROCESSES = of_kind("Deployment")


def pod_of(workload: Manifest) -> Manifest:
    pod: Manifest = workload["spec"]["template"]["spec"]
    return pod


def container_of(workload: Manifest) -> Manifest:
    """Return the one container of a workload's pod."""
    assert "initContainers" not in pod_of(workload)
    (container,) = pod_of(workload)["containers"]
    return dict(container)


every_workload = pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
every_process = pytest.mark.parametrize("workload", PROCESSES.values(), ids=PROCESSES)

# ---- what Kubernetes accepts ----------------------------------------------------------------------

TEXT = {"type": "string"}
COUNT = {"type": "integer", "minimum": 1}
SWITCH = {"enum": ["true", "false"]}
LABELS = {"type": "object", "additionalProperties": TEXT}


def exactly(**fields: Manifest) -> Manifest:
    """Return the schema of an object that has these fields and no others."""
    return {
        "type": "object",
        "properties": fields,
        "required": list(fields),
        "additionalProperties": False,
    }


def each(item: Manifest) -> Manifest:
    """Return the schema of a list of such items."""
    return {"type": "array", "items": item, "minItems": 1}


def custom(kind: str, version: str, spec: Manifest) -> Manifest:
    """Return the schema of a custom resource."""
    metadata = exactly(name=TEXT, namespace=TEXT, labels=LABELS) | {"required": ["name"]}
    return exactly(apiVersion={"const": version}, kind={"const": kind}, metadata=metadata, spec=spec)


# kubernetes-validate knows the built-in kinds alone. Of these three, the part that we use, written from
# the CRDs of the Prometheus operator 0.93 and of KEDA 2.20; the triggers' metadata, which the CRD
# leaves open, from KEDA's kafka scaler.
CUSTOM = {
    "PodMonitor": custom(
        "PodMonitor",
        "monitoring.coreos.com/v1",
        exactly(
            jobLabel=TEXT,
            selector=exactly(matchLabels=LABELS),
            podMetricsEndpoints=each(
                exactly(port=TEXT, path=TEXT, interval=TEXT | {"pattern": "^[0-9]+(ms|s|m|h)$"})
            ),
        ),
    ),
    "PrometheusRule": custom(
        "PrometheusRule",
        "monitoring.coreos.com/v1",
        exactly(
            groups=each(
                exactly(
                    name=TEXT,
                    rules=each(
                        exactly(
                            **{"alert": TEXT, "expr": TEXT, "for": TEXT},
                            labels=LABELS,
                            annotations=LABELS,
                        )
                    ),
                )
            )
        ),
    ),
    "ScaledObject": custom(
        "ScaledObject",
        "keda.sh/v1alpha1",
        exactly(
            scaleTargetRef=exactly(name=TEXT),
            minReplicaCount=COUNT,
            maxReplicaCount=COUNT,
            triggers=each(
                exactly(
                    type={"const": "kafka"},
                    metadata=exactly(
                        bootstrapServersFromEnv=TEXT,
                        consumerGroupFromEnv=TEXT,
                        topicFromEnv=TEXT,
                        lagThreshold=TEXT | {"pattern": "^[1-9][0-9]*$"},
                        offsetResetPolicy={"enum": ["earliest", "latest"]},
                        scaleToZeroOnInvalidOffset=SWITCH,
                        excludePersistentLag=SWITCH,
                    ),
                )
            ),
        ),
    ),
}


def validate(manifest: Manifest, version: str) -> None:
    """Raise unless the manifest is what its schema says, without a field that it does not know."""
    if schema := CUSTOM.get(manifest["kind"]):
        Draft202012Validator(schema).validate(manifest)
    else:
        kubernetes_validate.validate(manifest, version, strict=True)


OLDEST, NEWEST = "1.31", kubernetes_validate.latest_version()


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("manifest", MANIFESTS, ids=name_of)
def test_a_manifest_is_valid_by_its_schema(manifest: Manifest, version: str) -> None:
    validate(manifest, version)


def test_every_file_is_listed_once_and_every_listed_one_exists() -> None:
    listed = [
        (folder / entry).resolve()
        for folder, kustomization in KUSTOMIZATIONS.items()
        for key in ("resources", "components")
        for entry in kustomization.get(key, ())
    ]
    files = set(KUBERNETES.rglob("*.yaml")) - {
        folder / "kustomization.yaml" for folder in KUSTOMIZATIONS
    }
    assert sorted(listed) == sorted(files | KUSTOMIZATIONS.keys() - {EXAMPLE})


@every_workload
def test_a_pod_meets_the_restricted_standard_and_runs_as_the_images_user(workload: Manifest) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted."""
    pod, container = pod_of(workload), container_of(workload)
    dockerfile = (ROOT / "Dockerfile").read_text()
    user, group = re.findall(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE)[-1]
    assert pod["securityContext"] | container["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": int(user),
        "runAsGroup": int(group),
        "seccompProfile": {"type": "RuntimeDefault"},
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    assert not [port for port in container.get("ports", ()) if "hostPort" in port]
    assert [volume.keys() - {"name"} for volume in pod["volumes"]] == [{"secret"}]
    assert pod["automountServiceAccountToken"] is pod["enableServiceLinks"] is False


def test_the_namespace_asks_for_the_restricted_standard() -> None:
    ((name, namespace),) = of_kind("Namespace").items()
    assert namespace["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "restricted"}
    assert KUSTOMIZATIONS[EXAMPLE]["namespace"] == name


def test_no_secret_is_in_the_repository() -> None:
    assert not of_kind("Secret")
    assert not [name for name, made in KUSTOMIZATIONS.items() if "secretGenerator" in made]


def selects(selector: Manifest, workload: Manifest) -> bool:
    assert selector.keys() == {"matchLabels"}
    labels = workload["spec"]["template"]["metadata"]["labels"]
    return bool(selector["matchLabels"].items() <= labels.items())


def selected_by(selector: Manifest) -> list[str]:
    return [name for name, workload in WORKLOADS.items() if selects(selector, workload)]


@every_process
def test_a_deployment_its_spread_and_its_budget_mean_its_own_pods(workload: Manifest) -> None:
    name = workload["metadata"]["name"]
    (spread,) = pod_of(workload)["topologySpreadConstraints"]
    budget = of_kind("PodDisruptionBudget")[name]
    for selector in (
        workload["spec"]["selector"],
        spread["labelSelector"],
        budget["spec"]["selector"],
    ):
        assert selected_by(selector) == [name]


# ---- what the code does ---------------------------------------------------------------------------


def literals(folder: Path) -> dict[str, str]:
    """Return what a kustomization writes into the ConfigMap `orchestrator`."""
    (generator,) = KUSTOMIZATIONS[folder]["configMapGenerator"]
    assert generator["name"] == "orchestrator"
    return dict(literal.split("=", 1) for literal in generator["literals"])


CONFIG = literals(KUBERNETES / "base") | literals(EXAMPLE)


class Environment(UserDict[str, str]):
    """Variables that note which of them are read."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        super().__init__(variables)
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        return super().__getitem__(name)


def environment_of(workload: Manifest, root: Path) -> Environment:
    """Return the container's variables; files of its Secret are below `root` and hold a URL."""
    container = container_of(workload)
    assert container["envFrom"] == [{"configMapRef": {"name": "orchestrator"}}]
    assert "env" not in container
    (volume,), (mount,) = pod_of(workload)["volumes"], container["volumeMounts"]
    assert volume == {"name": mount["name"], "secret": {"secretName": workload["metadata"]["name"]}}
    variables = dict(CONFIG)
    for name, value in CONFIG.items():
        if name.endswith("_FILE"):
            file = PurePosixPath(value)
            assert str(file.parent) == mount["mountPath"]
            (root / file.name).write_text("postgresql://user:password@postgres/orchestrator\n")
            variables[name] = str(root / file.name)
    return Environment(variables)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """The settings of the consumer in the example."""
    return read_settings(environment_of(WORKLOADS["orchestrator-consumer"], tmp_path))


@every_workload
def test_every_variable_is_a_setting_and_all_of_them_are_good(
    workload: Manifest, tmp_path: Path
) -> None:
    environment = environment_of(workload, tmp_path)
    read_settings(environment)
    assert environment.keys() <= environment.asked


@every_workload
def test_a_container_runs_the_command_that_it_is_named_after(workload: Manifest) -> None:
    container = container_of(workload)
    command = resolve_name(new_parser().parse_args(container["args"]).command)
    commands = {"consumer": start_consumer, "relay": start_relay, "setup": set_up_servers}
    assert command is commands[container["name"]]
    assert workload["metadata"]["name"] == f"orchestrator-{container['name']}"
    assert "command" not in container  # the image's entry point


@every_process
def test_the_port_of_a_process_is_the_one_it_listens_on(workload: Manifest, settings: Settings) -> None:
    assert container_of(workload)["ports"] == [
        {"name": "metrics", "containerPort": settings.metrics_port}
    ]


PROBES = {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}


@every_process
@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_requests_a_path_that_a_process_serves(workload: Manifest, probe: str) -> None:
    assert container_of(workload)[probe]["httpGet"] == {"path": PROBES[probe], "port": "metrics"}
    with served(Health()) as process:
        assert process.ask(PROBES[probe])[0] == 200


def test_prometheus_scrapes_the_processes_and_nothing_else() -> None:
    (monitor,) = of_kind("PodMonitor").values()
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    scraped = {
        name
        for name in selected_by(monitor["spec"]["selector"])
        for port in container_of(WORKLOADS[name]).get("ports", ())
        if port["name"] == endpoint["port"]
    }
    assert scraped == PROCESSES.keys()
    with served(Health()) as process:
        assert process.ask(endpoint["path"])[0] == 200
    for workload in PROCESSES.values():
        labels = workload["spec"]["template"]["metadata"]["labels"]
        assert labels[monitor["spec"]["jobLabel"]] == container_of(workload)["name"]


def test_prometheus_is_given_the_same_rules_as_without_kubernetes() -> None:
    (rules,) = of_kind("PrometheusRule").values()
    assert [rules["spec"]] == read_yaml((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())


STOP_S = 5.0  # what README promises; the process gives its work SHUTDOWN_GRACE_S of it


@every_process
def test_a_pod_gets_more_time_to_stop_than_the_process_takes(workload: Manifest) -> None:
    assert SHUTDOWN_GRACE_S < STOP_S < pod_of(workload)["terminationGracePeriodSeconds"]


def test_a_setup_with_wrong_settings_is_not_tried_again() -> None:
    (rule,) = WORKLOADS["orchestrator-setup"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["values"] == [USAGE]


# ---- the autoscaler -------------------------------------------------------------------------------


def test_the_consumer_is_scaled_by_the_lag_of_its_own_group_and_topic(settings: Settings) -> None:
    (scaled,) = of_kind("ScaledObject").values()
    (trigger,) = scaled["spec"]["triggers"]
    said = {
        name.removesuffix("FromEnv"): CONFIG[value] if name.endswith("FromEnv") else value
        for name, value in trigger["metadata"].items()
    }
    assert scaled["spec"]["scaleTargetRef"] == {"name": "orchestrator-consumer"}
    assert trigger["type"] == "kafka"
    assert said["bootstrapServers"] == settings.kafka["bootstrap.servers"]
    assert said["consumerGroup"] == settings.consumer_group
    assert said["topic"] == settings.input_topic
    assert said["offsetResetPolicy"] == "earliest"
    assert said["scaleToZeroOnInvalidOffset"] == "false"
    assert 1 <= scaled["spec"]["minReplicaCount"] <= scaled["spec"]["maxReplicaCount"]


def test_a_deployment_that_is_scaled_names_no_replicas_of_its_own() -> None:
    (scaled,) = of_kind("ScaledObject").values()
    (patch,) = KUSTOMIZATIONS[AUTOSCALING]["patches"]
    assert patch["target"] == {"kind": "Deployment", **scaled["spec"]["scaleTargetRef"]}
    assert yaml.safe_load(patch["patch"]) == [{"op": "remove", "path": "/spec/replicas"}]


# ---- the example as it is applied -----------------------------------------------------------------

BUILDERS = [["kustomize", "build"], ["kubectl", "kustomize"]]
BUILDER = next((command for command in BUILDERS if shutil.which(command[0])), None)


@pytest.mark.skipif(BUILDER is None, reason="neither kustomize nor kubectl is on PATH")
def test_the_example_builds_and_holds_together() -> None:
    assert BUILDER
    text = subprocess.run([*BUILDER, EXAMPLE], check=True, capture_output=True, text=True).stdout
    built = {name_of(manifest): manifest for manifest in read_yaml(text)}
    for manifest in built.values():
        validate(manifest, NEWEST)
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "orchestrator"
    (config,) = built.keys() - {name_of(manifest) for manifest in MANIFESTS}
    assert len(built) == len(MANIFESTS) + 1
    assert built[config]["data"] == CONFIG
    for workload in WORKLOADS.values():
        made = built[name_of(workload)]
        assert container_of(made)["envFrom"] == [
            {"configMapRef": {"name": built[config]["metadata"]["name"]}}
        ]
        assert re.fullmatch(r"vap-orchestrator:\d+\.\d+\.\d+", container_of(made)["image"])
    assert "replicas" not in built["Deployment-orchestrator-consumer"]["spec"]
    assert "replicas" in built["Deployment-orchestrator-relay"]["spec"]
