"""Checks of rendered Kubernetes manifests, as they are applied to one namespace. Needs no cluster."""
