"""Commands and configs."""
