"""Former home of `http.proxies`: node environments written for version 0.1 name it."""
