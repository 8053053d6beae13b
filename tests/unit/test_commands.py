"""Every command of every page: which test runs it, or why none does."""

import re

import pytest

from server.process.installation import PROJECT

PAGES = sorted({*PROJECT.glob("*.md"), *(PROJECT / "docs").glob("*.md")})
PROGRAMS = r"(?:make|docker|kubectl|curl|git|pip|openssl|(?:\.venv/bin/)?(?:python3?|pre-commit)) "

RUN = {
    r"make serve$": "tests/triton/test_server.py",  # as `python -m server`
    r"make serve ARGS=\"--host-policy": "tests/triton/test_options.py",
    r"make venv$|make format check$|make test$": ".ci/run",
    r"\S*python -m clients\.embed ": "tests/triton/test_clients.py",
    r"\S*python model_repository/classifier/digits\.py": "tests/unit/test_classify_digits.py",
    r"\S*python -m clients\.(rerank|classify|tokens) ": "tests/triton/test_tasks.py",
    r"\S*python -m clients\.chaos ": "tests/triton/test_chaos.py",
    r"\S*python -m clients\.rerank ": "tests/triton/test_tasks.py",
    r"\S*python -m clients\.chat$": "tests/triton/test_chat.py",
    r"curl -N .*/generate_stream": "tests/triton/test_chat.py",
    r"curl localhost:8004/v1/chat/completions": "tests/triton/test_chat_served.py",
    r"\S*python -m build_scripts\.new chat": "tests/unit/test_new.py",
    r"\S*python -m build_scripts\.build chat": ".ci/run",  # all that is shipped
    r"\S*python -m build_scripts\.build (--variants|embed)": "tests/triton/test_engines.py",
    r"\S*python -m build_scripts\.new (words|judge|edges)": "tests/process/test_models_page.py",
    r"\S*python -m build_scripts\.build (words|judge|edges)": "tests/process/test_models_page.py",
    r"\S*python -m build_scripts\.(new|build) minilm": "tests/unit/test_new.py",  # without a hub
    r"\S*python -m build_scripts\.build (\w+ )?--check": "tests/unit/test_publish.py",
    r"\S*python -m build_scripts\.plan embed --machine": "tests/unit/test_plan.py",
    r"\S*python -m pytest": ".ci/run",  # all of them
    r"\S*python -m python_mp\.agent ": "tests/process/test_hosts.py",
    r"make up$": "tests/deploy/test_compose.py",  # as what it calls
    r"docker compose (-f \S+ )*(build|up|exec|run)": "tests/deploy/test_compose.py",
}
"""What begins so is run by this, itself or as what it calls."""

NOT_RUN = {
    r".* -m pip install pre-commit": "it changes the clone's git hooks; CI runs the same checks",
    r"make test-all( |$)": "it is an hour of tests, or several; each can be run by itself",
    r"\S*python -m build_scripts\.plan embed --latency-ms": "it measures for 20 minutes",
    r"\S*python -m benchmarks\.gpu (device|served)": "they need a GPU",
    r"make bench( |$)": "it measures for many minutes, and judges nothing",
    r"git pull && docker compose build": "there is nothing to pull; its other halves are run",
    r"docker run --rm --gpus": "it needs a GPU and NVIDIA's container",
    r"pip install .*--editable|python -m build_scripts\.build embed'$": "inside that container",
    r"kubectl (apply|create|delete|set)": "it needs a cluster; kubectl checks the manifests",
}
"""What begins so is run by no test, and why."""


def commands() -> list[tuple[str, str]]:
    """(page, command) of all code blocks that are in no other language."""
    found = []
    for page in PAGES:
        blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```", page.read_text(), re.M | re.DOTALL)
        for code in (code for language, code in blocks if language in ("", "sh", "bash")):
            for line in code.replace("\\\n", " ").splitlines():
                command = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line.split(" #")[0].strip())
                if re.match(PROGRAMS, f"{command} "):
                    found.append((page.name, command))
    return found


@pytest.mark.parametrize(("page", "command"), commands())
def test_a_command_is_run_or_named(page: str, command: str) -> None:
    named = [start for start in {**RUN, **NOT_RUN} if re.match(start, command)]
    assert named, f"{page}: no test is known to run `{command}`; add it here"


def test_the_lists_are_of_what_is_there() -> None:
    assert [file for file in RUN.values() if not (PROJECT / file).is_file()] == []
    written = [command for _, command in commands()]
    lists = {**RUN, **NOT_RUN}
    assert [start for start in lists if not any(re.match(start, each) for each in written)] == []
