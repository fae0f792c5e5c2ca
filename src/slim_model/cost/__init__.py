"""What a plan costs: counted, estimated or timed layer by layer."""
