"""Integers in place of floats: grids, their ranges, and where QuantizeLinear pays.

grid              scale and zero point of a tensor; values to codes and back
"""
