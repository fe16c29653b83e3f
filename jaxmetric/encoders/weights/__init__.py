"""Reads weights that others trained, and turns them into parameters of the networks here."""
