"""Graph rewrites, one per file, each a function of an onnx_ir model that says whether it changed anything."""
