"""What a program calls. It starts the guard as a program, and never imports it."""
