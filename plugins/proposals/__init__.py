"""Region proposals from RPN outputs (RegionProposals)."""
