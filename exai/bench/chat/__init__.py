"""`exai bench --chat`: what EXAI adds to a model's answer, and what many streaming answers cost other callers."""
