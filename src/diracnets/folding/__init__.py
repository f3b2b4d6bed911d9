"""Dirac convolutions and batch norms become ordinary convolutions, and the proof of it."""
