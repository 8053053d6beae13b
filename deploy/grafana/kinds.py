"""The kinds of panels that the dashboard has. A query is (legend, PromQL)."""

from collections.abc import Iterable

from grafana_foundation_sdk.builders import bargauge, common, stat, table, timeseries
from grafana_foundation_sdk.builders.dashboard import ThresholdsConfig
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueTextMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DataTransformerConfig,
    Threshold,
    ThresholdsMode,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef(type_val="prometheus", uid="prometheus")
WIDTH, HEIGHT = 24, 8
Query = tuple[str, str]
Colour = tuple[float | None, str]
"""From this value on; the first one from None on."""


def graph(title: str, unit: str, description: str, *queries: Query) -> timeseries.Panel:
    """Lines over time."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .min(0)
        .height(HEIGHT)
        .datasource(SOURCE)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    for target in _targets(queries):
        panel.with_target(target.range())
    return panel


def stack(title: str, unit: str, description: str, *queries: Query) -> timeseries.Panel:
    """Areas on top of each other: parts of a whole."""
    return (
        graph(title, unit, description, *queries)
        .stacking(common.StackingConfig().mode(StackingMode.NORMAL))
        .fill_opacity(60)
        .line_width(0)
    )


def tiles(
    title: str, unit: str, description: str, *queries: Query, colours: tuple[Colour, ...]
) -> stat.Panel:
    """One coloured tile a series, with its value now."""
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .height(HEIGHT)
        .datasource(SOURCE)
        .color_mode(BigValueColorMode.BACKGROUND)
        .text_mode(BigValueTextMode.VALUE_AND_NAME)
        .thresholds(_thresholds(colours))
    )
    for target in _targets(queries):
        panel.with_target(target.instant())
    return panel


def bars(title: str, unit: str, description: str, *queries: Query) -> bargauge.Panel:
    """One bar a series, with its value now."""
    panel = (
        bargauge.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .decimals(0)
        .min(0)
        .height(HEIGHT)
        .datasource(SOURCE)
        .orientation(VizOrientation.HORIZONTAL)
        .thresholds(_thresholds(((None, "green"), (1, "orange"))))
    )
    for target in _targets(queries):
        panel.with_target(target.instant())
    return panel


def rows(title: str, description: str, query: str, *hidden: str) -> table.Panel:
    """A table with one row a series; `hidden` labels are left out."""
    target = _targets([("", query)])[0].instant().format(PromQueryFormat.TABLE)
    columns = {"excludeByName": dict.fromkeys(("Time", "Value", *hidden), True)}
    return (
        table.Panel()
        .title(title)
        .description(description)
        .unit("none")
        .no_value("none")
        .height(HEIGHT)
        .datasource(SOURCE)
        .with_target(target)
        .with_transformation(DataTransformerConfig(id_val="organize", options=columns))
    )


def _targets(queries: Iterable[Query]) -> list[Dataquery]:
    return [
        Dataquery().expr(expression).legend_format(legend).ref_id(chr(ord("A") + index))
        for index, (legend, expression) in enumerate(queries)
    ]


def _thresholds(colours: tuple[Colour, ...]) -> ThresholdsConfig:
    steps = [Threshold(value, colour) for value, colour in colours]
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
