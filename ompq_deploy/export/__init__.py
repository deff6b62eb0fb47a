"""Write quantized graphs in the forms that runtimes read."""
