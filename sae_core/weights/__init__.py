"""Files of weights: what is in them before anything is read, then one pass straight into memory of the wanted dtype."""
