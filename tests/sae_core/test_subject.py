"""Loading, capturing and refusing subjects; the truth is the plain Hugging Face model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing

from sae_core.errors import SubjectError
from sae_core.subject import SubjectModel
from tests.sae_core.test_intervention_resume import VOCAB, WIDTH, tiny_subject


def save(folder: Path, *, bos: bool, settings: dict[str, object] | None = None) -> Path:
    subject = tiny_subject("llama")
    subject.model.save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({"<s>": 0, "a": 1} | {f"t{i}": i for i in range(2, VOCAB)}, unk_token="t2"))
    tokenizer.add_special_tokens(["<s>"])
    if bos:
        tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_a_folder_loads_and_gives_the_plain_models_numbers(tmp_path: Path) -> None:
    subject = SubjectModel.load(save(tmp_path, bos=True), device="cpu")
    plain = tiny_subject("llama").model
    tokens = torch.arange(12).view(2, 6)
    torch.testing.assert_close(subject.logits(tokens), plain(tokens).logits)
    assert subject.bos_id == 0
    assert subject.special_ids == {0}, "ids 1 and 2 of a Llama config's defaults are plain words here"
    assert (subject.vocab_size, subject.max_context) == (VOCAB, 64)
    assert subject.revision.startswith("sha256:")
    assert not any(p.requires_grad for p in subject.model.parameters())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (None, None),
        ({"bos_token": "<s>"}, None),
        ({"bos_token": "<s>", "add_bos_token": True}, 0),
        ({"bos_token": {"content": "<s>"}, "add_bos_token": True}, 0),
    ],
)
def test_bos_is_the_tokenizers_own_rule(
    tmp_path: Path, settings: dict[str, object] | None, expected: int | None
) -> None:
    assert SubjectModel.load(save(tmp_path, bos=False, settings=settings), device="cpu").bos_id == expected


def test_capture_stops_after_the_last_hookpoint() -> None:
    subject = tiny_subject("llama")
    ran: list[int] = []
    for i, block in enumerate(subject.base.layers):
        block.register_forward_hook(lambda *_a, i=i: ran.append(i))
    points = [subject.hookpoint(name) for name in ("layers.1", "layers.0.mlp:input")]
    found = subject.capture(torch.arange(6)[None], points)
    assert set(found) == set(points)
    assert 2 not in ran
    assert subject.width(points[0]) == WIDTH
    assert subject.capture(torch.arange(6)[None], []) == {}


def test_right_padding_changes_nothing_before_it() -> None:
    subject = tiny_subject("gpt2")
    point = subject.hookpoint("layers.2")
    short, long = torch.arange(5)[None], torch.tensor([[0, 1, 2, 3, 4, 9, 9]])
    torch.testing.assert_close(subject.capture(short, [point])[point], subject.capture(long, [point])[point][:, :5])


def test_logit_lens_is_the_head_on_the_normed_direction() -> None:
    subject = tiny_subject("llama")
    d = torch.randn(3, WIDTH)
    weight = subject.model.lm_head.weight
    normed = d / d.pow(2).mean(-1, keepdim=True).sqrt() * subject.base.norm.weight
    torch.testing.assert_close(subject.unembed(d), normed @ weight.T, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(subject.unembed(7 * d), subject.unembed(d))
    assert subject.unembed(torch.zeros(WIDTH)).abs().max() == 0


def test_nan_weights_are_named() -> None:
    model = tiny_subject("llama").model
    model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(SubjectError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        SubjectModel(model, tiny_subject("llama").tokenizer, name="x", revision="y")


def test_what_is_no_subject_is_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SubjectError, match="is not a folder"):
        SubjectModel.load(tmp_path / "nowhere")
    with pytest.raises(SubjectError, match=r"config\.json"):
        SubjectModel.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SubjectError, match="safetensors"):
        SubjectModel.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(SubjectError, match="not a causal LM"):
        SubjectModel.load(tmp_path)
    with pytest.raises(SubjectError, match="dtype"):
        SubjectModel.load(tmp_path, dtype="int8")


def test_a_checkpoint_that_lacks_tensors_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save(tmp_path, bos=True)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SubjectError, match="up_proj"):
        SubjectModel.load(folder)


def test_padding_and_truncation_that_a_library_saved_are_dropped(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder = save(tmp_path / "padded", bos=True)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(length=64)
    tokenizer.enable_truncation(max_length=3)
    tokenizer.save(str(folder / "tokenizer.json"))
    loaded = SubjectModel.load(folder, device="cpu").tokenizer
    assert loaded.padding is None
    assert loaded.truncation is None
