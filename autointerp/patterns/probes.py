"""Candidate patterns from what the probe stage found at single exemplars (METHODS 2)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from autointerp.patterns.index import Ints, Template
from sae_core.records import SuffixProbe


@dataclass
class ProbedPatterns:
    """Candidates of one template."""

    activation: dict[tuple[int, ...], list[float]] = field(default_factory=lambda: defaultdict(list))
    """Activations of the suffixes, by the candidate's literals (firing token first)."""

    def literals(self) -> Ints:
        """[K, len(template)] the candidates."""
        return np.array(sorted(self.activation), dtype=np.int64)

    def seen(self) -> Ints:
        """[K] exemplars that gave each candidate, in the order of :meth:`literals`."""
        return np.array([len(self.activation[key]) for key in sorted(self.activation)], dtype=np.int64)


def probed_patterns(
    probes: Iterable[SuffixProbe], least_importance: float, most_literals: int, start_literal: int
) -> dict[Template, ProbedPatterns]:
    """Candidates by template: a suffix with its unimportant tokens as wildcards.

    At most ``most_literals`` tokens stay, the most important ones. The firing token may be a wildcard only if the
    token before it stays, so that a pattern looks at few positions.
    """
    found: dict[Template, ProbedPatterns] = defaultdict(ProbedPatterns)
    for probe in probes:
        if not probe.found or not len(probe.token_ids):
            continue
        tokens = probe.token_ids[::-1].astype(np.int64)
        importance = probe.importances[::-1].astype(np.float64)
        order = np.argsort(-importance, kind="stable")
        strong = order[importance[order] >= least_importance][:most_literals]
        offsets = {int(offset) for offset in strong}
        if 1 not in offsets:
            offsets.add(0)
        template = tuple(sorted(offsets))
        literals = [int(tokens[offset]) for offset in template]
        if probe.starts_sequence:
            template = (*template, len(tokens))
            literals.append(start_literal)
        found[template].activation[tuple(literals)].append(float(probe.suffix_activation))
    return dict(found)
