"""Capacity planning: how many replicas a load needs, by simulation with the service's own scheduler, router and
autoscaling policy."""
