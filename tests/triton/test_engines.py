"""Both ensembles on every CPU engine, single, tensor- and pipeline-parallel, behind one Triton.

Each variant is what the build makes of the model's recipe with engine, dtype or layout changed.
"""

from __future__ import annotations

import multiprocessing
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress

from build_scripts import artifact, recipe_file
from build_scripts import job as jobs
from server.process.launch import TritonServer
from tests.support import repository
from tests.support.calls import Client, closeness, in_parallel, reference
from tests.support.classifying import held_out
from tests.support.examples import digits
from tests.support.serving import Serve

pytestmark = pytest.mark.timeout(900)
ENSEMBLES = {"embed_encoder": "embed", "classifier": "classify"}
BOUND = {"float32": 0.999999, "int8": 0.95}


@dataclass(frozen=True)
class Variant:
    """A model of the repository with these of its recipe's lines changed."""

    model: str
    engine: str
    dtype: str = "float32"
    tp: int = 1
    pp: int = 1

    @property
    def name(self) -> str:
        return f"{self.model}_{self.engine}_{self.dtype}_tp{self.tp}_pp{self.pp}"

    @property
    def ensemble(self) -> str:
        return f"{ENSEMBLES[self.model]}_{self.name}"


# Each dtype and way to split, in pairs. aot_inductor, whose compiler takes a minute: every run has
# it in tests/engines/test_contract.py, and its programs in stages in test_graphs.py there.
# A build waits for another one of the same model, so the first runs beside the others.
PAIRWISE = [
    Variant("embed_encoder", "onnxruntime", pp=2),
    Variant("classifier", "torch", pp=2),
    Variant("classifier", "onnxruntime", "int8", tp=2),
]
LAYOUTS = [(1, 1), (2, 1), (1, 2)]
ALL = {
    *PAIRWISE,
    Variant("embed_encoder", "onnxruntime", "int8", tp=2),
    Variant("embed_encoder", "aot_inductor", tp=2),  # takes minutes to compile
    *(
        Variant("classifier", engine, tp=tp, pp=pp)
        for engine in ("torch", "aot_inductor", "onnxruntime")
        for tp, pp in LAYOUTS
    ),
    *(Variant("embed_encoder", "onnxruntime", tp=tp, pp=pp) for tp, pp in LAYOUTS),
}


def publish(folder: Path, variant: Variant) -> None:
    """Builds the variant and publishes it into a repository of its own in `folder`."""
    own = folder / variant.name
    recipe = recipe_file.of_model(variant.model)
    for name in {variant.model, recipe.parent.name}:
        left = shutil.ignore_patterns("[0-9]*")
        shutil.copytree(repository.MODELS / name, own / name, ignore=left)
    config = own / variant.model / "config.pbtxt"
    layout = repository.Layout(variant.tp, variant.pp)
    config.write_text(layout.laid_out(config.read_text()))
    text = re.sub(
        r'(?m)^(?:# )?engine = "\w+"', f'engine = "{variant.engine}"', recipe.read_text(), count=1
    )
    text = re.sub(r'(?m)^dtype = "\w+"', f'dtype = "{variant.dtype}"', text, count=1)
    text = re.sub(r"(accuracy\]\nsamples) = \d+", r"\1 = 40", text)
    (own / recipe.parent.name / recipe.name).write_text(text)
    with Progress(console=Console(quiet=True)) as progress:
        assert artifact.build(jobs.load(variant.model, own), progress).status == "published"


def add(models: Path, folder: Path, variant: Variant) -> None:
    """Adds the published variant and its ensemble to `models`."""
    own = folder / variant.name
    shutil.copytree(own / variant.model, models / variant.name)
    rename(models / variant.name / "config.pbtxt", {variant.model: variant.name})
    ensemble = ENSEMBLES[variant.model]
    shutil.copytree(repository.MODELS / ensemble, models / variant.ensemble)
    renamed = {ensemble: variant.ensemble, variant.model: variant.name}
    rename(models / variant.ensemble / "config.pbtxt", renamed)


def rename(config: Path, names: dict[str, str]) -> None:
    text = config.read_text()
    for old, new in names.items():
        text = text.replace(f'"{old}"', f'"{new}"')
    config.write_text(text)


@dataclass(frozen=True)
class Served:
    """All of them at once, behind one Triton."""

    server: TritonServer
    variants: list[Variant]

    def of(self, model: str) -> list[Variant]:
        return [variant for variant in self.variants if variant.model == model]


@pytest.fixture(
    scope="module",
    params=[PAIRWISE, pytest.param(sorted(ALL, key=str), marks=pytest.mark.campaign)],
    ids=["pairwise", "all"],
)
def engines(
    serve: Serve, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    models, folder = tmp_path_factory.mktemp("engines"), tmp_path_factory.mktemp("built")
    steps = ("embed_tokenizer", "embed_vectors", "classify_decoder", "classify_labels")
    repository.copy(models, *steps)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(partial(publish, folder), request.param))  # Much of it is one thread's work.
    for variant in request.param:
        add(models, folder, variant)
    with serve(models) as server:
        yield Served(server, request.param)


def test_embeds_as_the_reference_in_any_company(engines: Served) -> None:
    """Each text alone, and in the middle of others of all lengths."""
    texts = reference().texts[:24]
    for variant in engines.of("embed_encoder"):

        def embed(number: int, variant: Variant = variant) -> float:
            with Client(engines.server.endpoints, ("grpc", "http")[number % 2]) as client:
                which = range(number, 200, 20)
                some = [reference().texts[n] for n in which]
                parts = [client.embed(part, variant.ensemble) for part in (some[:1], some[1:])]
                alone = client.embed(texts[number : number + 1], variant.ensemble)
                together = client.embed(texts, variant.ensemble)[number : number + 1]
            assert closeness(alone, together) >= BOUND[variant.dtype], variant
            return reference().cosine(which, np.concatenate(parts))

        assert min(in_parallel(4, embed)) >= BOUND[variant.dtype], variant


def test_recognises_the_held_out_digits(engines: Served) -> None:
    files, expected = held_out()
    images = np.array(files, object)[:, None]
    for variant in engines.of("classifier"):
        with Client(engines.server.endpoints) as client:
            found = [
                client.ask(variant.ensemble, "LABEL", IMAGE=images[at : at + 60])[:, 0]
                for at in range(0, len(images), 60)
            ]
        right = np.concatenate(found) == np.array(expected, object)
        assert right.mean() >= digits.LEAST_ACCURACY, variant
