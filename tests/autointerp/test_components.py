"""Components are found without a list of them, and a wrong table is met with one sentence."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from typing import Literal

import pytest

import autointerp.components as components
from autointerp.evidence import LatentEvidence
from autointerp.explainers.base import Explainer
from autointerp.explainers.pattern import PatternExplainer
from autointerp.explanation import Explanation
from autointerp.llm.asking import NO_LLMS, LLMs
from autointerp.scorers.pattern import PatternScorer
from sae_core.errors import ConfigError


def test_kinds_of_the_package_are_found() -> None:
    assert components.known_components("explainers")["pattern"] is PatternExplainer
    scorers = components.known_components("scorers")
    assert scorers["pattern"] is PatternScorer
    assert "intervention" in scorers


def test_a_table_becomes_a_component() -> None:
    explainer = components.parse_component("explainers", {"kind": "pattern", "min_support": 3})
    assert explainer == PatternExplainer(min_support=3)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"kind": "patern"}, "unknown kind 'patern': did you mean 'pattern'?"),
        ({"kind": "pattern", "min_suport": 3}, "unknown field 'min_suport': did you mean 'min_support'?"),
        ({"kind": "pattern", "min_support": 0}, "min_support = 0: input should be greater than or equal to 1"),
        ({"kind": "pattern", "min_support": "many"}, "min_support = 'many'"),
        ({}, "has no kind"),
        ({"kind": 3}, "kind = 3"),
    ],
)
def test_wrong_tables(table: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        components.parse_component("explainers", table)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


class _Echo(Explainer):
    kind: Literal["echo"] = "echo"

    async def explain(self, evidence: LatentEvidence, llms: LLMs = NO_LLMS) -> Explanation:
        return Explanation(latent=evidence.latent, explainer=self.kind, text="echo")


class _Impostor(_Echo):
    kind: Literal["pattern"] = "pattern"  # type: ignore[assignment]


@pytest.fixture
def _fresh_registry() -> object:
    components.known_components.cache_clear()
    yield
    components.known_components.cache_clear()


@pytest.mark.usefixtures("_fresh_registry")
def test_entry_points_add_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("echo", f"{__name__}:_Echo", "autointerp.explainers")
    monkeypatch.setattr(components, "entry_points", lambda group: [point] if group == "autointerp.explainers" else [])
    assert components.parse_component("explainers", {"kind": "echo"}) == _Echo()


@pytest.mark.usefixtures("_fresh_registry")
@pytest.mark.parametrize(("name", "said"), [("_Impostor", "claimed by"), ("pytest", "must load a concrete")])
def test_bad_entry_points_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    point = EntryPoint("bad", f"{__name__}:{name}", "autointerp.explainers")
    monkeypatch.setattr(components, "entry_points", lambda group: [point])
    with pytest.raises(ConfigError, match=said):
        components.known_components("explainers")


def test_importing_loads_no_torch() -> None:
    code = (
        "import sys, autointerp.components as c; c.known_components('explainers'); c.known_components('scorers');"
        "assert not {'torch', 'transformers', 'celery'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_alone_is_light() -> None:
    code = "import sys, autointerp; assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules); autointerp.Score"
    subprocess.run([sys.executable, "-c", code], check=True)
