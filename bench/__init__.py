"""Measuring and telling: latency and accuracy of artefacts beside PyTorch, and the report of it."""
