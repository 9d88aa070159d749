"""From verdicts to precision and recall at the natural rate: what the stages ``screen_n``, ``audit`` and ``estimate_n`` share."""
