"""The playground: a web page for trying rankings."""
