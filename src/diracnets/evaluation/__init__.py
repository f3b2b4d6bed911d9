"""Accuracy of a network, predictions for images, and what a network is."""
