"""The integer-only model: lower to integer operations, write them as ONNX, prove that no float is left."""
