"""An emulator of the PTX that Triton compiles."""
