"""What a run will ask of language models, and what that costs, before anything is asked: ``plan`` from each component's ``planned``."""
