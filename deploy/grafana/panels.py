"""What the dashboard shows, row by row, and the queries behind it."""

from grafana_foundation_sdk.builders.dashboard import Panel

from deploy.grafana import generation_panels
from deploy.grafana.kinds import bars, graph, rows, stack, tiles
from deploy.grafana.queries import AT, asked, events, of, part, quantile, rate, ratio

GOOD, BAD = ((None, "red"), (1, "green")), ((None, "green"), (1, "red"))

UP = [
    tiles(
        "Ready",
        "bool_yes_no",
        "What /ready of each server says: all its models can be asked.",
        ("{{instance}}", f"tritonserver_ready{{{AT}}}"),
        colours=GOOD,
    ),
    tiles(
        "Models",
        "bool_yes_no",
        "Whether each model serves. With several servers: whether it does on all of them.",
        ("{{model}}", f"min by (model) (tritonserver_model_ready{{{AT}}})"),
        colours=GOOD,
    ),
    graph(
        "Replicas",
        "short",
        "Replicas of sharded models by state. All should be serving; one that is restarting keeps "
        "its requests, one that is down refuses them.",
        ("{{model}} {{state}}", f"sum by (model, state) (tritonserver_replicas{{{AT}}}) > 0"),
    ),
    rows(
        "Firing alerts",
        "What Prometheus's rules complain about now. Each is explained in docs/operations.md.",
        'ALERTS{alertstate="firing"}',
        *("__name__", "alertstate", "job"),
    ),
]

FAST = [
    graph(
        "Requests answered",
        "reqps",
        "Requests that got an answer, a second.",
        ("{{model}}", f'sum by (model) (model:answered:rate1m{{{AT}, model=~"$model"}})'),
    ),
    graph(
        "Latency",
        "s",
        "From Triton's taking a request to its answer, of the last minute. For an ensemble with a "
        "response cache p99 is a lower bound.",
        ("{{model}} p50", asked("model:latency_seconds:p50")),
        ("{{model}} p99", asked("model:latency_seconds:p99")),
    ),
    graph(
        "Errors",
        "percentunit",
        "Share of requests that failed, refusals aside.",
        ("{{model}}", asked("model:errors:ratio1m")),
    ),
    graph(
        "Refused",
        "reqps",
        "Requests that were not computed: queue_full and timeout mean too much load, down that a "
        "replica cannot start, poison that they ended their ranks or raised.",
        ("{{model}} {{reason}}", rate("python_mp_refused_total", "model, reason")),
    ),
    graph(
        "Waiting requests",
        "short",
        "In python_mp's queue, now. It grows without end only until max_queue_requests.",
        ("{{model}}", f"sum by (model) ({of('python_mp_queue_requests')})"),
    ),
]

TIME = [
    stack(
        "Time of a request",
        "s",
        "Mean time of one request to $model, split into what it is spent on. Queue: Triton's and "
        "ours. Pre, post: the steps before and after the sharded model. Collective wait: ranks "
        "waiting for each other. Between: Triton, from step to step.",
        ("pre", part("pre")),
        ("queue", part("queue")),
        ("forward", part("forward")),
        ("collective wait", part("collective wait")),
        ("post", part("post")),
        ("between", part("between")),
    )
    .repeat("model")
    .repeat_direction("v"),
    graph(
        "Queue",
        "s",
        "Time from execute to the batch, per request.",
        ("{{model}} p50", quantile(0.5, "python_mp_queue_seconds")),
        ("{{model}} p99", quantile(0.99, "python_mp_queue_seconds")),
    ),
    graph(
        "Batch",
        "s",
        "Time from the hand-over of a batch until all ranks are through with it.",
        ("{{model}} p50", quantile(0.5, "python_mp_batch_seconds")),
        ("{{model}} p99", quantile(0.99, "python_mp_batch_seconds")),
    ),
]

RANK = "{{model}}/{{replica}} rank {{rank}} {{instance}}"
RANKS = [
    graph(
        "Own computation",
        "s",
        "Forward without collective wait, mean of a batch: the slow rank is the highest line.",
        (RANK, of("rank:forward_seconds:mean1m - rank:collective_wait_seconds:mean1m")),
    ),
    graph(
        "Collective wait",
        "s",
        "Mean time a rank waited for its peers during a batch. The slow rank is the one that waits "
        "least: the others wait for it.",
        (RANK, of("rank:collective_wait_seconds:mean1m")),
    ),
    graph(
        "Forward",
        "s",
        "Mean time of a batch in a rank, waiting included. Ranks of one stage have nearly the "
        "same, for they wait for each other.",
        (RANK, of("rank:forward_seconds:mean1m")),
    ),
]

RESTARTS = [
    bars(
        "What happened in this time range",
        "short",
        "Restarts by reason, and what became of the requests. A group of ranks is restarted as a "
        "whole; a stub's death means that its model is loaded anew.",
        (
            "ranks died or raised",
            f"clamp_min({events('python_mp_restarts_total')}"
            f" - {events('python_mp_hangs_total')}, 0)",
        ),
        ("ranks hung", events("python_mp_hangs_total")),
        ("stubs died", events("tritonserver_model_restarts_total")),
        ("tritonserver died", events("tritonserver_restarts_total")),
        ("models reloaded", events("tritonserver_model_reloads_total", ', result="succeeded"')),
        ("reloads that failed", events("tritonserver_model_reloads_total", ', result="failed"')),
        ("requests replayed", events("python_mp_replays_total")),
        ("requests handed to a peer", events("python_mp_handed_over_total")),
    ),
    graph(
        "Generation of ranks",
        "short",
        "Goes up by one whenever a replica's ranks are started again, and back to 1 with a load.",
        ("{{model}}/{{replica}} {{instance}}", of("python_mp_generation")),
    ),
    graph(
        "Ranks alive",
        "short",
        "Ranks that are up and serving, of each replica.",
        ("{{model}}/{{replica}} {{instance}}", of("python_mp_ranks_alive")),
    ),
    graph(
        "Time of the last start",
        "s",
        "Of the present generation of ranks, by phase. A restart imports nothing.",
        (
            "{{model}} {{phase}}",
            f"max by (model, phase) ({of('python_mp_start_seconds')})",
        ),
    ),
]

BATCHES = [
    graph(
        "Saved by not padding",
        "percentunit",
        "Share of the rows of rectangular batches that would have been padding. 0 where all "
        "requests of a batch are equally long, or alone.",
        (
            "{{model}}",
            f"{rate('python_mp_tokens_saved_total')} / ({rate('python_mp_tokens_saved_total')}"
            f" + {rate('python_mp_tokens_total')})",
        ),
    ),
    graph(
        "Requests a batch",
        "short",
        "Mean. It grows with the load by itself: a batch takes what waits.",
        ("{{model}}", ratio("python_mp_requests_total", "python_mp_batches_total")),
    ),
    graph(
        "Tokens a batch",
        "short",
        "Mean number of packed rows.",
        ("{{model}}", ratio("python_mp_tokens_total", "python_mp_batches_total")),
    ),
    graph(
        "Tokens a second",
        "short",
        "Rows computed a second: the throughput that does not depend on how long texts are.",
        ("{{model}}", rate("python_mp_tokens_total")),
    ),
    graph(
        "Texts cut",
        "cps",
        "Texts a second that were longer than the model reads: it did not see their ends.",
        ("{{model}}", rate("python_mp_truncated_texts_total")),
    ),
]

MACHINE = [
    graph(
        "Memory",
        "percentunit",
        "Memory that cannot be given back (no page cache), of the container's limit or else of the "
        "machine. At 1 the kernel kills.",
        ("{{instance}}", f"instance:memory:ratio{{{AT}}}"),
    ),
    graph(
        "Shared memory",
        "percentunit",
        "Taken of /dev/shm, where Triton and its stubs meet. When it is full, requests fail.",
        ("{{instance}}", f"instance:shm:ratio{{{AT}}}"),
    ),
    graph(
        "CPU",
        "percentunit",
        "Of the whole machine, as Triton sees it.",
        ("{{instance}}", f"nv_cpu_utilization{{{AT}}}"),
    ),
    graph(
        "GPU utilisation",
        "percent",
        "By DCGM, per GPU. Low for long under load: fewer servers would do.",
        ("GPU {{gpu}} {{instance}}", "DCGM_FI_DEV_GPU_UTIL"),
    ),
    graph(
        "GPU memory",
        "decmbytes",
        "By DCGM, per GPU.",
        ("GPU {{gpu}} {{instance}}", "DCGM_FI_DEV_FB_USED"),
    ),
    tiles(
        "GPU rows remapped",
        "short",
        "Rows of GPU memory that were replaced for uncorrectable ECC errors. If one comes, isolate "
        "the GPU.",
        ("GPU {{gpu}} {{instance}}", "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS"),
        colours=BAD,
    ),
]

ROWS: dict[str, list[Panel]] = {
    "Is it up?": UP,
    "Is it fast?": FAST,
    "Where is the time?": TIME,
    "Which rank is slow?": RANKS,
    "What restarted, and why?": RESTARTS,
    "What does batching without padding save?": BATCHES,
    "Is text generated fast?": generation_panels.PANELS,
    "Machine": MACHINE,
}
