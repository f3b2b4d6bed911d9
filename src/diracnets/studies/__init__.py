"""The questions of the paper: each takes recipes or networks to a table, a picture and all numbers."""
