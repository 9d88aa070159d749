"""How exports in other tools' formats are written: whole or not at all, taken up after a kill, in flat memory, refused in a sentence."""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from autointerp import cli
from autointerp.exchange import export_exchange, format_of, known_formats, neuronpedia
from autointerp.exchange.output_files import OutputFiles
from autointerp.exchange.strict_json import json_line, plain_text
from autointerp.pipeline.context import RunContext
from sae_core.errors import InputError, NonFiniteError, StoreError
from tests.autointerp.exchange_run import NUM_LATENTS, make_run

BOTH = ("neuronpedia", "circuit-tracer")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    return make_run(tmp_path_factory.mktemp("exchange") / "run")


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "_exchange.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@example("\\u0000 and \\\\u0000 \\\\\\u0000")
@given(st.text() | st.text(alphabet='\\u0"\x00\ud800\u2028a'))
def test_every_text_survives_the_import_that_blanks_nuls(text: str) -> None:
    line = json_line({"text": plain_text(text)}, "x").decode("ascii")
    assert line.count("\n") == 1
    found = json.loads(line.replace("\\u0000", " "))["text"]
    expected = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\x00", "␀")
    assert found == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_never_written(value: float) -> None:
    with pytest.raises(NonFiniteError, match="latent 3"):
        json_line({"a": [1.0, value]}, "latent 3")


def test_formats_are_found() -> None:
    assert set(known_formats()) == set(BOTH)


@pytest.mark.parametrize("kind", BOTH)
def test_a_killed_export_goes_on_and_ends_the_same(
    run: RunContext, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neuronpedia, "BATCH", 5)
    chosen = format_of(kind)
    export_exchange(run, tmp_path / "whole", chosen)
    finish = type(chosen).finish

    class Killed(BaseException):
        pass

    def kill(*arguments: object) -> None:
        raise Killed

    monkeypatch.setattr(type(chosen), "finish", kill)
    # what a kill leaves is left: nothing is cleared up
    monkeypatch.setattr("autointerp.export.folder_swap.shutil.rmtree", lambda *a, **k: None)
    with pytest.raises(Killed):
        export_exchange(run, tmp_path / "out", chosen)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    monkeypatch.setattr(neuronpedia, "BATCH", 5)
    assert type(chosen).finish is finish
    left = [path for path in tmp_path.iterdir() if path.name.startswith(".out.")]
    assert len(left) == 1
    with (left[0] / "_progress.jsonl").open("a") as file:
        file.write('{"part": "half a li')
    written: list[str] = []
    binary = OutputFiles.binary

    def watched(self: OutputFiles, name: str) -> object:
        written.append(name)
        return binary(self, name)

    monkeypatch.setattr(OutputFiles, "binary", watched)
    export_exchange(run, tmp_path / "out", chosen)
    assert not any("batch" in name or ".bin" in name for name in written), "parts that are whole are not written again"
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "whole"}


def test_a_part_that_was_harmed_is_written_again(
    run: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = format_of("circuit-tracer")
    export_exchange(run, tmp_path / "whole", chosen)
    with monkeypatch.context() as patched:
        patched.setattr(type(chosen), "finish", lambda *a: sys.exit(9))
        patched.setattr("autointerp.export.folder_swap.shutil.rmtree", lambda *a, **k: None)
        with pytest.raises(SystemExit):
            export_exchange(run, tmp_path / "out", chosen)
    left = next(path for path in tmp_path.iterdir() if path.name.startswith(".out."))
    packed = left / "features/layer_0.bin"
    data = bytearray(packed.read_bytes())
    data[10] ^= 1
    packed.write_bytes(bytes(data))
    export_exchange(run, tmp_path / "out", chosen)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("kind", BOTH)
def test_an_export_takes_the_place_of_another_and_of_nothing_else(run: RunContext, tmp_path: Path, kind: str) -> None:
    for chosen in BOTH:
        export_exchange(run, tmp_path / "out", format_of(chosen))
    export_exchange(run, tmp_path / "out", format_of(kind))
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"notes\.txt"):
        export_exchange(run, tmp_path / "out", format_of(kind))
    assert contents(tmp_path / "out") == before | {"notes.txt": b"mine"}
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="is a file"):
        export_exchange(run, tmp_path / "file", format_of(kind))
    with pytest.raises(InputError, match="is a URL"):
        export_exchange(run, "memory://x/y", format_of(kind))


def test_two_sources_on_one_layer(run: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    real = next(source for source in run.sources if not source.control)
    monkeypatch.setitem(run.__dict__, "sources", [real, replace(real, name="other")])
    with pytest.raises(InputError, match="all on layer 0"):
        export_exchange(run, tmp_path / "out", format_of("circuit-tracer"))
    chosen = format_of("neuronpedia")
    assert isinstance(chosen, neuronpedia.NeuronpediaFormat)
    from autointerp.exchange.run_reading import RunReading
    from autointerp.export import RowFilter

    ids = chosen.source_ids(RunReading.of(run, run.store, RowFilter()))
    assert ids == {"made-up": "0-autointerp__made-up", "other": "0-autointerp__other"}


@pytest.mark.parametrize("kind", BOTH)
def test_memory_does_not_depend_on_the_number_of_latents(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neuronpedia, "BATCH", 12)
    monkeypatch.setattr("autointerp.exchange.run_reading.PAGE", 12)
    peaks = []
    for size in (24, 72):
        context = make_run(tmp_path / str(size), size)
        export_exchange(context, tmp_path / f"first-{size}", format_of(kind))  # what is read once
        tracemalloc.start()
        export_exchange(context, tmp_path / f"out-{size}", format_of(kind))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0], peaks


Shell = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["autointerp", "export", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, *capsys.readouterr()

    return call


@pytest.mark.parametrize("kind", BOTH)
def test_the_command_writes_a_format_with_a_card(run: RunContext, tmp_path: Path, shell: Shell, kind: str) -> None:
    out = tmp_path / "out"
    code, said, _ = shell(run.folder.root, out, "--format", kind, "--card", "--corpus-license", "cc-by-4.0")
    assert code == 0
    assert f"{NUM_LATENTS} latents written to {out} for {kind}, with" in said
    assert "license: cc-by-4.0\n" in (out / "README.md").read_text()
    assert shell(run.folder.root, out, "--format", kind)[0] == 0, "it takes the place of the first, card and all"
    assert not (out / "README.md").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--format", "nope"], "no format 'nope'"),
        (["--format", "neuronpedia", "--columns", "label"], "--columns is for parquet"),
        (["--format", "circuit-tracer", "--partition-by", "source"], "--partition-by is for parquet"),
        (["--format", "circuit-tracer", "--verdicts"], "--verdicts is for parquet"),
        (["--format", "circuit-tracer", "--set", "model_id=x"], "no setting of circuit-tracer: it has scan"),
        (["--format", "neuronpedia", "--set", "model_id=../x"], "will not do"),
        (["--set", "scan=x"], "parquet has no settings"),
        (["--corpus-license", "mit"], "give --card too"),
        (["--card", "--corpus-license", "a\nb: c"], "not a line of text"),
        (["--format", "neuronpedia", "--source", "random"], "no source 'random'"),
        (["--format", "neuronpedia", "--where", "nope>1"], "no column 'nope'"),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_writes_nothing(
    run: RunContext, tmp_path: Path, shell: Shell, options: list[str], said: str
) -> None:
    code, out, error = shell(run.folder.root, tmp_path / "out", *options)
    assert (code, out) == (2, "")
    assert said in " ".join(error.split())
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [["--card"], ["--format", "neuronpedia"], ["--set", "a=b"]])
def test_verify_takes_no_format(run: RunContext, shell: Shell, options: list[str]) -> None:
    code, _, error = shell(run.folder.root, "--verify", *options)
    assert code == 2
    assert "no other option" in " ".join(error.split())
