"""An example of `rerank-service tune`: candidates for a better embedded model. The service neither ships nor imports
this code."""
