"""Occluded images and copies of data sets."""
