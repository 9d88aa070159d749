"""What only the subject's own tokenizer files say: its chat template, and the BOS and EOS that no text is given."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sae_core.errors import ConfigError, CorpusError, SubjectError

BosRule = Literal["auto", "always", "never"]


@dataclass(frozen=True)
class ChatTemplate:
    """Renders conversations as a subject's tokenizer does."""

    key: str
    """Digest of the template: what is rendered alike has the same."""
    _tokenizer: Any = field(repr=False)

    def __call__(self, messages: Sequence[Mapping[str, Any]], *, answered: bool = True) -> str:
        """The conversation as text, special tokens written out; unless it is ``answered``, up to where the model is to answer.

        Raises CorpusError where the template refuses it.
        """
        from jinja2 import TemplateError

        begins = {} if answered else {"add_generation_prompt": True}
        try:
            return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, **begins))
        except (TemplateError, TypeError, KeyError, ValueError, AttributeError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise CorpusError(
                f"the subject's chat template refuses a conversation of roles {[m.get('role') for m in messages][:6]} ({first}): "
                "leave such rows out, or choose another corpus.messages_field."
            ) from error


@dataclass(frozen=True)
class TextRules:
    """How a subject's contexts begin, how documents are joined, how conversations are rendered."""

    bos_id: int | None
    """Begins each context."""
    leading_id: int | None
    """Taken off where rows of token ids and rendered conversations begin with it, since the cut adds the BOS."""
    eos_id: int | None = None
    """Stands between packed documents."""
    render: ChatTemplate | None = None


def chat_template(model: str, *, revision: str | None = None) -> ChatTemplate | None:
    """The chat template of a subject; None where its tokenizer has none, or cannot be loaded by transformers."""
    try:
        return text_rules(model, None, revision=revision, chat=True).render
    except (ConfigError, SubjectError):
        return None


def text_rules(
    model: str,
    bos_id: int | None,
    *,
    revision: str | None = None,
    bos: BosRule = "auto",
    packed: bool = False,
    chat: bool = False,
) -> TextRules:
    """The rules for a subject whose tokenizer puts ``bos_id`` (or nothing) before a text.

    Its tokenizer is loaded only where the settings ask for what ``bos_id`` does not say. Raises ConfigError where it has
    no BOS, EOS or chat template and one is asked for, SubjectError where it cannot be loaded.
    """
    if bos == "auto" and not packed and not chat:
        return TextRules(bos_id, bos_id)
    from pathlib import Path

    from transformers import AutoTokenizer

    local = Path(model).expanduser()
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            str(local) if local.is_dir() else model,
            trust_remote_code=False,
            **({} if local.is_dir() else {"revision": revision}),
        )
    except (OSError, ValueError, KeyError, AttributeError, ImportError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise SubjectError(
            f"the tokenizer of the subject {model} cannot be loaded by transformers ({first}), and corpus.bos, corpus.packed or "
            "corpus.messages_field needs it: leave them out, or save the tokenizer with save_pretrained."
        ) from error
    token = bos_id if bos_id is not None else tokenizer.bos_token_id
    if bos == "always" and token is None:
        raise ConfigError(
            f'corpus.bos is "always", and the tokenizer of the subject {model} has no BOS: set it to "auto" or "never".'
        )
    eos_id = tokenizer.eos_token_id
    if packed and eos_id is None:
        raise ConfigError(
            f"corpus.packed joins documents by the EOS, and the tokenizer of the subject {model} has none: set corpus.packed to false."
        )
    render = None
    if chat:
        template = tokenizer.chat_template
        if not template:
            raise ConfigError(
                f"corpus.messages_field is set, and the tokenizer of the subject {model} has no chat template: "
                "take a chat model as the subject, or give the conversations as text and set corpus.text_field."
            )
        render = ChatTemplate(hashlib.sha256(repr(template).encode()).hexdigest(), tokenizer)
    begins = {"auto": bos_id, "always": token, "never": None}[bos]
    return TextRules(begins, token if bos != "auto" else bos_id, eos_id, render)
