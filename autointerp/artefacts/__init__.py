"""Files of runs on object storage, for workers that share no folder."""
