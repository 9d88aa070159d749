"""Runs that several processes do together: submitted to the store, worked chunk by chunk, reconciled. Nothing here knows the broker.

The store is the only truth. Messages of the broker are hints that a queue has something; a process that hears one claims chunks
from the store, so messages that are lost, doubled or late cost seconds and nothing else.
"""
