"""Guides for Pyro with chains, and what they check."""
