"""Runs a configuration: stages cut into chunks, chunks executed once each, one function for every driver."""
