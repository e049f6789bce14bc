"""Variational auto-encoders in Pyro whose posterior may be autoregressive (:mod:`ar1_dist`), and a command to compare
posteriors: ``vae-models compare``."""
