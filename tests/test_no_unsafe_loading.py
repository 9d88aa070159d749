"""No source file reads what could run code: pickles, YAML tags, code that lies in a repository."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    p
    for folder in ("sae_core", "autointerp", "examples", "workers", "benchmarks")
    for p in (ROOT / folder).rglob("*.py")
)
PICKLES = ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
LOADERS = (
    "load",
    "loads",
    "Unpickler",
    "open",
    "unsafe_load",
    "full_load",
    "load_all",
    "unsafe_load_all",
    "full_load_all",
)


def imported_names(tree: ast.AST) -> dict[str, str]:
    """What each name that a file imports stands for, as a dotted path."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """The dotted path of what is called; empty where it is no name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        before = dotted(node.value, names)
        return f"{before}.{node.attr}" if before else ""
    return ""


def is_literal(call: ast.Call, argument: str, value: bool) -> bool:
    return any(
        keyword.arg == argument and isinstance(keyword.value, ast.Constant) and keyword.value.value is value
        for keyword in call.keywords
    )


def has(call: ast.Call, argument: str) -> bool:
    return any(keyword.arg == argument for keyword in call.keywords)


def unsafe(source: str) -> Iterator[str]:
    """What a file does that could run code from data."""
    tree = ast.parse(source)
    names = imported_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and dotted(node, names) in {
            f"{p}.{name}" for p in PICKLES for name in LOADERS
        }:
            yield f"line {node.lineno}: {dotted(node, names)}"
        if isinstance(node, ast.Name) and names.get(node.id, "") in {
            f"{p}.{name}" for p in PICKLES for name in LOADERS
        }:
            yield f"line {node.lineno}: {names[node.id]}"
        if not isinstance(node, ast.Call):
            continue
        called = dotted(node.func, names)
        if called in ("torch.load", "torch.serialization.load") and not is_literal(node, "weights_only", True):
            yield f"line {node.lineno}: torch.load without weights_only=True"
        if called == "numpy.load" and has(node, "allow_pickle") and not is_literal(node, "allow_pickle", False):
            yield f"line {node.lineno}: numpy.load with allow_pickle"
        if called in ("numpy.load", "numpy.lib.format.read_array") and len(node.args) > 2:
            yield f"line {node.lineno}: {called} with allow_pickle by its place"
        if (
            called == "numpy.lib.format.read_array"
            and has(node, "allow_pickle")
            and not is_literal(node, "allow_pickle", False)
        ):
            yield f"line {node.lineno}: read_array with allow_pickle"
        if called.startswith("yaml.") and called.removeprefix("yaml.") in (
            *LOADERS,
            "Loader",
            "UnsafeLoader",
            "FullLoader",
        ):
            yield f"line {node.lineno}: {called}"
        if has(node, "trust_remote_code") and not is_literal(node, "trust_remote_code", False):
            yield f"line {node.lineno}: trust_remote_code"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_source_file_reads_what_could_run(path: Path) -> None:
    assert list(unsafe(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(p)",
        "import torch\ntorch.load(p, weights_only=False)",
        "import torch\ntorch.load(p, weights_only=flag)",
        "import torch as t\nt.load(p)",
        "from torch import load\nload(p)",
        "import pickle\npickle.load(f)",
        "import pickle\nread = pickle.loads",
        "from pickle import loads\nloads(b)",
        "import numpy as np\nnp.load(p, allow_pickle=True)",
        "import numpy as np\nnp.load(p, allow_pickle=flag)",
        "import numpy as np\nnp.load(p, None, True)",
        "import yaml\nyaml.load(t, Loader=yaml.Loader)",
        "import yaml\nyaml.unsafe_load(t)",
        "AutoModel.from_pretrained(n, trust_remote_code=True)",
        "AutoModel.from_pretrained(n, trust_remote_code=flag)",
    ],
)
def test_the_check_finds_it(source: str) -> None:
    assert list(unsafe(source))


def test_the_check_lets_pass_what_is_safe() -> None:
    source = (
        "import json\nimport pickle\nimport numpy as np\nimport torch\nimport yaml\n"
        "torch.load(p, weights_only=True)\nnp.load(p)\nnp.load(p, allow_pickle=False)\nyaml.safe_load(t)\njson.loads(t)\n"
        "from_pretrained(n, trust_remote_code=False)\ntry:\n    pass\nexcept pickle.UnpicklingError:\n    pass\n"
    )
    assert not list(unsafe(source))
    assert SOURCES
