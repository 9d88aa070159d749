"""Whether a run's screen by attribution puts latents in the order of their real ablations, as JSON, a source each.

python benchmarks/attribution_agreement.py demo
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from autointerp.pipeline.attribution_agreement import attribution_agreement
from autointerp.pipeline.finding import find_run
from autointerp.pipeline.starting import open_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="output folder of a run with the intervention scorer")
    given = parser.parse_args().run
    store, run_id = find_run(given)
    context = open_run(store, run_id, Path(given) if Path(given).is_dir() else None)
    found = {source.name: attribution_agreement(context, source.name) for source in context.sources}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
