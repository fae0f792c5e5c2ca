"""config.json and the files of weights beside it -> a checkpoint."""
