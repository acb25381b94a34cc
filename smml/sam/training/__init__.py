"""Training a tiny SAM: scenes from the simulator, prompts from their truth, and the loop."""
