"""Data sets made out of others."""
