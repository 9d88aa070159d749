"""Running it for long: what is wrong, how it goes, what is kept, and how it is brought to another version."""
