"""Texts of tokens against what the ``tokenizers`` library decodes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from sae_core.errors import InputError, MissingFileError
from sae_core.token_text import TokenText, show_whitespace

TEXT = ["def f(self):\n        return 'é€'\n\tx = 1", "日本語 and 𝄞 music", "    if x:\n"]


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenText, Tokenizer]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return TokenText.from_file(path), tokenizer


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=40))
def test_byte_level_text_equals_the_library(byte_level: tuple[TokenText, Tokenizer], text: str) -> None:
    pieces, tokenizer = byte_level
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if "<|endoftext|>" not in text:
        assert pieces.text(ids) == text
    assert pieces.text(ids) == tokenizer.decode(ids, skip_special_tokens=False)
    parts = pieces.pieces(ids)
    assert len(parts) == len(ids)
    assert "".join(parts) == text


def test_split_character_stands_whole_at_its_first_token(byte_level: tuple[TokenText, Tokenizer]) -> None:
    pieces, tokenizer = byte_level
    ids = tokenizer.encode("ж", add_special_tokens=False).ids
    assert len(ids) == 2
    assert pieces.pieces(ids) == ["ж", ""]
    assert pieces.piece(ids[0]) == "\\xd0"
    assert pieces.pieces(ids[:1]) == ["\\xd0"]
    assert pieces.pieces([ids[1], ids[0]]) == ["\\xb6", "\\xd0"]


def test_special_and_unknown_tokens(byte_level: tuple[TokenText, Tokenizer]) -> None:
    pieces, tokenizer = byte_level
    bos = tokenizer.token_to_id("<|endoftext|>")
    assert pieces.special == {bos}
    assert pieces.piece(bos) == "<|endoftext|>"
    assert pieces.vocab_size == tokenizer.get_vocab_size()
    assert pieces.piece(99_999) == "<99999>"


def test_sentencepiece_bytes_and_spaces(tmp_path: Path) -> None:
    vocab = {"<s>": 0, "▁self": 1, "<0xE2>": 2, "<0x82>": 3, "<0xAC>": 4, "▁▁": 5, "x": 6}
    layout = {
        "version": "1.0",
        "added_tokens": [
            dict(id=0, content="<s>", single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
        ],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "truncation": None,
        "padding": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": True},
    }
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(layout), encoding="utf-8")
    pieces = TokenText.from_file(path)
    ids = [1, 2, 3, 4, 5, 6]
    assert pieces.text(ids) == Tokenizer.from_file(str(path)).decode(ids, skip_special_tokens=False) == " self€  x"
    assert pieces.pieces(ids) == [" self", "€", "", "", "  ", "x"]


def test_wordpiece_marks_what_continues_a_word(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "play": 1, "##ing": 2}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    assert TokenText.from_file(path).pieces([1, 2]) == [" play", "ing"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\n        ", "⏎␣₈"),
        ("\t", "→"),
        (" ", "␣"),
        (" self", " self"),
        ("a b ", "a b␣"),
        ("\r\n", "␍⏎"),
        (" " * 12, "␣₁₂"),
        ("\x00", "\\x00"),
    ],
)
def test_visible_whitespace(text: str, shown: str) -> None:
    assert show_whitespace(text) == shown


def test_visible_of_one_token_and_of_many(byte_level: tuple[TokenText, Tokenizer]) -> None:
    pieces, tokenizer = byte_level
    ids = tokenizer.encode("\n\tx", add_special_tokens=False).ids
    assert pieces.visible(ids) == "⏎→x"
    assert pieces.visible(ids[-1]) == "x"


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"tokenizer\.json"):
        TokenText.from_file(tmp_path / "none.json")
    path = tmp_path / "tokenizer.json"
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="is not a tokenizer"):
        TokenText.from_file(path)
    path.write_text("no json", encoding="utf-8")
    with pytest.raises(InputError, match="is not a tokenizer"):
        TokenText.from_file(path)


def test_no_torch() -> None:
    code = "import sys, sae_core.token_text; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
