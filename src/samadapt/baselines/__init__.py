"""What a few-label study compares with, beside heads: SAM prompted with the truth, and nnU-Net."""
