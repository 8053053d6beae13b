"""deploy/kubernetes: what is rendered, the base alone, with each component and with all, fits
Kubernetes' schemas, and its parts fit one another, the images and the server."""

import os
import re
import runpy
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from python_mp.agent import __main__ as agent
from server import __version__
from server.__main__ import parse
from server.process.installation import PROJECT
from tests.support.programs import Program

FOLDER = PROJECT / "deploy" / "kubernetes"
ALONE = ("autoscaling", "gpu", "monitoring", "public", "repository", "spot")
COMPONENTS = (*ALONE, "hosts")
COMBINATIONS = [(), ("monitoring", "autoscaling"), ("gpu", "repository"), ("spot",), ALONE]
COMBINATIONS += [("hosts",), (*ALONE[1:], "hosts")]
FOREIGN = ("ServiceMonitor", "PrometheusRule", "LeaderWorkerSet")
LABEL = "app.kubernetes.io/component"
PROCESSES = 1.2 * (1 << 30)
"""Bytes that Triton, its stubs and the ranks of the models here were seen to take under load, and
some more; docs/sizing.md has the figure."""
DOCKERFILE = (PROJECT / "Dockerfile").read_text()
AGENT_PORT, ANY = 8005, 0
GROUP_SCHEMA = """
additionalProperties: false
required: [leaderWorkerTemplate]
properties:
  replicas: { type: integer, minimum: 0 }
  rolloutStrategy:
    additionalProperties: false
    required: [type]
    properties:
      type: { enum: [RollingUpdate] }
      rollingUpdateConfiguration:
        additionalProperties: false
        properties: { maxUnavailable: { type: integer }, maxSurge: { type: integer } }
  leaderWorkerTemplate:
    additionalProperties: false
    required: [workerTemplate]
    properties:
      size: { type: integer, minimum: 1 }
      restartPolicy: { enum: [RecreateGroupOnPodRestart, RecreateGroupAfterStart, None] }
      leaderTemplate: { type: object }
      workerTemplate: { type: object }
"""
Resource = dict[str, Any]


class Rendered(list[Resource]):
    """What `kubectl apply -k` would apply."""

    def of(self, kind: str) -> dict[str, Resource]:
        """Those of one kind, by their names."""
        return {each["metadata"]["name"]: each for each in self if each["kind"] == kind}

    def templates(self) -> dict[str, Resource]:
        """Of all Deployments' Pods, and of a group's: Triton's, and an agent's."""
        found = {n: each["spec"]["template"] for n, each in self.of("Deployment").items()}
        for each in self.of("LeaderWorkerSet").values():
            group = each["spec"]["leaderWorkerTemplate"]
            found |= {"triton": group["leaderTemplate"], "agent": group["workerTemplate"]}
        return found

    def pods(self) -> dict[str, Resource]:
        return {name: template["spec"] for name, template in self.templates().items()}

    def containers(self) -> dict[str, Resource]:
        """Each Pod's only container."""
        return {name: only for name, pod in self.pods().items() for only in pod["containers"]}

    def ports(self, name: str) -> dict[str, int]:
        ports = self.containers()[name].get("ports", [])
        return {each["name"]: each["containerPort"] for each in ports}

    def selected(self, selector: Mapping[str, Any]) -> str:
        """Whose Pods have these labels."""
        labels = selector.get("matchLabels", selector).items()
        templates = self.templates().items()
        [found] = [name for name, each in templates if labels <= each["metadata"]["labels"].items()]
        return found

    def environment(self, name: str) -> dict[str, str]:
        """The container's variables with plain values, $(NAME) in them replaced."""
        values = {"POD_NAMESPACE": "a-namespace"}
        for variable in self.containers()[name].get("env", []):
            if "value" in variable:
                values[variable["name"]] = expand(variable["value"], values)
        return values


def expand(text: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\$\((\w+)\)", lambda match: values.get(match[1], match[0]), text)


def load(file: str) -> Any:
    return yaml.safe_load((FOLDER / file).read_text())


def bytes_of(quantity: str) -> float:
    """4Gi is 4294967296."""
    return float(quantity[:-2]) * {"Mi": 1 << 20, "Gi": 1 << 30}[quantity[-2:]]


def render(kubectl: str, components: Sequence[str], folder: Path) -> Rendered:
    here = Path(os.path.relpath(FOLDER, folder.resolve()))
    chosen = {"resources": [str(here / "base")], "components": [str(here / c) for c in components]}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(chosen))
    made = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return Rendered(document for document in yaml.safe_load_all(made.stdout) if document)


@pytest.fixture(scope="module", params=COMBINATIONS, ids=lambda chosen: "+".join(["base", *chosen]))
def rendered(
    request: pytest.FixtureRequest, program: Program, tmp_path_factory: pytest.TempPathFactory
) -> Rendered:
    return render(program("kubectl"), request.param, tmp_path_factory.mktemp("rendered"))


def test_every_component_is_known() -> None:
    folders = {folder.parent.name for folder in FOLDER.glob("*/kustomization.yaml")}
    assert folders == {"base", *COMPONENTS}


def test_it_fits_the_schemas(rendered: Rendered) -> None:
    for each in rendered:
        assert "namespace" not in each["metadata"]
        if each["kind"] not in FOREIGN:
            kubernetes_validate.validate(each, "1.37", strict=True)
    for template in rendered.templates().values():
        bare = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "any"}}
        kubernetes_validate.validate(bare | {"template": template}, "1.37", strict=True)


def test_a_group_fits_its_schema_and_the_agents_what_they_run(rendered: Rendered) -> None:
    """The schema is that of leaderworkerset.x-k8s.io/v1 for the fields that are used here."""
    schema = yaml.safe_load(GROUP_SCHEMA)
    for group in rendered.of("LeaderWorkerSet").values():
        jsonschema.validate(group["spec"], schema)
        [only] = rendered.pods()["agent"]["containers"]
        assert only["command"] == ["tini", "--", "python", "-m", "python_mp.agent"]
        address = {"LWS_LEADER_ADDRESS": "triton-hosts-0.triton-hosts.a-namespace"}
        ours = agent.parse([expand(text, address) for text in only["args"]])
        host, port = agent.split_address(ours.connect)
        assert (host, port) == (*address.values(), rendered.ports("triton")["agents"])
        tokens = [
            {each["name"]: each.get("valueFrom") for each in rendered.containers()[name]["env"]}
            for name in ("triton", "agent")
        ]
        assert tokens[0]["AGENT_TOKEN"] == tokens[1]["AGENT_TOKEN"] is not None
        assert rendered.environment("triton")["AGENT_HOST"] == "0.0.0.0"
        assert only["image"] == rendered.containers()["triton"]["image"]
        assert only["resources"] == rendered.containers()["triton"]["resources"]


def test_services_and_probes_name_ports_of_their_own(rendered: Rendered) -> None:
    for service in rendered.of("Service").values():
        named = {port["targetPort"] for port in service["spec"]["ports"]}
        assert named <= rendered.ports(rendered.selected(service["spec"]["selector"])).keys()
    for name, only in rendered.containers().items():
        if name == "agent":  # It listens nowhere, and its end is what Kubernetes sees.
            assert not [kind for kind in only if kind.endswith("Probe") or kind == "ports"]
            continue
        probes = {kind: only[kind]["httpGet"] for kind in only if kind.endswith("Probe")}
        pages = {kind: probe["path"] for kind, probe in probes.items()}
        live, ready = ("/live", "/ready") if name == "triton" else ("/healthz", "/healthz")
        assert pages.pop("startupProbe", live) == live
        assert pages == {"livenessProbe": live, "readinessProbe": ready}
        assert {probe["port"] for probe in probes.values()} <= rendered.ports(name).keys()
        numbers = [port for port in rendered.ports(name).values() if port != AGENT_PORT]
        assert " ".join(map(str, numbers)) in DOCKERFILE, "as it exposes them"


def test_only_what_is_needed_is_let_through(rendered: Rendered) -> None:
    metrics = (
        {("prometheus", 8002), ("prometheus", 8003)} if rendered.of("ServiceMonitor") else set()
    )
    groups = {"agent": {("triton", ANY), ("agent", ANY)}} if "agent" in rendered.pods() else {}
    assert allowed(rendered) == {
        "triton": {("front", port) for port in (8000, 8001, 8003, 8004)}
        | metrics
        | {("agent", ANY) for _ in groups},
        "front": {("anybody", port) for port in (8000, 8001, 8004, 8443)},
        **groups,
    }
    policies = {name: each["spec"] for name, each in rendered.of("NetworkPolicy").items()}
    assert all(
        policies[name]["policyTypes"] == ["Ingress", "Egress"]
        for name in ("triton", "front", *groups)
    )
    assert [
        [rendered.selected(to["podSelector"]) for to in rule["to"]]
        for rule in policies["triton"]["egress"]
    ] == [["agent"] for _ in groups]
    to_triton, to_dns = policies["front"]["egress"]
    [peer] = to_triton["to"]
    assert rendered.selected(peer["podSelector"]) == "triton"
    assert [port["port"] for port in to_triton["ports"]] == ["http", "grpc", "openai", "health"]
    assert {(p["port"], p["protocol"]) for p in to_dns["ports"]} == {(53, "UDP"), (53, "TCP")}


def allowed(rendered: Rendered) -> dict[str, set[tuple[str, int]]]:
    """Who may open a connection to which port of each Deployment, by all policies together."""
    found: dict[str, set[tuple[str, int]]] = {}
    for policy in rendered.of("NetworkPolicy").values():
        to = rendered.selected(policy["spec"]["podSelector"])
        for rule in policy["spec"]["ingress"]:
            peers = [peer["podSelector"]["matchLabels"] for peer in rule.get("from", [])]
            who = [labels.get(LABEL, labels["app.kubernetes.io/name"]) for labels in peers]
            ports = rule.get("ports")
            numbers = [rendered.ports(to)[port["port"]] for port in ports] if ports else [ANY]
            found.setdefault(to, set()).update((n, p) for n in who or ["anybody"] for p in numbers)
    return found


def test_what_is_mounted_is_there(rendered: Rendered) -> None:
    for name, only in rendered.containers().items():
        there = {volume["name"]: volume for volume in rendered.pods()[name]["volumes"]}
        assert {mount["name"] for mount in only["volumeMounts"]} == there.keys()
        writable = {each["mountPath"] for each in only["volumeMounts"] if not each.get("readOnly")}
        assert writable == ({"/tmp"} if name == "front" else {"/tmp", "/dev/shm"})
        for volume in there.values():
            claim, config = volume.get("persistentVolumeClaim"), volume.get("configMap")
            assert not claim or claim["claimName"] in rendered.of("PersistentVolumeClaim")
            assert not config or config["name"] in rendered.of("ConfigMap")
            assert "sizeLimit" in volume.get("emptyDir", {"sizeLimit": ""})
        for secret in secrets(only, there.values()):
            assert secret.get("optional") or secret["name"] == "triton-agents", name


def secrets(container: Resource, volumes: Any) -> Iterator[Resource]:
    yield from (volume["secret"] for volume in volumes if "secret" in volume)
    sources = (variable.get("valueFrom", {}) for variable in container["env"])
    yield from (source["secretKeyRef"] for source in sources if "secretKeyRef" in source)


def test_the_memory_holds_everything_and_the_cores_may_be_its_own(rendered: Rendered) -> None:
    volumes = [volume.get("emptyDir", {}) for volume in rendered.pods()["triton"]["volumes"]]
    shared = sum(bytes_of(v["sizeLimit"]) for v in volumes if v.get("medium") == "Memory")
    given = rendered.containers()["triton"]["resources"]
    assert shared > 0
    assert bytes_of(given["limits"]["memory"]) >= shared + PROCESSES
    assert given["limits"] == given["requests"]
    assert given["limits"]["cpu"].isdecimal()


def test_kubernetes_kills_nothing_before_it_has_drained(rendered: Rendered) -> None:
    values = rendered.environment("triton")
    arguments = [expand(text, values) for text in rendered.containers()["triton"].get("args", [])]
    ours, theirs = parse(arguments)
    assert theirs == []
    assert ours.keep_going
    assert ours.openai
    assert ours.drain_window_secs >= 5
    grace = {name: pod["terminationGracePeriodSeconds"] for name, pod in rendered.pods().items()}
    assert grace["triton"] >= ours.drain_window_secs + ours.exit_timeout_secs + 3  # to clean up
    hook = rendered.containers()["front"]["lifecycle"]["preStop"]["exec"]["command"][-1]
    known, drained = (int(seconds) for seconds in re.findall(r"sleep (\d+)", hook))
    assert 5 <= known < known + drained < grace["front"]
    on_spot = rendered.of("PriorityClass")
    if on_spot:  # a kubelet with 30 s of notice keeps 15 s for the node's own Pods
        assert grace["triton"] <= 15
        assert rendered.pods()["triton"]["priorityClassName"] in on_spot


def test_the_front_asks_for_all_pods(rendered: Rendered) -> None:
    assert rendered.environment("front")["UPSTREAM"] == "triton.a-namespace.svc.cluster.local"
    service = rendered.of("Service")["triton"]["spec"]
    assert (service["clusterIP"], service["publishNotReadyAddresses"]) == ("None", True)
    assert rendered.environment("triton")["HOST"] == "0.0.0.0"


def test_nothing_planned_takes_all_replicas_away(rendered: Rendered) -> None:
    scaled = {
        each["spec"]["scaleTargetRef"]["name"]: each["spec"]["minReplicas"]
        for each in rendered.of("HorizontalPodAutoscaler").values()
    }
    assert scaled.keys() <= rendered.of("Deployment").keys()
    for name, each in rendered.of("Deployment").items():
        assert each["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
        assert (name in scaled) != ("replicas" in each["spec"])
        budget = rendered.of("PodDisruptionBudget")[name]["spec"]
        assert budget["maxUnavailable"] < scaled.get(name, each["spec"].get("replicas"))
        spreads = rendered.pods()[name]["topologySpreadConstraints"]
        selectors = [spread["labelSelector"] for spread in spreads]
        for selector in (each["spec"]["selector"], budget["selector"], *selectors):
            assert rendered.selected(selector) == name


def test_images_and_locks_are_those_of_the_dockerfile(rendered: Rendered) -> None:
    """The profile restricted of Kubernetes' Pod Security Standards, and a read-only root."""
    users = [re.findall(r"^USER (\d+):", stage, re.M) for stage in DOCKERFILE.split("\nFROM ")]
    [user] = {each[-1] for each in users if each}  # One that installs is root meanwhile.
    stages = re.findall(r"^FROM .* AS (\S+)$", DOCKERFILE, re.M)
    outside = {"runAsNonRoot": True, "runAsUser": int(user), "runAsGroup": int(user)}
    outside |= {"seccompProfile": {"type": "RuntimeDefault"}}
    inside = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True}
    inside |= {"capabilities": {"drop": ["ALL"]}}
    for name, pod in rendered.pods().items():
        only = rendered.containers()[name]
        assert only["image"] in [f"triton-multi-device:{__version__}-{stage}" for stage in stages]
        assert outside.items() <= pod["securityContext"].items()
        assert only["securityContext"] == inside
        assert pod["automountServiceAccountToken"] is pod["enableServiceLinks"] is False
        assert pod["serviceAccountName"] in rendered.of("ServiceAccount")
        on_gpus = name != "front" and "nvidia.com/gpu" in only["resources"]["limits"]
        assert only["image"].endswith("-gpu") == on_gpus


def test_the_operator_scrapes_as_prometheus_does(rendered: Rendered) -> None:
    """The rules, and the dashboard, serve both."""
    for monitor in rendered.of("ServiceMonitor").values():
        labels = monitor["spec"]["selector"]["matchLabels"].items()
        services = rendered.of("Service").values()
        [service] = [each for each in services if labels <= each["metadata"]["labels"].items()]
        numbers = {port["name"]: port["port"] for port in service["spec"]["ports"]}
        found = {
            (label["targetLabel"], label["replacement"]): numbers[endpoint["port"]]
            for endpoint in monitor["spec"]["endpoints"]
            for label in endpoint["relabelings"][:1]
        }
        assert found == {("job", "triton"): 8002, ("job", "server"): 8003}


def test_the_operator_gets_the_same_rules_as_prometheus() -> None:
    made = runpy.run_path(str(FOLDER / "monitoring" / "rules.py"))
    kept = load("monitoring/prometheus-rule.yaml")
    assert kept == made["resource"](), "run: python deploy/kubernetes/monitoring/rules.py"
