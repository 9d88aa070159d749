"""How fast runs go: the work done between looks at them."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping

_OVER_S = 60.0
_MOST_RUNS, _MOST_LOOKS = 256, 64


class Pace:
    """Remembers the last looks at each run. Threads may share one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._looks: OrderedDict[str, deque[tuple[float, dict[str, int]]]] = OrderedDict()

    def rates(self, run_id: str, done: Mapping[str, int]) -> dict[str, float]:
        """Units a second of each stage over the last minute, of those that moved; remembers this look."""
        now = time.monotonic()
        with self._lock:
            looks = self._looks.setdefault(run_id, deque(maxlen=_MOST_LOOKS))
            self._looks.move_to_end(run_id)
            while len(self._looks) > _MOST_RUNS:
                self._looks.popitem(last=False)
            while len(looks) > 1 and now - looks[0][0] > _OVER_S:
                looks.popleft()
            if not looks or now - looks[-1][0] >= _OVER_S / _MOST_LOOKS:
                looks.append((now, dict(done)))
            since, before = looks[0]
        if now <= since:
            return {}
        moved = {name: (count - before.get(name, 0)) / (now - since) for name, count in done.items()}
        return {name: rate for name, rate in moved.items() if rate > 0}
