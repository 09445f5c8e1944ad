"""Efficiency: what a prefill and the tokens after it take, with the full model and with a halted one."""
