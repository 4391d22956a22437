"""Fixed comparisons that make a table of their own: `ops` (single operations), `peers` (whole nets)."""
