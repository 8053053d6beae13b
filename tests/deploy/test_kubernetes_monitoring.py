"""What the Prometheus Operator and prometheus-adapter read. No Python package was found that keeps
the Operator's schemas, so the fields that are used stand here, as its API reference has them."""

import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy.manifests import FOLDER, PROJECT, load

Schema = dict[str, Any]
DURATION = {"type": "string", "pattern": r"^(\d+h)?(\d+m)?(\d+s)?(\d+ms)?$", "minLength": 2}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
LABELS = {"type": "object", "required": ["name"], "additionalProperties": False}
LABELS["properties"] = {"name": {"type": "string"}, "labels": TEXTS}


def record(required: tuple[str, ...], **properties: Schema) -> Schema:
    """An object with these fields and no others."""
    closed = {"type": "object", "additionalProperties": False}
    return {**closed, "required": list(required), "properties": properties}


def many(items: Schema) -> Schema:
    """A list of at least one."""
    return {"type": "array", "items": items, "minItems": 1}


def resource(kind: str, spec: Schema) -> Schema:
    """A whole resource of the Operator's."""
    version = {"const": "monitoring.coreos.com/v1"}
    fields = {"apiVersion": version, "kind": {"const": kind}, "metadata": LABELS, "spec": spec}
    return record(tuple(fields), **fields)


RELABELING = record(
    ("targetLabel",),
    targetLabel={"type": "string"},
    replacement={"type": "string"},
    sourceLabels=many({"type": "string"}),
    regex={"type": "string"},
)
ENDPOINT = record(
    ("port",),
    port={"type": "string"},
    path={"type": "string"},
    interval=DURATION,
    scrapeTimeout=DURATION,
    relabelings=many(RELABELING),
)
RULE = record(
    ("expr",),
    expr={"type": "string"},
    record={"type": "string"},
    alert={"type": "string"},
    labels=TEXTS,
    annotations=TEXTS,
    **{"for": DURATION, "keep_firing_for": DURATION},
)
GROUP = record(("name", "rules"), name={"type": "string"}, interval=DURATION, rules=many(RULE))
SCHEMAS = {
    "service-monitor.yaml": resource(
        "ServiceMonitor",
        record(
            ("selector", "endpoints"),
            selector=record(("matchLabels",), matchLabels=TEXTS),
            endpoints=many(ENDPOINT),
        ),
    ),
    "prometheus-rule.yaml": resource("PrometheusRule", record(("groups",), groups=many(GROUP))),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_operators_resources_have_its_fields(name: str) -> None:
    [found] = load(FOLDER / "monitoring" / name)
    jsonschema.validate(found, SCHEMAS[name])


def test_the_operator_gets_the_same_rules_as_prometheus() -> None:
    made = runpy.run_path(str(FOLDER / "monitoring" / "rules.py"))
    [kept] = load(FOLDER / "monitoring" / "prometheus-rule.yaml")
    assert kept == made["resource"](), "run: python deploy/kubernetes/monitoring/rules.py"
    groups = [group["name"] for group in kept["spec"]["groups"]]
    assert len(set(groups)) == len(groups), "the Operator wants names of groups to differ"


def test_jobs_and_instances_are_those_of_prometheus() -> None:
    """The rules, and the dashboard, serve both."""
    [config] = load(PROJECT / "deploy" / "prometheus" / "prometheus.yml")
    wanted = {
        job["job_name"]: (job["dns_sd_configs"][0]["port"], relabelled(job["relabel_configs"]))
        for job in config["scrape_configs"]
        if job["job_name"] in ("triton", "server")
    }
    [monitor] = load(FOLDER / "monitoring" / "service-monitor.yaml")
    numbers = {"metrics": 8002, "health": 8003}
    found = {}
    for endpoint in monitor["spec"]["endpoints"]:
        job, *others = endpoint["relabelings"]
        assert job["targetLabel"] == "job"
        found[job["replacement"]] = (numbers[endpoint["port"]], relabelled(others))
    assert found == wanted


def relabelled(rules: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Both spellings of the same: source_labels and sourceLabels."""
    return [tuple(value for _, value in sorted(rule.items())) for rule in rules]


QUEUE = "python_mp_queue_seconds"
LOADED = {  # 10 requests/s that wait 0.2 s each, and 100/s that wait 0.01 s
    QUEUE + '_sum{{model="a",replica="0",{pod}}}': "0+2x180",
    QUEUE + '_count{{model="a",replica="0",{pod}}}': "0+10x180",
    QUEUE + '_sum{{model="b",replica="0",{pod}}}': "0+1x180",
    QUEUE + '_count{{model="b",replica="0",{pod}}}': "0+100x180",
    'python_mp_forward_seconds_sum{{model="a",replica="0",rank="0",{pod}}}': "0+0.9x180",
    'python_mp_collective_wait_seconds_sum{{model="a",replica="0",rank="0",{pod}}}': "0+0.5x180",
    'python_mp_forward_seconds_sum{{model="a",replica="0",rank="1",{pod}}}': "0+0.9x180",
    'python_mp_collective_wait_seconds_sum{{model="a",replica="0",rank="1",{pod}}}': "0+0.1x180",
}
IDLE = dict.fromkeys(LOADED, "5+0x180")  # it has worked before
EITHER = {'python_mp_ranks_alive{{model="a",replica="0",{pod}}}': "2+0x180"}
PODS = {"loaded": LOADED | EITHER, "idle": IDLE | EITHER, "new": EITHER}
EXPECTED = {
    "python_mp_queue_seconds_mean": {"loaded": 0.2, "idle": 0, "new": 0},
    "python_mp_busiest_rank_ratio": {"loaded": 0.8, "idle": 0, "new": 0},
}


def test_the_autoscalers_numbers(program: Callable[[str], str], tmp_path: Path) -> None:
    """The adapter's queries, with its placeholders filled, on series that promtool makes."""
    [adapter] = load(FOLDER / "autoscaling" / "prometheus-adapter.yaml")
    queries = {rule["name"]["as"]: filled(rule["metricsQuery"]) for rule in adapter["rules"]}
    assert queries.keys() == EXPECTED.keys()
    series = [
        {"series": name.format(pod=f'namespace="n",pod="{pod}"'), "values": values}
        for pod, made in PODS.items()
        for name, values in made.items()
    ]
    tests = [
        {
            "expr": f"round({query}, 0.001)",
            "eval_time": "2m",
            "exp_samples": [
                {"labels": f'{{pod="{pod}"}}', "value": value}
                for pod, value in EXPECTED[name].items()
            ],
        }
        for name, query in queries.items()
    ]
    case = {"interval": "1s", "input_series": series, "promql_expr_test": tests}
    file = tmp_path / "adapter.yml"
    file.write_text(yaml.safe_dump({"evaluation_interval": "1s", "tests": [case]}))
    ran = subprocess.run(
        [program("promtool"), "test", "rules", file], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def filled(query: str) -> str:
    """As the adapter does for all Pods of a namespace."""
    matchers = 'namespace="n",pod=~"loaded|idle|new"'
    made = query.replace("<<.LabelMatchers>>", matchers).replace("<<.GroupBy>>", "pod")
    assert "<<" not in made
    return made
