"""Names of other libraries mean what they mean there: checked by what a transformer computes, not by the table."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from sae_core.errors import UnknownNameError
from sae_core.hook_names import BLOCK_PLACES
from sae_core.hookpoints import Hookpoint, block_index, block_list_name, resolve_hookpoint
from sae_core.subject import SubjectModel
from tests.sae_core.tiny_families import DEPTH, FAMILIES, HIDDEN, VOCAB, WIDTH, Family, tiny_family

TOKENS = torch.randint(0, VOCAB, (2, 7), generator=torch.Generator().manual_seed(0))
ALL = pytest.mark.parametrize("key", list(FAMILIES))
LAYERS = pytest.mark.parametrize("layer", range(DEPTH))
CAPTURED = [hook for hook, place in BLOCK_PLACES.items() if not place.before_gain]


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


class Seen:
    """One forward pass of a full model: what its modules took and gave, by hooks set here."""

    def __init__(self, key: str) -> None:
        self.family: Family = FAMILIES[key]
        self.subject: SubjectModel = tiny_family(key)
        self.taken: dict[str, Tensor] = {}
        self.given: dict[str, Tensor] = {}
        handles = []
        for name, module in self.subject.base.named_modules():

            def keep(_m: nn.Module, args: tuple, kwargs: dict, output: object, name: str = name) -> None:
                took = args[0] if args else kwargs.get("hidden_states")
                if isinstance(took, Tensor):
                    self.taken[name] = took
                gave = output[0] if isinstance(output, tuple) else output
                if isinstance(gave, Tensor):
                    self.given[name] = gave

            handles.append(module.register_forward_hook(keep, with_kwargs=True))
        with torch.no_grad():
            out = self.subject.model(input_ids=TOKENS, output_hidden_states=True, use_cache=False)
        for handle in handles:
            handle.remove()
        self.hidden: tuple[Tensor, ...] = out.hidden_states
        self.logits: Tensor = out.logits

    def module(self, *parts: str) -> nn.Module:
        return self.subject.base.get_submodule(self.family.name(*parts))

    def child(self, layer: int, *parts: str) -> nn.Module:
        return self.module(self.family.blocks, str(layer), *parts)


seen = cache(Seen)


@cache
def captured(key: str, name: str) -> Tensor:
    """What ``SubjectModel.capture`` gives for a name."""
    subject = tiny_family(key)
    point = subject.hookpoint(name)
    return subject.capture(TOKENS, [point])[point].clone()


def at(key: str, layer: int, hook: str) -> Tensor:
    return captured(key, f"blocks.{layer}.{hook}")


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


# ---------------------------------------------------------------------------------------------------- residual stream


@ALL
@LAYERS
def test_residual_places_are_the_models_hidden_states(key: str, layer: int) -> None:
    truth = seen(key)
    close(at(key, layer, "hook_resid_pre"), truth.hidden[layer])
    after = at(key, layer, "hook_resid_post")
    if layer == DEPTH - 1:  # the last hidden state is normed already
        after = truth.module(truth.family.final_norm)(after)
    close(after, truth.hidden[layer + 1])


@ALL
@LAYERS
def test_the_residual_stream_adds_up(key: str, layer: int) -> None:
    pre, post = at(key, layer, "hook_resid_pre"), at(key, layer, "hook_resid_post")
    attention, mlp = at(key, layer, "hook_attn_out"), at(key, layer, "hook_mlp_out")
    close(pre + attention + mlp, post)
    if FAMILIES[key].parallel:
        return
    close(pre + attention, at(key, layer, "hook_resid_mid"))
    close(at(key, layer, "hook_resid_mid") + mlp, post)


@ALL
@LAYERS
def test_what_is_added_is_what_attention_and_mlp_gave(key: str, layer: int) -> None:
    truth, family = seen(key), FAMILIES[key]
    attention = truth.given[family.block(layer, family.attention)]
    mlp = truth.given[family.block(layer, family.mlp)]
    if family.norm_behind_attention is not None:
        attention = truth.child(layer, family.norm_behind_attention)(attention)
    if family.norm_behind_mlp is not None:
        mlp = truth.child(layer, family.norm_behind_mlp)(mlp)
    close(at(key, layer, "hook_attn_out"), attention)
    close(at(key, layer, "hook_mlp_out"), mlp)


def test_parallel_blocks_have_no_middle() -> None:
    with pytest.raises(UnknownNameError, match="side by side"):
        tiny_family("neox_parallel").hookpoint("blocks.1.hook_resid_mid")


# ------------------------------------------------------------------------------------------------------ inside a block


@ALL
@LAYERS
def test_z_goes_into_the_attentions_output_projection(key: str, layer: int) -> None:
    truth, family = seen(key), FAMILIES[key]
    z = at(key, layer, "attn.hook_z")
    close(
        truth.child(layer, family.attention, family.attention_out)(z),
        truth.given[family.block(layer, family.attention)],
    )


@ALL
@LAYERS
def test_norms_read_the_residual_stream_and_feed_attention_and_mlp(key: str, layer: int) -> None:
    truth, family = seen(key), FAMILIES[key]
    pre = at(key, layer, "hook_resid_pre")
    before_mlp = pre if family.parallel else at(key, layer, "hook_resid_mid")
    close(at(key, layer, "hook_mlp_in"), before_mlp)
    close(at(key, layer, "ln1.hook_out"), truth.child(layer, family.norm_1)(pre))
    close(at(key, layer, "ln1.hook_out"), truth.taken[family.block(layer, family.attention)])
    close(at(key, layer, "ln2.hook_out"), truth.child(layer, family.norm_2)(before_mlp))
    close(at(key, layer, "mlp.hook_in"), at(key, layer, "ln2.hook_out"))


@ALL
@LAYERS
def test_the_mlp_leads_from_its_input_over_pre_and_post_to_its_output(key: str, layer: int) -> None:
    truth, family = seen(key), FAMILIES[key]
    into, pre, post = (at(key, layer, f"mlp.hook_{place}") for place in ("in", "pre", "post"))
    mlp = truth.child(layer, family.mlp)
    given = truth.given[family.block(layer, family.mlp)]
    close(mlp(into), given)
    close(mlp.get_submodule(family.mlp_gate)(into), pre)
    activated = getattr(mlp, family.activation)(pre)
    close(activated if family.mlp_up is None else activated * mlp.get_submodule(family.mlp_up)(into), post)
    close(mlp.get_submodule(family.mlp_down)(post), given)
    close(at(key, layer, "mlp.hook_out"), given)


@ALL
def test_places_of_a_block_differ(key: str) -> None:
    """Random gains keep the checks above honest: no two places coincide that are not one place."""
    same = {("hook_resid_mid", "hook_mlp_in"), ("mlp.hook_in", "ln2.hook_out")}
    family = FAMILIES[key]
    if family.parallel:
        same |= {("hook_resid_pre", "hook_mlp_in")}
    if family.norm_behind_mlp is None:
        same |= {("hook_mlp_out", "mlp.hook_out")}
    hooks = [hook for hook in CAPTURED if not (family.parallel and hook == "hook_resid_mid")]
    for i, a in enumerate(hooks):
        for b in hooks[i + 1 :]:
            x, y = at(key, 1, a), at(key, 1, b)
            if x.shape == y.shape:
                assert torch.allclose(x, y, atol=1e-3) == ((a, b) in same), (a, b)


# --------------------------------------------------------------------------------------------------- outside of blocks


@ALL
def test_embedding_is_what_enters_block_0(key: str) -> None:
    truth, family = seen(key), FAMILIES[key]
    embedded = captured(key, "hook_embed")
    scale = WIDTH**0.5 if "gemma" in key else 1.0  # TransformerLens folds Gemma's factor into W_E
    close(embedded, truth.module(family.embedding).weight[TOKENS] * scale)
    if key == "gpt2":
        embedded = embedded + truth.module("wpe").weight[: TOKENS.shape[1]]
    close(embedded, at(key, 0, "hook_resid_pre"))


@ALL
def test_final_norm_feeds_the_unembedding(key: str) -> None:
    truth = seen(key)
    logits = truth.subject.model.get_output_embeddings()(captured(key, "ln_final.hook_out"))
    cap = getattr(truth.subject.config, "final_logit_softcapping", None)
    close(torch.tanh(logits / cap) * cap if cap else logits, truth.logits)


@ALL
@pytest.mark.parametrize(
    ("name", "child"),
    [
        ("blocks.1.ln1.hook_normalized", "norm_1"),
        ("blocks.1.ln2.hook_normalized", "norm_2"),
        ("ln_final.hook_normalized", "final_norm"),
    ],
)
def test_a_norm_before_its_gain_is_no_place(key: str, name: str, child: str) -> None:
    """TransformerLens takes it before the gain: giving the module's output instead would mis-scale every latent."""
    family = FAMILIES[key]
    module = getattr(family, child)
    output = family.name(module) if child == "final_norm" else family.block(1, module)
    with pytest.raises(UnknownNameError, match="before its gain") as refusal:
        tiny_family(key).hookpoint(name)
    assert f"give {output!r} (the norm's output)" in str(refusal.value)
    close(captured(key, output), captured(key, name.replace("hook_normalized", "hook_out")))


# ------------------------------------------------------------------------------------------------------ other spellings


@ALL
def test_one_place_under_many_names(key: str) -> None:
    family, subject = FAMILIES[key], tiny_family(key)
    block, attention = family.block(1), family.block(1, family.attention)
    mlp, embedding = family.block(1, family.mlp), family.name(family.embedding)
    prefixes = ["model", "transformer", "gpt_neox", "model.language_model", "language_model.model", family.base]
    expected = {
        **{f"{start}{family.base}.{block}": block for start in ("", " ")},
        **{f"{prefix}.layers.1": block for prefix in prefixes},
        **{f"{prefix}.h.1:input": f"{block}:input" for prefix in prefixes},
        **{f"{words}.1": block for words in ("layers", "h", "blocks")},
        **{f"layers.1.{words}": attention for words in ("self_attn", "attention", "attn")},
        **{f"h.1.{words}": attention for words in ("self_attn", "attention", "attn")},
        **{words: embedding for words in ("embed_tokens", "wte", "embed_in", "hook_embed", "model.embed_tokens")},
        "layers.1.mlp": mlp,
        "model.layers.1.output": block,
        "model.layers.1.mlp.input": f"{mlp}:input",
        "layers.1.mlp:output": mlp,
        f"{family.base}.{attention}.{family.attention_out}.input": f"{attention}.{family.attention_out}:input",
        f"{family.base}.{family.block(1, family.norm_2)}.output": family.block(1, family.norm_2),
        "resid_post_layer_1": block,
        "resid_out_layer1": block,
        "mlp_out_layer_1": mlp,
        "mlp_out_layer1": mlp,
        "attn_out_layer_1": attention,
    }
    assert {name: str(subject.hookpoint(name)) for name in expected} == expected


@ALL
def test_every_modules_own_name_is_that_module(key: str) -> None:
    subject = tiny_family(key)
    for name, module in subject.base.named_modules():
        if name and not isinstance(module, nn.ModuleList):
            assert subject.hookpoint(name) == Hookpoint(name)
            assert subject.hookpoint(Hookpoint(name, "input")) == Hookpoint(name, "input")


def test_a_real_module_called_like_a_side_or_a_foreign_name_wins() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.ModuleDict({"output": nn.Linear(1, 1)}) for _ in range(2))
            self.blocks = nn.ModuleDict({"1": nn.ModuleDict({"hook_resid_post": nn.Identity()})})
            self.config = type("Config", (), {"num_hidden_layers": 2})()

    assert resolve_hookpoint(Odd(), "layers.1.output") == Hookpoint("layers.1.output")
    assert resolve_hookpoint(Odd(), "layers.1.output.input") == Hookpoint("layers.1.output", "input")
    assert resolve_hookpoint(Odd(), "blocks.1.hook_resid_post") == Hookpoint("blocks.1.hook_resid_post")


@ALL
def test_blocks_are_the_text_models(key: str) -> None:
    base, family = tiny_family(key).base, FAMILIES[key]
    assert block_list_name(base) == family.name(family.blocks)
    assert block_index(base, Hookpoint(family.block(2, family.mlp))) == 2
    assert block_index(base, Hookpoint(family.name(family.final_norm))) is None


@ALL
@pytest.mark.parametrize(
    "name",
    [
        f"layers.{DEPTH}",
        f"model.layers.{DEPTH}.mlp",
        f"blocks.{DEPTH}.hook_resid_post",
        f"blocks.{DEPTH}.hook_resid_pre",
        f"blocks.{DEPTH}.hook_resid_mid",
        f"resid_post_layer_{DEPTH}",
    ],
)
def test_a_layer_above_the_last_says_how_many_there_are(key: str, name: str) -> None:
    with pytest.raises(UnknownNameError, match=f"has {DEPTH} layers"):
        tiny_family(key).hookpoint(name)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("blocks.1.hook_resid_pots", "blocks.1.hook_resid_post"),
        ("blocks.1.hook_z", "blocks.1.attn.hook_z"),
        ("layers.1.mpl", "layers.1.mlp"),
        ("model.layers.1.self_atn", "layers.1.self_attn"),
        ("resid_past_layer_1", "layers"),
        ("layers", "layers.1"),
        ("model", "layers"),
        ("", "layers"),
    ],
)
def test_a_misspelt_name_is_told_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UnknownNameError, match=near.replace(".", r"\.")):
        tiny_family("llama").hookpoint(name)


@ALL
def test_widths(key: str) -> None:
    subject = tiny_family(key)
    # Four heads of 8 where a family's heads need not add up to the model's width; as wide as the model elsewhere.
    heads = 24 if key.startswith(("gpt2", "neox")) else 32
    expected = {"hook_resid_post": WIDTH, "mlp.hook_pre": HIDDEN, "mlp.hook_post": HIDDEN, "attn.hook_z": heads}
    for hook, width in expected.items():
        assert subject.width(subject.hookpoint(f"blocks.0.{hook}")) == width
