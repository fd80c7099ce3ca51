"""The plugin's data sets."""
