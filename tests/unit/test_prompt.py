"""The step `prompt`: ids as transformers' tokenizer makes them, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from build_scripts import step
from build_scripts.checkpoint_folder import Checkpoint
from tests.support.triton_stub import InferenceRequest, TritonError, arguments, load_step
from tests.unit.test_tokenizer_kinds import around, byte_level

CHATML = (
    "{% for m in messages %}{{ '<s>' + m['role'] + '\\n' + m['content'] + '</s>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'critic' %}{% continue %}{% endif %}"
    "[{{ m['content'] | trim }}]{% endfor %}"
)
TOOLS = (
    "{%- if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "{% if m.tool_calls is defined %}{{ m.tool_calls | tojson }}{% else %}{{ m.content }}"
    "{% endif %}"
    "{% if not thinks %}/no{% endif %}{% endfor %}"
)
TEMPLATES: dict[str, Any] = {
    "chatml": CHATML,
    "inst": INST,
    "several": {"default": CHATML, "tool_use": TOOLS},
    "tools": TOOLS,
    "none": None,
}


def folder(path: Path, template: Any) -> Path:
    tokenizer = around(byte_level("<s>", "</s>"), "<s> $A")
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=template, model_max_length=16, **special
    )
    made.save_pretrained(path)
    LlamaConfig(vocab_size=len(made), architectures=["LlamaForCausalLM"]).save_pretrained(path)
    return path


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, Any]]:
    """The step and transformers' tokenizer, by the template's name."""
    module, found = load_step("prompt", monkeypatch), {}
    for name, template in TEMPLATES.items():
        path = folder(tmp_path / name, template)
        (version := tmp_path / f"{name}_prompt" / "1").mkdir(parents=True)
        for file, text in step.SETTINGS["prompt"](Checkpoint(path, "generate")).items():
            (version / file).write_text(text)
        model = module.TritonPythonModel()
        model.initialize(arguments("{}", version.parent, "prompt"))
        found[name] = model, AutoTokenizer.from_pretrained(path)
    return found


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def request(**inputs: Any) -> InferenceRequest:
    cells = {
        name: [value] if isinstance(value, bytes) else [json.dumps(value).encode()]
        for name, value in inputs.items()
    }
    return InferenceRequest(**{name: np.array([cell], np.object_) for name, cell in cells.items()})


TALK = [said("user", "a <s> Grüße\n "), said("assistant", "Hi"), said("user", "x" * 50)]
CALLS = [said("user", "b"), said("assistant", None, tool_calls=[{"function": {"name": "f"}}])]
TOOL = {"tools": [{"type": "function", "function": {"name": "f", "description": "é<"}}]}
ASKED: list[tuple[str, Any, dict[str, Any]]] = [
    ("chatml", TALK, {}),
    ("chatml", [said("system", "be"), *TALK], {"add_generation_prompt": False}),
    ("chatml", [*TALK, said("assistant", "So")], {"continue_final_message": True}),
    ("inst", TALK, {}),
    ("tools", CALLS, {**TOOL, "chat_template_kwargs": {"thinks": True}}),
    ("several", TALK, {}),
    ("several", CALLS, TOOL),
]


def test_conversations_as_transformers_writes_them(models: dict[str, tuple[Any, Any]]) -> None:
    for name, talk, options in ASKED:
        model, theirs = models[name]
        given = {"messages": talk, **options} if options else talk
        (response,) = model.execute([request(MESSAGES=given)])
        assert response.error is None, response.error
        how = {"add_generation_prompt": "continue_final_message" not in options, **options}
        more = how.pop("chat_template_kwargs", {})
        wanted = theirs.apply_chat_template(talk, **how, **more)["input_ids"]
        found = response.outputs["INPUT_IDS"]
        assert found.tolist() == [wanted]
        assert found.dtype == np.int32


def test_texts_and_other_ways_to_say_the_same(models: dict[str, tuple[Any, Any]]) -> None:
    model, theirs = models["chatml"]
    (response,) = model.execute([request(TEXT=b"a long text " * 9)])
    assert response.outputs["INPUT_IDS"].tolist() == [theirs("a long text " * 9)["input_ids"]]
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    same = [
        ([said("developer", "a\nb")], [said("system", "a\nb")]),
        ([said("user", parts)], [said("user", "a\nb")]),
    ]
    for one, other in same:
        first, second = model.execute([request(MESSAGES=one), request(MESSAGES=other)])
        assert first.outputs["INPUT_IDS"].tolist() == second.outputs["INPUT_IDS"].tolist()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"MESSAGES": b"[{"}, "MESSAGES is not valid JSON: "),
    ({"MESSAGES": b"[" * 100_000}, "MESSAGES is not valid JSON: "),
    ({"MESSAGES": b"\xff"}, "MESSAGES[0] is not UTF-8 at byte 0."),
    ({"MESSAGES": b'[{"role": "user", "content": "\\ud800"}]'}, "MESSAGES cannot be tokenized: "),
    ({"MESSAGES": 7}, "MESSAGES must be a list of messages, or an object with `messages`."),
    ({"MESSAGES": []}, "MESSAGES: messages must be a list with one message at least."),
    ({"MESSAGES": {"message": TALK}}, "MESSAGES has 'message'; it can have messages, tools"),
    ({"MESSAGES": ["a"]}, 'MESSAGES[0] is no message: {"role": ..., "content": ...}.'),
    ({"MESSAGES": [{"content": "a"}]}, "MESSAGES[0] has no role; roles are system, developer,"),
    ({"MESSAGES": [said("User", "a")]}, "MESSAGES[0] has the role 'User'; roles are system, "),
    ({"MESSAGES": [said("user", None)]}, "MESSAGES[0] has no content."),
    ({"MESSAGES": [said("user", 7)]}, "MESSAGES[0].content must be a text, or a list of parts"),
    (
        {"MESSAGES": [said("user", [{"type": "image_url", "image_url": {}}])]},
        "MESSAGES[0].content[0] is 'image_url'; only texts are read here.",
    ),
    ({"MESSAGES": {"messages": TALK, "tools": "f"}}, "MESSAGES: tools must be a list of objects."),
    (
        {"MESSAGES": {"messages": TALK, "continue_final_message": 1}},
        "MESSAGES: continue_final_message must be true or false.",
    ),
    (
        {"MESSAGES": {"messages": TALK, "chat_template_kwargs": {"tools": []}}},
        "MESSAGES: chat_template_kwargs must not have tools.",
    ),
    ({"TEXT": b""}, "TEXT[0] is empty."),
    ({"TEXT": b"a", "MESSAGES": TALK}, "A request has either MESSAGES or TEXT."),
    ({}, "A request has either MESSAGES or TEXT."),
]


def test_what_is_refused(models: dict[str, tuple[Any, Any]]) -> None:
    model, _ = models["chatml"]
    responses = model.execute([request(**inputs) for inputs, _ in REFUSED])
    texts = [text for _, text in REFUSED]
    others = [
        (models["none"][0], TALK, "The model has no chat template, so it reads no MESSAGES: send"),
        (models["inst"][0], TALK[1:], "refuses the conversation: roles must alternate."),
    ]
    for other, talk, text in others:
        responses += other.execute([request(MESSAGES=talk)])
        texts.append(text)
    for response, text in zip(responses, texts, strict=True):
        assert text in str(response.error)
        assert response.error.code == TritonError.INVALID_ARG


def test_a_role_that_only_the_template_knows(models: dict[str, tuple[Any, Any]]) -> None:
    (response,) = models["inst"][0].execute(
        [request(MESSAGES=[said("user", "a"), said("critic", "b")])]
    )
    assert response.error is None


WORDS = st.sampled_from(["user", "system", "critic", "content", "text", "role", "\ud800", ""])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)
ANY_MESSAGES = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": WORDS | VALUES,
            "content": WORDS | VALUES | st.lists(st.fixed_dictionaries({"text": VALUES})),
            "tool_calls": VALUES,
            "name": VALUES,
        },
    )
    | VALUES,
    max_size=3,
)
KEYS = ("tools", "add_generation_prompt", "continue_final_message", "chat_template_kwargs", "x")
ANY_OBJECT = st.fixed_dictionaries({"messages": ANY_MESSAGES}, optional=dict.fromkeys(KEYS, VALUES))


@given(said=ANY_MESSAGES | ANY_OBJECT | VALUES)
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_is_sent_has_ids_or_a_sentence(
    models: dict[str, tuple[Any, Any]], said: Any
) -> None:
    for name in ("chatml", "tools"):
        (response,) = models[name][0].execute([request(MESSAGES=said)])
        assert response.error is None or response.error.code == TritonError.INVALID_ARG
