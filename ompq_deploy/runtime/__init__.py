"""How models are run: onnxruntime sessions, batches, threads, and who hears of progress."""
