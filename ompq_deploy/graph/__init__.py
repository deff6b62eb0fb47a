"""What the nodes of a canonical graph mean: layers, which tensors carry a grid, which nodes one operation computes."""
