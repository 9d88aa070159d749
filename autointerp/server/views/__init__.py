"""What a page shows, as values: a module a page. The page's JSON twin is the same value."""
