"""deploy/kubernetes: each component, and all of them, fit Kubernetes' schemas and one another."""

import re
import socket
import subprocess
import urllib.request
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import kubernetes_validate
import pytest

from python_mp.model.config import Parameters
from server.pages.health import Health
from server.watch.net import Net
from tests.deploy.manifest_checks import problems
from tests.deploy.manifests import (
    COMPONENTS,
    FOLDER,
    PROJECT,
    Resources,
    base,
    container,
    environment,
    load,
    named,
    of,
    pod,
    ports,
    render,
    selected,
)

NEWEST = int(kubernetes_validate.latest_version().split(".")[1])
VERSIONS = [f"1.{minor}" for minor in (NEWEST, NEWEST - 3, 27)]  # the last as the page says
FOREIGN = ("ServiceMonitor", "PrometheusRule")  # in test_kubernetes_monitoring.py
COMBINATIONS = [(), *((component,) for component in COMPONENTS), COMPONENTS]
LABEL = "app.kubernetes.io/component"


@pytest.fixture(
    scope="module",
    params=COMBINATIONS,
    ids=lambda chosen: "all" if chosen == COMPONENTS else "+".join(["base", *chosen]),
)
def rendered(
    request: pytest.FixtureRequest,
    program: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Resources:
    """What kubectl makes of the base and some components."""
    return render(program("kubectl"), request.param, tmp_path_factory.mktemp("rendered"))


def own_files() -> list[Path]:
    """Those that hold whole resources: neither patches nor what is not for the cluster."""
    files = sorted(FOLDER.rglob("*.yaml"))
    apart = ("kustomization.yaml", "prometheus-adapter.yaml")
    patches = {folder / "triton.yaml" for folder in FOLDER.iterdir() if folder.name != "base"}
    return [file for file in files if file.name not in apart and file not in patches]


def validate(resources: Resources) -> None:
    """Raises kubernetes_validate.ValidationError for what a cluster would refuse."""
    for resource in resources:
        for version in VERSIONS if resource["kind"] not in FOREIGN else ():
            assert kubernetes_validate.validate(resource, version, strict=True) == version


@pytest.mark.parametrize("file", own_files(), ids=lambda file: str(file.relative_to(FOLDER)))
def test_every_file_fits_the_schemas(file: Path) -> None:
    validate(load(file))


def test_the_base_fits_itself_without_kubectl() -> None:
    assert problems(base()) == []


def test_every_component_is_known() -> None:
    folders = {folder.parent.name for folder in FOLDER.glob("*/kustomization.yaml")}
    assert folders == {"base", *COMPONENTS}
    mentioned = re.findall(r"^#  - (\w+)", (FOLDER / "kustomization.yaml").read_text(), re.M)
    assert sorted(mentioned) == sorted(COMPONENTS)


def test_what_is_rendered_fits_the_schemas(rendered: Resources) -> None:
    validate(rendered)


def test_what_is_rendered_fits_itself(rendered: Resources) -> None:
    assert problems(rendered) == []


def test_kustomize_renders_the_folder_itself(program: Callable[[str], str]) -> None:
    made = subprocess.run([program("kubectl"), "kustomize", FOLDER], capture_output=True, text=True)
    assert (made.returncode, made.stderr) == (0, "")


def test_only_what_is_needed_is_let_through(rendered: Resources) -> None:
    """The cells of the table who may talk to whom; all others are closed."""
    open_to = allowed(rendered)
    metrics = (
        {("prometheus", 8002), ("prometheus", 8003)} if of(rendered, "ServiceMonitor") else set()
    )
    assert open_to["triton"] == {("front", 8000), ("front", 8001), ("front", 8003)} | metrics
    assert open_to["front"] == {("anybody", 8000), ("anybody", 8001), ("anybody", 8443)}


def test_only_what_is_needed_is_let_out(rendered: Resources) -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in of(rendered, "NetworkPolicy")}
    assert "Egress" in policies["triton"]["policyTypes"]
    assert policies["triton"]["egress"] == []
    assert "Egress" in policies["front"]["policyTypes"]
    to_triton, to_dns = policies["front"]["egress"]
    [peer] = to_triton["to"]
    assert peer["podSelector"]["matchLabels"][LABEL] == "triton"
    assert [port["port"] for port in to_triton["ports"]] == ["http", "grpc", "health"]
    assert {(port["port"], port["protocol"]) for port in to_dns["ports"]} == {
        (53, "UDP"),
        (53, "TCP"),
    }


def allowed(resources: Resources) -> dict[str, set[tuple[str, int]]]:
    """Who may open a connection to which port of each Deployment, by all policies together."""
    found: dict[str, set[tuple[str, int]]] = {}
    for policy in of(resources, "NetworkPolicy"):
        assert "Ingress" in policy["spec"]["policyTypes"]
        [to] = selected(resources, policy["spec"]["podSelector"]["matchLabels"])
        for rule in policy["spec"]["ingress"]:
            peers = [peer["podSelector"]["matchLabels"] for peer in rule.get("from", [])]
            who = [labels.get(LABEL, labels["app.kubernetes.io/name"]) for labels in peers]
            numbers = [ports(to)[port["port"]] for port in rule["ports"]]
            found.setdefault(to["metadata"]["name"], set()).update(
                (name, number) for name in who or ["anybody"] for number in numbers
            )
    return found


def test_the_probes_ask_for_pages_that_the_watcher_has() -> None:
    triton = container(named(base(), "Deployment", "triton"))
    probes = [triton[kind] for kind in ("startupProbe", "livenessProbe", "readinessProbe")]
    listener = socket.create_server(("127.0.0.1", 0))
    where = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with Health(listener, "a-secret", Net(print)) as health:
        health.tell(live=True, ready={"ready": True}, status={})
        for probe in probes:
            with urllib.request.urlopen(where + probe["httpGet"]["path"]) as page:
                assert page.status == 200
    assert [probe["httpGet"]["path"] for probe in probes] == ["/live", "/live", "/ready"]


def test_the_ports_are_those_of_the_images() -> None:
    """As the Dockerfile exposes them."""
    exposed = re.findall(r"^EXPOSE (.*)$", (PROJECT / "Dockerfile").read_text(), re.M)
    for name in ("front", "triton"):
        numbers = ports(named(base(), "Deployment", name)).values()
        assert " ".join(map(str, numbers)) in exposed


def test_the_front_has_the_page_that_its_probes_ask_for() -> None:
    config = "".join(file.read_text() for file in (PROJECT / "deploy" / "nginx").glob("*.conf*"))
    front = container(named(base(), "Deployment", "front"))
    for kind in ("livenessProbe", "readinessProbe"):
        assert f"location = {front[kind]['httpGet']['path']}" in config


def test_spot_nodes_leave_time_to_drain(program: Callable[[str], str], tmp_path: Path) -> None:
    """A kubelet with 30 s of notice keeps 15 s for the node's own Pods."""
    spot = render(program("kubectl"), ["spot"], tmp_path)
    pods = named(spot, "Deployment", "triton")["spec"]["template"]["spec"]
    assert pods["terminationGracePeriodSeconds"] <= 15
    assert pods["priorityClassName"] in [c["metadata"]["name"] for c in of(spot, "PriorityClass")]
    by_host = [c for c in pods["topologySpreadConstraints"] if "hostname" in c["topologyKey"]]
    assert [c["whenUnsatisfiable"] for c in by_host] == ["DoNotSchedule"]


def test_gpus_and_a_volume_replace_what_the_base_says(
    program: Callable[[str], str], tmp_path: Path
) -> None:
    both = render(program("kubectl"), ["gpu", "repository"], tmp_path)
    triton = named(both, "Deployment", "triton")
    assert container(triton)["image"].endswith("-gpu")
    assert container(triton)["resources"]["limits"]["nvidia.com/gpu"] == 2
    where = {mount["name"]: mount["mountPath"] for mount in container(triton)["volumeMounts"]}
    default = (PROJECT / "model_repository").relative_to(PROJECT)
    assert where["models"] == f"/srv/{default}"
    assert container(named(both, "Deployment", "front"))["image"].endswith("-front")


def test_the_page_tells_the_times_and_the_oldest_version() -> None:
    page = (PROJECT / "docs" / "kubernetes.md").read_text()
    triton = named(base(), "Deployment", "triton")
    times = environment(triton)
    assert f"served for {times['DRAIN_WINDOW_SECS']} s more (`DRAIN_WINDOW_SECS`)" in page
    assert f"has {times['EXIT_TIMEOUT_SECS']} s to end (`EXIT_TIMEOUT_SECS`)" in " ".join(
        page.split()
    )
    assert f"grace period of {pod(triton)['terminationGracePeriodSeconds']} s" in page
    assert f"Kubernetes {VERSIONS[-1]} or later" in page


def test_the_page_on_sizing_names_parameters_that_there_are() -> None:
    page = (PROJECT / "docs" / "sizing.md").read_text()
    ours = {field.name for field in fields(Parameters)}
    tritons = {"max_batch_size", "default_timeout_microseconds", "default_queue_policy"}
    named_there = set(
        re.findall(r"`((?:max|default|hang|forward|threads|tensor|pipeline)_[a-z_]+)`", page)
    )
    assert named_there - tritons <= ours
    assert {"max_batch_tokens", "max_queue_bytes", "threads_per_rank"} <= named_there
