"""What runs inside Serve's proxies."""
