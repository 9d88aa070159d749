"""What sparse coders are composed of: input normalisations, encoders and activation functions."""
