"""Cards: read by a YAML and a Markdown parser, with text in them that would break out of its place if it could."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from autointerp.exchange import export_exchange, format_of
from autointerp.exchange.card import MARK, CardContent, card_text, exchange_card
from autointerp.exchange.dictionary_card import export_with_card
from autointerp.exchange.hostile_text import LONGEST, code_span, one_line, without_place
from autointerp.export import COLUMNS, RowFilter, verify_dictionary
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.exporting import ExportOptions, export_run
from sae_core.errors import InputError, StoreError
from tests.autointerp.exchange_run import NUM_LATENTS, make_run

SECTIONS = ["The text it quotes", "How the labels were made", "How far to trust them", "Files"]
EVIL = [
    "x\n---\nlicense: mit\n---\n# Pwned",
    "`` ` `` </code><script>alert(1)</script>",
    '<img src=x onerror="alert(1)"> [a](javascript:alert(1)) ![b](http://evil.example/x.png)',
    "https://evil.example www.evil.example a@evil.example | | |",
    "\u202egnp\u2028# Heading\u2029\x00\x1b[31m\u200b`",
    "{{ site.secret }} {% include x %} $$\\href{http://evil.example}{x}$$ &lt;b&gt;",
    "`",
    "a" * 5000,
]
SUMMARY = {
    "latents": {"total": 12, "labelled": 9, "dead": 1, "rare": 1, "failed": 1},
    "scores": {
        group: {
            "num_latents": count,
            "precision": {"median": 0.7512, "num_defined": 8},
            "recall": {"median": None, "num_defined": 8},
            "f1": {"median": 0.5, "num_defined": 0},
        }
        for group, count in (("alive", 11), ("labelled", 9))
    },
    "floors": {"shuffled": {"num_latents": 7, "precision": 0.1234, "recall": 0.2, "f1": 0.1}},
    "labels": {"most_common": EVIL[1]},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    context = make_run(tmp_path_factory.mktemp("exchange") / "run")
    context.folder.summary.write_text(json.dumps(SUMMARY))
    return context


def content(run: RunContext, **changed: Any) -> CardContent:
    sources = [source for source in run.sources if not source.control]
    return replace(CardContent("parquet", 12, "The files.", sources), **changed)


def split(card: str) -> tuple[dict[str, Any], str]:
    """Front matter and body, as the hub takes them apart: at lines of three dashes."""
    lines = card.split("\n")
    assert lines[0] == "---"
    end = lines.index("---", 1)
    front = yaml.safe_load("\n".join(lines[1:end]))
    assert isinstance(front, dict)
    return front, "\n".join(lines[end + 1 :])


def walk(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from walk(token.children or [])


def check_body(body: str, *, sections: list[str] = SECTIONS) -> list[str]:
    """Whether the page has our structure and no other; returns its code spans."""
    tokens = list(walk(MarkdownIt("commonmark", {"linkify": False}).enable("table").parse(body)))
    html = [token.content.strip() for token in tokens if token.type in ("html_block", "html_inline")]
    assert html == [MARK]
    assert not [token for token in tokens if token.type in ("link_open", "image", "hr")]
    heads = [after.content for token, after in itertools.pairwise(tokens) if token.type == "heading_open"]
    assert heads[1:] == sections
    plain = " ".join(token.content for token in tokens if token.type == "text")
    for word in ("evil", "alert", "Pwned", "secret", "gnp"):
        assert word not in plain
    return [token.content for token in tokens if token.type == "code_inline"]


def test_a_card_says_what_it_must(run: RunContext) -> None:
    front, body = split(card_text(run, content(run)))
    assert front["license"] == "unknown"
    assert front["size_categories"] == ["n<1K"]
    assert front["viewer"] is False
    spans = check_body(body)
    assert {"made-up-subject", "made-up-coder", "layers.0", "f" * 64, "made-up-corpus", "pattern"} <= set(spans)
    assert "random" not in spans, "controls are left out"
    assert "licence of the corpus: unknown" in body
    assert "quote the corpus word for word" in body
    assert "12 latents: 9 labelled, 1 dead, 1 rare, 1 failed." in body
    assert "| precision | 0.75 (11 latents) | 0.75 (9 latents) | 8 latents | 0.12 (7 latents) |" in body
    assert "| recall | not measured | not measured | 8 latents | 0.20 (7 latents) |" in body
    assert "| F1 |" not in body, "defined for none"
    assert "nan" not in body.lower().split()


@pytest.mark.parametrize(
    ("given_licence", "front"),
    [
        ("cc-by-4.0", {"license": "cc-by-4.0"}),
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("no", {"license": "other", "license_name": "no"}),
        ("mine: [1, 2] # & *x", {"license": "other", "license_name": "mine: [1, 2] # & *x"}),
    ],
)
def test_a_licence_is_told_as_it_was_given(run: RunContext, given_licence: str, front: dict[str, str]) -> None:
    found, body = split(card_text(run, content(run, corpus_license=given_licence)))
    assert {name: found.get(name) for name in front} == front
    assert given_licence in check_body(body)
    assert "it was not checked" in body


@pytest.mark.parametrize("licence", ["a\nb", " ", "x\u202ey", "a\x00b"])
def test_a_licence_is_a_line_of_text(run: RunContext, licence: str) -> None:
    with pytest.raises(InputError, match="not a line of text"):
        card_text(run, content(run, corpus_license=licence))


@pytest.mark.parametrize("evil", EVIL)
def test_nothing_hostile_leaves_its_place(run: RunContext, evil: str) -> None:
    source = next(source for source in run.sources if not source.control)
    changed = replace(
        source, name=evil, subject=evil, subject_revision=evil, coder=evil, hookpoint=evil, coder_fingerprint=evil
    )
    config = run.config.model_copy(update={"corpus": run.config.corpus.model_copy(update={"path": evil})})
    wanted = {"statuses": [evil]}
    card = card_text(replace(run, config=config), content(run, sources=[changed], filter=wanted))
    front, body = split(card)
    assert set(front) == {"pretty_name", "license", "tags", "size_categories", "viewer"}
    assert front["license"] == "unknown"
    spans = check_body(body)
    shown = one_line(without_place(evil))
    assert sum(span.strip() == shown for span in spans) >= 2
    assert max(map(len, card.split("\n"))) < 4000


@given(st.text(max_size=400) | st.text(alphabet="`\\ \n<>[]()|*_#", max_size=40))
def test_a_code_span_is_one_code_span(text: str) -> None:
    page = f"* before {code_span(text)} after"
    tokens = list(walk(MarkdownIt("commonmark").enable("table").parse(page)))
    inline = [token for token in tokens if token.type not in ("inline", "text") and token.nesting == 0]
    spans = [token.content for token in inline if token.type == "code_inline"]
    if one_line(text):
        assert len(inline) == len(spans) == 1
        assert spans[0].strip() == one_line(text).strip()
    else:
        assert inline == []
    assert next(token.content for token in tokens if token.type == "text").startswith("before")
    assert len([token for token in tokens if token.type == "list_item_open"]) == 1
    assert len(one_line(text)) <= LONGEST


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("org/model", "org/model"),
        ("/home/ann/secret/model", "model"),
        ("~/secret/model/", "model"),
        ("../secret/model", "model"),
        ("C:\\Users\\ann\\model", "model"),
        ("s3://key:word@bucket/path?token=1#x", "s3://bucket/path"),
    ],
)
def test_paths_and_passwords_are_not_published(name: str, shown: str) -> None:
    assert without_place(name) == shown


@pytest.mark.parametrize(
    "text", ["", "[1]", "{", '{"latents": 3, "scores": {"alive": [NaN]}}', '{"latents": {"total": NaN}}']
)
def test_a_summary_that_cannot_be_read_is_none(run: RunContext, tmp_path: Path, text: str) -> None:
    folder = replace(run.folder, root=tmp_path)
    folder.summary.write_text(text)
    _, body = split(card_text(replace(run, folder=folder), content(run)))
    check_body(body)
    assert "The run left no summary" in body
    assert "The run has no medians" in body
    assert not any(math.isnan(float(word)) for word in body.split() if word.lower() in ("nan", "inf"))


@pytest.mark.parametrize("kind", ["neuronpedia", "circuit-tracer"])
def test_the_card_of_another_tools_files(run: RunContext, tmp_path: Path, kind: str) -> None:
    chosen, wanted = format_of(kind), RowFilter.of(statuses=["labelled"])
    note = export_exchange(run, tmp_path / "out", chosen, wanted, exchange_card(run, chosen, wanted, ""))
    front, body = split((tmp_path / "out" / "README.md").read_text())
    spans = check_body(body)
    assert kind in spans
    assert f"# Labels of {note.counts['latents']} latents" in body
    assert "not only of the latents that were chosen" in body
    assert front["viewer"] is False
    assert "README.md" in [file.name for file in note.files]


@pytest.mark.parametrize("by_source", [False, True])
def test_a_folder_for_the_hub(run: RunContext, tmp_path: Path, by_source: bool) -> None:
    out = tmp_path / "hub"
    for _ in range(2):  # the second takes the place of the first
        export_with_card(run, out, ExportOptions(by_source=by_source), "mit")
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "dictionary"]
    assert verify_dictionary(out / "dictionary").num_rows == NUM_LATENTS
    front, body = split((out / "README.md").read_text())
    check_body(body)
    for column in COLUMNS:
        assert f"| `{column.name}` |" in body
    files = list(out.glob(front["configs"][0]["data_files"]))
    assert sum(len(pd.read_parquet(path)) for path in files) == NUM_LATENTS


def test_a_card_takes_the_place_of_no_other_file(run: RunContext, tmp_path: Path) -> None:
    out = tmp_path / "hub"
    out.mkdir()
    (out / "README.md").write_text("mine")
    with pytest.raises(StoreError, match="not made by autointerp"):
        export_with_card(run, out, ExportOptions(), "")
    assert [path.name for path in out.iterdir()] == ["README.md"]
    export_run(run, tmp_path / "dictionary")
    with pytest.raises(StoreError, match="is a dictionary itself"):
        export_with_card(run, tmp_path / "dictionary", ExportOptions(), "")
    with pytest.raises(InputError, match="is a URL"):
        export_with_card(run, "memory://a/b", ExportOptions(), "")
