"""Conversations as text, against what transformers itself makes of them; the BOS and EOS that settings ask for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sae_core.chat import chat_template, text_rules
from sae_core.errors import ConfigError, CorpusError, SubjectError
from sae_core.tokens import CorpusSpec, build_corpus

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'nobody' %}{{ raise_exception('no such role') }}{% endif %}"
    "<|{{ message.role }}|>\n{{ message.content }}{{ eos_token }}\n{% endfor %}"
)
CHATS = [
    [{"role": "user", "content": "what is 1 + 1"}, {"role": "assistant", "content": "2, <|user|> of course"}],
    [{"role": "system", "content": "be brief"}, {"role": "user", "content": "<s> hi </s>"}],
    [{"role": "user", "content": "naïve ⟂ 🙂"}],
]
BOS, EOS = 256, 257


def byte_tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    """A token a byte, and special ones that begin each text with the BOS."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    built = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens(["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"])
    if options.pop("dressed", True):
        built.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=built, **options)


def saved(folder: Path, **options: Any) -> PreTrainedTokenizerFast:
    folder.mkdir(exist_ok=True)
    given = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE} | options
    tokenizer = byte_tokenizer(**{name: value for name, value in given.items() if value is not None})
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.mark.parametrize("bos_id", [BOS, None])
def test_conversations_are_what_transformers_makes_of_them(tmp_path: Path, bos_id: int | None) -> None:
    tokenizer = saved(tmp_path / "model")
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in CHATS))
    expected = [tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False) for chat in CHATS]
    assert all(ids[0] == BOS for ids in expected)
    total = sum(len(ids) - (bos_id is not None) for ids in expected)
    rules = text_rules(str(tmp_path / "model"), bos_id, chat=True)
    spec = CorpusSpec(str(path), total, 512, messages_field="messages")
    backend = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    corpus = build_corpus(
        spec, backend, rules.bos_id, tmp_path / "out", leading_id=rules.leading_id, render=rules.render
    )
    assert [corpus.context(c).tolist() for c in range(corpus.num_contexts)] == expected, (
        "one BOS, as the template has it"
    )


def test_never_a_bos(tmp_path: Path) -> None:
    saved(tmp_path / "model")
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": CHATS[0]}) + "\n")
    rules = text_rules(str(tmp_path / "model"), BOS, chat=True, bos="never")
    backend = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    spec = CorpusSpec(str(path), 20, 512, messages_field="messages")
    corpus = build_corpus(
        spec, backend, rules.bos_id, tmp_path / "out", leading_id=rules.leading_id, render=rules.render
    )
    assert BOS not in corpus.context(0).tolist()


def test_what_settings_make_of_bos_and_eos(tmp_path: Path) -> None:
    saved(tmp_path / "full")
    saved(tmp_path / "bare", bos_token=None, eos_token=None, chat_template=None, dressed=False)
    full, bare = str(tmp_path / "full"), str(tmp_path / "bare")
    plain = text_rules("nowhere/at-all", 5)
    assert (plain.bos_id, plain.leading_id, plain.eos_id, plain.render) == (5, 5, None, None)
    assert text_rules(full, None, bos="always").bos_id == BOS
    assert text_rules(full, None, packed=True).bos_id is None
    assert text_rules(full, BOS, packed=True).eos_id == EOS
    never = text_rules(full, BOS, bos="never")
    assert (never.bos_id, never.leading_id) == (None, BOS)
    assert text_rules(bare, None, bos="never").bos_id is None
    with pytest.raises(ConfigError, match=r'corpus.bos is "always", and .* has no BOS: set it to "auto" or "never"'):
        text_rules(bare, None, bos="always")
    with pytest.raises(ConfigError, match=r"has none: set corpus.packed to false"):
        text_rules(bare, None, packed=True)
    with pytest.raises(ConfigError, match=r"has no chat template: take a chat model as the subject"):
        text_rules(bare, None, chat=True)
    with pytest.raises(SubjectError, match=r"cannot be loaded by transformers"):
        text_rules(str(tmp_path), None, packed=True)


def test_the_key_follows_the_template(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    saved(tmp_path / "b")
    saved(tmp_path / "c", chat_template=TEMPLATE + " ")
    renders = [text_rules(str(tmp_path / name), None, chat=True).render for name in "abc"]
    keys = [render.key for render in renders if render is not None]
    assert keys[0] == keys[1] != keys[2]


def test_what_the_template_refuses_is_a_sentence(tmp_path: Path) -> None:
    saved(tmp_path / "model")
    render = text_rules(str(tmp_path / "model"), BOS, chat=True).render
    assert render is not None
    with pytest.raises(
        CorpusError, match=r"refuses a conversation of roles \['nobody'\] \(no such role\): leave such rows"
    ):
        render([{"role": "nobody", "content": "a"}])
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": CHATS[0]}) + "\n")
    spec = CorpusSpec(str(tmp_path / "a.jsonl"), 5, 16, messages_field="messages")
    backend = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    with pytest.raises(CorpusError, match=r"gives no chat template: set corpus.text_field"):
        build_corpus(spec, backend, BOS, tmp_path / "out")


def test_the_module_loads_transformers_only_where_it_is_used() -> None:
    code = "import sys, sae_core.chat as c; c.text_rules('x', 3); print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "set()", done.stderr


def test_an_instruction_is_rendered_up_to_where_the_model_answers(tmp_path: Path) -> None:
    asks = TEMPLATE + "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    tokenizer = saved(tmp_path / "chat", chat_template=asks)
    template = chat_template(str(tmp_path / "chat"))
    assert template is not None
    turns = [{"role": "user", "content": "what is 1 + 1"}]
    expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert template(turns, answered=False) == expected
    assert expected.endswith("<|assistant|>\n")
    assert template(turns) == expected.removesuffix("<|assistant|>\n")
    saved(tmp_path / "base", chat_template=None)
    assert chat_template(str(tmp_path / "base")) is None
    assert chat_template(str(tmp_path / "nowhere")) is None
