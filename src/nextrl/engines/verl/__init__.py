"""Leaps between segments of a verl run on Ray."""
