"""Makes a night's run: rows in the store and a note in its folder, once, whoever and how many try."""

from __future__ import annotations

from sqlalchemy import func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from autointerp.config import RunConfig
from autointerp.nightly.base import Base, night_config, night_sources, open_base
from autointerp.nightly.book import change_night
from autointerp.nightly.choosing import Chosen, choose
from autointerp.nightly.fingerprints import scorer_prints
from autointerp.nightly.schedule import Schedule
from autointerp.pipeline.code_version import code_version
from autointerp.pipeline.folder import RunFolder, RunNote, usable_folder
from autointerp.shown_url import shown_url
from autointerp.store import LabelStore
from autointerp.store.column_types import utc_now
from autointerp.store.models import Artefact, NightRow, Run
from autointerp.store.rows import source_row

_PROMPTS = "prompts"
"""As in ``pipeline.starting``."""
_MOST_TRIES = 20
"""Other processes can take the ordinal of a configuration so often before something else must be wrong."""


def make_night(store: LabelStore, schedule: Schedule, night: NightRow, *, submitted: bool) -> str | None:
    """Choose what the night scores and make its run; its id, None where there is nothing to score.

    ``submitted``: whether a cluster's workers do it.

    A second process that does the same finds it made. Errors: InputError's family, where the base or the schedule do not serve.
    """
    with open_base(store, schedule) as base:
        chosen = choose(store, schedule, base)
        counts = {
            "labelled": chosen.labelled,
            "stale": chosen.stale,
            "planned": sum(map(len, chosen.latents.values())),
            "planned_stale": chosen.num_stale,
            "base": base.run_id,
        }
        if not counts["planned"]:
            with store.writing() as connection:
                change_night(connection, night, ["due"], state="empty", counts=counts, settled_at=utc_now())
            return None
        return _made(store, schedule, night, base, chosen, counts, submitted)


def _made(
    store: LabelStore,
    schedule: Schedule,
    night: NightRow,
    base: Base,
    chosen: Chosen,
    counts: dict[str, object],
    submitted: bool,
) -> str:
    config = night_config(schedule, base, chosen.latents)
    sources = night_sources(config, base)
    folder = RunFolder(schedule.root / "runs" / night.date)
    with usable_folder(folder.root, "the schedule's folder"):
        folder.root.mkdir(parents=True, exist_ok=True)
    run_id = schedule.run_id(night.date)
    kept = {"anchors": chosen.anchors, "prints": _prints(config, base)}
    for tries in range(_MOST_TRIES):
        if store.has_run(run_id):
            break
        try:
            with store.writing() as connection:
                last = connection.execute(select(func.max(Run.ordinal)).where(Run.digest == config.digest)).scalar()
                with Session(bind=connection) as session:
                    session.add(
                        Run(
                            id=run_id,
                            name=f"nightly {schedule.name}",
                            digest=config.digest,
                            ordinal=(last or 0) + 1,
                            config=config.stored(),
                            state="running",
                            submit_key=run_id,
                            submitted=submitted,
                            folder=str(folder.root),
                            code_version=code_version(),
                        )
                    )
                    session.flush()
                    session.add_all(source_row(run_id, source) for source in sources)
                    session.flush()
                prompts = {"run_id": run_id, "kind": _PROMPTS, "version": 1, "value": config.prompt_hashes()}
                connection.execute(insert(Artefact).values(**prompts, created_at=utc_now()))
                change_night(connection, night, ["due"], state="running", run_id=run_id, counts=counts, anchors=kept)
        except IntegrityError:  # another process made it, or took the ordinal: look again
            if tries == _MOST_TRIES - 1:
                raise
    made = store.run(run_id)
    if folder.read_note() is None:
        folder.claim_note(RunNote(run_id, made.digest, shown_url(store.engine.url)))
    return run_id


def _prints(config: RunConfig, base: Base) -> dict[str, object]:
    """What the night's scores hang on beside the labels."""
    return {
        "coders": {source.name: source.coder_fingerprint for source in base.sources},
        "corpus": base.corpus,
        "scorers": {
            kind: {"prompt": one.prompt, "judge": one.judge, "settings": one.settings}
            for kind, one in scorer_prints(config).items()
        },
    }
