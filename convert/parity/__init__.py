"""The parity ladder: MLX and PyTorch train the same model to the same numbers, shown on the machine at hand.

command.py climbs it. A rung (rungs_*.py) runs the same numbers through every backend and measures the differences
against gates (gates.py) near the measured noise; mutants.py holds wrong variants that the gates must reject.
"""
