"""The subject: the language model whose inside a sparse coder describes.

Letters in shapes: B batch, T tokens, D hookpoint width, V vocabulary.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sae_core.errors import SubjectError, UnknownNameError
from sae_core.hookpoints import Hookpoint, base_model, first_tensor, resolve_hookpoint

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class _AllCaptured(Exception):
    """Ends a forward pass as soon as everything asked for is there."""


class SubjectModel:
    """A causal language model from the Hugging Face ecosystem, frozen, with its tokenizer.

    Attributes:
        model: the full model (``AutoModelForCausalLM``), in eval mode, without gradients.
        base: the same model without its head; hookpoints are relative to it.
        name: folder or hub id, as it was given.
        revision: hub commit, or ``sha256:...`` over a local folder's safetensors.
        tokenizer: the fast tokenizer of ``tokenizer.json``.
        bos_id: the token that every context starts with, ``None`` where the tokenizer has no such rule.
        special_ids: ids at which activations mean nothing (BOS, EOS, padding).
        vocab_size: V, rows of the unembedding.
        max_context: longest sequence in tokens.
        device: where the weights lie.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        *,
        name: str,
        revision: str,
        tokenizer_config: dict[str, Any] | None = None,
    ) -> None:
        """Wrap a model that is in memory already; :meth:`load` is the usual way.

        Raises:
            SubjectError: a weight is NaN or infinite; the tokenizer has more tokens than the model.
        """
        for tensor_name, tensor in model.named_parameters():
            if not bool(torch.isfinite(tensor).all()):
                raise SubjectError(
                    f"The weight {tensor_name!r} of the subject {name} holds NaN or infinite values; "
                    "give weights that are finite (a checkpoint from before the training diverged)."
                )
        self.model: Any = cast(Any, model)
        self.model.eval()
        self.model.requires_grad_(False)
        self.base: Any = base_model(model)
        self.name = name
        self.revision = revision
        # Whole documents are cut into contexts here; what a library saved for its own batches must not pad or cut them.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer = tokenizer
        self.config: Any = self.model.config
        self.device: torch.device = next(model.parameters()).device
        self.dtype: torch.dtype = next(model.parameters()).dtype
        settings = tokenizer_config or {}
        self.bos_id: int | None = _bos_id(tokenizer, settings)
        self.special_ids: frozenset[int] = _special_ids(tokenizer, settings, self.config, self.bos_id)
        self.vocab_size: int = int(self.model.get_output_embeddings().weight.shape[0])
        text_config = self.config.get_text_config()  # a multimodal model's config has it one level down
        self.max_context: int = int(getattr(text_config, "max_position_embeddings", None) or 2048)
        if tokenizer.get_vocab_size() > self.vocab_size:
            raise SubjectError(
                f"The tokenizer of the subject {name} has {tokenizer.get_vocab_size()} tokens, its model only "
                f"{self.vocab_size}; give a folder whose tokenizer.json belongs to its weights."
            )

    @classmethod
    def load(
        cls,
        path_or_hub_id: str | Path,
        *,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "float32",
    ) -> SubjectModel:
        """Load a causal LM from a folder or from the Hugging Face hub; code that lies in a repository is never run.

        Args:
            path_or_hub_id: a folder with ``config.json``, ``*.safetensors`` and ``tokenizer.json``, or a hub id.
            revision: hub branch, tag or commit; not used for a folder.
            device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, ...
            dtype: ``float32``, ``float16`` or ``bfloat16``; weights are cast to it.

        Raises:
            SubjectError: it is not there, is no causal LM with safetensors weights, or its weights are not finite.
        """
        import transformers

        if dtype not in _DTYPES:
            raise SubjectError(f"The dtype {dtype!r} is not known; use one of {', '.join(_DTYPES)}.")
        name = str(path_or_hub_id)
        folder = Path(name).expanduser()
        local = folder.is_dir()
        if local:
            _check_folder(folder)
        elif folder.exists() or folder.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
            known_short_ids = not folder.exists() and "/" not in name and not name.startswith((".", "~"))
            if not known_short_ids:
                raise SubjectError(
                    f"The subject {name!r} is not a folder; give a folder with config.json, safetensors weights and "
                    "tokenizer.json, or a Hugging Face id such as 'EleutherAI/pythia-70m'."
                )
        source = str(folder) if local else name
        hub_options: dict[str, Any] = {} if local else {"revision": revision}
        auto_model: Any = transformers.AutoModelForCausalLM
        bars: Any = transformers.utils.logging
        shows_bars = bars.is_progress_bar_enabled()
        bars.disable_progress_bar()  # the service shows its own
        try:
            auto_config: Any = transformers.AutoConfig
            config = auto_config.from_pretrained(source, trust_remote_code=False, **hub_options)
            # some versions of transformers drop the cap on attention scores outside of their own implementation
            capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
            model, report = auto_model.from_pretrained(
                source,
                **({"attn_implementation": "eager"} if capped else {}),
                use_safetensors=True,
                trust_remote_code=False,
                dtype=_DTYPES[dtype],
                output_loading_info=True,
                **hub_options,
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise SubjectError(_load_failure(name, local, error)) from error
        finally:
            if shows_bars:
                bars.enable_progress_bar()
        if missing := sorted(report["missing_keys"]):
            raise SubjectError(
                f"The weights of the subject {name} lack {len(missing)} tensors, the first is {missing[0]!r}; "
                "give a complete checkpoint (they would be random otherwise)."
            )
        commit = getattr(model.config, "_commit_hash", None)
        tokenizer, settings = _read_tokenizer(name, folder, hub_options, local)
        return cls(
            model.to(_device(device)),
            tokenizer,
            name=name,
            revision=_folder_sha256(folder) if local else str(commit or revision or "unknown"),
            tokenizer_config=settings,
        )

    def is_unchanged(self) -> bool:
        """Whether the folder that it was loaded from still has its weights; always for one of the hub."""
        folder = Path(self.name).expanduser()
        return not folder.is_dir() or _folder_sha256(folder) == self.revision

    def copy_to(self, device: str | torch.device) -> SubjectModel:
        """The same subject with weights of its own on another device."""
        twin = copy.copy(self)
        twin.model = copy.deepcopy(self.model).to(device)
        twin.base = base_model(twin.model)
        twin.device = next(twin.model.parameters()).device
        return twin

    def hookpoint(self, name: str | Hookpoint) -> Hookpoint:
        """The hookpoint called ``name``; see :func:`sae_core.hookpoints.resolve_hookpoint`."""
        return resolve_hookpoint(self.model, name)

    def width(self, hookpoint: Hookpoint) -> int:
        """D, the width of the activations at a hookpoint (measured on one token)."""
        return self.widths([hookpoint])[hookpoint]

    def widths(self, hookpoints: Iterable[Hookpoint]) -> dict[Hookpoint, int]:
        """The same for several hookpoints, in one pass."""
        token = torch.zeros(1, 1, dtype=torch.long)
        captured = self.capture(token, list(hookpoints))
        return {hookpoint: int(value.shape[-1]) for hookpoint, value in captured.items()}

    @torch.inference_mode()
    def capture(self, tokens_BT: Tensor, hookpoints: Sequence[Hookpoint]) -> dict[Hookpoint, Tensor]:
        """Activations at ``hookpoints`` on ``tokens_BT`` (int64), each [B, T, D] in the model's dtype, on its device.

        One forward pass of the base model that ends as soon as the last hookpoint is reached: neither the blocks
        above nor the logits are computed. Rows may be padded on the right with any id: attention is causal, so
        what stands before the padding does not see it.
        """
        wanted = set(hookpoints)
        if not wanted:
            return {}
        found: dict[Hookpoint, Tensor] = {}

        def keep(hookpoint: Hookpoint, value: object) -> None:
            found[hookpoint] = first_tensor(value)
            if len(found) == len(wanted):
                raise _AllCaptured

        with self.hooks(wanted, keep):
            try:
                self.base(input_ids=tokens_BT.to(self.device), use_cache=False)
            except _AllCaptured:
                return found
        absent = ", ".join(str(h) for h in sorted(wanted - set(found)))
        raise SubjectError(f"The modules {absent} never ran in the subject {self.name}; choose other hookpoints.")

    @contextmanager
    def hooks(self, hookpoints: set[Hookpoint], keep: Callable[[Hookpoint, object], None]) -> Iterator[None]:
        """While this is open, ``keep(hookpoint, value)`` is called with what passes each hookpoint."""
        handles: list[RemovableHandle] = []
        try:
            for hookpoint in hookpoints:
                module = self.base.get_submodule(hookpoint.module)
                if hookpoint.io == "output":

                    def after(_m: nn.Module, _args: Any, output: Any, hookpoint: Hookpoint = hookpoint) -> None:
                        keep(hookpoint, output)

                    handles.append(module.register_forward_hook(after))
                else:

                    def before(_m: nn.Module, args: Any, kwargs: Any, hookpoint: Hookpoint = hookpoint) -> None:
                        if not args and "hidden_states" not in kwargs:
                            raise SubjectError(
                                f"The module {hookpoint.module} takes no activations that could be read; give another hookpoint."
                            )
                        keep(hookpoint, args[0] if args else kwargs["hidden_states"])

                    handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.inference_mode()
    def logits(self, tokens_BT: Tensor) -> Tensor:
        """Next-token logits [B, T, V] in the model's dtype."""
        logits: Tensor = self.model(input_ids=tokens_BT.to(self.device), use_cache=False).logits
        return logits

    @property
    def final_norm(self) -> nn.Module:
        """The norm between the last block and the unembedding.

        Raises:
            SubjectError: the base model has none under a name that is known.
        """
        try:
            norm = self.base.get_submodule(self.hookpoint("ln_final.hook_out").module)
        except UnknownNameError as error:
            raise SubjectError(
                f"The subject {self.name} ({type(self.base).__name__}) has no final norm under a name that is known; the logit "
                "lens needs one."
            ) from error
        return cast(nn.Module, norm)

    @torch.inference_mode()
    def unembed(self, direction: Tensor) -> Tensor:
        """Logit lens ``W_U · norm(d)`` of directions [..., D] in the residual stream: [..., V], float32.

        The final norm is applied to the direction itself, scaled to the root mean square 1 first so that the norm's
        epsilon does not matter; a LayerNorm's bias and the unembedding's bias are left out (``norm(d) - norm(0)``),
        because they are not the direction's doing. Zero directions give zeros.
        """
        norm = self.final_norm
        unit = direction.to(device=self.device, dtype=torch.float32)
        rms = unit.pow(2).mean(-1, keepdim=True).sqrt()
        unit = unit / rms.clamp_min(torch.finfo(torch.float32).tiny)
        normed = norm(unit.to(self.dtype)) - norm(torch.zeros_like(unit, dtype=self.dtype))
        weight: Tensor = self.model.get_output_embeddings().weight
        lens: Tensor = normed.float() @ weight.float().T
        return lens


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise SubjectError(f"The device {device!r} is not known; use 'auto', 'cpu' or 'cuda'.") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise SubjectError(f"The device {device!r} was asked for, but this machine shows no GPU; use 'auto' or 'cpu'.")
    return chosen


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise SubjectError(
            f"The subject folder {folder} has no config.json; give the folder of a Hugging Face causal LM "
            "(config.json, *.safetensors, tokenizer.json)."
        )
    if not any(folder.glob("*.safetensors")):
        raise SubjectError(
            f"The subject folder {folder} has no *.safetensors; save the model with save_pretrained (other weight "
            "formats can run code when they are read, and are refused)."
        )


def _load_failure(name: str, local: bool, error: Exception) -> str:
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    if local:
        return f"The subject folder {name} is not a causal LM that transformers can load: {first_line}."
    return (
        f"The subject {name!r} is neither a folder here nor a causal LM that the Hugging Face hub gave "
        f"({first_line}); check the name, the network and the access rights."
    )


def _folder_sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def _read_tokenizer(
    name: str, folder: Path, hub_options: dict[str, Any], local: bool
) -> tuple[Tokenizer, dict[str, Any]]:
    """The fast tokenizer and what ``tokenizer_config.json`` says (empty where there is none)."""
    from transformers import AutoTokenizer
    from transformers.utils.hub import cached_file

    def locate(file: str) -> Path | None:
        if local:
            return folder / file if (folder / file).is_file() else None
        found = cached_file(
            name,
            file,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **hub_options,
        )
        return Path(found) if found else None

    config_path = locate("tokenizer_config.json")
    settings: dict[str, Any] = json.loads(config_path.read_text(encoding="utf-8")) if config_path else {}
    path = locate("tokenizer.json")
    if path is not None:
        return Tokenizer.from_file(str(path)), settings
    try:
        slow = AutoTokenizer.from_pretrained(str(folder) if local else name, trust_remote_code=False, **hub_options)
        backend = slow.backend_tokenizer
    except (OSError, ValueError, KeyError, AttributeError, ImportError) as error:
        raise SubjectError(
            f"The subject {name} has no tokenizer.json and none can be made from its other tokenizer files; "
            "save a fast tokenizer beside the model (AutoTokenizer.from_pretrained(...).save_pretrained(...))."
        ) from error
    return backend, settings


def _token_text(value: object) -> str | None:
    """The text of a special token, which tokenizer_config.json gives as a string or as an object."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _bos_id(tokenizer: Tokenizer, settings: dict[str, Any]) -> int | None:
    """What the tokenizer puts before a text by itself; else its ``bos_token``, if it says ``add_bos_token``."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    dressed = tokenizer.encode("a", add_special_tokens=True).ids
    if len(dressed) > len(bare) and dressed[: len(bare)] != bare:
        return int(dressed[0])
    text = _token_text(settings.get("bos_token"))
    if settings.get("add_bos_token") and text is not None:
        found = tokenizer.token_to_id(text)
        return None if found is None else int(found)
    return None


def _special_ids(tokenizer: Tokenizer, settings: dict[str, Any], config: Any, bos_id: int | None) -> frozenset[int]:
    """BOS, EOS and padding, by the tokenizer's word; ids of the config count where the tokenizer calls them special.

    (A config's defaults name ids, 1 and 2 in a Llama, that are plain words of a home-made vocabulary.)
    """
    texts = [_token_text(settings.get(key)) for key in ("bos_token", "eos_token", "pad_token")]
    ids = {tokenizer.token_to_id(text) for text in texts if text is not None}
    marked = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(config, key, None)
        ids |= {i for i in (value if isinstance(value, (list, tuple)) else [value]) if i in marked}
    return frozenset(int(i) for i in ids | {bos_id} if i is not None)
