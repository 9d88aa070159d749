"""A configuration is read from file, command line and environment, and refused in one sentence."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autointerp.config import RunConfig, Section, known_keys, load_config, parse_config
from autointerp.prompting import prompt
from autointerp.scorers.comparing import comparing_scorer
from sae_core.errors import ConfigError, InputError, MissingFileError

MINIMAL = """
corpus.path = "python-stdlib"
[subject]
model = "subject"
[[coders]]
path = "coder"
hookpoint = "layers.1"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "subject").mkdir()
    (tmp_path / "coder").mkdir()
    path = tmp_path / "run.toml"
    path.write_text(MINIMAL)
    return path


def refused(path: Path, *sets: str, environment: dict[str, str] | None = None, text: str | None = None) -> str:
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_config(path, sets, environment)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_and_paths_relative_to_the_file(file: Path) -> None:
    config = load_config(file)
    assert config.subject.model == str(file.parent / "subject")
    assert config.coders[0].path == str(file.parent / "coder")
    assert config.corpus.path == "python-stdlib"
    assert (config.extraction.window_length, config.extraction.shard_size, config.latents) == (32, 262_144, "all")
    assert config.controls.shuffled_latents == 200
    assert config.source_names() == ["coder-layers.1"]
    assert [table["kind"] for table in config.explainers] == ["pattern"]
    assert "exemplars" in config.explainers[0], "components bring their defaults into the digest"


def test_command_line_beats_environment_beats_file(file: Path) -> None:
    environment = {
        "AUTOINTERP_EXTRACTION__NUM_TOKENS": "1000",
        "AUTOINTERP_SEED": "3",
        "AUTOINTERP_SUBJECT__REVISION": "1234",
        "AUTOINTERP_FAULT": "x:y:1",
        "OTHER": "x",
    }
    config = load_config(file, ["extraction.num_tokens=2_000", "latents=[5, 1, 5]"], environment)
    assert (config.extraction.num_tokens, config.seed, config.latents) == (2000, 3, (1, 5))
    assert config.subject.revision == "1234", "digits in a text field stay text"


def test_lists_are_set_by_position(file: Path) -> None:
    sets = [
        "coders.0.hookpoint=layers.2",
        "coders.1.path=/x/other",
        "explainers.0.exemplars=4",
        "corpus.suffixes=['.md']",
    ]
    config = load_config(file, sets)
    assert [coder.hookpoint for coder in config.coders] == ["layers.2", None]
    assert config.explainers[0]["exemplars"] == 4
    assert config.corpus.suffixes == (".md",)
    assert "must be a number from 0 to 1" in refused(file, "coders.7.path=x")
    assert "is a single value" in refused(file, "subject.model.x=1")
    assert "not of the form key=value" in refused(file, "seed")


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (
            "extracton.num_tokens=5",
            r"unknown key 'extracton.num_tokens' \(--set .*\): did you mean 'extraction.num_tokens'",
        ),
        ("extraction.num_token=5", r"unknown key 'extraction.num_token' .*did you mean 'extraction.num_tokens'"),
        ("coders.0.hookpiont=x", r"unknown key 'coders.0.hookpiont' .*did you mean 'coders.0.hookpoint'"),
        ("sed=1", r"unknown key 'sed' .*did you mean 'seed'"),
        (
            "extraction.num_tokens=many",
            r"'extraction.num_tokens' is 'many' .*it must be a valid integer.*Tokens of the corpus",
        ),
        ("extraction.num_tokens=0", r"'extraction.num_tokens' is 0 .*greater than or equal to 1"),
        ("extraction.num_tokens=1.5", r"'extraction.num_tokens' is 1.5 .*it must be a valid integer"),
        ("seed=true", r"'seed' is True .*it must be a valid integer"),
        ("latents=5:5", r"'latents' is '5:5' .*the range is empty"),
        ("latents=first", r"'latents' is 'first' .*\"all\", a range such as \"0:512\""),
        ("latents=[]", r"'latents' is \[\] .*empty list selects nothing"),
        ("latents=[-1]", r"'latents' is \[-1\] .*numbers from 0 on"),
        ("coders=[]", r"'coders' is \[\] .*at least 1"),
        ("subject.dtype=int8", r"'subject.dtype' is 'int8' .*'float32', 'bfloat16' or 'float16'"),
        ("coders.0.name=../x", r"'coders.0.name' is '../x'"),
        ("precision.by=fuzz", r"'precision.by' is 'fuzz' \(--set .*it must be \"detection\".*or \"\" for no estimate"),
        ("precision.screen_labels=101", r"'precision.screen_labels' is 101 .*less than or equal to 100.*one call"),
        ("precision.rounds=5", r"'precision.rounds' is 5 .*less than or equal to 4"),
        ("precision.width=0", r"'precision.width' is 0 .*greater than 0"),
        ("precision.verifed=3", r"unknown key 'precision.verifed' .*did you mean 'precision.verified'"),
        ("controls.null_latents=-1", r"'controls.null_latents' is -1 .*greater than or equal to 0"),
        ("explainers.0.kind=patern", r"unknown kind 'patern': did you mean 'pattern'"),
        ("explainers.0.exemplar=3", r"unknown field 'exemplar': did you mean 'exemplars'"),
        ("scorers.0.kind=patern", r"unknown kind 'patern'.*'pattern'"),
    ],
)
def test_what_does_not_fit_is_one_sentence(file: Path, sets: str, expected: str) -> None:
    text = file.read_text() + '\n[[explainers]]\nkind = "pattern"\n[[scorers]]\nkind = "pattern"\n'
    file.write_text(text)
    assert re.search(expected, refused(file, sets))


def test_the_file_is_named_where_it_is_at_fault(file: Path) -> None:
    assert f"in {file}" in refused(file, text=MINIMAL + "\n[extracton]\nnum_tokens = 3\n")
    assert "unknown key 'extracton.num_tokens'" in refused(file)
    assert "the key 'subject' is missing" in refused(
        file, text=MINIMAL.replace("[subject]\nmodel", "x.model").replace("x.model", "#")
    )
    assert "is not valid TOML" in refused(file, text="a = ")
    assert "environment variable AUTOINTERP_SEDE" in refused(file, text=MINIMAL, environment={"AUTOINTERP_SEDE": "1"})
    with pytest.raises(MissingFileError, match="there is no configuration file"):
        load_config(file.parent / "absent.toml")
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(file)


def test_two_coders_of_one_name_are_refused_and_unnamed_ones_are_told_apart(file: Path) -> None:
    assert load_config(file, ["coders.1.path=coder", "coders.1.hookpoint=layers.1"]).source_names() == [
        "coder-layers.1",
        "coder-layers.1-2",
    ]
    assert "two coders are named 'a'" in refused(file, "coders.0.name=a", "coders.1.path=coder", "coders.1.name=a")


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        ("EleutherAI/pythia-70m", "EleutherAI/pythia-70m"),
        ("gpt2", "gpt2"),
        ("./absent", "absent"),
        ("subject/absent", "subject/absent"),
    ],
)
def test_hub_ids_stay_and_mistyped_paths_become_paths(file: Path, given: str, resolved: str) -> None:
    model = load_config(file, [f"subject.model={given}"]).subject.model
    assert model == (resolved if "absent" not in given else str(file.parent / resolved))


def test_the_digest_is_of_what_decides_the_results(file: Path) -> None:
    config = load_config(file)
    text = json.dumps(config.identity(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert config.digest == hashlib.sha256(text.encode()).hexdigest()
    assert load_config(file, ["subject.device=cuda", "store.url=sqlite:////x.db"]).digest == config.digest
    assert load_config(file, ["store.url=sqlite:///x.db"]).store.url == f"sqlite:///{file.parent}/x.db"
    for url in ("sqlite:////tmp/x.db", "postgresql://h/x"):
        assert load_config(file, [f"store.url={url}"]).store.url == url
    for change in (
        "seed=1",
        "extraction.num_tokens=5",
        "latents=0:5",
        "explainers=[{kind='pattern', exemplars=3}]",
        "precision.screen_windows=499",
        "precision.by=''",
        "controls.null_latents=19",
    ):
        assert load_config(file, [change]).digest != config.digest
    file.write_text(MINIMAL + "\n[extraction]\ncontext_length = 256\n")
    assert load_config(file).digest == config.digest, "a default that is written down changes nothing"


@pytest.mark.parametrize(
    ("latents", "expected"),
    [("all", list(range(10))), ("2:5", [2, 3, 4]), (":3", [0, 1, 2]), ("8:", [8, 9]), ("[7,1]", [1, 7])],
)
def test_latents_are_selected(file: Path, latents: str, expected: list[int]) -> None:
    assert list(load_config(file, [f"latents={latents}"]).select_latents(10)) == expected


@given(start=st.integers(0, 30), stop=st.integers(0, 30), size=st.integers(1, 20))
def test_a_range_selects_what_slicing_selects_or_is_refused(start: int, stop: int, size: int) -> None:
    data = {"subject": {"model": "m"}, "coders": [{"path": "c"}], "corpus": {"path": "p"}, "latents": f"{start}:{stop}"}
    try:
        selected = list(RunConfig.model_validate_json(json.dumps(data)).select_latents(size))
    except ValueError:
        assert start >= stop or stop > size or start >= size
    else:
        assert selected == list(range(size))[start:stop] != []


def test_latents_beyond_the_coder_are_refused(file: Path) -> None:
    for latents in ("0:11", "10:", "[3, 10]"):
        with pytest.raises(ConfigError, match="has 10 latents"):
            load_config(file, [f"latents={latents}"]).select_latents(10)


def test_every_field_is_documented_in_a_sentence() -> None:
    def walk(model: type[Section]) -> None:
        assert model.__doc__
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"
            assert field.description.endswith("."), f"{model.__name__}.{name}"

    for section in (RunConfig, *Section.__subclasses__()):
        walk(section)
    assert {
        "subject.model",
        "coders.0.path",
        "coders.0.hookpoint",
        "corpus.path",
        "corpus.text_field",
        "store.url",
    } <= set(known_keys())
    assert {"extraction.num_tokens", "extraction.context_length", "latents", "seed", "explainers", "scorers"} <= set(
        known_keys()
    )


def test_reading_a_configuration_loads_no_torch(file: Path) -> None:
    code = (
        "import sys; from autointerp.config import load_config\n"
        f"load_config({str(file)!r}); print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("second", ["tokens_field", "messages_field"])
def test_a_row_gives_one_document(file: Path, second: str) -> None:
    with pytest.raises(ConfigError, match=r"corpus\.text_field is set too, and a row gives one document") as caught:
        load_config(file, ["corpus.text_field=text", f"corpus.{second}=ids"])
    assert f"'corpus.{second}' is 'ids'" in str(caught.value)
    config = load_config(file, [f"corpus.{second}=ids", "corpus.packed=true", "corpus.bos=always"])
    assert parse_config(config.identity(), "the store") == config


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (["corpus.bos=sometimes"], "corpus.bos"),
        (["corpus.packed=maybe"], "corpus.packed"),
        (["explainers=[]"], "at least one [[explainers]] table"),
        (["scorers=[{kind='pattern'}, {kind='pattern'}]"], "2 tables of [[scorers]] have the kind 'pattern'"),
        (["coders.0.name=a.random"], "names that end in '.random'"),
        ([f"coders.0.name={'a' * 74}"], "a name has 1 to 73 letters"),
        (["subject.model=~nobody-of-that-name/x"], "no path that can be looked up"),
        (["coders.0.path=./a\0b"], "no path that can be looked up"),
        ([f"corpus.path=./{'x' * 300}"], "no path that can be looked up"),
        (["scorers=[{kind='pattern', skip_repeated='yes'}]"], "skip_repeated"),
        (["scorers=[{kind='intervention', windows=4.0}]"], "windows"),
        (["scorers=[{kind='intervention', steering_targets=[inf]}]"], "steering_targets"),
        (["scorers=[{kind='intervention', steering_targets=[0.0]}]"], "greater than 0"),
    ],
)
def test_more_that_does_not_fit_is_a_sentence(file: Path, sets: list[str], expected: str) -> None:
    assert expected in refused(file, *sets)


def test_small_kindnesses(file: Path) -> None:
    assert load_config(file, environment={"AUTOINTERP_STORE__URL": ""}).store.url is None
    file.write_text("\ufeff" + MINIMAL, encoding="utf-8")
    assert load_config(file).seed == 0
    assert load_config(file, ["coders.0.path=./x", "coders.0.hookpoint=y.random"]).source_names() == [
        "x-y.random-coder"
    ]


ASKING = """
[[endpoints]]
kind = "openai"
base_url = "http://127.0.0.1:1/v1"
model = "m"
"""
TWO_EXPLAINERS = '[[explainers]]\nkind = "pattern"\n[[explainers]]\nkind = "max_activating"\n'


def test_a_prompt_of_another_text_is_another_run(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(MINIMAL + ASKING + '[[explainers]]\nkind = "max_activating"\n[[scorers]]\nkind = "saebench"\n')
    config = load_config(file)
    assert set(config.identity()["prompts"]) == {"max_activating", "detection"}, "saebench sends detection's prompt"
    before = config.digest
    original = prompt.load_prompt

    def changed(name: str) -> prompt.Prompt:
        found = original(name)
        return found.model_copy(update={"system": found.system + "!"}) if name == "detection" else found

    monkeypatch.setattr(prompt, "load_prompt", changed)
    assert config.digest != before
    assert parse_config(config.stored(), "stored").digest == config.digest


def test_the_prompt_of_the_screen_counts_where_there_is_a_screen(file: Path) -> None:
    scorers = '[[scorers]]\nkind = "detection"\n'
    file.write_text(f'{MINIMAL}{ASKING}[[explainers]]\nkind = "pattern"\n{scorers}')
    config = load_config(file)
    judge = config.estimated_scorer()
    assert judge is not None
    assert (judge.kind, set(config.prompt_hashes())) == ("detection", {"detection", "screen"})
    assert set(load_config(file, ["precision.screen_windows=0"]).prompt_hashes()) == {"detection"}
    assert set(load_config(file, ['precision.by=""']).prompt_hashes()) == {"detection"}
    assert load_config(file, ['precision.by=""']).estimated_scorer() is None
    without = load_config(file, ["scorers=[{kind='pattern'}]"])
    assert (without.estimated_scorer(), without.precision.by) == (None, "detection"), "no error: it is the default"


@pytest.mark.parametrize(
    ("scorers", "by", "expected"),
    [
        ('[[scorers]]\nkind = "pattern"\n', "", "no scorer judges texts"),
        ('[[scorers]]\nkind = "pattern"\n[[scorers]]\nkind = "fuzz"\n', "pattern", "name one that can (fuzz)"),
        ('[[scorers]]\nkind = "fuzz"\n', "detection", "labels.by is 'detection'"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused_at_once(file: Path, scorers: str, by: str, expected: str) -> None:
    text = f'{MINIMAL}[labels]\nchoose = "best"\nby = "{by}"\n{ASKING}{TWO_EXPLAINERS}{scorers}'
    assert expected in refused(file, text=text)


def test_what_compares_is_what_judges_every_text(file: Path) -> None:
    scorers = '[[scorers]]\nkind = "pattern"\n[[scorers]]\nkind = "fuzz"\n'
    file.write_text(f'{MINIMAL}[labels]\nchoose = "best"\n{ASKING}{TWO_EXPLAINERS}{scorers}')
    config = load_config(file)
    found = comparing_scorer(config.build_explainers(), config.build_scorers(), config.labels.choose, config.labels.by)
    assert found is not None
    assert found.kind == "fuzz"


def test_labels_from_elsewhere_and_an_explainer_are_two_words(file: Path) -> None:
    (file.parent / "labels.parquet").touch()
    labels = f'{MINIMAL}[labels]\nfrom = "labels.parquet"\n'
    file.write_text(labels)
    config = load_config(file)
    assert parse_config(config.stored(), "stored").explainers == config.explainers
    own = '[[explainers]]\nkind = "imported"\npath = "labels.parquet"\nsource = "another"\n'
    assert "leave one of the two out" in refused(file, text=labels + own)


def test_a_preset_only_scores_labels_from_elsewhere(file: Path) -> None:
    asking = 'preset = "delphi"\n' + MINIMAL + ASKING
    for text, sets in (
        (f'{asking}[labels]\nfrom = "labels.parquet"\n', ()),
        (asking, ("labels.from=labels.parquet",)),
    ):
        file.write_text(text)
        config = load_config(file, sets)
        assert [explainer["kind"] for explainer in config.explainers] == ["imported"]
        assert [scorer["kind"] for scorer in config.scorers] == ["detection", "fuzz"]
        again = parse_config(config.stored(), "stored")
        assert again.digest == config.digest
    file.write_text(asking)
    from_environment = load_config(file, (), {"AUTOINTERP_LABELS__FROM": "labels.parquet"})
    assert [explainer["kind"] for explainer in from_environment.explainers] == ["imported"]
    own = f'{asking}[labels]\nfrom = "labels.parquet"\n[[explainers]]\nkind = "pattern"\n'
    assert "('pattern')" in refused(file, text=own)


def test_the_leave_to_score_other_splits_reaches_the_explainer(file: Path) -> None:
    file.write_text(f'{MINIMAL}[labels]\nfrom = "labels.parquet"\nallow_other_split = true\n')
    config = load_config(file)
    assert config.explainers[0]["allow_other_split"] is True
    assert parse_config(config.stored(), "stored").digest == config.digest
