"""Ensembles for `embed` that `new` made of a folder of sentence-transformers: prompts, dimensions
and formats, behind Triton."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from build_scripts import build, recipe_file
from build_scripts.new import __main__ as new
from build_scripts.sentences import sentences
from server.process.launch import TritonServer
from tests.support.calls import PROTOCOLS, Array, Client, in_parallel, scrape, text_tensor
from tests.support.sentence_folders import PROMPTS, encoded, saved
from tests.support.serving import serving

FLOATS, SMALL, BITS, SEED = "floats", "small", "bits", 10
"""With EMBEDDING in FP32, INT8 and packed bits; the folder has Dense, Normalize and a default
prompt."""
TEXTS = ["the cab.", "a", "b c " * 30, "The CAB, ÉCLAIR\u2603 ace"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = saved(tmp_path_factory.mktemp("source"), SEED)
    chain = {
        each["type"].rpartition(".")[2] for each in json.loads((found / "modules.json").read_text())
    }
    model = json.loads((found / "config_sentence_transformers.json").read_text())
    assert {"Dense", "Normalize"} <= chain
    assert model["default_prompt_name"]
    return found


def in_other_bytes(repository: Path, name: str, data_type: str) -> None:
    """One more ensemble of the same tokenizer and encoder, with a last step of its own."""
    last = f"{FLOATS}_vectors", f"{name}_vectors"
    for before, model in ((FLOATS, name), last):
        text = (repository / before / "config.pbtxt").read_text()
        as_it_was = 'name: "EMBEDDING" data_type: '
        named = (f'"{before}"', f'"{model}"'), last
        for old, new_text in (*named, (f"{as_it_was}TYPE_FP32", f"{as_it_was}{data_type}")):
            assert old in text or old == last[0]
            text = text.replace(old, new_text)
        (repository / model / "1").mkdir(parents=True)
        (repository / model / "config.pbtxt").write_text(text)
    with (repository / FLOATS / recipe_file.NAME).open("a") as recipe:
        recipe.write(f'\n[steps.{last[1]}]\nfamily = "vectors"\n')


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    repository = tmp_path_factory.mktemp("repository")
    places = [f"--repository={repository}", f"--workspace={repository.parent / 'workspace'}"]
    assert new.main([FLOATS, str(folder), places[0]]) == 0
    in_other_bytes(repository, SMALL, "TYPE_INT8")
    in_other_bytes(repository, BITS, "TYPE_UINT8")
    config = repository / f"{BITS}_vectors" / "config.pbtxt"
    (width,) = map(int, re.findall(r'"EMBEDDING".*dims: \[ (\d+) \]', config.read_text()))
    for path in (config, repository / BITS / "config.pbtxt"):
        text = path.read_text().replace(*(f"UINT8 dims: [ {n} ]" for n in (width, -(-width // 8))))
        path.write_text(text)
    assert build.main(places) == 0
    with serving(repository) as found:
        yield found


def column(cells: list[Any], dtype: Any) -> Array:
    return np.array([[cell] for cell in cells], dtype)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_prompts_and_dimensions_are_for_each_request(
    server: TritonServer, folder: Path, protocol: str
) -> None:
    """Requests with and without them, at once."""
    asked = [(name, width) for name in (None, *PROMPTS) for width in (None, 3, 1)]

    def embed(index: int) -> Array:
        name, width = asked[index]
        inputs = {"TEXT": text_tensor(TEXTS)}
        if name is not None:
            inputs["PROMPT"] = text_tensor([name] * len(TEXTS))
        if width is not None:
            inputs["DIMENSIONS"] = column([width] * len(TEXTS), np.int32)
        with Client(server.endpoints, protocol) as client:
            return client.ask(FLOATS, "EMBEDDING", **inputs)

    for (name, width), found in zip(asked, in_parallel(len(asked), embed), strict=True):
        wanted = encoded(folder, TEXTS, prompt_name=name, truncate_dim=width)
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_int8_by_the_ranges_of_the_samples(server: TritonServer, folder: Path) -> None:
    """The bounds may fall apart by a rounding error, and then a value by one."""
    with warnings.catch_warnings(action="ignore"):
        from sentence_transformers.util import quantize_embeddings

    calibrated = encoded(folder, sentences(_samples(server)))
    wanted = quantize_embeddings(encoded(folder, TEXTS), "int8", calibration_embeddings=calibrated)
    with Client(server.endpoints) as client:
        found = client.ask(SMALL, "EMBEDDING", TEXT=text_tensor(TEXTS))
    assert found.dtype == np.int8
    assert np.abs(found.astype(int) - wanted).max() <= 1
    assert (found == wanted).mean() > 0.8


def test_packed_bits(server: TritonServer, folder: Path) -> None:
    with Client(server.endpoints) as client:
        found = client.ask(BITS, "EMBEDDING", TEXT=text_tensor(TEXTS))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.packbits(encoded(folder, TEXTS) > 0, axis=-1))


def _samples(server: TritonServer) -> int:
    path = server.settings.model_repository / FLOATS / recipe_file.NAME
    return recipe_file.load(path, f"{FLOATS}_encoder").accuracy.samples


def test_what_cannot_be_served_is_said(server: TritonServer) -> None:
    text, good = text_tensor(["a"]), {"PROMPT": text_tensor(["query"])}
    refused = {
        r"PROMPT\[0\] is 'nobody'; the model's prompts are: query, document, code, none": {
            "PROMPT": text_tensor(["nobody"])
        },
        "DIMENSIONS is 0; it can be 1 to": {"DIMENSIONS": column([0], np.int32)},
        "DIMENSIONS is 4000; it can be 1 to": {"DIMENSIONS": column([4000], np.int32)},
    }
    with Client(server.endpoints) as client:
        for said, more in refused.items():
            with pytest.raises(InferenceServerException, match=said):
                client.ask(FLOATS, "EMBEDDING", TEXT=text, **more)
            client.ask(FLOATS, "EMBEDDING", TEXT=text, **good)


def test_cut_texts_are_counted(server: TritonServer) -> None:
    def cut() -> float:
        return scrape(server.endpoints).total("truncated_texts_total", model=f"{FLOATS}_tokenizer")

    before = cut()
    with Client(server.endpoints) as client:
        client.ask(FLOATS, "EMBEDDING", TEXT=text_tensor(["a", "b c " * 60, "a"]))
    assert cut() == before + 1
