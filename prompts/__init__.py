"""One file a prompt: system text, user text, shots, answer schema and version. Data, no code."""
