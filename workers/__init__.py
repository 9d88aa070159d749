"""Celery processes: an application, a few tasks that call autointerp.cluster, and the broker's side of it."""
