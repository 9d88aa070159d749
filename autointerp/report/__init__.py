"""What a run found, for people: summary.json, the terminal, a picture, one latent, how far it is.

Nothing is imported here: a look at how far a run is needs neither pandas nor matplotlib.
"""
