"""What labels say of every token: the activations that they predict. Adding a way is adding a module here."""
