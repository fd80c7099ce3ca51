"""A page about a run, or about several, and cards of models. Nothing is measured here: runs kept what is shown."""
