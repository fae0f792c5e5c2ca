"""Files and architectures -> models with example inputs."""
