"""The checks find mistakes: each of these, made in the base or in all of it, must be named."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import kubernetes_validate
import pytest

from tests.deploy.manifest_checks import problems
from tests.deploy.manifests import COMPONENTS, Resources, base, named, render

Keys = tuple[str | int, ...]
POD: Keys = ("spec", "template", "spec")
ONLY: Keys = (*POD, "containers", 0)
TRITON, FRONT = ("Deployment", "triton"), ("Deployment", "front")
LABEL = "app.kubernetes.io/component"

MISTAKES: list[tuple[tuple[str, str], Keys, Any, str]] = [
    (TRITON, ("spec", "selector", "matchLabels", LABEL), "tritn", "selects nobody"),
    (("Service", "triton"), ("spec", "selector", LABEL), "front", "names port metrics"),
    (("Service", "front"), ("spec", "ports", 2, "targetPort"), "https", "names port https"),
    (("NetworkPolicy", "triton"), ("spec", "ingress", 0, "ports", 2, "port"), "heath", "heath"),
    (
        ("NetworkPolicy", "triton"),
        ("spec", "ingress", 0, "from", 0, "podSelector", "matchLabels", LABEL),
        "nginx",
        "selects nobody",
    ),
    (("PodDisruptionBudget", "front"), ("spec", "maxUnavailable"), 2, "lose all"),
    (
        ("PodDisruptionBudget", "front"),
        ("spec", "selector", "matchLabels", LABEL),
        "triton",
        "PodDisruptionBudget front selects ['triton']",
    ),
    (("Service", "triton"), ("spec", "clusterIP"), "10.0.0.1", "addresses of all Pods"),
    (("Service", "triton"), ("spec", "publishNotReadyAddresses"), False, "addresses of all Pods"),
    (TRITON, ("metadata", "namespace"), "default", "namespace of its own"),
    (TRITON, ("spec", "replicas"), 1, "lose all"),
    (TRITON, ("spec", "strategy", "rollingUpdate", "maxUnavailable"), 1, "while it is updated"),
    (TRITON, (*POD, "terminationGracePeriodSeconds"), 60, "before it has drained"),
    (FRONT, (*POD, "terminationGracePeriodSeconds"), 30, "with requests in flight"),
    (TRITON, (*ONLY, "args", 0), "--no-watch-repository", "one of its models is broken"),
    (TRITON, (*ONLY, "args", 1), "--drain-window=35", "--drain-window=35"),
    (TRITON, (*ONLY, "env", 1, "value"), "0", "before anybody knows"),
    (TRITON, (*ONLY, "env", 0, "value"), "127.0.0.1", "nobody reaches it"),
    (FRONT, (*ONLY, "env", 1, "value"), "triton", "asks for triton"),
    (TRITON, (*ONLY, "env", 3, "valueFrom", "secretKeyRef", "optional"), False, "secret"),
    (TRITON, (*ONLY, "image"), "triton-multi-device", "which nothing makes"),
    (FRONT, (*ONLY, "image"), "triton-multi-device:nginx", "which nothing makes"),
    (TRITON, (*ONLY, "readinessProbe", "httpGet", "port"), "ready", "names port ready"),
    (TRITON, (*ONLY, "resources", "limits", "memory"), "1Gi", "too little memory"),
    (TRITON, (*ONLY, "resources", "requests", "cpu"), "1", "cores of its own"),
    (TRITON, (*ONLY, "securityContext", "readOnlyRootFilesystem"), False, "more than it must"),
    (TRITON, (*ONLY, "volumeMounts", 0, "mountPath"), "/shm", "can write to"),
    (FRONT, (*ONLY, "volumeMounts", 1, "readOnly"), True, "can write to"),
    (TRITON, (*ONLY, "volumeMounts", 0, "name"), "memory", "only one of volume and mount"),
    (TRITON, (*POD, "volumes", 0, "emptyDir"), {"sizeLimit": "1Gi"}, "no memory for /dev/shm"),
    (TRITON, (*POD, "volumes", 1, "emptyDir"), {}, "without a limit"),
    (FRONT, (*POD, "volumes", 1), {"name": "tmp", "configMap": {"name": "x"}}, "config map x"),
    (TRITON, (*POD, "securityContext", "runAsUser"), 0, "user of its image"),
    (FRONT, (*POD, "securityContext", "seccompProfile"), {"type": "Unconfined"}, "system call"),
    (FRONT, (*POD, "automountServiceAccountToken"), True, "talk to the cluster"),
    (TRITON, (*POD, "enableServiceLinks"), True, "HTTP_PORT"),
    (TRITON, (*POD, "serviceAccountName"), "server", "account that is not there"),
]
IN_ALL: list[tuple[tuple[str, str], Keys, Any, str]] = [
    (
        ("HorizontalPodAutoscaler", "triton"),
        ("spec", "scaleTargetRef", "name"),
        "server",
        "Deployment server, which is not there",
    ),
    (TRITON, ("spec", "replicas"), 2, "either a number of replicas or an autoscaler"),
    (
        ("HorizontalPodAutoscaler", "triton"),
        ("spec", "metrics", 0, "pods", "metric", "name"),
        "queue_seconds",
        "asks for queue_seconds",
    ),
    (("ServiceMonitor", "triton"), ("spec", "endpoints", 0, "port"), "metric", "port metric,"),
    (
        ("ServiceMonitor", "triton"),
        ("spec", "selector", "matchLabels"),
        {"app.kubernetes.io/name": "triton-multi-device"},
        "ServiceMonitor triton selects ['front', ",
    ),
    (
        TRITON,
        (*POD, "volumes", 0),
        {"name": "models", "persistentVolumeClaim": {"claimName": "x"}},
        "claim x",
    ),
]


@pytest.mark.parametrize(("where", "path", "value", "sentence"), MISTAKES)
def test_a_mistake_is_named(where: tuple[str, str], path: Keys, value: Any, sentence: str) -> None:
    assert any(sentence in problem for problem in problems(mistaken(base(), where, path, value)))


@pytest.fixture(scope="module")
def everything(
    program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Resources:
    """The base with all components."""
    return render(program("kubectl"), COMPONENTS, tmp_path_factory.mktemp("rendered"))


@pytest.mark.parametrize(("where", "path", "value", "sentence"), IN_ALL)
def test_a_mistake_in_a_component_is_named(
    everything: Resources, where: tuple[str, str], path: Keys, value: Any, sentence: str
) -> None:
    found = problems(mistaken(everything, where, path, value))
    assert any(sentence in problem for problem in found), found


def test_a_misspelt_field_does_not_fit_the_schema() -> None:
    wrong = mistaken(base(), TRITON, (*POD, "terminationGracePeriod"), 90)
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        kubernetes_validate.validate(named(wrong, *TRITON), "1.37", strict=True)


def mistaken(resources: Resources, where: tuple[str, str], path: Keys, value: Any) -> Resources:
    """The same with one value changed, or added."""
    changed = deepcopy(list(resources))
    place: Any = named(changed, *where)
    for key in path[:-1]:
        place = place[key]
    assert not isinstance(path[-1], int) or path[-1] < len(place)
    place[path[-1]] = value
    return changed
