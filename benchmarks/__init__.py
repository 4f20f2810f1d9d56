"""Measurements of galenic against its peers; `make bench` runs them."""
