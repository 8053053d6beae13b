"""Makes prometheus-rule.yaml, which the Prometheus Operator reads, from deploy/prometheus/rules.

python deploy/kubernetes/monitoring/rules.py
"""

from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
RULES = HERE.parents[1] / "prometheus" / "rules"
MADE = HERE / "prometheus-rule.yaml"
HEAD = "# Made by rules.py from deploy/prometheus/rules: change those, and make it again.\n"


def resource() -> dict[str, Any]:
    """All groups of all rule files, in the files' alphabetical order, as one PrometheusRule."""
    files = sorted(RULES.glob("*.yml"))
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    labels = {
        "app.kubernetes.io/name": "triton-multi-device",
        "app.kubernetes.io/component": "triton",
    }
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "triton", "labels": labels},
        "spec": {"groups": groups},
    }


if __name__ == "__main__":
    MADE.write_text(HEAD + yaml.safe_dump(resource(), sort_keys=False, width=100))
