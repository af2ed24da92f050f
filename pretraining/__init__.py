"""Synthetic pre-training of `sam_nano`: random label maps, rendered, teach what a region is. See README.md."""
