"""`tidegate loadtest`: latency and throughput of a KServe v2 endpoint, measured by Locust."""
