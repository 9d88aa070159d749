"""How far the work is from what the hardware allows: each figure stands beside its floor, measured in the same process."""
