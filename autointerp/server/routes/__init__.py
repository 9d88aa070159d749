"""The routes, a module a topic: each page and its JSON twin stand side by side."""
