"""Pieces of PromQL that panels are made of."""

AT = 'instance=~"$instance"'
STEP = f'tritonserver_model_step{{{AT}, ensemble=~"$model"}}'
"""The models that requests to $model pass."""
RATE = "[$__rate_interval]"


def of(expression: str) -> str:
    """Only of the models that requests to $model pass."""
    return f"{expression} and on (instance, model) {STEP}"


def rate(metric: str, by: str = "model") -> str:
    """Of a counter, summed by these labels."""
    return f"sum by ({by}) ({of(f'rate({metric}{RATE})')})"


def quantile(q: float, histogram: str) -> str:
    return f"histogram_quantile({q}, {rate(f'{histogram}_bucket', 'model, le')})"


def ratio(one: str, other: str, by: str = "model") -> str:
    return f"{rate(one, by)} / {rate(other, by)}"


def asked(recorded: str) -> str:
    """A recorded series of $model itself, the worst of all servers."""
    return f'max by (model) ({recorded}{{{AT}, model=~"$model"}})'


def part(name: str) -> str:
    which = f'{AT}, ensemble=~"$model", part="{name}"'
    return f"avg by (ensemble) (ensemble:part_seconds:mean1m{{{which}}})"


def of_blocks(kind: str) -> str:
    """Their share of the KV cache."""
    every = f"sum by (model) ({of('python_mp_kv_blocks')})"
    return f"sum by (model) ({of(f'python_mp_kv_blocks_{kind}')}) / ({every} > 0)"


def generating(expression: str) -> str:
    """Only of models that generate; the expression is by model."""
    return f"{expression} and on (model) python_mp_kv_blocks{{{AT}}}"


def events(counter: str, labels: str = "") -> str:
    return f"round(sum(increase({counter}{{{AT}{labels}}}[$__range])))"
