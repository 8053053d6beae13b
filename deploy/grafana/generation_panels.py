"""The row about models that generate."""

from deploy.grafana.kinds import graph
from deploy.grafana.queries import generating, of, of_blocks, quantile, rate, ratio

PANELS = [
    graph(
        "Streams",
        "short",
        "Answers that are being generated, and requests that wait for blocks of the KV cache or "
        "for a place among max_running_sequences.",
        ("{{model}} running", f"sum by (model) ({of('python_mp_running_sequences')})"),
        ("{{model}} waiting", generating(f"sum by (model) ({of('python_mp_queue_requests')})")),
    ),
    graph(
        "KV cache",
        "percentunit",
        "Share of the blocks that streams use, and that nobody uses but hold a beginning that may "
        "come again. The rest is empty.",
        ("{{model}} used", of_blocks("used")),
        ("{{model}} kept", of_blocks("cached")),
    ),
    graph(
        "Preemptions",
        "cps",
        "Streams a second that lost their blocks to older ones, and are computed again. More than "
        "one for ten requests: the cache is too small for what runs.",
        ("{{model}}", rate("python_mp_preemptions_total")),
    ),
    graph(
        "Prompts found in the cache",
        "percentunit",
        "Share of the tokens of prompts that were in the KV cache, and so not computed.",
        (
            "{{model}}",
            ratio("python_mp_prompt_tokens_cached_total", "python_mp_prompt_tokens_total"),
        ),
    ),
    graph(
        "Tokens in and out",
        "short",
        "A second: of prompts, those found in the cache included, and generated.",
        ("{{model}} in", rate("python_mp_prompt_tokens_total")),
        ("{{model}} out", rate("python_mp_generated_tokens_total")),
    ),
    graph(
        "First token",
        "s",
        "Time from a request to the first token of its answer: waiting, and computing its prompt.",
        ("{{model}} p50", quantile(0.5, "python_mp_first_token_seconds")),
        ("{{model}} p99", quantile(0.99, "python_mp_first_token_seconds")),
    ),
    graph(
        "Between tokens",
        "s",
        "Time from a token of an answer to its next one. p99 is what others' prompts, preemptions "
        "and restarts add.",
        ("{{model}} p50", quantile(0.5, "python_mp_between_tokens_seconds")),
        ("{{model}} p99", quantile(0.99, "python_mp_between_tokens_seconds")),
    ),
    graph(
        "Tokens a step",
        "short",
        "Mean of what a step of the model gives (a token for each stream that takes part with its "
        "last row), and of the rows that it computes for them, prompts included.",
        ("{{model}} out", ratio("python_mp_generated_tokens_total", "python_mp_batches_total")),
        ("{{model}} rows", generating(ratio("python_mp_tokens_total", "python_mp_batches_total"))),
    ),
]
