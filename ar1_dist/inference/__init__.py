"""Exact inference on chains: construct them, marginalise and condition, and update them by factors.

Functions of parameters that know no distribution, so that classes of chains wrap them. :mod:`ar1_dist.inference.chain`
has their notation.
"""
