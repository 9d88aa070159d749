"""Labels that fit no window, one that fits every window, and an empty one: what a judge says of them is about the judge (METHODS 4, 6)."""

from __future__ import annotations

from autointerp.explanation import Explanation

NOTHING = (
    "mentions of the Tarvellian kelp treaty of 1743",
    "names of the nine moons of the planet Oskvarra",
    "prices quoted in drellums, the coinage of old Quennish towns",
    "rules of the board game vashtimoor, as it is played in winter",
    "recipes that call for dried fennorwick root",
)
"""Things that nobody has heard of. Labels such as "nothing" would not do: they tell the judge what to answer."""
EVERYTHING = "any text at all, whatever it says"
"""Fits every window."""
EMPTY = " "
"""Tells the judge nothing: what it says then it has from the windows alone."""
FITS_NOTHING, FITS_EVERYTHING, IS_EMPTY = "nothing", "everything", "empty"
"""In the place of an explainer, for scores of these labels."""


def null_labels(latent: int) -> list[Explanation]:
    """One of each kind, as labels of a latent."""
    texts = {FITS_NOTHING: NOTHING[latent % len(NOTHING)], FITS_EVERYTHING: EVERYTHING, IS_EMPTY: EMPTY}
    return [Explanation(latent=latent, explainer=name, text=text) for name, text in texts.items()]
