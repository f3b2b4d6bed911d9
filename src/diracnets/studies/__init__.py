"""Experiments of the paper: each makes a table, a figure and raw numbers from recipes or networks."""
