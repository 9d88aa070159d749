"""The service: every page of the browser UI, its JSON twin, and what guards them. Loads no torch.

``autointerp.server.app.create_app`` makes the application of ``autointerp.server.settings.ServerSettings``.
"""
