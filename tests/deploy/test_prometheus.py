"""deploy/prometheus: valid, every alert tested and explained."""

from __future__ import annotations

import re
from collections.abc import Iterator
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
            yield from test.get("alert_rule_test", [])


def test_every_address_of_the_servers_is_scraped_on_both_ports() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    for name, port in (("triton", 8002), ("server", 8003)):
        (discovery,) = jobs[name]["dns_sd_configs"]
        wanted = {"names": ["triton"], "type": "A", "port": port}
        assert discovery | wanted == discovery
        (relabel,) = jobs[name]["relabel_configs"]
        assert relabel["target_label"] == "instance"


@pytest.mark.parametrize("alert", NAMES)
def test_an_alert_is_seen_to_fire_and_says_what_is_the_case(alert: str) -> None:
    """That promtool agrees is checked by deploy/check.sh."""
    mine = [each.get("exp_alerts", []) for each in expectations() if each["alertname"] == alert]
    fired = {each["exp_labels"]["severity"] for expected in mine for each in expected}
    rules = [rule for rule in ALERTS if rule["alert"] == alert]
    assert fired == {rule["labels"]["severity"] for rule in rules} <= SEVERITIES
    base = '{{ or $externalLabels.runbooks "docs/operations.md" }}'
    for rule in rules:
        assert "for" in rule
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
        assert rule["annotations"]["runbook_url"] == f"{base}#{alert.lower()}"


def test_every_alert_is_explained_and_nothing_else() -> None:
    section = OPERATIONS.read_text().partition("\n## Alerts\n")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"^### (\w+)$", section, re.MULTILINE)) == NAMES


def test_the_exporter_reads_what_is_asked_of_gpus() -> None:
    deploy = PROJECT / "deploy"
    listed = re.findall(r"^(DCGM_\w+), ", (deploy / "dcgm" / "counters.csv").read_text(), re.M)
    files = [*FOLDER.glob("rules/*.yml"), deploy / "grafana" / "dashboards" / "triton.json"]
    asked = {name for file in files for name in re.findall(r"DCGM_\w+", file.read_text())}
    assert asked
    assert asked <= set(listed)
