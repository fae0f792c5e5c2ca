"""What can go of a checkpoint, and in which tensors it lies: sites of a layer, and the hidden channels of all."""
