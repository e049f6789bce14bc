"""Exact inference on chains, in closed form and linear in the dimension: functions from parameters to parameters.

They know no distribution, so that classes of chains wrap them: :class:`~ar1_dist.AR1Normal` has each of them as a
method, which says what it takes and returns. :mod:`ar1_dist.inference.chain` has their notation.
"""
