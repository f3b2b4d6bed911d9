"""Accuracy of a network, predictions for pictures, and what a network is."""
