"""python -m deploy.grafana.dashboard [--check]: writes dashboards/triton.json, or compares it."""

import sys
from itertools import count
from pathlib import Path

from grafana_foundation_sdk.builders.dashboard import (
    AnnotationQuery,
    Dashboard,
    QueryVariable,
    Row,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from deploy.grafana.kinds import SOURCE, WIDTH
from deploy.grafana.panels import ROWS
from deploy.grafana.queries import AT

FILE = Path(__file__).parent / "dashboards" / "triton.json"
ANNOTATIONS = {
    "Ranks restarted": ("orange", f"increase(python_mp_restarts_total{{{AT}}}[30s]) > 0"),
    "A stub died": ("red", f"increase(tritonserver_model_restarts_total{{{AT}}}[30s]) > 0"),
    "tritonserver died": ("dark-red", f"increase(tritonserver_restarts_total{{{AT}}}[30s]) > 0"),
    "Reloaded": ("blue", f"increase(tritonserver_model_reloads_total{{{AT}}}[30s]) > 0"),
}


def variable(name: str, label: str, query: str, default: str) -> QueryVariable:
    return (
        QueryVariable(name)
        .label(label)
        .query(query)
        .datasource(SOURCE)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(text=[default], value=[default]))
    )


def build() -> str:
    """The dashboard as Grafana's JSON."""
    dashboard = (
        Dashboard("Triton")
        .uid("triton")
        .description("Is it up, is it fast, where is the time, which rank is slow, what restarted?")
        .tags(["triton"])
        .readonly()
        .refresh("10s")
        .time("now-30m", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(
            variable("model", "Model", "label_values(tritonserver_model_step, ensemble)", "embed")
        )
        .with_variable(
            variable("instance", "Server", "label_values(tritonserver_up, instance)", "$__all")
        )
    )
    for name, (colour, expression) in ANNOTATIONS.items():
        dashboard.annotation(
            AnnotationQuery()
            .name(name)
            .datasource(SOURCE)
            .enable(True)
            .icon_color(colour)
            .expr(expression)
        )
    ids = count(1)
    for title, panels in ROWS.items():
        dashboard.with_row(Row(title).id(next(ids)))
        for panel in panels:
            dashboard.with_panel(panel.id(next(ids)).span(WIDTH // min(len(panels), 4)))
    return JSONEncoder(sort_keys=True, indent=2).encode(dashboard.build()) + "\n"


def main() -> int:
    """Returns 1 where --check finds another dashboard than this would write."""
    text = build()
    if "--check" not in sys.argv[1:]:
        FILE.write_text(text)
    elif FILE.read_text() != text:
        print(f"{FILE.name} is stale; run python -m deploy.grafana.dashboard", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
