"""deploy/prometheus: valid, every alert tested and explained."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from server.process.installation import PROJECT
from tests.deploy.scraping import FOLDER, RULES

TESTS = sorted((FOLDER / "rules" / "tests").glob("*.yml"))
OPERATIONS = PROJECT / "docs" / "operations.md"
SEVERITIES = {"critical", "warning", "info"}


def rules() -> Iterator[dict[str, Any]]:
    for file in RULES:
        for group in yaml.safe_load(file.read_text())["groups"]:
            yield from group["rules"]


ALERTS = [rule for rule in rules() if "alert" in rule]
NAMES = sorted({rule["alert"] for rule in ALERTS})


def expectations() -> Iterator[dict[str, Any]]:
    for file in TESTS:
        for test in yaml.safe_load(file.read_text())["tests"]:
            for alert in test.get("alert_rule_test", []):
                yield {**alert, "series": test["input_series"]}


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", *(str(file) for file in RULES)],
        ["test", "rules", *(str(file) for file in TESTS)],
    ],
    ids=["config", "rules", "tests"],
)
def test_promtool_finds_nothing(program: Callable[[str], str], arguments: list[str]) -> None:
    command = [program("promtool"), *arguments]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_are_found_where_the_config_looks() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    found = {file for pattern in config["rule_files"] for file in FOLDER.glob(pattern)}
    assert found == set(RULES)
    assert len(RULES) > 3


def test_every_address_of_the_servers_is_scraped_on_both_ports() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    for name, port in (("triton", 8002), ("server", 8003)):
        (discovery,) = jobs[name]["dns_sd_configs"]
        wanted = {"names": ["triton"], "type": "A", "port": port}
        assert discovery | wanted == discovery
        (relabel,) = jobs[name]["relabel_configs"]
        assert relabel["target_label"] == "instance"


@pytest.mark.parametrize("name", NAMES)
def test_an_alert_fires_and_only_where_it_should(name: str) -> None:
    """That promtool agrees is another test."""
    mine = [each for each in expectations() if each["alertname"] == name]
    assert any(each.get("exp_alerts") for each in mine), "no series makes it fire"

    def stays_silent(each: dict[str, Any]) -> bool:
        return '="fair"' in str(each["series"]) and "fair" not in str(each.get("exp_alerts"))

    assert any(map(stays_silent, mine)), "no series nearly makes it fire"
    fired = {
        alert["exp_labels"]["severity"] for each in mine for alert in each.get("exp_alerts", [])
    }
    assert fired == {rule["labels"]["severity"] for rule in ALERTS if rule["alert"] == name}


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_the_case(rule: dict[str, Any]) -> None:
    said = rule["annotations"]
    assert set(said) == {"summary", "description", "runbook_url"}
    assert "for" in rule
    assert rule["labels"]["severity"] in SEVERITIES
    base = '{{ or $externalLabels.runbooks "docs/operations.md" }}'
    assert said["runbook_url"] == f"{base}#{rule['alert'].lower()}"


def test_every_alert_is_explained_and_nothing_else() -> None:
    section = OPERATIONS.read_text().partition("\n## Alerts\n")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"^### (\w+)$", section, re.MULTILINE)) == NAMES


def test_every_recorded_series_is_used() -> None:
    dashboard = (PROJECT / "deploy" / "grafana" / "dashboards" / "triton.json").read_text()
    expressions = [rule["expr"] for rule in rules()]
    for rule in rules():
        if recorded := rule.get("record"):
            used = [text for text in (*expressions, dashboard) if recorded in text]
            assert used, recorded


def test_the_exporter_reads_what_is_asked_of_gpus() -> None:
    deploy = PROJECT / "deploy"
    listed = re.findall(r"^(DCGM_\w+), ", (deploy / "dcgm" / "counters.csv").read_text(), re.M)
    files = [*FOLDER.glob("rules/*.yml"), deploy / "grafana" / "dashboards" / "triton.json"]
    asked = {name for file in files for name in re.findall(r"DCGM_\w+", file.read_text())}
    assert asked
    assert asked <= set(listed)
