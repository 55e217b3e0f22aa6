"""Plans capacity: simulates how many replicas a load needs, with the service's own scheduler, router and autoscaling
policy."""
