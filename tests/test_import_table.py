"""The import table: which package may import what (docs/architecture.md), read from the sources themselves."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers"}
# sae_core's modules that LLM workers, API and UI read
TORCH_FREE = (
    "compiled", "records", "hashing", "evidence_file", "lens_evidence", "attribution_evidence", "context_sample", "tried_texts", "errors", "exemplar_store", "partial", "reservoir", "token_text", "tokens", "documents",
    "document", "corpus_files", "corpus_writer", "dataset_files", "packing", "passage_values", "saved_dataset", "seen_digests", "token_cache",
    "token_corpus",
    "readers/scanning", "readers/file", "readers/field", "readers/table", "readers/text", "readers/jsonl", "readers/parquet",
    "readers/arrow", "readers/npy", "tensor_file", "fixed_point", "memory", "pool_sample", "suffix_evidence", "hub",
    "hook_names", "intervention/evidence", "intervention/text_evidence", "intervention/substitution_evidence", "intervention/windows",
)  # fmt: skip
NEVER = {
    "sae_core": {"autointerp", "workers", "pydantic", "openai", "anthropic", "celery", "sqlalchemy", "typer", "rich"},
    "autointerp": {"celery", "workers"},
}
# modules of autointerp that only GPU stages and the preflight import, late
GPU_ONLY = {"autointerp/pipeline/attaching.py"}
HUB_MODULES = {"sae_core/hub.py"}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path, *, late: bool) -> Iterator[str]:
    """Full names that a file imports: at import time, or (``late``) anywhere. TYPE_CHECKING blocks do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if not late and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            yield child
            yield from walk(child)

    for node in walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def top(names: Iterator[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("package", sorted(NEVER))
def test_no_module_imports_what_its_package_never_may(package: str) -> None:
    for path in modules(package):
        found = top(imports(path, late=True)) & NEVER[package]
        assert not found, f"{path.relative_to(ROOT)} imports {sorted(found)}"


@pytest.mark.parametrize("name", TORCH_FREE)
def test_the_torch_free_half_names_neither_torch_nor_transformers(name: str) -> None:
    path = ROOT / "sae_core" / f"{name}.py"
    assert path.is_file()
    assert not top(imports(path, late=True)) & HEAVY


def test_autointerp_imports_torch_and_gpu_modules_late_only() -> None:
    light = {f"sae_core.{name.replace('/', '.')}" for name in TORCH_FREE}
    for path in modules("autointerp"):
        name = path.relative_to(ROOT).as_posix()
        if name in GPU_ONLY:
            continue
        found = set(imports(path, late=False))
        assert not {f.split(".")[0] for f in found} & HEAVY, name
        for imported in found:
            if imported.startswith("sae_core."):
                assert any(imported == module or imported.startswith(module + ".") for module in light), (
                    f"{name} imports {imported} at import time, which is not of the torch-free half"
                )
            assert imported.rpartition(".")[0] != "autointerp.pipeline.attaching", f"{name} imports {imported} early"


def test_the_hub_client_is_imported_in_one_module() -> None:
    for package in ("sae_core", "autointerp"):
        for path in modules(package):
            if "huggingface_hub" in top(imports(path, late=True)):
                assert path.relative_to(ROOT).as_posix() in HUB_MODULES


@pytest.mark.parametrize(
    "statement",
    [
        "import autointerp",
        "import autointerp.cli",
        "import autointerp.components; autointerp.components.known_components('explainers')",
        "import autointerp.components; autointerp.components.known_components('scorers')",
        "import autointerp.pipeline.stages, autointerp.pipeline.starting, autointerp.pipeline.driver",
        "import autointerp.pipeline.finding, autointerp.store, autointerp.export, autointerp.report.show",
        "import autointerp.inspection",
    ],
)
def test_import_loads_no_torch(statement: str) -> None:
    code = f"{statement}\nimport sys\nprint(sorted({{'torch', 'transformers', 'celery'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


ONE_AFTER_ANOTHER = """
import importlib, sys
for name in sys.stdin.read().split():
    importlib.import_module(name)
    if loaded := {"torch", "transformers", "celery"} & set(sys.modules):
        sys.exit(f"{name} loads {sorted(loaded)}")
"""


def test_the_torch_free_half_loads_no_torch() -> None:
    names = " ".join(f"sae_core.{name.replace('/', '.')}" for name in TORCH_FREE)
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_ANOTHER], input=names, capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr


EACH_FIRST = """
import importlib, sys
failed = []
for name in sys.stdin.read().split():
    for ours in [m for m in sys.modules if m.split(".")[0] == "autointerp"]:
        del sys.modules[ours]
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed.append(f"{name}: {error}")
print("\\n".join(failed))
"""


@pytest.mark.long
def test_every_module_can_be_the_first_that_is_imported() -> None:
    # a package's modules in a circle work or not by who comes first
    places = [path.relative_to(ROOT).with_suffix("") for path in modules("autointerp") if "versions" not in path.parts]
    names = [".".join(place.parts).removesuffix(".__init__") for place in places]
    done = subprocess.run(
        [sys.executable, "-c", EACH_FIRST],
        input="\n".join(name for name in names if name != "autointerp.store.migrations.env"),
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout.strip() == ""


def test_workers_hold_no_logic_and_load_no_torch() -> None:
    """Celery's side of the cluster: short modules over autointerp.cluster, which knows neither Celery nor the broker."""
    for path in modules("workers"):
        found = top(imports(path, late=True)) - set(sys.stdlib_module_names)
        assert found <= {"autointerp", "celery", "kombu", "workers"}, path
    loads = "import sys, workers.app, workers.tasks; sys.exit(' '.join({'torch', 'transformers', 'pandas'} & set(sys.modules)) or 0)"
    environment = os.environ | {"AUTOINTERP_STORE__URL": "sqlite:////nowhere/store.db"}
    done = subprocess.run(
        [sys.executable, "-c", loads], capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
