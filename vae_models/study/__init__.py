"""The study of the ρ-VAE paper's comparisons (arXiv:1909.06236): its plan, its runs, and what is made of them."""
