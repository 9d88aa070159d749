"""One forward pass for coders of every shape on many hookpoints; truth from transformers' own outputs and the formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from sae_core.attachment import attach
from sae_core.coder import SparseCoder
from sae_core.errors import CoderError, UnknownNameError
from sae_core.extraction import extract
from sae_core.partial import ExtractionSettings
from sae_core.parts.activation import JumpReLU, TopK
from sae_core.parts.encoder import AffineEncoder
from sae_core.parts.normalisation import LayerNorm, NoNormalisation
from sae_core.subject import SubjectModel
from sae_core.tokens import CorpusSpec, TokenCorpus, build_corpus
from tests.sae_core.test_intervention_resume import VOCAB, WIDTH, tiny_subject

LATENTS = 12


def coder(
    into: tuple[str, ...], out: tuple[str, ...] | None = None, *, k: int | None = None, norm: bool = False
) -> SparseCoder:
    generator = torch.Generator().manual_seed(len("".join(into)))
    out = into if out is None else out
    activation = TopK(k) if k else JumpReLU(torch.full((LATENTS,), 0.8))
    return SparseCoder(
        encoder=AffineEncoder(torch.randn(LATENTS, WIDTH * len(into), generator=generator), None, activation),
        decoder_weight=torch.randn(LATENTS, WIDTH * len(out), generator=generator),
        decoder_bias=torch.zeros(WIDTH * len(out)),
        normalisation=LayerNorm() if norm else NoNormalisation(),
        hookpoints_in=into,
        hookpoints_out=out,
        num_hooks_in=len(into),
        num_hooks_out=len(out),
        format="test",
        architecture="test",
        fingerprint="test",
    )


CODERS = {
    "sae": coder(("layers.0",)),
    "normalised sae": coder(("blocks.1.hook_resid_post",), norm=True),
    "transcoder": coder(("layers.1.mlp:input",), ("layers.1.mlp",), k=3),
    "attention": coder(("blocks.2.attn.hook_z",)),
    "crosscoder": coder(("layers.0", "layers.2")),
    "clt": coder(("layers.0.mlp:input",), ("layers.0.mlp", "layers.1.mlp", "layers.2.mlp")),
}


@pytest.fixture(scope="module")
def subject() -> SubjectModel:
    model = tiny_subject("llama")
    tokenizer = Tokenizer(WordLevel({f"t{i}": i for i in range(VOCAB)}, unk_token="t0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return SubjectModel(model.model, tokenizer, name="tiny", revision="test")


@pytest.fixture(scope="module")
def corpus(subject: SubjectModel, tmp_path_factory: pytest.TempPathFactory) -> TokenCorpus:
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for i in range(40):
        (folder / f"{i}.txt").write_text(" ".join(f"t{t}" for t in rng.integers(0, VOCAB, 30)))
    spec = CorpusSpec(path=str(folder), num_tokens=1000, context_length=16)
    return build_corpus(spec, subject.tokenizer, subject.bos_id, tmp_path_factory.mktemp("tokens"))


def inputs_by_hand(subject: SubjectModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """[T, ...] what each coder reads, from hooks on the modules themselves."""
    kept: dict[str, torch.Tensor] = {}
    layers = subject.model.model.layers
    handles = [
        layer.register_forward_hook(lambda _m, _a, out, i=i: kept.__setitem__(f"out{i}", out[0]))
        for i, layer in enumerate(layers)
    ]
    handles += [
        layer.mlp.register_forward_pre_hook(lambda _m, args, i=i: kept.__setitem__(f"mlp{i}", args[0][0]))
        for i, layer in enumerate(layers)
    ]
    handles.append(
        layers[2].self_attn.o_proj.register_forward_pre_hook(lambda _m, args: kept.__setitem__("z", args[0][0]))
    )
    with torch.no_grad():
        subject.model(input_ids=ids[None])
    for handle in handles:
        handle.remove()
    normal = kept["out1"] - kept["out1"].mean(1, keepdim=True)
    return {
        "sae": kept["out0"],
        "normalised sae": normal / (normal.std(1, keepdim=True) + 1e-5),
        "transcoder": kept["mlp1"],
        "attention": kept["z"],
        "crosscoder": torch.cat([kept["out0"], kept["out2"]], 1),
        "clt": kept["mlp0"],
    }


def test_statistics_of_all_equal_brute_force_in_one_pass(subject: SubjectModel, corpus: TokenCorpus) -> None:
    fire_count = {name: np.zeros(LATENTS, dtype=np.int64) for name in CODERS}
    largest = {name: np.zeros(LATENTS) for name in CODERS}
    for c in range(corpus.num_contexts):
        ids = torch.from_numpy(np.array(corpus.context(c))).long()
        for name, x in inputs_by_hand(subject, ids).items():
            encoder = CODERS[name].encoder
            assert isinstance(encoder, AffineEncoder)
            pre = (x @ encoder.weight.T).numpy()
            if name == "transcoder":
                kth = np.sort(pre, axis=1)[:, -3][:, None]
                acts = np.where((pre >= kth) & (pre > 0), pre, 0)
            else:
                acts = np.where(pre > 0.8, pre, 0)
            fire_count[name] += (acts > 0).sum(0)
            largest[name] = np.maximum(largest[name], acts.max(0))
    passes = 0

    def count(_module: object, _args: object) -> None:
        nonlocal passes
        passes += 1

    attached = [attach(subject, each) for each in CODERS.values()]
    handle = subject.model.model.embed_tokens.register_forward_pre_hook(count)
    settings = ExtractionSettings(context_length=16, window_length=8, batch_tokens=1 << 20)
    partials = extract(subject, attached, corpus, range(corpus.num_contexts), settings)
    handle.remove()
    assert passes == 1
    for name, partial in zip(CODERS, partials, strict=True):
        found = partial.fire_count.sum(1)
        np.testing.assert_array_equal(found, fire_count[name], err_msg=name)
        assert found.sum() > 50
        np.testing.assert_allclose(partial.max_activation.max(1), largest[name], rtol=1e-4, err_msg=name)


def test_what_does_not_fit_is_one_sentence(subject: SubjectModel) -> None:
    with pytest.raises(
        CoderError, match=rf"writes {WIDTH} dimensions and hookpoint layers.0.mlp.gate_proj of the subject carries 48"
    ):
        attach(subject, coder(("layers.0",), ("layers.0.mlp.gate_proj",)))
    with pytest.raises(UnknownNameError, match="has 3 layers"):
        attach(subject, coder(("layers.0", "layers.3")))
