"""What may be wrong with manifests that fit their schemas: a sentence for each problem."""

import re
from collections.abc import Iterator
from typing import Any

from server import __version__
from server.__main__ import parse
from tests.deploy.manifests import (
    FOLDER,
    PROJECT,
    Resource,
    Resources,
    arguments,
    bytes_of,
    container,
    environment,
    load,
    named,
    names,
    of,
    pod,
    ports,
    selected,
)

PROCESSES = 1.2 * (1 << 30)
"""Bytes that Triton, its stubs and the ranks of the models here were seen to take under load, and
some more; docs/sizing.md has the figure."""
PROBES = {"triton": ("startupProbe", "livenessProbe", "readinessProbe")}


def problems(resources: Resources) -> list[str]:
    """All that is wrong."""
    return [problem for check in CHECKS for problem in check(resources)]


def selectors(resources: Resources) -> Iterator[str]:
    """Every selector finds the Pods of one Deployment: its own, where it belongs to one."""
    for each in resources:
        spec, own = each.get("spec", {}), each["metadata"]["name"]
        found: list[tuple[dict[str, str], bool]] = []
        if each["kind"] in ("Deployment", "PodDisruptionBudget"):
            found = [(spec["selector"]["matchLabels"], True)]
        elif each["kind"] == "Service":
            found = [(spec["selector"], False)]
        elif each["kind"] == "NetworkPolicy":
            found = [(labels, False) for labels in _policy_selectors(spec)]
        for spread in (
            pod(each)["topologySpreadConstraints"] if each["kind"] == "Deployment" else ()
        ):
            found.append((spread["labelSelector"]["matchLabels"], True))
        for labels, of_its_own in found:
            who = names(selected(resources, labels), "Deployment")
            if len(who) != 1 or (of_its_own and who != [own]):
                yield f"{_place(each)} selects {who or 'nobody'}"


def _policy_selectors(spec: Resource) -> Iterator[dict[str, str]]:
    yield spec["podSelector"]["matchLabels"]
    for rule in [*spec.get("ingress", []), *spec.get("egress", [])]:
        for peer in [*rule.get("from", []), *rule.get("to", [])]:
            if "namespaceSelector" not in peer:
                yield peer["podSelector"]["matchLabels"]


def target_ports(resources: Resources) -> Iterator[str]:
    """Names of ports are those of the containers that are meant."""
    for each in of(resources, "Service"):
        wanted = [port["targetPort"] for port in each["spec"]["ports"]]
        yield from _unknown(each, wanted, selected(resources, each["spec"]["selector"]))
    for each in of(resources, "NetworkPolicy"):
        spec = each["spec"]
        own = selected(resources, spec["podSelector"]["matchLabels"])
        for rule in spec.get("ingress", []):
            yield from _unknown(each, [port["port"] for port in rule["ports"]], own)
        for rule in spec.get("egress", []):
            for peer in rule.get("to", []):
                them = selected(resources, peer["podSelector"]["matchLabels"])
                yield from _unknown(each, [port["port"] for port in rule["ports"]], them)
    for each in of(resources, "Deployment"):
        name = each["metadata"]["name"]
        for kind in PROBES.get(name, ("livenessProbe", "readinessProbe")):
            if kind not in container(each):
                yield f"{_place(each)} has no {kind}"
            else:
                yield from _unknown(each, [container(each)[kind]["httpGet"]["port"]], [each])


def _unknown(owner: Resource, wanted: list[Any], listeners: Resources) -> Iterator[str]:
    for port in wanted:
        if any(port not in ports(listener) for listener in listeners):
            yield f"{_place(owner)} names port {port}, which is none"


def monitored(resources: Resources) -> Iterator[str]:
    """Prometheus finds one Service, and its ports."""
    for each in of(resources, "ServiceMonitor"):
        labels = each["spec"]["selector"]["matchLabels"].items()
        services = of(resources, "Service")
        found = [one for one in services if labels <= one["metadata"]["labels"].items()]
        if len(found) != 1:
            yield f"{_place(each)} selects {names(found, 'Service') or 'nobody'}"
        known = {port["name"] for service in found for port in service["spec"]["ports"]}
        for endpoint in each["spec"]["endpoints"]:
            if endpoint["port"] not in known:
                yield f"{_place(each)} names port {endpoint['port']}, which is none"


def volumes(resources: Resources) -> Iterator[str]:
    """What is mounted is there, and what is written to is writable."""
    for each in of(resources, "Deployment"):
        mounts = container(each)["volumeMounts"]
        there = {volume["name"]: volume for volume in pod(each)["volumes"]}
        for name in {mount["name"] for mount in mounts} ^ there.keys():
            yield f"{_place(each)} has only one of volume and mount {name}"
        writable = {mount["mountPath"] for mount in mounts if not mount.get("readOnly")}
        wanted = {"/tmp", "/dev/shm"} if each["metadata"]["name"] == "triton" else {"/tmp"}
        if writable != wanted:
            yield f"{_place(each)} can write to {sorted(writable)}, not to {sorted(wanted)}"
        for volume in there.values():
            yield from _missing(resources, each, volume)


def _missing(resources: Resources, owner: Resource, volume: Resource) -> Iterator[str]:
    claim = volume.get("persistentVolumeClaim", {}).get("claimName")
    config = volume.get("configMap", {}).get("name")
    if claim and claim not in names(resources, "PersistentVolumeClaim"):
        yield f"{_place(owner)} mounts claim {claim}, which is not there"
    if config and config not in names(resources, "ConfigMap"):
        yield f"{_place(owner)} mounts config map {config}, which is not there"
    if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
        yield f"{_place(owner)} has volume {volume['name']} without a limit"


def secrets(resources: Resources) -> Iterator[str]:
    """It starts without any: secrets are made by hand."""
    for each in of(resources, "Deployment"):
        kept = [volume["secret"] for volume in pod(each)["volumes"] if "secret" in volume]
        for variable in container(each)["env"]:
            kept += (
                [variable["valueFrom"].get("secretKeyRef", {"optional": True})]
                if ("valueFrom" in variable)
                else []
            )
        if not all(secret.get("optional") for secret in kept):
            yield f"{_place(each)} does not start without a secret"


def resources_of_triton(resources: Resources) -> Iterator[str]:
    """The limit of memory holds /dev/shm and the processes; the cores may be its own."""
    triton = named(resources, "Deployment", "triton")
    in_memory = [
        volume["emptyDir"]["sizeLimit"]
        for volume in pod(triton)["volumes"]
        if volume.get("emptyDir", {}).get("medium") == "Memory"
    ]
    given = container(triton)["resources"]
    if not in_memory:
        yield "Deployment triton has no memory for /dev/shm"
    if bytes_of(given["limits"]["memory"]) < sum(map(bytes_of, in_memory)) + PROCESSES:
        yield "Deployment triton has too little memory for /dev/shm and the processes"
    if given["limits"] != given["requests"] or not given["limits"]["cpu"].isdecimal():
        yield "Deployment triton cannot have cores of its own"


def ending(resources: Resources) -> Iterator[str]:
    """Kubernetes kills when the grace period is over, whatever is in flight."""
    triton = named(resources, "Deployment", "triton")
    ours, theirs = parse(arguments(triton))
    if theirs:
        yield f"Deployment triton has options that the server does not know: {theirs}"
    if not ours.keep_going:
        yield "Deployment triton does not start where one of its models is broken"
    if ours.drain_window_secs < 5:
        yield "Deployment triton stops serving before anybody knows"
    needed = ours.drain_window_secs + ours.exit_timeout_secs + 3  # to clean up
    if pod(triton)["terminationGracePeriodSeconds"] < needed:
        yield "Deployment triton is killed before it has drained"
    front = named(resources, "Deployment", "front")
    hook = container(front)["lifecycle"]["preStop"]["exec"]["command"][-1]
    known, drained = (int(seconds) for seconds in re.findall(r"sleep (\d+)", hook))
    if known < 5 or known + drained >= pod(front)["terminationGracePeriodSeconds"]:
        yield "Deployment front ends before anybody knows, or with requests in flight"


def addresses(resources: Resources) -> Iterator[str]:
    """The front asks for the Service that names all Pods, and those listen."""
    wanted = environment(named(resources, "Deployment", "front"))["UPSTREAM"]
    if wanted != "triton.a-namespace.svc.cluster.local":
        yield f"Deployment front asks for {wanted}"
    service = named(resources, "Service", "triton")["spec"]
    if service.get("clusterIP") != "None" or not service.get("publishNotReadyAddresses"):
        yield "Service triton must give the addresses of all Pods: the front asks who is ready"
    if environment(named(resources, "Deployment", "triton")).get("HOST") != "0.0.0.0":
        yield "Deployment triton listens where nobody reaches it"
    for each in resources:
        if "namespace" in each["metadata"]:
            yield f"{_place(each)} is in a namespace of its own"


def replicas(resources: Resources) -> Iterator[str]:
    """Nothing planned takes a replica away before another one serves, or all of them."""
    scaled = {
        each["spec"]["scaleTargetRef"]["name"]: each["spec"]["minReplicas"]
        for each in of(resources, "HorizontalPodAutoscaler")
    }
    for name in scaled.keys() - set(names(resources, "Deployment")):
        yield f"an autoscaler looks for Deployment {name}, which is not there"
    for each in of(resources, "Deployment"):
        name = each["metadata"]["name"]
        if each["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] != 0:
            yield f"{_place(each)} loses a replica while it is updated"
        if (name in scaled) == ("replicas" in each["spec"]):
            yield f"{_place(each)} needs either a number of replicas or an autoscaler"
        least = scaled.get(name, each["spec"].get("replicas", 1))
        budget = named(resources, "PodDisruptionBudget", name)["spec"]
        if budget["maxUnavailable"] >= least:
            yield f"{_place(each)} may lose all its replicas at once"


def metrics(resources: Resources) -> Iterator[str]:
    """The autoscaler asks for what the adapter makes."""
    [adapter] = load(FOLDER / "autoscaling" / "prometheus-adapter.yaml")
    made = {rule["name"]["as"] for rule in adapter["rules"]}
    for each in of(resources, "HorizontalPodAutoscaler"):
        for metric in each["spec"]["metrics"]:
            if metric["pods"]["metric"]["name"] not in made:
                yield f"{_place(each)} asks for {metric['pods']['metric']['name']}"


def images(resources: Resources) -> Iterator[str]:
    """Each is a stage of the Dockerfile, tagged with this version and its name."""
    stages = re.findall(r"^FROM .* AS (\S+)$", (PROJECT / "Dockerfile").read_text(), re.M)
    images = [f"triton-multi-device:{__version__}-{stage}" for stage in stages]
    for each in of(resources, "Deployment"):
        if container(each)["image"] not in images:
            yield f"{_place(each)} has image {container(each)['image']}, which nothing makes"


def locks(resources: Resources) -> Iterator[str]:
    """The profile restricted of Kubernetes' Pod Security Standards, and a read-only root."""
    [user] = set(re.findall(r"^USER (\d+):", (PROJECT / "Dockerfile").read_text(), re.M))
    outside = {"runAsNonRoot": True, "runAsUser": int(user), "runAsGroup": int(user)}
    inside = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True}
    for each in of(resources, "Deployment"):
        security = pod(each)["securityContext"]
        if any(security.get(key) != value for key, value in outside.items()):
            yield f"{_place(each)} does not run as the user of its image"
        if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{_place(each)} may make any system call"
        if container(each)["securityContext"] != {**inside, "capabilities": {"drop": ["ALL"]}}:
            yield f"{_place(each)} may do more than it must"
        if pod(each).get("automountServiceAccountToken") is not False:
            yield f"{_place(each)} can talk to the cluster"
        if pod(each).get("enableServiceLinks") is not False:
            yield f"{_place(each)} gets variables from other Services, such as HTTP_PORT"
        if pod(each)["serviceAccountName"] not in names(resources, "ServiceAccount"):
            yield f"{_place(each)} has an account that is not there"


def _place(resource: Resource) -> str:
    return f"{resource['kind']} {resource['metadata']['name']}"


CHECKS = (
    *(selectors, target_ports, monitored, volumes, secrets, resources_of_triton, ending),
    *(addresses, replicas, metrics, images, locks),
)
