"""Tools that serving does not need.

reranker            ranking in a Python process, without a service
cli                 the `rerank-service` command, one file per subcommand
batch               score files of any size without a service
evaluation          ranking quality on judged queries
verify              check that a served model computes what its checkpoint says
bench               measure the speed of engines and of running services
planning            capacity planning by simulation
catalogue           published rerankers, and which of them fit this machine
random_checkpoints  checkpoints with random weights in the published formats
deployment          Serve configurations, Ray's environment, draining of nodes
"""
