"""Files in which `@name@` stands for what a configuration decides."""
