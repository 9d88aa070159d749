"""Write the quickstart's card from the figures that the two trainings left in ``training.json``.

python examples/card.py examples/quickstart
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TEMPLATE = """\
# The quickstart's subject and coder

A small language model of Python code and a sparse coder on its second layer, trained by the scripts of this repository on the
standard library of CPython {python} as it lay on the training machine, and nothing else. They are here so that `make demo` has
something real to label with nothing to download. They are no use for writing code.

```
python examples/train_subject.py --out examples/quickstart/subject --steps {steps}
python examples/train_coder.py --subject examples/quickstart/subject --out examples/quickstart/coder/{hookpoint}
```

| subject | |
|---|---|
| architecture | Llama: {layers} layers, width {width}, {heads} heads, MLP {mlp}, vocabulary {vocab:,} (byte-level BPE), tied embeddings |
| parameters | {parameters:,}, stored in 16 bit |
| context | {context} tokens, the first one `<|endoftext|>` |
| training text | {training_tokens:,} tokens of {library}; {tokens_seen:,} tokens seen ({epochs:.1f} times) |
| loss on the training modules | {train_loss:.3f} nats a token |
| loss on the held-out modules | {held_out_loss:.3f} nats a token ({held_out_tokens:,} tokens) |

| coder | |
|---|---|
| architecture | TopK SAE with {latents:,} latents, k = {k}, on the output of `{hookpoint}`; sparsify's layout |
| parameters | {coder_parameters:,}, stored in 16 bit |
| tokens seen | {coder_tokens:,} |
| L0 | {l0:.1f} |
| variance explained | {variance:.3f} |
| loss recovered | {recovered:.3f} ({clean:.3f} nats clean, {coder_loss:.3f} with the coder's output in place, {zero:.3f} with zeros) |
| dead share | {dead:.3f} of the latents fire nowhere in the {measured:,} tokens measured |

The coder's figures are of the held-out modules, read from the stored weights (`train_coder.py` measures them at its end; the first
token of each context does not count).

**Held out**: modules whose names' hash falls in the first tenth (`train_subject.is_held_out`), so that every Python version leaves the
same ones out. On the training machine: {held_out_modules}.

{note}

Files above 256 kB (generated tables) were left out, and so were exact duplicates.
"""


def write_card(folder: Path) -> None:
    """Write ``folder/README.md`` from ``folder/subject`` and the one coder below ``folder/coder``."""

    def read(path: Path) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return data

    (coder_folder,) = sorted(p for p in (folder / "coder").iterdir() if p.is_dir())
    config, subject = read(folder / "subject" / "config.json"), read(folder / "subject" / "training.json")
    coder = read(coder_folder / "training.json")
    health = coder["held_out"]
    text = TEMPLATE.format(
        python=subject["python"],
        steps=subject["planned_steps"],
        hookpoint=coder_folder.name,
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        heads=config["num_attention_heads"],
        mlp=config["intermediate_size"],
        vocab=config["vocab_size"],
        context=config["max_position_embeddings"],
        parameters=subject["parameters"],
        library="the standard library, tests included",
        training_tokens=subject["training_tokens"],
        tokens_seen=subject["tokens_seen"],
        epochs=subject["tokens_seen"] / subject["training_tokens"],
        train_loss=subject["train_loss_nats"],
        held_out_loss=subject["held_out_loss_nats"],
        held_out_tokens=subject["held_out_tokens"],
        note=subject.get("note", "Training ran in one go."),
        held_out_modules=", ".join(f"`{m}`" for m in subject["held_out_modules"]),
        latents=coder["latents"],
        k=coder["k"],
        coder_parameters=coder["parameters"],
        coder_tokens=coder["tokens_seen"],
        l0=health["l0"],
        variance=health["variance_explained"],
        recovered=health["loss_recovered"],
        clean=health["loss_clean_nats"],
        coder_loss=health["loss_with_coder_nats"],
        zero=health["loss_with_zeros_nats"],
        dead=health["dead_share"],
        measured=health["tokens_measured"],
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_card(Path(sys.argv[1]))
