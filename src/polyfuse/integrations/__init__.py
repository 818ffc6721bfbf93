"""Callbacks for other trainers: `integrations.lightning` and `integrations.transformers`."""
