"""Fixed comparisons with a table of their own, from single ops to whole nets; and `soak`, of a bundle's artefacts."""
