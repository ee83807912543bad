"""Stages 4 and 7 of the flow: faces <-> tokens."""
