"""The Celery application: ``celery -A workers.app worker -Q llm`` (gpu, export, control), ``celery -A workers.app beat``."""

from __future__ import annotations

from workers.configuration import make_app
from workers.lifecycle import connect_signals
from workers.reconcile_timer import ReconcileTimer

app = make_app()
app.steps["worker"].add(ReconcileTimer)
connect_signals()
