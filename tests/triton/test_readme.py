"""README.md and docs/ are true: code runs, files and targets exist, tables are complete."""

import re
from dataclasses import MISSING, fields
from functools import cache
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from python_mp.front import metrics
from python_mp.model.config import Parameters
from server.process.installation import PROJECT
from server.process.launch import TritonServer
from tests.support.calls import BOUND, Client, closeness
from tests.support.serving import Serve

README = (PROJECT / "README.md").read_text()
DOCS = PROJECT / "docs"
STEP = "backends/python_mp/python_mp/steps/tokenizer.py"
PAGES = sorted(PROJECT.glob("*.md")) + sorted(DOCS.glob("*.md"))
NAME = attrgetter("name")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def block(language: str, text: str) -> str:
    """The only code block of that language with that text in it."""
    (found,) = (code for name, code in BLOCKS if name == language and text in code)
    return str(found)


def test_the_client_runs(server: TritonServer, capfd: pytest.CaptureFixture[str]) -> None:
    code = block("python", "tritonclient").replace("127.0.0.1:8001", server.endpoints.grpc_url)
    names: dict[str, np.ndarray] = {}
    exec(compile(code, "README.md", "exec"), names)
    names["client"].close()
    embedding = names["embedding"]
    assert (embedding.shape, embedding.dtype) == ((1, 384), np.float32)
    np.testing.assert_allclose(np.linalg.norm(embedding), 1, atol=1e-5)
    with Client(server.endpoints) as client:
        expected = client.embed(["How do I reset my password?"])
    assert closeness(embedding, expected) >= BOUND["float32"]
    assert capfd.readouterr().err == ""


@pytest.fixture
def mlp(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """The model of "Bring your own model", and its weights."""
    module = block("python", "plan = {")
    place = re.match(r"# model_repository/(\S+)\n", module)
    assert place is not None
    file = tmp_path / "repository" / place[1]
    file.parent.mkdir(parents=True)
    file.write_text(module)
    (file.parent.parent / "config.pbtxt").write_text(block("", "max_batch_size"))
    random = torch.Generator().manual_seed(0)
    shapes = {
        "up.weight": (128, 64),
        "up.bias": (128,),
        "down.weight": (64, 128),
        "down.bias": (64,),
    }
    weights = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    save_file(weights, file.parent / "model.safetensors")
    return tmp_path / "repository", weights


def test_bring_your_own_model(serve: Serve, mlp: tuple[Path, dict[str, torch.Tensor]]) -> None:
    models, w = mlp
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    hidden = F.gelu(F.linear(x, w["up.weight"], w["up.bias"]))
    expected = F.linear(hidden, w["down.weight"], w["down.bias"])
    with serve(models) as server, Client(server.endpoints) as client:
        y = client.ask("mlp", "Y", X=x.numpy())
    np.testing.assert_allclose(y, expected.numpy(), rtol=1e-4, atol=1e-3)


@cache
def everything() -> list[Path]:
    """All files and folders of the project that a page may name."""
    folders = ["backends", "model_repository", "clients", "gateway", "server", "build_scripts"]
    folders += ["docs", "deploy", "tests", "benchmarks"]
    inside = (file for folder in folders for file in (PROJECT / folder).rglob("*"))
    return [*PROJECT.glob("*.md"), *(PROJECT / folder for folder in folders), *inside]


def is_there(name: str) -> bool:
    """Whether a path, or the end of one, is of the project."""
    return any(f"/{file.relative_to(PROJECT)}".endswith(f"/{name}") for file in everything())


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=NAME)
def test_named_files_exist(page: Path) -> None:
    prose = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for name in set(re.findall(r"`((?:[\w.]+/)+[\w.]*|\w+\.(?:py|md))`", prose)):
        if not re.match(r"1/|N[/_]|\.|build/|.*NAME", name):  # the reader's own, or made
            assert is_there(name.rstrip("/")), name


@pytest.mark.parametrize("page", PAGES, ids=NAME)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """What a page's headings are called in a link, as GitHub makes it."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def rows() -> dict[str, str]:
    """Parameter to default, as the table says."""
    page = (DOCS / "config.md").read_text()
    table = page.split("| parameter | meaning | default |\n")[1].split("\n\n")[0]
    found = {}
    for row in table.splitlines()[1:]:
        names, _, default = (cell.strip() for cell in row.strip("|").split("|"))
        names = re.findall(r"`([\w.*]+)`", names)
        defaults = default.split(", ") if len(names) > 1 else [default]
        found |= dict(zip(names, defaults, strict=True))
    return found


def shown(default: object) -> str | None:
    """The end of what the table writes of a default; None where it takes words."""
    if default is MISSING:
        return "as built"
    if not default:
        return None
    if isinstance(default, int):
        return f"{default >> 20} MiB" if default >> 20 else str(default)
    return f"`{default}`"


def test_the_table_of_parameters_is_complete() -> None:
    table = rows()
    assert table.pop("module.*") == ""
    assert table.keys() == {field.name for field in fields(Parameters)}
    for field in fields(Parameters):
        default, written = shown(field.default), table[field.name]
        assert written.endswith(default) if default else not re.match("[`0-9]", written)


def test_the_metrics_are_those_that_exist() -> None:
    named = re.findall(r"`(?:python_mp)?_(\w+)`", (DOCS / "metrics.md").read_text())
    of_steps = set(re.findall(r'"python_mp_(\w+)"', (PROJECT / STEP).read_text()))
    assert sorted(named) == sorted(
        {*metrics.COUNTERS, *metrics.GAUGES, *metrics.HISTOGRAMS, *of_steps}
    )
