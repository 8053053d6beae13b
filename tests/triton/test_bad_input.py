"""What cannot be served is refused with a status and a sentence, and costs nobody else anything."""

from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from server.process.launch import TritonServer
from tests.support.calls import (
    BOUND,
    PROTOCOLS,
    Array,
    Client,
    Samples,
    plain_ranker,
    reference,
    settled,
    text_tensor,
)
from tests.support.classifying import held_out

INVALID, UNKNOWN = ("400", "StatusCode.INVALID_ARGUMENT"), ("404", "StatusCode.NOT_FOUND")


def text(*texts: Any) -> dict[str, Array]:
    return {"TEXT": text_tensor(texts)}


def tokens(ids: Any, lengths: Any) -> dict[str, Array]:
    return {"INPUT_IDS": np.array(ids, np.int32), "LENGTHS": np.array(lengths, np.int32)}


def features(bad: float = 0.0, shape: tuple[int, int] = (2, 256)) -> dict[str, Array]:
    array = np.zeros(shape, np.float32)
    array[-1:, -3] = bad
    return {"FEATURES": array}


EMBED = [
    ("not UTF-8", text("fine", b"caf\xe9"), "TEXT[1] is not UTF-8 at byte 3."),
    ("one of 64", text(*["fine"] * 63, ""), "TEXT[63] is empty."),
    ("empty batch", text(), "expected 1 string elements for inference input 'TEXT'"),
    ("batch of 65", text(*["a"] * 65), "batch-size must be <= 64 for 'embed'"),
    ("dtype", {"TEXT": np.zeros((1, 1), np.int32)}, "'TEXT' data-type is 'INT32'"),
    ("shape", {"TEXT": np.array([[b"a", b"b"]], np.object_)}, "Expected [-1,1], got [1,2]"),
    ("input", {"TXT": text_tensor(["a"])}, "unexpected inference input 'TXT'"),
]
ENCODER = [
    ("id too large", tokens([[101, 30522]], [[2]]), "INPUT_IDS holds 30522; ids are 0 to 30521"),
    ("too long", tokens([[5] * 513], [[513]]), "513 tokens; the model's limit is 512"),
    ("length -1", tokens([[1, 2]] * 2, [[1], [-1]]), "'LENGTHS' holds -1 to 1; it must be 1 to 2"),
    ("no ids", tokens(np.zeros((1, 0)), [[0]]), "the same number of rows, at least 1"),
    ("empty batch", tokens(np.zeros((0, 2)), np.zeros((0, 1))), "'LENGTHS'"),
    ("batches differ", tokens([[1, 2]], [[2], [2]]), "batch size does not match"),
]
RANKER = [
    ("nan", features(np.nan), "FEATURES holds a value that is not finite"),
    ("batch of 257", features(shape=(257, 256)), "batch-size must be <= 256"),
    ("empty batch", features(shape=(0, 256)), "'FEATURES'"),
]


def images(*files: bytes, top_k: list[int] | None = None) -> dict[str, Array]:
    image = {"IMAGE": np.array([[file] for file in files], np.object_)}
    return image | ({} if top_k is None else {"TOP_K": np.array(top_k, np.int32)[:, None]})


GOOD = held_out()[0][0]
CLASSIFY = [
    ("second of two", images(GOOD, b"hello"), "IMAGE[1] is not a JPEG or PNG file."),
    ("9 MB", images(bytes(9_000_000)), "IMAGE[0] has 9000000 bytes; the limit is 8388608."),
    ("k 11", images(GOOD, top_k=[11]), "TOP_K is 11; it must be 1 to 10."),
    ("two ks", images(GOOD, GOOD, top_k=[1, 2]), "the rows of a request need the same."),
]
CASES = {
    f"{model}: {title}": (model, output, INVALID, inputs, sentence)
    for model, output, cases in (
        ("embed", "EMBEDDING", EMBED),
        ("embed_encoder", "HIDDEN_STATES", ENCODER),
        ("ranker", "SCORE", RANKER),
        ("classify", "LABEL", CLASSIFY),
    )
    for title, inputs, sentence in cases
} | {"unknown model": ("embedd", "EMBEDDING", UNKNOWN, text("a"), "'embedd' is not found")}


def assert_good_ones_are_served(client: Client) -> None:
    assert reference().cosine([0, 1], client.embed(reference().texts[:2])) >= BOUND["float32"]
    zeros = np.zeros((1, 256), np.float32)
    np.testing.assert_allclose(client.score(zeros), plain_ranker(zeros), atol=2e-5)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("case", CASES)
def test_is_refused_in_a_sentence(server: TritonServer, case: str, protocol: str) -> None:
    model, output, status, inputs, sentence = CASES[case]
    with Client(server.endpoints, protocol) as client:
        with pytest.raises(InferenceServerException) as refused:
            client.ask(model, output, **inputs)
        assert refused.value.status() == status[protocol == "grpc"]
        assert sentence in refused.value.message()
        assert "Traceback" not in refused.value.message()
        assert_good_ones_are_served(client)


def test_it_costs_no_restart(server: TritonServer) -> None:
    """Every bad request that reaches a rank, while good ones come from elsewhere."""
    before = settled(server.endpoints).total("requests_total", model="ranker")
    with Client(server.endpoints) as client, Client(server.endpoints) as other:
        for _, inputs, _ in ENCODER:
            with pytest.raises(InferenceServerException):
                client.ask("embed_encoder", "HIDDEN_STATES", **inputs)
            assert_good_ones_are_served(other)

    def is_counted(now: Samples) -> bool:
        return now.total("requests_total", model="ranker") >= before + len(ENCODER)

    after = settled(server.endpoints, is_counted)
    for model in ("ranker", "embed_encoder"):
        assert after.total("restarts_total", model=model) == 0
        assert after.total("generation", model=model) == 1
        assert after.total("ranks_alive", model=model) == 2
